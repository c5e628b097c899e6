//! Attempts that ended with their executor: each is charged before its job is handed out again. Where somebody has the job's place in
//! the queue locked (an open cancel), that takes until they let go, and nobody else waits for it.
//!
//! What is owed is forgotten with this process, which no client can end: then such an attempt is free.

use super::Dispatcher;
use crate::catalog;
use crate::gucs;
use crate::handler;
use crate::job::{JobRef, Setback, Timing};
use crate::pg::call::random_unit;
use crate::pg::clock::Timestamp;
use crate::pg::error::PgError;
use crate::pg::{spi, xact};
use crate::shmem::{Action, Assignment, ExecutorSlot, Interrupt, monotone_now};
use pgrx::PgSqlErrorCode;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it is tried: a look that waits for nobody.
const AGAIN: Duration = Duration::from_millis(500);

/// What a run that ended its executor counts as, in microseconds: its handler is not known to be short for some fifty runs.
const FATAL_US: u64 = 10_000_000;

struct Debt {
    assignment: Assignment,
    setback: Setback,
    error: PgError,
    started_at: Timestamp,
    run_at: Timestamp,
}

#[derive(Default)]
pub struct Debts {
    owed: HashMap<JobRef, Debt>,
    next: Option<Instant>,
}

impl Debts {
    /// Such a job must not be handed out.
    pub fn hold(&self, job: &JobRef) -> bool {
        self.owed.contains_key(job)
    }

    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// How long until the next try.
    pub fn due_in(&self) -> Option<Duration> {
        self.next.map(|next| next.saturating_duration_since(Instant::now()))
    }
}

impl Dispatcher {
    /// Writes down that the attempt ended with its executor, now or as soon as that is possible.
    pub fn charge(&mut self, assignment: &Assignment, slot: &ExecutorSlot, number: u64) {
        let definition = self.handlers.get(&(assignment.table, assignment.handler.to_text()));
        let timed_out = slot.requested_interrupt(number) == Some(Interrupt::Timeout);
        let (setback, error) = if timed_out {
            let timeout = definition.and_then(|d| d.timeout).or_else(gucs::handler_timeout).unwrap_or_default();
            let error = handler::timeout_error(timeout)
                .detail("The handler did not react to the interrupt, so its executor was terminated.");
            (Setback::Timeout, error)
        } else {
            let error = PgError::new(
                PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
                "the executor was terminated while it ran the job",
            );
            (Setback::Terminated, error)
        };
        let own_limit = (assignment.max_attempts > 0).then_some(assignment.max_attempts);
        // After the last attempt it is handed out once more, to an executor that writes the failure into its row.
        let delay = definition
            .and_then(|d| handler::policy(d, own_limit).delay_after(assignment.attempt, random_unit()))
            .unwrap_or_default();
        let run_at = monotone_now() + delay.as_micros() as i64;
        let started_at = slot.started_at.load(Ordering::Acquire);
        // Those that share its commit would lose their work with every such end.
        self.roster.pace.note(&assignment.lane(Timing::Retry), FATAL_US);
        self.settle(Debt { assignment: *assignment, setback, error, started_at, run_at });
    }

    /// Tries again what could not be charged before.
    pub fn charge_debts(&mut self) {
        if self.debts.due_in().is_some_and(|wait| wait.is_zero()) {
            self.debts.next = None;
            std::mem::take(&mut self.debts.owed).into_values().for_each(|debt| self.settle(debt));
        }
    }

    fn settle(&mut self, debt: Debt) {
        let assignment = &debt.assignment;
        let job = assignment.job();
        let charged = xact::transaction(|| {
            spi::connect(|| {
                if !catalog::lock_if_free(job, assignment.enqueued_at) {
                    // Somebody else has it, or it is not there any more.
                    return (!catalog::is_queued(job, assignment.enqueued_at)).then_some(false);
                }
                let document = catalog::error_document(&debt.error);
                let there = catalog::put_back(assignment, Timing::Retry, debt.run_at, document);
                if there {
                    catalog::log_attempt(assignment, debt.setback, document, debt.started_at, 0);
                }
                Some(there)
            })
        });
        match charged {
            Ok(Some(there)) => {
                if there {
                    self.restarts.push(Assignment { action: Action::Restart, suspect: false, ..*assignment });
                    self.note(assignment.lane(Timing::Retry), debt.run_at);
                }
                // What was submitted under its id meanwhile was passed by.
                if let Some((lane, run_at)) = self.skipped.remove(&job) {
                    self.note(lane, run_at);
                }
                return;
            }
            Ok(None) => {}
            Err(error) => self.complain("charges".to_string(), &error.without_data()),
        }
        self.debts.next.get_or_insert_with(|| Instant::now() + AGAIN);
        self.debts.owed.insert(job, debt);
    }
}
