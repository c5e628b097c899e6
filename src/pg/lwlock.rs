//! The one lightweight lock of the extension.

use pgrx::pg_sys;
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

const TRANCHE: &CStr = c"background_jobs";

static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(std::ptr::null_mut());

/// Asks for the lock while the server starts.
pub fn request() {
    // SAFETY: called from the shared memory request phase only.
    unsafe { pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1) };
}

/// To be called at every start and restart of the server, when the lock is there; other processes inherit what is found.
pub fn find() {
    // SAFETY: the tranche was requested at server start.
    let lock = unsafe { &raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock };
    LOCK.store(lock, Ordering::Release);
}

/// Runs `f` with the lock held. `f` must be short and must neither raise an error nor panic.
pub fn with<T>(exclusive: bool, f: impl FnOnce() -> T) -> T {
    let mode = if exclusive { pg_sys::LWLockMode::LW_EXCLUSIVE } else { pg_sys::LWLockMode::LW_SHARED };
    let lock = LOCK.load(Ordering::Acquire);
    assert!(!lock.is_null(), "background_jobs is not in shared_preload_libraries");
    // SAFETY: the lock is in shared memory, which is there as long as this process; it is released right after `f`.
    unsafe { pg_sys::LWLockAcquire(lock, mode) };
    let value = f();
    // SAFETY: as above.
    unsafe { pg_sys::LWLockRelease(lock) };
    value
}
