//! A group: the jobs that share a transaction, one of its own or several short ones.
//!
//! A job that shares a commit has a subtransaction of its own. What is finished waits for its commit only as long as
//! `COMPANY`: a job that overruns it is interrupted, rolled back to its subtransaction, and runs again alone once the finished
//! ones are committed, at no cost in attempts. So does one that meets, or would do, what belongs to the transaction as a whole
//! (`OF_COMPANY`). The same happens when the commit itself fails (a deferred
//! constraint): every job of the group runs again alone, and whoever is to blame fails alone.

use super::attempt::{self, Company};
use super::batch::Job;
use super::outcome::Ended;
use super::settle::Run;
use super::together::{self, Returned};
use super::{Executor, PATIENCE};
use crate::pg::error::PgError;
use crate::pg::{clock, guc, timer, xact};
use crate::shmem::Action;
use pgrx::PgSqlErrorCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long finished jobs wait for others to share their commit.
pub const COMPANY: Duration = Duration::from_millis(5);

/// The errors that a job may meet only because others are in its transaction: by what they have left pending, made or used up there.
/// And the one that keeps it from doing the like to them (`running::require_own_transaction`). Whether or not its handler catches it,
/// the job runs again alone, as if it had overrun.
pub const OF_COMPANY: &[PgSqlErrorCode] = &[
    PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
    PgSqlErrorCode::ERRCODE_UNSAFE_NEW_ENUM_VALUE_USAGE,
    PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
    PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
];

/// What a job has in common with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shares {
    /// Its transaction is its own.
    Nothing,
    /// The commit. It is completed in its own subtransaction, because code of the owner's may run with that.
    Commit,
    /// The commit, and before it the statement that completes its companions.
    Completion,
}

impl Shares {
    /// `others`: are there any?
    fn of(executor: &mut Executor, job: &Job, others: bool) -> Self {
        if !others || job.alone || job.assignment.action != Action::Run || !executor.pace.is_short(job) {
            Self::Nothing
        } else if executor.tables.is_plain(job.assignment.table, job.row.partition) {
            Self::Completion
        } else {
            Self::Commit
        }
    }
}

/// What a transaction came to.
#[derive(Default)]
pub struct Group {
    /// One for each of the first jobs that is done with once this is committed.
    pub runs: Vec<Run>,
    /// How many it has come to, the one that an error came from included.
    pub reached: usize,
    /// Some of those share their commit.
    shared: bool,
    /// Whose completion is not written yet.
    returned: Vec<Returned>,
    first_finished: Option<Instant>,
}

impl Group {
    /// Runs the first job, and as many of the next as may share its commit.
    pub fn commit(&mut self, executor: &mut Executor, jobs: &mut [Job]) -> Result<(), PgError> {
        let errors = executor.errors;
        let committed = xact::user_transaction(&errors, || {
            if let Some(value) = &jobs[0].handler.definition.synchronous_commit {
                guc::set_local(c"synchronous_commit", value);
            }
            self.run(executor, jobs);
            self.close(executor);
        });
        timer::disarm();
        committed
    }

    /// Nobody but the first job can be the reason for an error.
    pub fn is_of_one(&self, jobs: &[Job]) -> bool {
        jobs.len() == 1 || (self.reached == 1 && !self.shared) || (self.reached == 0 && jobs[0].alone)
    }

    fn run(&mut self, executor: &mut Executor, jobs: &mut [Job]) {
        let others = jobs.len() > 1;
        let durability = jobs[0].handler.definition.synchronous_commit.clone();
        for job in jobs {
            let shares = Shares::of(executor, job, others);
            let left = self.first_finished.map(|time| COMPANY.saturating_sub(time.elapsed()));
            let joins = shares != Shares::Nothing
                && job.handler.definition.synchronous_commit == durability
                && left.is_none_or(|left| !left.is_zero())
                && xact::subtransactions_are_cached();
            if !self.runs.is_empty() && !joins {
                break;
            }
            self.reached += 1;
            if !job.take(executor.slot) {
                self.runs.push(Run::of(job, Ended::Revoked));
                continue;
            }
            self.shared |= shares != Shares::Nothing;
            let run = attempt::run(executor, job, Company { shares, left, returned: &mut self.returned });
            if matches!(run.ended, Ended::Overran) {
                job.alone = true;
                break;
            }
            self.runs.push(run);
            self.first_finished.get_or_insert_with(Instant::now);
            if shares == Shares::Nothing {
                break;
            }
        }
    }

    /// Writes what is left to write, and bounds what comes with the commit. Deferred triggers have the time that the last of the
    /// jobs has; if several jobs share the commit and it takes too long, each of them runs again in a commit of its own.
    fn close(&self, executor: &mut Executor) {
        executor.slot.started_ns.store(clock::monotonic_ns(), Ordering::Release);
        let ran = |run: &&Run| run.assignment.action == Action::Run && !matches!(run.ended, Ended::Revoked);
        if let Some(last) = self.runs.iter().rfind(ran) {
            executor.slot.begin(last.number);
        }
        if self.shared {
            timer::arm(PATIENCE);
            together::complete_together(executor, &self.returned);
        }
    }
}
