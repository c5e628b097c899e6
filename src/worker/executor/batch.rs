//! A batch: what is in the mailbox, loaded in one short transaction, then run.

use super::{Executor, run};
use crate::handler::Handler;
use crate::pg::error::forget_cancel;
use crate::pg::memory::HeldDatum;
use crate::pg::relation::Lock;
use crate::pg::session;
use crate::pg::spi;
use crate::pg::timer;
use crate::pg::xact;
use crate::planted::{self, Bug};
use crate::shmem::{Assignment, ClaimState, REFUSED};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Jobs that share a commit at most; with two writing subtransactions in a failing job this stays below the number at
/// which the server's subtransaction cache overflows.
pub const LIMIT: usize = 32;

/// Payload bytes that a batch holds at most, unless a single one is larger.
const PAYLOADS: usize = 4 << 20;

/// A job that was loaded.
pub struct Job {
    pub number: u64,
    pub assignment: Assignment,
    pub handler: Rc<Handler>,
    pub payload: HeldDatum,
    /// It is ours: the dispatcher can no longer take it back.
    pub taken: bool,
    /// It may not share a commit.
    pub alone: bool,
}

impl Job {
    fn new(number: u64, assignment: Assignment, handler: Rc<Handler>, payload: HeldDatum) -> Self {
        Self { number, assignment, handler, payload, taken: false, alone: false }
    }
}

/// What loading a job came to.
enum Loaded {
    Ready(Job),
    /// The row is finished, though nobody took the job out of the queue.
    Obsolete(u64, Assignment),
    /// There is no row, or its owner may not see it: a policy, or a restore that has not come to it yet.
    Missing(u64, Assignment),
    /// The table, its owner or the handler is not (any more) what it has to be.
    Refused(u64),
}

pub fn process(executor: &mut Executor, numbers: Range<u64>) {
    let numbers: Vec<u64> = numbers.take(LIMIT).collect();
    let loaded = match load(executor, &numbers) {
        Ok(loaded) => loaded,
        Err(error) => {
            // Not one job's doing: a table's own permissions or expressions. It is looked at again with the next poll.
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
                refuse(executor, number);
            }
            Loaded::Obsolete(number, assignment) => {
                run::all(executor, std::mem::take(&mut ready));
                run::discard(executor, number, &assignment);
            }
            Loaded::Missing(number, assignment) => {
                run::all(executor, std::mem::take(&mut ready));
                run::postpone(executor, number, &assignment);
            }
        }
    }
    run::all(executor, ready);
}

/// Reads what the jobs need. The transaction ends here, and with it every lock on the job tables.
fn load(executor: &mut Executor, numbers: &[u64]) -> Result<Vec<Loaded>, crate::pg::error::PgError> {
    timer::arm(run::PATIENCE);
    let loaded = xact::transaction(|| {
        if !planted::is(Bug::NoScrub) {
            session::reset();
        }
        let mut loaded = Vec::with_capacity(numbers.len());
        let mut bytes = 0;
        for number in numbers {
            let claim = executor.slot.claim(*number);
            if claim.state() != ClaimState::Pending {
                // Taken back by the dispatcher.
                loaded.push(Loaded::Refused(*number));
                continue;
            }
            let assignment = claim.assignment();
            let one = load_one(executor, *number, assignment);
            if let Loaded::Ready(job) = &one {
                bytes += job.payload.size();
            }
            loaded.push(one);
            if bytes > PAYLOADS {
                break;
            }
        }
        loaded
    });
    timer::disarm();
    forget_cancel();
    loaded
}

fn load_one(executor: &mut Executor, number: u64, assignment: Assignment) -> Loaded {
    let Some(table) = executor.tables.open(assignment.table, Lock::ReadIfFree) else {
        return Loaded::Refused(number);
    };
    let Some(handler) = executor.handlers.resolve(assignment.table, &assignment.handler.to_text()) else {
        return Loaded::Refused(number);
    };
    // After the lock: a rewrite of the table by whoever had it before leaves older snapshots an empty table.
    xact::with_latest_snapshot(|| {
        spi::connect(|| {
            let rows = table.load.read(&[spi::uuid(&assignment.id)], 1);
            match rows.get::<bool>(0, 2) {
                None => return Loaded::Missing(number, assignment),
                Some(true) => return Loaded::Obsolete(number, assignment),
                Some(false) => {}
            }
            // A NULL, in a table that allows it, is a JSON null to the handler.
            let payload = rows.hold(0, 1, &executor.memory).unwrap_or_else(|| HeldDatum::json_null(&executor.memory));
            Loaded::Ready(Job::new(number, assignment, handler, payload))
        })
    })
}

/// Gives a job back that could not be run.
fn refuse(executor: &Executor, number: u64) {
    let claim = executor.slot.claim(number);
    if claim.take(ClaimState::Running) {
        claim.run_us.store(REFUSED, Ordering::Release);
        claim.set(ClaimState::Done);
    }
    executor.slot.passed.store(number + 1, Ordering::Release);
    executor.wake_dispatcher();
}
