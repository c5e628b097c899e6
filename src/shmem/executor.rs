//! One slot per executor, with the mailbox through which it is handed jobs.
//!
//! The mailbox is a ring of claims, numbered for ever. The dispatcher, or a committing session (`direct`), writes claim
//! `handed` and counts it up; the executor goes through them in order; the dispatcher reads how they ended and counts up
//! `drained`, which frees the place. A claim is in memory only: no row is touched before the handler runs.

use crate::job::{JobId, JobRef, LaneKey, MAX_HANDLER_NAME, Tid, Timing, Waiting};
use crate::pg::clock::Timestamp;
use crate::pg::latch::Process;
use crate::pg::lwlock;
use crate::pg::shmem::{Cell, shared};
pub use crate::protocol::{Action, ClaimState, Interrupt};
use crate::shmem::alert::Expectation;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

/// Jobs that an executor loads at once, and that share a commit at most. The more do, the less each waits for a flush of the
/// WAL: with 32, executors spent more than half of their time in that.
pub const BATCH: usize = 192;

/// Claims that an executor can hold at once: one batch that it runs, one that waits behind it, and some that the dispatcher has
/// not drained yet.
pub const RING: usize = 512;

/// Instead of a run time: the job could not be run at all, and its lane should be left alone for a while (`Dispatcher::refused`).
pub const REFUSED: u64 = u64::MAX;

/// A handler's name in a fixed place.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    len: u8,
    bytes: [u8; MAX_HANDLER_NAME],
}

impl Name {
    /// `name` is that of a registered handler, so it fits.
    pub fn new(name: &str) -> Self {
        let len = name.len().min(MAX_HANDLER_NAME);
        let mut bytes = [0; MAX_HANDLER_NAME];
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self { len: len as u8, bytes }
    }

    pub fn to_text(self) -> Rc<str> {
        String::from_utf8_lossy(&self.bytes[..self.len as usize]).into()
    }
}

/// What an executor is told about a job.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Assignment {
    pub table: u32,
    pub id: JobId,
    pub handler: Name,
    pub priority: i16,
    /// The number of the attempt to make, counted from 1.
    pub attempt: i32,
    /// The job's own limit; 0: it has none.
    pub max_attempts: i32,
    /// Together with table and id the identity of this submission: a job that was deleted and inserted again,
    /// or run again by retry(), has another.
    pub enqueued_at: Timestamp,
    /// Since when it could have run.
    pub due_at: Timestamp,
    /// Of its row in the queue.
    pub tid: Tid,
    /// Of its row in the job table, at the submission.
    pub row_tid: Tid,
    /// Was running when the server crashed.
    pub suspect: bool,
    pub action: Action,
}

impl Assignment {
    /// What is to be done about a job of this lane.
    pub fn new(lane: &LaneKey, waiting: &Waiting, attempt: i32, action: Action) -> Self {
        Self {
            table: lane.table,
            id: waiting.id,
            handler: Name::new(&lane.handler),
            priority: lane.priority,
            attempt,
            max_attempts: waiting.max_attempts.unwrap_or(0),
            enqueued_at: waiting.enqueued_at,
            due_at: waiting.run_at,
            tid: waiting.tid,
            row_tid: waiting.row_tid,
            suspect: lane.timing == Timing::Quarantine,
            action,
        }
    }

    pub fn job(&self) -> JobRef {
        JobRef { table: self.table, id: self.id }
    }

    /// Its lane, if it waits for this.
    pub fn lane(&self, timing: Timing) -> LaneKey {
        LaneKey { table: self.table, handler: self.handler.to_text(), priority: self.priority, timing }
    }
}

