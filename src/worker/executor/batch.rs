//! A batch: what is in the mailbox, loaded in one short transaction, then run.

use super::tables::Reach;
use super::{Executor, PATIENCE, run, settle};
use crate::catalog;
use crate::handler::Handler;
use crate::job::{JobId, RowPlace};
use crate::job_table::Statements;
use crate::owner;
use crate::pg::error::forget_cancel;
use crate::pg::guc;
use crate::pg::memory::{HeldDatum, hold_varlena};
use crate::pg::place::Places;
use crate::pg::relation::Lock;
use crate::pg::role::{self, bookkeeping};
use crate::pg::session;
use crate::pg::spi;
use crate::pg::timer;
use crate::pg::xact;
use crate::planted::{self, Bug};
use crate::protocol::{self, Flags, Sight};
use crate::shmem::{Assignment, BATCH, ClaimState, ExecutorSlot, HELD, REFUSED};
use pgrx::pg_sys::{Datum, Oid};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Payload bytes that a batch holds at most, unless a single one is larger.
const PAYLOADS: usize = 4 << 20;

/// A job that was loaded.
pub struct Job {
    pub number: u64,
    pub assignment: Assignment,
    pub handler: Rc<Handler>,
    pub payload: HeldDatum,
    pub row: RowPlace,
    /// It is ours: the dispatcher can no longer take it back.
    taken: bool,
    /// It may not share a commit.
    pub alone: bool,
}

impl Job {
    fn new(number: u64, assignment: Assignment, handler: Rc<Handler>, payload: HeldDatum, row: RowPlace) -> Self {
        Self { number, assignment, handler, payload, row, taken: false, alone: false }
    }

    /// Makes it ours. False: the dispatcher was quicker.
    pub fn take(&mut self, slot: &ExecutorSlot) -> bool {
        self.taken = self.taken || slot.claim(self.number).take(ClaimState::Running);
        self.taken
    }
}

/// What loading a job came to.
enum Loaded {
    Ready(Job),
    /// The row is finished, though nobody took the job out of the queue; or the job was taken out, or submitted again.
    Obsolete(u64, Assignment),
    /// There is no row, or its owner may not see it: a policy, or a restore that has not come to it yet.
    Missing(u64, Assignment),
    /// The table, its owner or the handler is not (any more) what it has to be.
    Refused(u64),
    /// Somebody else has the partition of its row to himself: it waits, as it would for the table, and no other does.
    Held(u64),
}

/// False: nothing was done, because the session is not what jobs of its owner's may run in.
pub fn process(executor: &mut Executor, numbers: Range<u64>) -> bool {
    let numbers: Vec<u64> = numbers.take(BATCH).collect();
    let loaded = load(executor, &numbers);
    executor.clean = false;
    let loaded = match loaded {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return false,
        Err(error) => {
            // Not one job's doing: a table's own permissions or expressions. It is looked at again later.
            executor.tables.complain(0, error.message.clone(), &error.without_data());
            numbers.iter().map(|number| Loaded::Refused(*number)).collect()
        }
    };
    // In their order, because `passed` says up to where the mailbox is done with.
    let mut ready = Vec::new();
    for job in loaded {
        match job {
            Loaded::Ready(job) => ready.push(job),
            Loaded::Refused(number) => {
                run::all(executor, std::mem::take(&mut ready));
                refuse(executor, number, REFUSED);
            }
            Loaded::Held(number) => {
                run::all(executor, std::mem::take(&mut ready));
                refuse(executor, number, HELD);
            }
            Loaded::Obsolete(number, assignment) => {
                run::all(executor, std::mem::take(&mut ready));
                settle::discard(executor, number, &assignment);
            }
            Loaded::Missing(number, assignment) => {
                run::all(executor, std::mem::take(&mut ready));
                settle::postpone(executor, number, &assignment);
            }
        }
    }
    run::all(executor, ready);
    tidy(executor);
    true
}

/// Leaves the session clean, so that the next job need not wait for that. Should it fail, the next batch begins with it.
fn tidy(executor: &mut Executor) {
    if !planted::is(Bug::NoScrub) {
        executor.clean = xact::transaction(|| {
            if !role::session_is_stale() {
                session::reset();
            }
        })
        .is_ok();
    }
}

