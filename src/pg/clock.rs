//! Two clocks: the wall clock that rows carry, and the monotonic one that deadlines are measured with.

use pgrx::pg_sys;

/// Microseconds since 2000-01-01 UTC, the server's own representation of `timestamptz`.
pub type Timestamp = i64;

/// The server's `-infinity`.
pub const BEGINNING: Timestamp = i64::MIN;

/// The wall clock. It may be set back or forth at any time: never measure a duration with it.
pub fn now() -> Timestamp {
    // Without the guard that pgrx puts around a call: there is no error to be caught.
    unsafe extern "C-unwind" {
        fn GetCurrentTimestamp() -> pg_sys::TimestampTz;
    }
    // SAFETY: reads the system clock, touches no shared state and cannot fail.
    unsafe { GetCurrentTimestamp() }
}

/// Nanoseconds of CLOCK_MONOTONIC, comparable between the processes of one machine.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the duration of the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
