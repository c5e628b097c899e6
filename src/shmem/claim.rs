//! A place in an executor's mailbox.

use crate::pg::shmem::Cell;
pub use crate::protocol::ClaimState;
use crate::shmem::Assignment;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Instead of a run time: the job could not be run at all, and its lane should be left alone for a while (`Dispatcher::refused`).
pub const REFUSED: u64 = u64::MAX;

/// The same, but other jobs of the lane may well run: somebody has the partition of the job's row to himself.
pub const HELD: u64 = u64::MAX - 1;

#[repr(C)]
pub struct Claim {
    state: AtomicU32,
    /// Written under the lock before the claim is Pending, once its place is drained; readable by the executor from Pending
    /// on, by others under the lock.
    pub(super) assignment: Cell<Assignment>,
    /// How long the handler ran, in microseconds, `REFUSED` or `HELD`. Written by the executor before Done.
    pub run_us: AtomicU64,
}

impl Claim {
    pub fn state(&self) -> ClaimState {
        match self.state.load(Ordering::Acquire) {
            1 => ClaimState::Pending,
            2 => ClaimState::Running,
            3 => ClaimState::Done,
            4 => ClaimState::Revoked,
            _ => ClaimState::Empty,
        }
    }

    pub fn set(&self, state: ClaimState) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// Pending -> `state`, unless the other side was quicker.
    pub fn take(&self, state: ClaimState) -> bool {
        let pending = ClaimState::Pending as u32;
        self.state.compare_exchange(pending, state as u32, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn assignment(&self) -> Assignment {
        self.assignment.get()
    }
}