/// Reads what the jobs need. The transaction ends here, and with it every lock on the job tables. None: see `process`.
fn load(executor: &mut Executor, numbers: &[u64]) -> Result<Option<Vec<Loaded>>, crate::pg::error::PgError> {
    timer::arm(PATIENCE);
    let loaded = xact::transaction(|| {
        if !owner::may_run_here() {
            return None;
        }
        if !executor.clean && !planted::is(Bug::NoScrub) {
            session::reset();
        }
        let mut loaded = Vec::with_capacity(numbers.len());
        let mut bytes = 0;
        for (table, numbers) in by_table(executor.slot, numbers) {
            match table {
                Some(table) => load_some(executor, table, &numbers, &mut bytes, &mut loaded),
                None => loaded.extend(numbers.iter().map(|(number, _)| Loaded::Refused(*number))),
            }
            if bytes > PAYLOADS {
                break;
            }
        }
        Some(loaded)
    });
    timer::disarm();
    forget_cancel();
    loaded
}

/// A claim's number, and what it says.
pub type Numbered = (u64, Assignment);

/// Runs of consecutive jobs of one table; of none, those that the dispatcher has taken back.
fn by_table(slot: &ExecutorSlot, numbers: &[u64]) -> Vec<(Option<u32>, Vec<Numbered>)> {
    let mut groups: Vec<(Option<u32>, Vec<Numbered>)> = Vec::new();
    for number in numbers {
        let claim = slot.claim(*number);
        let (pending, assignment) = (claim.state() == ClaimState::Pending, claim.assignment());
        let table = pending.then_some(assignment.table);
        match groups.last_mut() {
            Some((last, group)) if *last == table => group.push((*number, assignment)),
            _ => groups.push((table, vec![(*number, assignment)])),
        }
    }
    groups
}

/// Loads jobs of one table in their order, until they hold too many `bytes`.
fn load_some(executor: &mut Executor, table: u32, jobs: &[Numbered], bytes: &mut usize, loaded: &mut Vec<Loaded>) {
    let Some(statements) = executor.tables.open(table, Lock::ReadIfFree) else {
        loaded.extend(jobs.iter().map(|(number, _)| Loaded::Refused(*number)));
        return;
    };
    let handlers: Vec<_> =
        jobs.iter().map(|(_, assignment)| executor.handlers.resolve(table, &assignment.handler.to_text())).collect();
    let reached = executor.tables.reach(table, places(jobs), Lock::ReadIfFree);
    // After the locks: a rewrite of the table by whoever had it before leaves older snapshots an empty table.
    xact::with_latest_snapshot(|| {
        spi::connect(|| {
            let found = Found::read(table, &statements, &reached, jobs);
            let queue = catalog::Queue::open();
            for ((number, assignment), handler) in jobs.iter().zip(handlers) {
                let row = found.0.get(&assignment.id);
                let is_queued = || is_still_queued(queue.as_ref(), assignment);
                let sight = protocol::on_load(row.map(|seen| seen.finished), is_queued);
                let one = match (handler, sight) {
                    (None, _) => Loaded::Refused(*number),
                    _ if is_busy(&reached, assignment) => Loaded::Held(*number),
                    (_, Sight::Missing) => Loaded::Missing(*number, *assignment),
                    (_, Sight::Finished) => Loaded::Obsolete(*number, *assignment),
                    (Some(handler), Sight::Open) => {
                        // A NULL, in a table that allows it, is a JSON null to the handler.
                        let payload =
                            row.and_then(|seen| seen.payload).map(|datum| hold_varlena(datum, &executor.memory));
                        let payload = payload.unwrap_or_else(|| HeldDatum::json_null(&executor.memory));
                        *bytes += payload.size();
                        let row = row.map_or(RowPlace::default(), |seen| seen.row);
                        if row.partition != assignment.row.partition {
                            // The statement has locked it.
                            executor.tables.reach(table, std::iter::once(row.partition), Lock::ReadIfFree);
                        }
                        Loaded::Ready(Job::new(*number, *assignment, handler, payload, row))
                    }
                };
                loaded.push(one);
                if *bytes > PAYLOADS {
                    break;
                }
            }
        });
    });
}

