//! One slot per progress writer.

use crate::pg::latch::Process;
use crate::pg::shmem::shared;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[repr(C)]
pub struct WriterSlot {
    /// The writer. Written by itself.
    pub process: Process,
    /// Whose rows it writes; database 0: the slot is free. Written by the dispatcher that starts it, under the lock, and
    /// emptied by the writer when it leaves.
    pub database: AtomicU32,
    pub owner: AtomicU32,
    /// When it was started, in monotonic nanoseconds.
    pub since_ns: AtomicU64,
}

// Atomics only; all zeroes is a free slot.
shared!(WriterSlot);

impl WriterSlot {
    pub fn belongs_to(&self, database: u32, owner: u32) -> bool {
        self.database.load(Ordering::Acquire) == database && self.owner.load(Ordering::Acquire) == owner
    }
}
