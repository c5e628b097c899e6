//! Running what was loaded, group by group, and what becomes of jobs whose transaction failed as a whole.

use super::batch::Job;
use super::group::Group;
use super::outcome::{self, Ended};
use super::put_back;
use super::settle::{Run, settle};
use super::{Executor, attempt};
use crate::pg::error::PgError;
use crate::pg::{clock, xact};
use crate::protocol;
use std::sync::atomic::Ordering;

/// Runs the jobs in order. When the end of one has waited for its table in vain, the others of that table go back: each of them
/// would run, and wait, for as long.
pub fn all(executor: &mut Executor, mut jobs: Vec<Job>) {
    let mut left = &mut jobs[..];
    executor.tables.waits_for = None;
    let mut out_of_reach = None;
    while !left.is_empty() {
        out_of_reach = executor.tables.waits_for.take().or(out_of_reach);
        if out_of_reach == Some(left[0].assignment.table) {
            hand_back(executor, &mut left[0]);
            left = &mut left[1..];
            continue;
        }
        let mut group = Group::default();
        // For the first job, should it be given up before it was begun.
        executor.slot.started_at.store(clock::now(), Ordering::Release);
        let done = match group.commit(executor, left) {
            Ok(()) => {
                settle(executor, &group.runs);
                group.runs.len()
            }
            Err(error) if group.is_of_one(left) => {
                give_up(executor, &mut left[0], error);
                1
            }
            Err(_) => {
                executor.slot.end();
                attempt::end(executor);
                // The first one even if it was not reached: by itself it is given up, or an error at the start would come for ever.
                left.iter_mut().take(group.reached.max(1)).for_each(|job| job.alone = true);
                0
            }
        };
        left = &mut left[done..];
    }
}

/// Gives a job back that was not begun, or that was rolled back.
fn hand_back(executor: &mut Executor, job: &mut Job) {
    let ended = if job.take(executor.slot) { Ended::Refused } else { Ended::Revoked };
    settle(executor, &[Run::of(job, ended)]);
}

/// The transaction of a single job failed as a whole: at its commit, or in our own part of it.
fn give_up(executor: &mut Executor, job: &mut Job, error: PgError) {
    let interrupt = executor.slot.interrupt();
    executor.slot.end();
    attempt::end(executor);
    let started_at = executor.slot.started_at.load(Ordering::Acquire);
    if !job.take(executor.slot) {
        return settle(executor, &[Run::of(job, Ended::Revoked)]);
    }
    let mut run = Run::of(job, Ended::Refused);
    let (setback, error) = outcome::classify(job, error, interrupt, true);
    match xact::transaction(|| match protocol::looks_withdrawn(false, interrupt) {
        true => outcome::withdrawn(executor, job, started_at),
        false => outcome::record(executor, job, setback, &error, started_at),
    }) {
        Ok(ended) => run.ended = ended,
        Err(second) if outcome::is_disturbed(&second) => run.ended = Ended::Unrecorded,
        // A deferred trigger of the owner's does not let the row be written at all: the attempt is charged without it.
        Err(second) => match xact::transaction(|| put_back::retreat(job, &second, started_at)) {
            Ok(ended) => run.ended = ended,
            Err(third) => third.without_data().log(),
        },
    }
    settle(executor, &[run]);
}
