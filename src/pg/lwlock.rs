//! The one lightweight lock of the extension.

use pgrx::pg_sys;
use std::ffi::CStr;

const TRANCHE: &CStr = c"background_jobs";

/// Asks for the lock while the server starts.
pub fn request() {
    // SAFETY: called from the shared memory request phase only.
    unsafe { pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1) };
}

/// Runs `f` with the lock held. `f` must be short and must neither raise an error nor panic.
pub fn with<T>(exclusive: bool, f: impl FnOnce() -> T) -> T {
    let mode = if exclusive { pg_sys::LWLockMode::LW_EXCLUSIVE } else { pg_sys::LWLockMode::LW_SHARED };
    // SAFETY: the tranche was requested at server start; the lock is released right after `f`.
    let lock = unsafe { &raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock };
    // SAFETY: as above.
    unsafe { pg_sys::LWLockAcquire(lock, mode) };
    let value = f();
    // SAFETY: as above.
    unsafe { pg_sys::LWLockRelease(lock) };
    value
}
