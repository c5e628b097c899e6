//! An alarm that interrupts the running statement, as statement_timeout does in a client's session; in a worker the server never
//! arms that one itself.

use std::cell::Cell;
use std::ffi::c_int;
use std::time::{Duration, Instant};

// The same number in PostgreSQL 14 to 18.
const STATEMENT_TIMEOUT: c_int = 3;

/// How far two clocks may be apart after a delay.
const CLOCKS: Duration = Duration::from_micros(100);

/// Any number beyond the server's own alarms asks for one that is free.
const SOME_TIMEOUT: c_int = 1000;

/// An alarm of our own, and what it calls.
#[derive(Clone, Copy)]
struct Reminder {
    id: c_int,
    call: fn(),
}

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
    static REMINDER: Cell<Option<Reminder>> = const { Cell::new(None) };
}

unsafe extern "C-unwind" {
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
    fn RegisterTimeout(id: c_int, handler: unsafe extern "C-unwind" fn()) -> c_int;
}

/// Interrupts what runs in `delay` from now (at least a millisecond), with SQLSTATE 57014.
pub fn arm(delay: Duration) {
    let millis = delay.as_micros().div_ceil(1000).clamp(1, 3_600_000) as c_int;
    // Before the alarm is set, and on another clock than the server's: whoever was interrupted by it has to find that it was due.
    let now = Instant::now();
    DEADLINE.set(Some(now + Duration::from_millis(millis as u64) - CLOCKS));
    // SAFETY: the timeout was registered when the session was opened. The functions neither raise errors nor unwind.
    unsafe { enable_timeout_after(STATEMENT_TIMEOUT, millis) };
}

/// Has it gone off, or should it have? What it interrupts may have swallowed the error, or have made another one of it; the server's
/// own mark is gone by then.
pub fn fired() -> bool {
    DEADLINE.get().is_some_and(|deadline| Instant::now() >= deadline)
}

/// What `remind` calls from now on. `f` runs in a signal handler: atomics and latches only.
pub fn register_reminder(f: fn()) {
    // SAFETY: once in a process, whose alarms the server has set up before its main function.
    let id = unsafe { RegisterTimeout(SOME_TIMEOUT, on_reminder) };
    REMINDER.set(Some(Reminder { id, call: f }));
}

unsafe extern "C-unwind" fn on_reminder() {
    if let Some(reminder) = REMINDER.get() {
        (reminder.call)();
    }
}

/// Calls what was registered in `delay` from now (at least a millisecond), whatever runs then; it interrupts nothing.
pub fn remind(delay: Duration) {
    if let Some(Reminder { id, .. }) = REMINDER.get() {
        // SAFETY: the alarm was registered. The functions neither raise errors nor unwind.
        unsafe { enable_timeout_after(id, delay.as_millis().max(1) as c_int) };
    }
}

pub fn forget_reminder() {
    if let Some(Reminder { id, .. }) = REMINDER.get() {
        // SAFETY: as above.
        unsafe { disable_timeout(id, false) };
    }
}

pub fn disarm() {
    // SAFETY: as above.
    unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
    DEADLINE.set(None);
}
