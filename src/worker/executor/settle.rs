//! After the commit: who has to know how the runs ended; and jobs that come to an end without a run.

use super::Executor;
use super::batch::Job;
use super::outcome::{self, Ended};
use super::put_back;
use crate::job::{LaneKey, Timing};
use crate::journal;
use crate::pg::error::forget_cancel;
use crate::pg::{clock, xact};
use crate::shmem::{self, Assignment, ClaimState, Note, REFUSED, WaiterSlot};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How the run of a job ended, told to the others once it is committed.
pub struct Run {
    pub number: u64,
    pub assignment: Assignment,
    pub ended: Ended,
    /// Or when nothing had to be started.
    pub started_at: clock::Timestamp,
    pub took: Duration,
    /// It was a run of the handler, or the end of one: to be counted.
    pub counts: bool,
}

impl Run {
    pub fn of(job: &Job, ended: Ended) -> Self {
        Self { ended, counts: true, ..Self::without_handler(job.number, &job.assignment) }
    }

    pub fn without_handler(number: u64, assignment: &Assignment) -> Self {
        let (started_at, took) = (clock::now(), Duration::ZERO);
        Self { number, assignment: *assignment, ended: Ended::Refused, started_at, took, counts: false }
    }
}

/// Tells everybody whom it concerns how the runs ended; they are committed.
pub fn settle(executor: &mut Executor, runs: &[Run]) {
    executor.slot.end();
    forget_cancel();
    journal::end(executor.index);
    let mut finished = Vec::new();
    let mut notes = Vec::new();
    for run in runs {
        let claim = executor.slot.claim(run.number);
        let handler = run.assignment.handler.to_text();
        match run.ended {
            Ended::Revoked => {}
            Ended::Refused => claim.run_us.store(REFUSED, Ordering::Release),
            _ => claim.run_us.store(run.took.as_micros() as u64, Ordering::Release),
        }
        match run.ended {
            Ended::Completed | Ended::Failed | Ended::Withdrawn => finished.push(run.assignment.job()),
            Ended::Retry(run_at) => {
                let lane = LaneKey {
                    table: run.assignment.table,
                    handler: handler.clone(),
                    priority: run.assignment.priority,
                    timing: Timing::Retry,
                };
                notes.extend(Note::new(&lane, run_at, None));
            }
            Ended::Revoked | Ended::Refused | Ended::Overran | Ended::Restarted | Ended::Unrecorded => {}
        }
        count(executor, run, &handler);
        if !matches!(run.ended, Ended::Revoked) {
            claim.set(ClaimState::Done);
        }
        executor.slot.passed.store(run.number + 1, Ordering::Release);
        if run.assignment.suspect {
            // The dispatcher that has handed it out may be gone.
            shmem::header().release_suspect(executor.index, run.number);
        }
    }
    if let Some(slot) = executor.dispatcher() {
        slot.leave(notes.into_iter());
    }
    WaiterSlot::wake(executor.database, &finished);
}

fn count(executor: &mut Executor, run: &Run, handler: &str) {
    if !run.counts {
        return;
    }
    let took = run.took.as_secs_f64() * 1000.0;
    let waited = (run.started_at - run.assignment.due_at).max(0) as f64 / 1000.0;
    executor.count(run.assignment.table, handler, |counts| {
        match run.ended {
            Ended::Completed => counts.completed += 1,
            Ended::Failed => counts.failed += 1,
            Ended::Retry(_) => counts.retried += 1,
            Ended::Withdrawn => counts.cancelled += 1,
            Ended::Revoked | Ended::Refused | Ended::Overran | Ended::Restarted | Ended::Unrecorded => return,
        }
        counts.total_run += took;
        counts.max_run = counts.max_run.max(took);
        counts.total_wait += waited;
        counts.max_wait = counts.max_wait.max(waited);
    });
}

/// Takes a job out of the queue whose row is finished already.
pub fn discard(executor: &mut Executor, number: u64, assignment: &Assignment) {
    without_handler(executor, number, assignment, |_, assignment| {
        outcome::take_out(assignment);
        Ended::Withdrawn
    });
}

/// Lets a job wait whose row is not there.
pub fn postpone(executor: &mut Executor, number: u64, assignment: &Assignment) {
    without_handler(executor, number, assignment, put_back::postpone);
}

/// Settles a job that is not run, in a transaction of its own.
fn without_handler(
    executor: &mut Executor,
    number: u64,
    assignment: &Assignment,
    settle_as: impl FnOnce(&mut Executor, &Assignment) -> Ended,
) {
    if !executor.slot.claim(number).take(ClaimState::Running) {
        executor.slot.passed.store(number + 1, Ordering::Release);
        return;
    }
    let mut run = Run::without_handler(number, assignment);
    match xact::transaction(|| settle_as(executor, assignment)) {
        Ok(ended) => run.ended = ended,
        Err(error) => error.without_data().log(),
    }
    settle(executor, &[run]);
}
