//! How a run ends, written down: completion inside the job's own subtransaction, setbacks after it was rolled back.

use super::batch::Job;
use super::put_back::{after, back_off, conflict, fail_later, own_limit, retreat};
use super::row;
use super::{Executor, PATIENCE};
use crate::catalog;
use crate::handler;
use crate::job::{Setback, Timing};
use crate::pg::call::random_unit;
use crate::pg::clock::{self, Timestamp};
use crate::pg::error::PgError;
use crate::pg::latch::own_pid;
use crate::pg::memory::{Context, HeldDatum};
use crate::pg::role::bookkeeping;
use crate::pg::{guc, spi, timer, xact};
use crate::protocol::{self, Ending};
use crate::shmem::{Assignment, Interrupt};
use pgrx::PgSqlErrorCode;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Effects, result and completion are in the transaction.
    Completed,
    /// The last attempt has failed; the row says why.
    Failed,
    /// Will be tried again at that time.
    Retry(Timestamp),
    /// Somebody cancelled, finished or deleted it meanwhile; nothing of the run is left.
    Withdrawn,
    /// Took too long while finished jobs waited, or has to have its transaction for itself; runs again alone.
    Overran,
    /// The dispatcher took it back before it began.
    Revoked,
    /// Nothing could be done about it now.
    Refused,
    /// The row's progress was taken back to zero; the job goes on waiting.
    Restarted,
    /// A client, or a signal, is in the way of whatever could be written down about it. It runs again after the next poll.
    Unrecorded,
}

/// The run found its job withdrawn, and was rolled back. If somebody else withdrew it, that stands; where only the row is
/// gone, the job is taken out now. If its own handler did, that was rolled back with the rest: the attempt failed, or it would
/// repeat for ever.
pub fn withdrawn(executor: &mut Executor, job: &Job, started_at: Timestamp) -> Ended {
    let queued = bookkeeping(|| spi::connect(|| catalog::find(job.assignment.job())));
    if !protocol::is_queued(queued.map(|queued| queued.enqueued_at), job.assignment.enqueued_at) {
        return Ended::Withdrawn;
    }
    let line = format!("looking for the row of background job {}", crate::job::format_id(&job.assignment.id));
    let keep = executor.errors;
    let taken_out = briefly(&line, &keep, || {
        let gone = row::is_gone(executor, job);
        if gone {
            take_out(&job.assignment);
        }
        gone
    });
    match taken_out {
        Ok(true) => return Ended::Withdrawn,
        Ok(false) => {}
        Err(error) => return record(executor, job, Setback::Conflict, &explained(error), started_at),
    }
    let error = PgError::new(
        PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
        "the handler cancelled, completed or deleted its own job",
    )
    .detail("That was rolled back with everything else that it did.")
    .hint("Return a result to complete the job, or raise an error to fail it.");
    record(executor, job, Setback::Error, &error, started_at)
}

/// Deletes the queue's row of a job whose own row is finished or gone.
pub fn take_out(assignment: &Assignment) {
    row::fence(assignment);
}

/// Was it somebody else's transaction that was in the way?
fn is_conflict(error: &PgError) -> bool {
    error.is(PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE)
        || error.is(PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED)
        || error.is(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE)
}

/// The same, or somebody's signal, which nobody has meant for what we write down.
pub fn is_disturbed(error: &PgError) -> bool {
    is_conflict(error) || error.is(PgSqlErrorCode::ERRCODE_QUERY_CANCELED)
}

/// What kind of setback an error is, in the words that go into the log of attempts. `ours`: the handler had returned. Before that a
/// lock that is not available is what the handler, or the role's lock_timeout, has asked for.
pub fn classify(job: &Job, error: PgError, interrupt: Option<Interrupt>, ours: bool) -> (Setback, PgError) {
    let asked_for = !ours && error.is(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE);
    let setback = protocol::setback(interrupt, is_conflict(&error) && !asked_for);
    if setback == Setback::Timeout {
        let timeout = job.handler.definition.timeout.or_else(crate::gucs::handler_timeout).unwrap_or_default();
        let mut timed_out = handler::timeout_error(timeout);
        timed_out.context = error.context;
        return (setback, timed_out);
    }
    (setback, if setback == Setback::Conflict { explained(error) } else { error })
}

/// The lock_timeout that a conflict may speak of is none that a user has set: says what it was about.
fn explained(error: PgError) -> PgError {
    match error.is(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE) && error.hint.is_none() {
        true => error.hint("Another session held the job's row or table: see pg_locks."),
        false => error,
    }
}

