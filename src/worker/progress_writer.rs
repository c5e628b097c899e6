//! The progress writer: one per database and owner, while jobs report progress. Its session is the owner's; it writes what
//! running handlers have reported into their rows, in short transactions of its own, so that everybody sees it while the
//! handler's transaction is still open.

use crate::catalog;
use crate::gucs;
use crate::job::JobRef;
use crate::job_table::{self, Statements};
use crate::pg::clock::Timestamp;
use crate::pg::error::PgError;
use crate::pg::relation::{self, Lock};
use crate::pg::{bgworker, guc, lwlock, role, session, signal, spi, timer, xact};
use crate::progress;
use crate::shmem::{self, ExecutorSlot, WriterSlot};
use crate::worker::{Next, PROGRESS_WRITER, run};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{Datum, Oid};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Without anything to write for so long, it leaves.
const IDLE: Duration = Duration::from_secs(10);

thread_local! {
    static SLOT: Cell<Option<&'static WriterSlot>> = const { Cell::new(None) };
}

struct Writer {
    slot: &'static WriterSlot,
    tables: HashMap<u32, Statements>,
    last_flush: Instant,
    last_seen: Instant,
}

pub fn main(argument: u64) {
    signal::install(None);
    let slot = &shmem::writers()[argument as usize];
    SLOT.set(Some(slot));
    bgworker::at_exit(|| {
        if let Some(slot) = SLOT.get() {
            slot.process.clear();
            slot.database.store(0, Ordering::Release);
        }
    });
    slot.process.announce();
    let (database, owner) = (slot.database.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
    if shmem::is_blocked(database) {
        return;
    }
    bgworker::connect(Oid::from(database), Oid::from(owner));
    bgworker::report_application_name(PROGRESS_WRITER);
    bgworker::report_activity(None);
    let now = Instant::now();
    let mut writer = Writer { slot, tables: HashMap::new(), last_flush: now - IDLE, last_seen: now };
    run(|| writer.tick());
}

impl Writer {
    fn tick(&mut self) -> Next {
        let interval = gucs::progress_flush_interval();
        let since = self.last_flush.elapsed();
        if since < interval {
            return Next::Sleep(Some(interval - since));
        }
        let mut wrote = false;
        let dirty: Vec<_> = self.executors().filter(|executor| progress::is_dirty(executor)).collect();
        for executor in dirty {
            wrote = true;
            let mut stale = false;
            progress::drain(executor, |value| flush(&mut self.tables, executor, value, &mut stale));
            // The owner's triggers have run in this session. What cannot be made clean is left.
            if stale || xact::transaction(session::reset).is_err() {
                return Next::Leave;
            }
            bgworker::report_application_name(PROGRESS_WRITER);
        }
        if wrote {
            self.last_flush = Instant::now();
            self.last_seen = self.last_flush;
            bgworker::report_statistics();
        }
        let running = self.executors().any(|executor| executor.running().is_some());
        if !running && self.last_seen.elapsed() >= IDLE {
            return Next::Leave;
        }
        Next::Sleep(Some(if running { interval } else { IDLE }))
    }

    fn executors(&self) -> impl Iterator<Item = &'static ExecutorSlot> {
        let (database, owner) = (self.slot.database.load(Ordering::Acquire), self.slot.owner.load(Ordering::Acquire));
        shmem::executors().iter().filter(move |executor| executor.belongs_to(database, owner))
    }
}

/// Writes `value` into the row of the executor's running job. False: it could not be written now. `stale`: nor ever, in this
/// session.
fn flush(tables: &mut HashMap<u32, Statements>, executor: &ExecutorSlot, value: f32, stale: &mut bool) -> bool {
    let Some((job, enqueued_at)) = running_job(executor) else { return false };
    timer::arm(Duration::from_secs(1));
    let written = xact::transaction(|| {
        // It holds back the end of the handler's transaction, so it waits for no lock; what it would wait for may
        // be held by that very transaction. A lost flush is made up by the next one: nothing is synced.
        *stale = role::session_is_stale();
        if *stale {
            return false;
        }
        guc::set_local(c"lock_timeout", "50ms");
        guc::set_local(c"synchronous_commit", "off");
        let Some(table) = relation::open(Oid::from(job.table), Lock::Write) else { return false };
        if table.owner != role::session() {
            return false;
        }
        let Some(options) = job_table::attachment(&table) else { return false };
        if !tables.get(&job.table).is_some_and(|known| known.fit(&table, &options)) {
            tables.insert(job.table, Statements::new(&table, &options));
        }
        let statements = &tables[&job.table];
        let written = spi::connect(|| {
            let value = Some(Datum::from(value.to_bits()));
            statements.flush.execute(&[spi::uuid(&job.id), value], 0).processed > 0
        });
        // A job that was withdrawn and submitted again has another run's progress. Asked when the row is ours: whoever withdraws it
        // changes the row first, and the queue in the same transaction.
        let is_queued = || role::bookkeeping(|| spi::connect(|| catalog::is_queued(job, enqueued_at)));
        if written && !xact::with_latest_snapshot(is_queued) {
            PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "the job was withdrawn").raise();
        }
        written
    });
    timer::disarm();
    // The interrupt of a lock_timeout, or an error of the owner's own triggers: progress is not worth a log line.
    written.unwrap_or(false)
}

fn running_job(executor: &ExecutorSlot) -> Option<(JobRef, Timestamp)> {
    let assignment = lwlock::with(false, || executor.running().map(|number| executor.claim(number).assignment()))?;
    Some((assignment.job(), assignment.enqueued_at))
}