#[repr(C)]
pub struct Claim {
    state: AtomicU32,
    /// Written under the lock before the claim is Pending, once its place is drained; readable by the executor from Pending
    /// on, by others under the lock.
    assignment: Cell<Assignment>,
    /// How long the handler ran, in microseconds, or `REFUSED`. Written by the executor before Done.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotState {
    /// Nobody's.
    Free = 0,
    /// Reserved by a dispatcher, whose worker is on its way.
    Starting = 1,
    /// Takes jobs.
    Ready = 2,
    /// Takes no more jobs and will be free.
    Leaving = 3,
    /// The process ended with claims unfinished, which its dispatcher has to settle.
    Gone = 4,
    /// The process could not open its session, which its dispatcher has to know.
    Failed = 5,
}

#[repr(C)]
pub struct ExecutorSlot {
    state: AtomicU32,
    /// Counts the owners of this slot. A worker that finds another number than the one it was started with is late.
    pub generation: AtomicU32,
    /// The executor. Written by itself.
    pub process: Process,
    /// Whose executor it is. Written by the dispatcher that reserved the slot, under the lock.
    pub database: AtomicU32,
    pub owner: AtomicU32,
    /// Set by a session that needs the database for itself: the executor's end is nobody's failure.
    pub evicted: AtomicBool,
    /// When the current owner got the slot, in monotonic nanoseconds.
    pub since_ns: AtomicU64,
    /// Claims handed out so far. Written under the lock.
    handed: AtomicU64,
    /// Claims that the dispatcher knows of: all but those that sessions handed over (`shmem::direct`) since it looked. Written by the
    /// dispatcher.
    pub booked: AtomicU64,
    /// Claims that the executor is through with. Written by the executor.
    pub passed: AtomicU64,
    /// Claims whose end the dispatcher has seen. Written by the dispatcher.
    pub drained: AtomicU64,
    /// Of a job that a session is about to commit.
    pub expectation: Expectation,
    /// The running claim's number + 1, or 0. Written by the executor.
    running: AtomicU64,
    /// `running` of the claim to interrupt, shifted, and the reason. Written by the dispatcher.
    interrupt: AtomicU64,
    /// When the running handler was called, on both clocks. Written by the executor.
    pub started_ns: AtomicU64,
    pub started_at: AtomicI64,
    /// Bits of the progress that the handler has reported. Written by the executor.
    pub progress: AtomicU32,
    /// Bits of the progress that is in the row. Written by the progress writer.
    pub flushed: AtomicU32,
    /// Open, closed, or the flushing writer's pid: see `progress`.
    pub gate: AtomicU32,
    claims: [Claim; RING],
}

// Atomics, and cells whose rule stands beside them; all zeroes is a free slot with an empty mailbox.
shared!(ExecutorSlot);

impl ExecutorSlot {
    pub fn state(&self) -> SlotState {
        match self.state.load(Ordering::Acquire) {
            1 => SlotState::Starting,
            2 => SlotState::Ready,
            3 => SlotState::Leaving,
            4 => SlotState::Gone,
            5 => SlotState::Failed,
            _ => SlotState::Free,
        }
    }

    /// Every change of the state happens under the lock.
    pub fn set_state(&self, state: SlotState) {
        self.state.store(state as u32, Ordering::Release);
    }

    pub fn belongs_to(&self, database: u32, owner: u32) -> bool {
        self.in_database(database) && self.owner.load(Ordering::Acquire) == owner
    }

    pub fn in_database(&self, database: u32) -> bool {
        self.state() != SlotState::Free && self.database.load(Ordering::Acquire) == database
    }

    pub fn claim(&self, number: u64) -> &Claim {
        &self.claims[(number % RING as u64) as usize]
    }

    pub fn handed(&self) -> u64 {
        self.handed.load(Ordering::Acquire)
    }

    pub fn is_idle(&self) -> bool {
        self.state() == SlotState::Ready && self.handed() == self.passed.load(Ordering::Acquire)
    }

    /// Claims not yet passed by the executor.
    pub fn outstanding(&self) -> usize {
        (self.handed() - self.passed.load(Ordering::Acquire)) as usize
    }

