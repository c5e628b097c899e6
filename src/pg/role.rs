//! Roles: who we are, who somebody is, and the one switch of user there is.

use crate::pg::{encoding, guc};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::CStr;

/// Runs `f`, which holds fixed statements on the extension's own tables and nothing else, as the bootstrap superuser with
/// pinned settings.
///
/// The session stays the caller's: this switches up for bookkeeping, never down to run somebody's code. No user code can
/// run inside: the tables have no triggers, policies or expressions but ours, and no user data is converted.
pub fn bookkeeping<T>(f: impl FnOnce() -> T) -> T {
    let mut user = pg_sys::Oid::INVALID;
    let mut context = 0;
    let flags = (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION) as i32;
    // SAFETY: the pair is put back below; after an error the (sub)transaction's abort puts back the one it began with.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID), context | flags);
    }
    let value = guc::pinned(f);
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    value
}

pub fn current() -> pg_sys::Oid {
    // SAFETY: reads the state of this session.
    unsafe { pg_sys::GetUserId() }
}

pub fn session() -> pg_sys::Oid {
    // SAFETY: reads the state of this session.
    unsafe { pg_sys::GetSessionUserId() }
}

pub fn is_superuser(role: pg_sys::Oid) -> bool {
    // SAFETY: a look-up inside a transaction.
    unsafe { pg_sys::superuser_arg(role) }
}

thread_local! {
    static BEGAN_AS_SUPERUSER: Cell<bool> = const { Cell::new(false) };
}

/// To be called when a worker's session was opened, before anybody's code runs in it.
pub fn remember_session() {
    // SAFETY: the setting exists in every server; the value is a string of the server's.
    let value = unsafe { CStr::from_ptr(pg_sys::GetConfigOption(c"is_superuser".as_ptr(), false, false)) };
    BEGAN_AS_SUPERUSER.set(value == c"on");
}

/// Was the session's role made a superuser since it was opened, or is it none any more? The session has the rights of then: RESET
/// SESSION AUTHORIZATION and the like go by them.
pub fn session_is_stale() -> bool {
    is_superuser(session()) != BEGAN_AS_SUPERUSER.get()
}

/// May the current user act as `role`, as one of its members does?
pub fn is_member_of(role: pg_sys::Oid) -> bool {
    // SAFETY: a look-up inside a transaction.
    unsafe { pg_sys::has_privs_of_role(current(), role) }
}

/// The name, or none if the role is gone.
pub fn name(role: pg_sys::Oid) -> Option<String> {
    // SAFETY: a look-up inside a transaction; the result is a palloc'd string or null.
    unsafe { encoding::from_c(pg_sys::GetUserNameFromId(role, true)) }
}

/// Can a background session be opened as this role, as far as the role itself is concerned? Before PostgreSQL 17 that takes LOGIN.
pub fn has_login(role: pg_sys::Oid) -> bool {
    // SAFETY: a look-up inside a transaction; the tuple is released before the function returns.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::AUTHOID as i32, pg_sys::Datum::from(role));
        if tuple.is_null() {
            return false;
        }
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>();
        let login = (*form).rolcanlogin;
        pg_sys::ReleaseSysCache(tuple);
        login || cfg!(any(feature = "pg17", feature = "pg18"))
    }
}
