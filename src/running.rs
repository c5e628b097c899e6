//! What this process is, if it is an executor: its slot, and the job whose handler runs just now.

use crate::pg::error::PgError;
use crate::shmem::{Assignment, ExecutorSlot};
use pgrx::PgSqlErrorCode;
use std::cell::Cell;

/// The job that runs in this process, for current_job() and set_progress().
#[derive(Clone, Copy)]
pub struct Current {
    pub assignment: Assignment,
    pub max_attempts: i32,
    /// Others share its transaction, or may do so after it.
    pub shares: bool,
}

thread_local! {
    static SLOT: Cell<Option<(usize, &'static ExecutorSlot)>> = const { Cell::new(None) };
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
}

/// The slot of this process and its number.
pub fn slot() -> Option<(usize, &'static ExecutorSlot)> {
    SLOT.get()
}

pub fn set_slot(slot: Option<(usize, &'static ExecutorSlot)>) {
    SLOT.set(slot);
}

pub fn job() -> Option<Current> {
    CURRENT.get()
}

pub fn set_job(job: Option<Current>) {
    CURRENT.set(job);
}

/// Ends a job that is about to do what the others of its transaction would feel, in a way that has it run again alone, whether or
/// not its handler catches the error.
pub fn require_own_transaction() {
    if job().is_some_and(|job| job.shares) {
        PgError::new(PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION, "background job needs a transaction of its own")
            .raise();
    }
}
