//! What the executor writes into a job's row, and the fence: inside the job's own subtransaction, or for a group at its end.

use super::Executor;
use super::batch::Job;
use super::together::{self, Returned};
use crate::catalog;
use crate::finishing;
use crate::job_table::Statements;
use crate::pg::clock::{self, Timestamp};
use crate::pg::error::PgError;
use crate::pg::fmgr::float4_datum;
use crate::pg::memory::HeldDatum;
use crate::pg::privilege;
use crate::pg::relation::Lock;
use crate::pg::role::bookkeeping;
use crate::pg::{guc, spi, xact};
use crate::planted::{self, Bug};
use crate::progress;
use crate::protocol::{self, Ending};
use crate::shmem::{Action, Assignment};
use crate::successors;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::Datum;
use std::rc::Rc;
use std::time::Duration;

/// Writes the completion: the guarded UPDATE of the row as its owner, then the fence. Raises an error when either
/// finds nothing to do, so that the handler's effects are rolled back; `withdrawn` tells that from a failure.
pub fn complete(
    executor: &mut Executor,
    job: &Job,
    result: Option<HeldDatum>,
    started_at: Timestamp,
    withdrawn: &mut bool,
) {
    let updated = finish_row(executor, job, result.map(|held| held.0), started_at, true);
    match protocol::complete(updated, || is_open(executor, job), || fence(&job.assignment)) {
        Ending::Written => {}
        Ending::Unreached => {
            // Its plan may be that of a rule which has gone since.
            executor.tables.forget(job.assignment.table);
            PgError::new(
                PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                "the completion of the job did not reach its row",
            )
            .hint("A trigger, rule or policy of the job table turns the UPDATE away.")
            .raise();
        }
        Ending::Withdrawn | Ending::Fenced => {
            *withdrawn = !planted::is(Bug::EffectsApart);
            if !*withdrawn {
                return;
            }
            PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "background job was withdrawn").raise();
        }
    }
}

/// The fence, for a single job: see `catalog::finish`. Waits for whoever changes the queue's row no longer than for the row's lock.
pub fn fence(assignment: &Assignment) -> bool {
    guc::with_lock_timeout(ROW_PATIENCE, || finish(std::iter::once(assignment)))
}

pub fn finish<'a>(mut assignments: impl Iterator<Item = &'a Assignment>) -> bool {
    let queue = catalog::Queue::open();
    let finished = assignments.all(|assignment| {
        let quickly = queue.as_ref().and_then(|queue| queue.finish(assignment));
        let finished = quickly.unwrap_or_else(|| bookkeeping(|| spi::connect(|| catalog::finish(assignment))))
            || planted::is(Bug::NoFence);
        successors::hand_over(assignment.job());
        finished
    });
    xact::next_command();
    finished
}

/// UPDATEs the row as completed or failed if it is still open.
pub fn finish_row(
    executor: &mut Executor,
    job: &Job,
    result: Option<Datum>,
    started_at: Timestamp,
    completed: bool,
) -> bool {
    let Some(table) = open(executor, job, Lock::Write) else {
        PgError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the job table was changed while the job ran",
        )
        .detail("It was detached, dropped, given to another owner, or lost a column.")
        .hint("Call background_jobs.attach() again.")
        .raise();
    };
    if completed && complete_where_it_was(executor, &table, job, result, started_at) {
        return true;
    }
    let statement = if completed { &table.complete } else { &table.fail };
    on_row(job, || {
        spi::connect(|| {
            let arguments = [
                spi::uuid(&job.assignment.id),
                result,
                Some(Datum::from(job.assignment.attempt)),
                spi::timestamp(started_at),
                spi::timestamp(clock::now()),
                float4_datum(if job.assignment.action == Action::Run {
                    progress::reported(executor.slot)
                } else {
                    0.0
                }),
            ];
            statement.execute(&arguments, 0).processed > 0
        })
    })
}

/// The completion below SQL, if the row is where it was when it was loaded. A statement would have to look into all partitions, as it
/// does not know the values that they are made by, and to wait for whoever has one of them locked.
fn complete_where_it_was(
    executor: &mut Executor,
    table: &Statements,
    job: &Job,
    result: Option<Datum>,
    started_at: Timestamp,
) -> bool {
    let returned = [Returned { assignment: job.assignment, row: job.row, result: result.map(HeldDatum), started_at }];
    let oid = job.assignment.table;
    executor.tables.waits_for = Some(oid);
    let parts = guc::with_lock_timeout(ROW_PATIENCE, || together::open_parts(executor, oid, &returned));
    executor.tables.waits_for = None;
    parts.is_some_and(|parts| {
        guc::with_lock_timeout(ROW_PATIENCE, || {
            together::complete_where_they_were(table, &parts, &returned, clock::now()) == 1
        })
    })
}

/// Runs `f`, our own UPDATE of the job's row: our trigger lets it pass, and whatever the owner's triggers do to the settings
/// ends with it.
///
/// A client that keeps the row locked must not keep the executor: it is a conflict then, and the job runs again.
fn on_row<T>(job: &Job, f: impl FnOnce() -> T) -> T {
    guc::with_lock_timeout(ROW_PATIENCE, || guc::nested(|| finishing::run(vec![job.assignment.job()], f)))
}

/// The job's table, for the end of its run. A client that has all of the table for itself, to rewrite it, must not keep the
/// executor either.
fn open(executor: &mut Executor, job: &Job, lock: Lock) -> Option<Rc<Statements>> {
    let table = job.assignment.table;
    executor.tables.waits_for = Some(table);
    let opened = guc::with_lock_timeout(ROW_PATIENCE, || executor.tables.open(table, lock));
    executor.tables.waits_for = None;
    opened
}

/// How long the end of a run waits for a lock on the job's row, or its table.
const ROW_PATIENCE: Duration = Duration::from_secs(10);

/// Does the row, as committed by now, still wait for its end?
pub fn is_open(executor: &mut Executor, job: &Job) -> bool {
    let Some(table) = open(executor, job, Lock::Read) else { return false };
    spi::connect(|| {
        let rows = table.look.execute(&[spi::uuid(&job.assignment.id)], 1);
        !rows.get::<bool>(0, 1).unwrap_or(true)
    })
}

/// Is the row of a job that was there when the job was loaded gone for good? TRUNCATE, DROP and DETACH of its partition fire no
/// trigger of ours. A policy may only hide it.
pub fn is_gone(executor: &mut Executor, job: &Job) -> bool {
    let Some(table) = open(executor, job, Lock::Read) else { return false };
    let rows = || table.look.read(&[spi::uuid(&job.assignment.id)], 1).processed;
    !privilege::hides_rows(job.assignment.table.into()) && xact::with_latest_snapshot(|| spi::connect(rows)) == 0
}

/// The next attempt starts at zero, for all to see.
pub fn restart_progress(executor: &mut Executor, job: &Job) {
    if let Some(table) = open(executor, job, Lock::Write) {
        on_row(job, || {
            spi::connect(|| table.restart.execute(&[spi::uuid(&job.assignment.id)], 0));
        });
    }
}
