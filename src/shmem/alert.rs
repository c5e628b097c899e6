//! A session that is about to commit a single job has an idle executor woken before, so that it is awake, with warm caches,
//! when the job comes: to wake up and to go there takes about as long as a commit takes to reach the disk.
//!
//! Nothing depends on it: the job itself comes by `shmem::direct` or from the dispatcher, to this executor or another, or not at all.

use crate::pg::shmem::Cell;
use crate::pg::{clock, lwlock};
use crate::shmem::{Assignment, DatabaseSlot, ExecutorSlot, executors, header};
use std::sync::atomic::{AtomicU64, Ordering};

/// How long an executor stays awake for a job, in nanoseconds. Where commits take longer, there is nothing to gain: what a wake-up takes
/// is little beside them.
const WORTH_NS: u64 = 1_000_000;

/// No alert unless no single job was committed for this long, in nanoseconds. Executors that are busy are awake, and to those
/// who submit one job after the other the processors are worth more than a quick start.
const PAUSE_NS: u64 = 4_000_000;

/// A job that an executor will probably be handed.
#[repr(C)]
pub struct Expectation {
    /// How long it is worth staying awake for, in monotonic nanoseconds; 0: there is no such job. Set under the lock, cleared by the
    /// session that has set it.
    until_ns: AtomicU64,
    /// Written and read under the lock.
    assignment: Cell<Assignment>,
}

impl Expectation {
    pub fn is_current(&self, now_ns: u64) -> bool {
        now_ns < self.until_ns.load(Ordering::Acquire)
    }

    pub fn assignment(&self) -> Assignment {
        lwlock::with(true, || self.assignment.get())
    }

    pub fn clear(&self) {
        self.until_ns.store(0, Ordering::Release);
    }
}

/// The commit that this session has raised an alert for.
#[derive(Clone, Copy)]
struct Committing {
    since_ns: u64,
    executor: Option<&'static ExecutorSlot>,
}

thread_local! {
    static COMMITTING: std::cell::Cell<Option<Committing>> = const { std::cell::Cell::new(None) };
}

/// Before the commit of a single job: wakes an idle executor of `owner` for it, if commits are quick here. Never blocks for long and never
/// fails.
pub fn raise(database: &DatabaseSlot, owner: u32, assignment: &Assignment) {
    let (oid, since_ns) = (database.database.load(Ordering::Acquire), clock::monotonic_ns());
    let paused = since_ns.saturating_sub(header().committed_ns.load(Ordering::Relaxed)) > PAUSE_NS;
    let worth = paused && database.is_quiet() && header().commit_ns.load(Ordering::Relaxed) < WORTH_NS;
    let executor = worth.then(|| lwlock::with(true, || expecting(oid, owner, assignment, since_ns))).flatten();
    if let Some(executor) = executor {
        executor.process.wake();
    }
    COMMITTING.set(Some(Committing { since_ns, executor }));
}

/// Finds an executor that expects no other job, and tells it of this one; under the lock.
fn expecting(database: u32, owner: u32, assignment: &Assignment, now_ns: u64) -> Option<&'static ExecutorSlot> {
    let free = |slot: &&ExecutorSlot| {
        slot.belongs_to(database, owner) && slot.is_idle() && !slot.expectation.is_current(now_ns)
    };
    let slot = executors().iter().find(free)?;
    slot.expectation.assignment.set(*assignment);
    slot.expectation.until_ns.store(now_ns + WORTH_NS, Ordering::Release);
    Some(slot)
}

/// After the end of the transaction: the job has come, or it will not. Atomics only.
pub fn lift(committed: bool) {
    let Some(Committing { since_ns, executor }) = COMMITTING.take() else { return };
    if let Some(slot) = executor {
        slot.expectation.clear();
    }
    if committed {
        let now_ns = clock::monotonic_ns();
        header().committed_ns.store(now_ns, Ordering::Relaxed);
        // One that waited for something else counts as one that was slow.
        let took = (now_ns - since_ns).min(4 * WORTH_NS);
        let usual = &header().commit_ns;
        let before = usual.load(Ordering::Relaxed);
        usual.store(before - before / 8 + took / 8, Ordering::Relaxed);
    }
}
