//! Progress: cells in shared memory that a running handler writes and the progress writer drains into the row.

use crate::pg::latch;
use crate::pg::signal;
use crate::shmem::{self, ExecutorSlot, WriterSlot};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The gate's values; anything else is the process id of the writer that flushes.
const OPEN: u32 = 0;
const CLOSED: u32 = u32::MAX;

/// The largest value that a row may show before its job is completed.
const ALMOST: f32 = 1.0 - f32::EPSILON / 2.0;

/// Reports the progress of the running handler. `value` is in 0..=1; a lower one than before is ignored.
pub fn report(slot: &ExecutorSlot, value: f32) {
    let clean = !is_dirty(slot);
    // Non-negative floats order like their bits.
    slot.progress.fetch_max((value.clamp(0.0, ALMOST) + 0.0).to_bits(), Ordering::AcqRel);
    if clean && is_dirty(slot) {
        wake_writer(slot);
    }
}

/// Wakes whoever writes the progress into the row, or has that process started.
fn wake_writer(slot: &ExecutorSlot) {
    let (database, owner) = (slot.database.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
    if !WriterSlot::wake(database, owner)
        && let Some(database) = shmem::database(database)
    {
        database.dispatcher.wake();
    }
}

pub fn reported(slot: &ExecutorSlot) -> f32 {
    f32::from_bits(slot.progress.load(Ordering::Acquire))
}

/// May the progress be written? A writer that has died in the middle of it has left the gate to itself.
fn is_open(slot: &ExecutorSlot) -> bool {
    let reopen = |dead| slot.gate.compare_exchange(dead, OPEN, Ordering::AcqRel, Ordering::Acquire).is_ok();
    match slot.gate.load(Ordering::Acquire) {
        OPEN => true,
        CLOSED => false,
        writer => !WriterSlot::is_alive(writer as i32) && reopen(writer),
    }
}

/// Is there something to write into the row?
pub fn is_dirty(slot: &ExecutorSlot) -> bool {
    slot.running().is_some()
        && is_open(slot)
        && slot.progress.load(Ordering::Acquire) > slot.flushed.load(Ordering::Acquire)
}

/// Starts a new attempt at zero; with `flushed`, for the row to see, too. By the executor, which closed the gate before.
pub fn begin(slot: &ExecutorSlot, flushed: bool) {
    slot.progress.store(0, Ordering::Release);
    slot.flushed.store(0, Ordering::Release);
    slot.gate.store(if flushed { OPEN } else { CLOSED }, Ordering::Release);
}

/// Ends the attempt's progress: when this returns, no flush of it is under way and none will begin. By the executor,
/// before it writes how the attempt ended, so that no older value can follow.
///
/// The wait is that for one short UPDATE, whose writer waits for no row lock.
pub fn close(slot: &ExecutorSlot) {
    while slot.gate.compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_err() {
        let gate = slot.gate.load(Ordering::Acquire);
        if gate == CLOSED {
            return;
        }
        if (gate != OPEN && !WriterSlot::is_alive(gate as i32)) || signal::termination_pending() {
            slot.gate.store(CLOSED, Ordering::Release);
            return;
        }
        latch::pause(Duration::from_millis(1));
    }
}

/// Runs `flush` with the value to write, unless the attempt has ended. By the progress writer.
pub fn drain(slot: &ExecutorSlot, flush: impl FnOnce(f32) -> bool) {
    let own = latch::own_pid() as u32;
    if slot.gate.compare_exchange(OPEN, own, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return;
    }
    let bits = slot.progress.load(Ordering::Acquire);
    if slot.running().is_some() && flush(f32::from_bits(bits)) {
        slot.flushed.store(bits, Ordering::Release);
    }
    // Closed meanwhile, it stays closed.
    let _ = slot.gate.compare_exchange(own, OPEN, Ordering::AcqRel, Ordering::Acquire);
    slot.process.wake();
}