    pub fn room(&self) -> usize {
        RING - (self.handed() - self.drained.load(Ordering::Acquire)) as usize
    }

    /// Hands out a job; the dispatcher's side. Returns the claim's number, or none if the executor takes no more.
    pub fn hand(&self, assignment: &Assignment) -> Option<u64> {
        lwlock::with(true, || {
            let number = self.put(assignment)?;
            self.booked.store(number + 1, Ordering::Release);
            Some(number)
        })
    }

    /// Puts a claim into the mailbox; under the lock. Returns its number, or none: see `hand`.
    pub fn put(&self, assignment: &Assignment) -> Option<u64> {
        if self.state() != SlotState::Ready || self.room() == 0 {
            return None;
        }
        let number = self.handed();
        let claim = self.claim(number);
        claim.assignment.set(*assignment);
        claim.run_us.store(0, Ordering::Relaxed);
        claim.set(ClaimState::Pending);
        self.handed.store(number + 1, Ordering::Release);
        Some(number)
    }

    /// The numbers of the claims that the dispatcher does not know of, until now; under the lock.
    pub fn take_unbooked(&self) -> Range<u64> {
        let handed = self.handed();
        self.booked.swap(handed, Ordering::AcqRel)..handed
    }

    /// The claims whose end the dispatcher has not seen yet; under the lock.
    pub fn undrained(&self) -> impl Iterator<Item = Assignment> {
        (self.drained.load(Ordering::Acquire)..self.handed()).map(|number| self.claim(number).assignment())
    }

    /// Stops taking jobs if none is waiting; both sides may ask for it.
    pub fn leave_if_idle(&self) -> bool {
        lwlock::with(true, || {
            let idle = self.is_idle();
            if idle {
                self.set_state(SlotState::Leaving);
            }
            idle
        })
    }

    pub fn begin(&self, number: u64) {
        self.running.store(number + 1, Ordering::SeqCst);
    }

    pub fn end(&self) {
        self.running.store(0, Ordering::SeqCst);
    }

    pub fn running(&self) -> Option<u64> {
        self.running.load(Ordering::SeqCst).checked_sub(1)
    }

    /// Asks for claim `number` to be interrupted; the signal comes separately.
    pub fn request_interrupt(&self, number: u64, why: Interrupt) {
        self.interrupt.store((number + 1) << 2 | why as u64, Ordering::SeqCst);
    }

    /// Why the running claim is to be interrupted, if it is. Safe in a signal handler.
    pub fn interrupt(&self) -> Option<Interrupt> {
        self.running().and_then(|number| self.requested_interrupt(number))
    }

    /// The interrupt that was asked for claim `number`.
    pub fn requested_interrupt(&self, number: u64) -> Option<Interrupt> {
        let wanted = self.interrupt.load(Ordering::SeqCst);
        if wanted >> 2 != number + 1 {
            return None;
        }
        match wanted & 3 {
            1 => Some(Interrupt::Cancelled),
            2 => Some(Interrupt::Timeout),
            _ => None,
        }
    }

    /// Empties a slot for its next owner; under the lock.
    pub fn reset(&self, database: u32, owner: u32, now_ns: u64) -> u32 {
        for claim in &self.claims {
            claim.set(ClaimState::Empty);
        }
        for counter in [&self.handed, &self.booked, &self.passed, &self.drained, &self.running, &self.interrupt] {
            counter.store(0, Ordering::Release);
        }
        for bits in [&self.progress, &self.flushed, &self.gate] {
            bits.store(0, Ordering::Release);
        }
        self.expectation.clear();
        self.evicted.store(false, Ordering::Release);
        self.since_ns.store(now_ns, Ordering::Release);
        self.database.store(database, Ordering::Release);
        self.owner.store(owner, Ordering::Release);
        let generation = self.generation.load(Ordering::Acquire).wrapping_add(1);
        self.generation.store(generation, Ordering::Release);
        self.set_state(SlotState::Starting);
        generation
    }
}
