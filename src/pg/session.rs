//! Making a session as clean as a new one.

use crate::pg::guc;
use pgrx::pg_sys;

unsafe extern "C-unwind" {
    fn Async_UnlistenAll();
    fn ResetSequenceCaches();
}

/// Drops what a function can leave behind in its session that no transaction or setting takes back: cursors, prepared
/// statements, session advisory locks, LISTEN registrations, sequence values, temporary tables. Costs next to nothing when
/// there is nothing.
pub fn scrub() {
    // SAFETY: what DISCARD ALL does in C, called inside a transaction with no portal and no plan of ours running.
    unsafe {
        pg_sys::PortalHashTableDeleteAll();
        pg_sys::DropAllPreparedStatements();
        pg_sys::LockReleaseSession(pg_sys::USER_LOCKMETHOD as u16 as _);
        guarded(|| Async_UnlistenAll());
        guarded(|| ResetSequenceCaches());
    }
    if has_temporary_schema() {
        // SAFETY: as above; removes the contents of this session's own temporary schema.
        unsafe { pg_sys::ResetTempTableNamespace() };
    }
}

unsafe fn guarded(f: impl FnOnce()) {
    // SAFETY: a plain C call without Rust values on its stack; the boundary turns an ERROR into a panic, as pgrx does
    // for the functions that it binds.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(f) }
}

/// Did something in this session make a temporary table or function?
pub fn has_temporary_schema() -> bool {
    let (mut namespace, mut toast) = (pg_sys::Oid::INVALID, pg_sys::Oid::INVALID);
    // SAFETY: reads the state of this session.
    unsafe { pg_sys::GetTempNamespaceState(&mut namespace, &mut toast) };
    namespace != pg_sys::Oid::INVALID
}

/// The same, and every setting back to the role's default: what a deferred trigger did at the commit of the job before, after
/// that job had been cleaned up.
pub fn reset() {
    scrub();
    guc::set_session(c"role", c"none");
    // SAFETY: RESET ALL, called inside a transaction.
    unsafe { pg_sys::ResetAllOptions() };
}
