//! One slot per progress writer.

use crate::pg::latch::Process;
use crate::pg::shmem::shared;
use crate::shmem;
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
    /// Wakes the writer of this owner's jobs; false: there is none, nor one on its way.
    pub fn wake(database: u32, owner: u32) -> bool {
        let mut own = shmem::writers().iter().filter(|slot| slot.belongs_to(database, owner)).peekable();
        let is_there = own.peek().is_some();
        own.for_each(|slot| slot.process.wake());
        is_there
    }

    /// Is this process a writer (still)?
    pub fn is_alive(pid: i32) -> bool {
        shmem::writers().iter().any(|slot| slot.process.pid() == pid)
    }

    pub fn belongs_to(&self, database: u32, owner: u32) -> bool {
        self.database.load(Ordering::Acquire) == database && self.owner.load(Ordering::Acquire) == owner
    }
}
