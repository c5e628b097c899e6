//! What the clients did and what they were told about it.

use server_tests::{Uuid, postgres};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

/// Seconds since 1970.
pub type Time = f64;

pub fn now() -> Time {
    UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acknowledged,
    /// It certainly did not happen.
    Failed,
    /// The session ended before the server said how it went.
    Unknown,
}

impl Outcome {
    /// Of a statement that commits by itself, or of a COMMIT. Only an ERROR is certain: a session that is ended may be ended
    /// after its commit.
    pub fn of<T>(result: &Result<T, postgres::Error>) -> Outcome {
        match result {
            Ok(_) => Outcome::Acknowledged,
            Err(error) => Outcome::of_error(error),
        }
    }

    pub fn of_error(error: &postgres::Error) -> Outcome {
        match error.as_db_error() {
            Some(told) if told.severity() == "ERROR" => Outcome::Failed,
            _ => Outcome::Unknown,
        }
    }
}

/// One submission: a row's id, and which of the rows that had this id one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Submission {
    pub job: Uuid,
    pub seq: i32,
    pub kind: &'static str,
    /// The job that it submits when it completes.
    pub child: Option<Uuid>,
}

#[derive(Clone, Debug)]
pub enum What {
    Insert(Vec<Submission>),
    /// `hit`: the server returned the row.
    Cancel {
        job: Uuid,
        hit: bool,
    },
    Delete {
        job: Uuid,
        hit: bool,
    },
    /// Deletes the unfinished row and inserts another with its id, in one transaction.
    Replace {
        old: i32,
        new: Submission,
        hit: bool,
    },
    /// `hit`: it had failed or was cancelled, and was submitted again.
    Retry {
        job: Uuid,
        hit: bool,
    },
    /// `hit`: it was queued.
    RunNow {
        job: Uuid,
        hit: bool,
    },
    Wait {
        job: Uuid,
        told: Told,
    },
    /// A handler was registered anew.
    Register,
}

/// What wait() said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing about the job.
    Nothing,
    /// With the number in its result.
    Completed(i32),
    Failed,
    Cancelled,
    Gone,
    TimedOut,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub table: usize,
    pub what: What,
    pub outcome: Outcome,
    pub how: &'static str,
    /// Of a prepared transaction.
    pub gid: Option<String>,
    pub begun: Time,
    pub ended: Time,
}

impl Operation {
    pub fn concerns(&self, id: Uuid) -> bool {
        match &self.what {
            What::Insert(some) => some.iter().any(|one| one.job == id || one.child == Some(id)),
            What::Cancel { job, .. } | What::Delete { job, .. } | What::Retry { job, .. } => *job == id,
            What::RunNow { job, .. } | What::Wait { job, .. } => *job == id,
            What::Replace { new, .. } => new.job == id,
            What::Register => false,
        }
    }
}

#[derive(Default)]
pub struct History {
    operations: Mutex<Vec<Operation>>,
    recent: Mutex<VecDeque<(usize, Submission)>>,
    submitted: AtomicU64,
}

impl History {
    pub fn record(&self, operation: Operation) {
        let fresh = match (&operation.what, operation.outcome) {
            (What::Insert(some), Outcome::Acknowledged) => some.clone(),
            (What::Replace { new, hit: true, .. }, Outcome::Acknowledged) => vec![*new],
            _ => Vec::new(),
        };
        if matches!(operation.what, What::Insert(_)) {
            self.submitted.fetch_add(fresh.len() as u64, Ordering::Relaxed);
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.extend(fresh.into_iter().map(|one| (operation.table, one)));
        while recent.len() > 200 {
            recent.pop_front();
        }
        drop(recent);
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// Jobs that were submitted, and acknowledged.
    pub fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// Something that was submitted lately and that suits.
    pub fn pick(
        &self,
        rng: &mut fastrand::Rng,
        suits: impl Fn(usize, &Submission) -> bool,
    ) -> Option<(usize, Submission)> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let suitable: Vec<_> = recent.iter().filter(|(table, one)| suits(*table, one)).collect();
        (!suitable.is_empty()).then(|| *suitable[rng.usize(..suitable.len())])
    }

    /// A prepared transaction that was found after all, and rolled back.
    pub fn rolled_back(&self, gid: &str) {
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        operations
            .iter_mut()
            .filter(|operation| operation.gid.as_deref() == Some(gid))
            .for_each(|operation| operation.outcome = Outcome::Failed);
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