/// The parts of their table that the jobs' rows were in.
pub fn places(jobs: &[Numbered]) -> impl Iterator<Item = u32> {
    jobs.iter().map(|(_, assignment)| assignment.row.partition)
}

/// Has somebody else the partition that the row was in to himself?
fn is_busy(reached: &[(u32, Reach)], assignment: &Assignment) -> bool {
    reached.contains(&(assignment.row.partition, Reach::Busy))
}

/// Is it this submission that is in the queue, as of the snapshot in which its row was read?
fn is_still_queued(queue: Option<&catalog::Queue>, assignment: &Assignment) -> bool {
    queue.is_some_and(|queue| queue.has(assignment))
        || bookkeeping(|| spi::connect(|| catalog::is_queued(assignment.job(), assignment.enqueued_at)))
}

/// A job's row, as long as SPI is connected.
struct Seen {
    finished: bool,
    /// Not read yet if it lies outside of the row.
    payload: Option<Datum>,
    row: RowPlace,
}

/// What was read of the rows of jobs, by their ids.
pub struct Found(HashMap<JobId, Seen>);

impl Found {
    fn read(table: u32, statements: &Statements, reached: &[(u32, Reach)], jobs: &[Numbered]) -> Self {
        let mut found = Self::where_they_were(table, reached, jobs);
        let moved =
            |(_, assignment): &&Numbered| !found.0.contains_key(&assignment.id) && !is_busy(reached, assignment);
        let moved: Vec<&JobId> = jobs.iter().filter(moved).map(|(_, assignment)| &assignment.id).collect();
        if !moved.is_empty() {
            // A plan that was made when the table was small would read all of it when it is not.
            let rows = guc::nested(|| {
                guc::set_local(c"enable_seqscan", "off");
                // Or it would be planned anew each time, for as many rows as it is given.
                guc::set_local(c"plan_cache_mode", "force_generic_plan");
                statements.load_many.read(&[spi::uuids(moved.into_iter())], 0)
            });
            for row in 0..rows.processed {
                if let (Some(id), Some(finished)) = (rows.uuid(row, 4), rows.get(row, 1)) {
                    let part = rows.get(row, 5).map_or(0, Oid::to_u32);
                    let partition = if part == table { 0 } else { part };
                    let row_place = RowPlace { partition, tid: rows.tid(row, 3) };
                    let seen = || Seen { finished, payload: rows.datum(row, 2), row: row_place };
                    found.0.entry(id).or_insert_with(seen);
                }
            }
        }
        found
    }

    /// Most rows are where they were when their jobs were submitted.
    pub fn where_they_were(table: u32, reached: &[(u32, Reach)], jobs: &[Numbered]) -> Self {
        let mut found = Self(HashMap::with_capacity(jobs.len()));
        for (partition, _) in reached.iter().filter(|(_, reach)| *reach == Reach::There) {
            let part = if *partition == 0 { table } else { *partition };
            let Some(places) = Places::open(table.into(), part.into()) else { continue };
            let [id, payload, completed, cancelled] =
                ["id", "payload", "completed", "cancelled"].map(|name| places.column(name));
            for (_, assignment) in jobs.iter().filter(|(_, assignment)| assignment.row.partition == *partition) {
                let Some(row) = places.read(assignment.row.tid) else { continue };
                let flags = Flags { completed: row.flag(completed), cancelled: row.flag(cancelled) };
                let finished = !flags.is_open();
                // Another partition may have an unfinished row of the same id.
                if row.uuid(id) == Some(assignment.id) && !(finished && part != table) {
                    let seen = Seen { finished, payload: row.get(payload), row: assignment.row };
                    found.0.insert(assignment.id, seen);
                }
            }
        }
        found
    }
}

/// Gives a job back that could not be run; `why` is `REFUSED` or `HELD`.
fn refuse(executor: &Executor, number: u64, why: u64) {
    let claim = executor.slot.claim(number);
    if claim.take(ClaimState::Running) {
        claim.run_us.store(why, Ordering::Release);
        claim.set(ClaimState::Done);
    }
    executor.slot.passed.store(number + 1, Ordering::Release);
    executor.wake_dispatcher();
}
