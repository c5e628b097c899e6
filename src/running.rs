//! What this process is, if it is an executor: its slot, and the job whose handler runs just now.

use crate::shmem::{Assignment, ExecutorSlot};
use std::cell::Cell;

/// The job that runs in this process, for current_job() and set_progress().
#[derive(Clone, Copy)]
pub struct Current {
    pub assignment: Assignment,
    pub max_attempts: i32,
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
