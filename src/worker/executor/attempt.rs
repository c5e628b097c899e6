//! One attempt: the handler's call in a subtransaction, and how it ended; only the commit is missing then.

use super::batch::Job;
use super::group::{OF_COMPANY, Shares};
use super::outcome::{self, Ended};
use super::row;
use super::settle::Run;
use super::together::Returned;
use super::{Executor, PATIENCE};
use crate::job::format_id;
use crate::journal::{self, Entry};
use crate::pg::error::{PgError, forget_cancel};
use crate::pg::{bgworker, clock, raised, session, signal, timer, xact};
use crate::planted::{self, Bug};
use crate::progress;
use crate::protocol;
use crate::running::{self, Current};
use crate::shmem::Action;
use pgrx::PgSqlErrorCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What a job owes to those that it shares its transaction with.
pub struct Company<'a> {
    pub shares: Shares,
    /// How long it may take because finished jobs wait for it.
    pub left: Option<Duration>,
    /// Where it goes, instead of being completed, if it shares its completion.
    pub returned: &'a mut Vec<Returned>,
}

/// Does with a job what its assignment says.
pub fn run(executor: &mut Executor, job: &Job, company: Company) -> Run {
    match job.assignment.action {
        Action::Run => call(executor, job, company),
        Action::Fail => {
            let mut run = Run::of(job, Ended::Failed);
            timer::arm(PATIENCE);
            run.ended = outcome::fail_exhausted(executor, job);
            timer::disarm();
            run
        }
        Action::Restart => {
            let errors = executor.errors;
            timer::arm(PATIENCE);
            // Should it fail, the row shows too much for a while; that is worth no attempt.
            let _ = xact::subtransaction("restarting the progress of a job", &errors, || {
                row::restart_progress(executor, job);
            });
            timer::disarm();
            Run::of(job, Ended::Restarted)
        }
    }
}

fn call(executor: &mut Executor, job: &Job, Company { shares, left, returned }: Company) -> Run {
    let slot = executor.slot;
    let mut run = Run::of(job, Ended::Completed);
    let line = announce(job);
    begin(executor, job, shares, run.started_at);
    if let Some(left) = left {
        timer::arm(left);
    }
    let disturbs = || raised::met() || (left.is_some() && timer::fired());
    let begun = Instant::now();
    let (mut withdrawn, mut returned_value) = (false, false);
    let errors = executor.errors;
    let result = xact::subtransaction(&line, &errors, || {
        let value = job.handler.call(&job.assignment.id, job.payload, &executor.memory);
        run.took = begun.elapsed();
        returned_value = true;
        if slot.interrupt().is_some() || disturbs() {
            // The handler has swallowed it.
            PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "background job was interrupted").raise();
        }
        progress::close(executor.slot);
        if shares != Shares::Completion {
            row::complete(executor, job, value, run.started_at, &mut withdrawn);
        }
        value
    });
    let disturbs = disturbs();
    timer::disarm();
    if run.took.is_zero() {
        run.took = begun.elapsed();
    }
    let interrupt = slot.interrupt();
    // What is left to do has a time of its own: `Group::close`, or `outcome::record`.
    slot.end();
    end(executor);
    if !planted::is(Bug::NoScrub) {
        session::scrub();
    }
    run.ended = match result {
        Ok(result) => {
            if shares == Shares::Completion {
                returned.push(Returned {
                    assignment: job.assignment,
                    row: job.row,
                    result,
                    started_at: run.started_at,
                });
            }
            Ended::Completed
        }
        Err(_) if protocol::looks_withdrawn(withdrawn, interrupt) => outcome::withdrawn(executor, job, run.started_at),
        Err(_) if disturbs && interrupt.is_none() => Ended::Overran,
        Err(error) => {
            let (setback, error) = outcome::classify(job, error, interrupt, returned_value);
            outcome::record(executor, job, setback, &error, run.started_at)
        }
    };
    if matches!(run.ended, Ended::Overran) {
        executor.pace.note_overrun(job);
    } else {
        executor.pace.note(job, run.took);
    }
    run
}

/// Shows what runs; returns the line of the error context.
fn announce(job: &Job) -> String {
    let name = &job.handler.definition.name;
    let line = format!("background job {} ({name})", format_id(&job.assignment.id));
    bgworker::report_application_name(name);
    bgworker::report_activity(Some(&line));
    line
}

fn begin(executor: &Executor, job: &Job, shares: Shares, started_at: clock::Timestamp) {
    let own_limit = (job.assignment.max_attempts > 0).then_some(job.assignment.max_attempts);
    let max_attempts = job.handler.policy(own_limit).max_attempts;
    let shares = shares != Shares::Nothing;
    running::set_job(Some(Current { assignment: job.assignment, max_attempts, shares }));
    raised::watch_for(if shares { OF_COMPANY } else { &[] });
    executor.slot.started_at.store(started_at, Ordering::Release);
    journal::begin(
        executor.index,
        Entry {
            database: executor.database,
            suspect: job.assignment.suspect,
            assignment: job.assignment,
            started_at,
            crash: 0,
            bystander: false,
        },
    );
    executor.slot.started_ns.store(clock::monotonic_ns(), Ordering::Release);
    forget_cancel();
    // Above READ COMMITTED the job's own completion would fail to serialize after a flush of its progress.
    progress::begin(executor.slot, xact::sees_new_commits());
    executor.slot.begin(job.number);
    if executor.slot.booked.load(Ordering::Acquire) <= job.number {
        // A session has handed it over, and nobody watches over it yet.
        timer::remind(UNWATCHED);
    }
    // It may have been asked for before there was something to interrupt.
    signal::interrupt_self();
}

/// How long a job runs before the dispatcher is woken to watch over it; of most it need not hear before their end.
const UNWATCHED: Duration = Duration::from_millis(5);

/// Nothing of the attempt goes on: no interrupt, no progress, no look at errors.
pub fn end(executor: &Executor) {
    timer::forget_reminder();
    forget_cancel();
    running::set_job(None);
    raised::watch_for(&[]);
    progress::close(executor.slot);
}
