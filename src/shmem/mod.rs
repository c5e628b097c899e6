//! Shared memory: where the processes meet.
//!
//! Everything here starts as zeroes, at every start of the server and after every crash of one of its processes. A field is
//! an atomic, or a `Cell` with its rule beside it. Fields that no comment speaks of may be read by anybody at any time.
//! "The lock" is the extension's one lightweight lock; it is held for a few instructions and never across a wait.

pub mod alert;
mod assignment;
mod claim;
mod database;
pub mod direct;
mod executor;
mod suspect;
mod waiter;
mod writer;

pub use assignment::{Action, Assignment, Name};
pub use claim::{ClaimState, HELD, REFUSED};
pub use database::{DatabaseSlot, Exit, NOTES, Note};
pub use executor::{BATCH, ExecutorSlot, Interrupt, SlotState};
pub use waiter::WaiterSlot;
pub use writer::WriterSlot;

use crate::gucs;
use crate::pg::bgworker;
use crate::pg::clock::{self, Timestamp};
use crate::pg::latch::Process;
use crate::pg::shmem::{array, shared};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

/// What concerns the whole server.
#[repr(C)]
pub struct Header {
    /// The launcher. Written by itself.
    pub launcher: Process,
    /// Set by anybody: a database was created, renamed or let go; look at all of them.
    pub rescan: AtomicBool,
    /// Databases in which CREATE EXTENSION was committed. A cell is filled by anybody (0 -> OID) and emptied by the
    /// launcher; when none is empty, `rescan` does instead.
    pub created: [AtomicU32; 32],
    /// The claim that runs a suspect of a crash, or 0; see `suspect`.
    suspect: AtomicU64,
    /// How many waiters there are; read before the waiters are looked through. Written under the lock.
    pub waiters: AtomicU32,
    /// The most that the wall clock has been ahead of the monotonic one, in microseconds. Raised by anybody.
    ahead: AtomicI64,
    /// See `arrival`. Raised by anybody.
    last_arrival: AtomicI64,
    /// When a single job was last committed, in monotonic nanoseconds, and how long that takes lately: see `alert`. Written by sessions;
    /// a lost update is no loss.
    committed_ns: AtomicU64,
    commit_ns: AtomicU64,
}

// Atomics only; all zeroes is nobody and nothing.
shared!(Header);

const WAITERS: usize = 128;

const fn after<T>(end: usize) -> usize {
    end.next_multiple_of(align_of::<T>())
}

/// Offsets of the arrays, in the order in which they lie.
struct Layout {
    databases: usize,
    executors: usize,
    writers: usize,
    waiters: usize,
    end: usize,
}

fn layout() -> Layout {
    let databases = after::<DatabaseSlot>(size_of::<Header>());
    let executors = after::<ExecutorSlot>(databases + database_count() * size_of::<DatabaseSlot>());
    let writers = after::<WriterSlot>(executors + gucs::max_executors() * size_of::<ExecutorSlot>());
    let waiters = after::<WaiterSlot>(writers + gucs::max_executors() * size_of::<WriterSlot>());
    Layout { databases, executors, writers, waiters, end: waiters + WAITERS * size_of::<WaiterSlot>() }
}

/// No more dispatchers can run than there are worker processes.
fn database_count() -> usize {
    bgworker::max_worker_processes().max(1)
}

/// Bytes needed at the current settings.
pub fn size() -> usize {
    layout().end
}

pub fn header() -> &'static Header {
    &array::<Header>(0, 1)[0]
}

pub fn databases() -> &'static [DatabaseSlot] {
    array(layout().databases, database_count())
}

pub fn executors() -> &'static [ExecutorSlot] {
    array(layout().executors, gucs::max_executors())
}

pub fn writers() -> &'static [WriterSlot] {
    array(layout().writers, gucs::max_executors())
}

pub fn waiters() -> &'static [WaiterSlot] {
    array(layout().waiters, WAITERS)
}

/// The slot of the database's dispatcher, if one is there or being started.
pub fn database(oid: u32) -> Option<&'static DatabaseSlot> {
    databases().iter().find(|slot| slot.database.load(Ordering::Acquire) == oid)
}

/// Does a session keep the database to itself? A worker asks after it has announced itself; that session announces its wish
/// before it looks for workers. So one of the two notices.
pub fn is_blocked(oid: u32) -> bool {
    database(oid).is_some_and(|slot| slot.is_blocked())
}

/// Owners in the whole server that have due jobs and no executor. A dispatcher that is gone wants none for them.
pub fn starving() -> u32 {
    let at_work = databases().iter().filter(|slot| slot.dispatcher.pid() != 0);
    at_work.map(|slot| slot.starving.load(Ordering::Acquire)).sum()
}

/// Executor slots that are free, or will be, or belong to executors that do not work yet.
pub fn slots_on_their_way() -> u32 {
    let coming =
        |slot: &&ExecutorSlot| matches!(slot.state(), SlotState::Free | SlotState::Leaving | SlotState::Starting);
    executors().iter().filter(coming).count() as u32
}

/// A wall clock that is never set back, the same in all processes: what lengths of time are added to and compared with.
pub fn monotone_now() -> Timestamp {
    let since_boot = (clock::monotonic_ns() / 1000) as i64;
    let ahead = clock::now() - since_boot;
    since_boot + header().ahead.fetch_max(ahead, Ordering::AcqRel).max(ahead)
}

/// The wall clock as it orders submissions: no two are told the same time, as far as the clock is not set back.
pub fn arrival() -> Timestamp {
    let now = clock::now();
    // A clock that was set back must not keep us ahead of it for long.
    let after = |last: Timestamp| if last >= now + 1_000_000 { now } else { now.max(last + 1) };
    let last = header().last_arrival.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(after(last)));
    after(last.unwrap_or_else(|last| last))
}

/// Tells the launcher that the extension was installed in a database.
pub fn announce_extension(oid: u32) {
    let header = header();
    let free = |cell: &&AtomicU32| cell.compare_exchange(0, oid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if header.created.iter().find(free).is_none() {
        header.rescan.store(true, Ordering::Release);
    }
    header.launcher.wake();
}

/// Has the launcher look at all databases.
pub fn rescan() {
    header().rescan.store(true, Ordering::Release);
    header().launcher.wake();
}
