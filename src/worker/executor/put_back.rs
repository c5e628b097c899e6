//! Back into the queue: until when, whether the attempt is charged, and what is kept of it.

use super::Executor;
use super::batch::Job;
use super::outcome::Ended;
use super::row;
use crate::catalog;
use crate::gucs;
use crate::job::{Setback, Timing, format_id};
use crate::pg::call::random_unit;
use crate::pg::clock::{self, Timestamp};
use crate::pg::error::PgError;
use crate::pg::latch::own_pid;
use crate::pg::privilege;
use crate::pg::relation::{self, Lock};
use crate::pg::role::bookkeeping;
use crate::pg::spi;
use crate::protocol;
use crate::retry;
use crate::shmem::{Assignment, monotone_now};
use pgrx::PgSqlErrorCode;
use std::time::Duration;

/// When what a client was in the way of is tried again.
const SOON: Duration = Duration::from_secs(1);

pub fn after(delay: Duration) -> Timestamp {
    monotone_now() + delay.as_micros().min(i64::MAX as u128 / 4) as i64
}

pub fn own_limit(assignment: &Assignment) -> Option<i32> {
    (assignment.max_attempts > 0).then_some(assignment.max_attempts)
}

/// A deadlock or a serialization failure: soon again, and for a few times free of charge.
pub fn conflict(job: &Job, error: &PgError, started_at: Timestamp) -> Option<Ended> {
    bookkeeping(|| {
        spi::connect(|| {
            let before = catalog::conflicts(job.assignment.job());
            if !protocol::is_free(before) {
                return None;
            }
            let run_at = after(retry::conflict_delay(before + 1, random_unit()));
            if catalog::put_back_free(&job.assignment, run_at).is_none() {
                return Some(Ended::Withdrawn);
            }
            let document = catalog::error_document(error);
            catalog::log_attempt(&job.assignment, Setback::Conflict, document, started_at, own_pid());
            Some(Ended::Retry(run_at))
        })
    })
}

/// How long a row is looked for at least: it may not be restored yet.
const LOOKED_FOR: Duration = Duration::from_secs(3600);

/// How long the row of a job is looked for: one that may be hidden for as long as the log of attempts is kept. Partitions go away
/// with their rows, and fire no trigger of ours.
fn patience(assignment: &Assignment) -> Duration {
    let table = assignment.table.into();
    let partitioned = relation::open(table, Lock::ReadIfFree).is_some_and(|table| table.kind == 'p');
    if partitioned && !privilege::hides_rows(table) {
        return LOOKED_FOR;
    }
    gucs::attempts_retention().max(LOOKED_FOR)
}

/// Puts a job back whose row is not there, for longer every time. It is given up in the end, which the log of attempts says.
pub fn postpone(executor: &mut Executor, assignment: &Assignment) -> Ended {
    let error = PgError::new(
        PgSqlErrorCode::ERRCODE_NO_DATA_FOUND,
        "the job's row does not exist, or is hidden from the table's owner",
    );
    let now = clock::now();
    let patience = patience(assignment);
    let missing = bookkeeping(|| spi::connect(|| catalog::missing_since(assignment.job())));
    if missing.is_none_or(|since| now.saturating_sub(since) <= patience.as_micros() as i64) {
        return bookkeeping(|| {
            spi::connect(|| {
                let run_at = longer(assignment, gucs::poll_interval());
                match catalog::put_back_missing(assignment, run_at, catalog::error_document(&error), now) {
                    true => Ended::Retry(run_at),
                    false => Ended::Withdrawn,
                }
            })
        });
    }
    if row::fence(assignment) {
        let message = format!("background job {} is given up: {}", format_id(&assignment.id), error.message);
        let given_up =
            PgError { message, ..error }.hint("Call background_jobs.attach() to queue rows that were missed.");
        executor.tables.complain(assignment.table, "given up".to_string(), &given_up);
        bookkeeping(|| {
            spi::connect(|| {
                let document = catalog::error_document(&given_up);
                catalog::log_attempt(assignment, Setback::Conflict, document, now, own_pid());
            });
        });
    }
    Ended::Withdrawn
}

/// A client was in the way for a second, and is not any more: the setback is an ordinary one, but for the row, whose progress is left
/// as it is. After the last attempt the failure is written soon.
pub fn back_off(job: &Job, setback: Setback, error: &PgError, started_at: Timestamp) -> Ended {
    let policy = job.handler.policy(own_limit(&job.assignment));
    let run_at = after(policy.delay_after(job.assignment.attempt, random_unit()).unwrap_or(SOON));
    put_back(job, setback, error, started_at, run_at)
}

/// The same where the attempts are used up: the last error has to stay the handler's, and the log of attempts says what it
/// waits for.
pub fn fail_later(job: &Job, error: PgError, started_at: Timestamp) -> Ended {
    bookkeeping(|| {
        spi::connect(|| {
            let ended = put_back_longer(&job.assignment, SOON);
            if matches!(ended, Ended::Retry(_)) {
                let document = catalog::error_document(&error);
                catalog::log_attempt(&job.assignment, Setback::Conflict, document, started_at, own_pid());
            }
            ended
        })
    })
}

/// Puts the job back without charging the attempt, for longer every time.
fn put_back_longer(assignment: &Assignment, delay: Duration) -> Ended {
    let run_at = longer(assignment, delay);
    match catalog::put_back_free(assignment, run_at) {
        Some(_) => Ended::Retry(run_at),
        None => Ended::Withdrawn,
    }
}

/// After `delay`, or longer the more often that was so before.
fn longer(assignment: &Assignment, delay: Duration) -> Timestamp {
    let before = catalog::conflicts(assignment.job());
    let delay = retry::Policy { max_attempts: i32::MAX, delay, ..gucs::retry_policy() };
    after(delay.delay_after(i32::from(before) + 1, 0.0).unwrap_or_default())
}

/// The row cannot be written: tries again after the longest delay, and says why in the log of attempts.
pub fn retreat(job: &Job, error: &PgError, started_at: Timestamp) -> Ended {
    let policy = job.handler.policy(own_limit(&job.assignment));
    let run_at = after(policy.max_delay.max(SOON));
    put_back(job, Setback::Error, error, started_at, run_at)
}

fn put_back(job: &Job, setback: Setback, error: &PgError, started_at: Timestamp, run_at: Timestamp) -> Ended {
    let put_back = bookkeeping(|| {
        spi::connect(|| {
            let document = catalog::error_document(error);
            let put_back = catalog::put_back(&job.assignment, Timing::Retry, run_at, document);
            if put_back {
                catalog::log_attempt(&job.assignment, setback, document, started_at, own_pid());
            }
            put_back
        })
    });
    if put_back { Ended::Retry(run_at) } else { Ended::Withdrawn }
}