/// Writes down a setback, after the job's subtransaction was rolled back: back into the queue, or failed for good.
pub fn record(executor: &mut Executor, job: &Job, setback: Setback, error: &PgError, started_at: Timestamp) -> Ended {
    let line = format!("recording the outcome of background job {}", crate::job::format_id(&job.assignment.id));
    let keep = executor.errors;
    timer::arm(PATIENCE);
    let recorded = briefly(&line, &keep, || {
        if setback == Setback::Conflict
            && let Some(ended) = conflict(job, error, started_at)
        {
            return ended;
        }
        setback_of(executor, job, setback, error, started_at)
    });
    let overran = timer::fired();
    timer::disarm();
    recorded.unwrap_or_else(|second| {
        let disturbed = is_disturbed(&second) && !overran;
        let retreated = briefly(&line, &keep, || match disturbed {
            true if setback == Setback::Conflict => {
                conflict(job, error, started_at).unwrap_or_else(|| back_off(job, setback, error, started_at))
            }
            true => back_off(job, setback, error, started_at),
            // The owner's own triggers or constraints do not let the row be written. It is not run again meanwhile.
            false => retreat(job, &second, started_at),
        });
        retreated.unwrap_or_else(|third| unrecorded(&third))
    })
}

/// A subtransaction that waits no longer than a second for the job's row or the queue's, which a client has locked that keeps its
/// transaction open: the executor has others to look after.
fn briefly<T>(line: &str, keep: &Context, f: impl FnOnce() -> T) -> Result<T, PgError> {
    xact::subtransaction(line, keep, || guc::with_lock_timeout(Duration::from_secs(1), f))
}

fn setback_of(executor: &mut Executor, job: &Job, setback: Setback, error: &PgError, started_at: Timestamp) -> Ended {
    let assignment = &job.assignment;
    let policy = job.handler.policy(own_limit(assignment));
    let retry_at = policy.delay_after(assignment.attempt, random_unit()).map(after);
    let memory = executor.memory;
    // The owner's row first, as a client's transaction would do it: row, then queue, in one order everywhere.
    let ended = match retry_at {
        Some(run_at) => {
            row::restart_progress(executor, job);
            let put_back = bookkeeping(|| {
                spi::connect(|| catalog::put_back(assignment, Timing::Retry, run_at, catalog::error_document(error)))
            });
            if put_back { Ended::Retry(run_at) } else { Ended::Withdrawn }
        }
        None => {
            let result = bookkeeping(|| {
                spi::connect(|| catalog::failure_result(catalog::error_document(error), assignment.attempt, &memory))
            });
            fail(executor, job, result, started_at)
        }
    };
    // Of a submission that is no longer there nothing is kept: a retry() would take it for its own.
    if !matches!(ended, Ended::Withdrawn) {
        bookkeeping(|| {
            spi::connect(|| {
                let document = catalog::error_document(error);
                catalog::log_attempt(assignment, setback, document, started_at, own_pid());
            });
        });
    }
    ended
}

fn fail(executor: &mut Executor, job: &Job, result: Option<HeldDatum>, started_at: Timestamp) -> Ended {
    let updated = row::finish_row(executor, job, result.map(|held| held.0), started_at, false);
    match protocol::fail(updated, || row::is_open(executor, job), || row::fence(&job.assignment)) {
        Ending::Written => Ended::Failed,
        Ending::Withdrawn => Ended::Withdrawn,
        Ending::Unreached => {
            // Its plan may be that of a rule which has gone since.
            executor.tables.forget(job.assignment.table);
            PgError::new(
                PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                "the failure of the job did not reach its row",
            )
            .hint("A trigger, rule or policy of the job table turns the UPDATE away.")
            .raise()
        }
        Ending::Fenced => PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "background job was withdrawn").raise(),
    }
}

/// The attempts were used up where no executor could write the row: writes the last error now.
pub fn fail_exhausted(executor: &mut Executor, job: &Job) -> Ended {
    let line = format!("recording the failure of background job {}", crate::job::format_id(&job.assignment.id));
    let keep = executor.errors;
    let started_at = clock::now();
    let failed = briefly(&line, &keep, || {
        let memory = executor.memory;
        let result = bookkeeping(|| {
            spi::connect(|| {
                let document = catalog::last_error(job.assignment.job(), &memory);
                catalog::failure_result(document.map(|held| held.0), job.assignment.attempt, &memory)
            })
        });
        fail(executor, job, result, started_at)
    });
    let overran = timer::fired();
    failed.unwrap_or_else(|error| {
        let retreated = briefly(&line, &keep, || match is_disturbed(&error) && !overran {
            true => fail_later(job, explained(error), started_at),
            false => retreat(job, &error, started_at),
        });
        retreated.unwrap_or_else(|second| unrecorded(&second))
    })
}

fn unrecorded(error: &PgError) -> Ended {
    if is_disturbed(error) {
        return Ended::Unrecorded;
    }
    error.without_data().log();
    Ended::Refused
}
