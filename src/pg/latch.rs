//! Waiting for one another.

use crate::pg::error::forget_cancel;
use crate::pg::signal;
use pgrx::pg_sys;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

/// A process in shared memory: whoever sees it may wake or signal it. Written by that process alone.
///
/// All zeroes: nobody. A latch belongs to the process's slot in the server, which is reused: a late wake-up may
/// reach a stranger, to whom it is one of the spurious wake-ups that every waiter must expect.
#[repr(C)]
pub struct Process {
    pid: AtomicI32,
    latch: AtomicPtr<pg_sys::Latch>,
}

impl Process {
    /// Puts the calling process in.
    pub fn announce(&self) {
        // SAFETY: MyProc is set in every process that is attached to shared memory.
        self.latch.store(unsafe { &raw mut (*pg_sys::MyProc).procLatch }, Ordering::Release);
        self.pid.store(own_pid(), Ordering::SeqCst);
    }

    /// Takes the calling process out. The id last: from then on another one may come in.
    pub fn clear(&self) {
        self.latch.store(std::ptr::null_mut(), Ordering::Release);
        self.pid.store(0, Ordering::Release);
    }

    /// Its process id, or 0.
    pub fn pid(&self) -> i32 {
        self.pid.load(Ordering::SeqCst)
    }

    pub fn wake(&self) {
        let latch = self.latch.load(Ordering::Acquire);
        if !latch.is_null() {
            // SAFETY: it points at the latch of a PGPROC, which lies in shared memory for the server's lifetime.
            unsafe { pg_sys::SetLatch(latch) };
        }
    }

    pub fn signal(&self, signal: i32) {
        let pid = self.pid();
        if pid > 0 {
            // SAFETY: a plain system call. The process takes its id out of here before it exits.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

pub fn own_pid() -> i32 {
    // SAFETY: set once when the process starts.
    unsafe { pg_sys::MyProcPid }
}

/// Sets the own latch: the next sleep does not happen.
pub fn set_own() {
    // SAFETY: MyLatch is owned by this process.
    unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
}

/// Sleeps until the own latch is set or the time is over. A dead postmaster ends the process.
fn sleep(timeout: Option<Duration>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    let mut millis = -1;
    if let Some(timeout) = timeout {
        events |= pg_sys::WL_TIMEOUT;
        millis = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i64;
    }
    // SAFETY: MyLatch is owned by this process.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, millis, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// Sleeps, then serves pending interrupts, which may raise an error.
pub fn wait(timeout: Option<Duration>) {
    sleep(timeout);
    pgrx::check_for_interrupts!();
}

/// The same for a worker between two pieces of work: asked to end, it ends without a line in the log.
pub fn wait_quietly(timeout: Option<Duration>) {
    sleep(timeout);
    if signal::termination_pending() {
        signal::exit(1);
    }
    // There is nothing to cancel between two pieces of work; a request that came now must not end the process.
    forget_cancel();
    pgrx::check_for_interrupts!();
}

/// Sleeps for `time` or until the own latch is set, without serving interrupts; for waits that are bounded anyway.
pub fn pause(time: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH | pg_sys::WL_TIMEOUT;
    // SAFETY: MyLatch is owned by this process. It is set again for whoever waits for it next.
    unsafe {
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            time.as_micros().div_ceil(1000) as i64,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::SetLatch(pg_sys::MyLatch);
    }
}
