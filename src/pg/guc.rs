//! Settings that hold for a while and are then what they were.

use crate::pg::{encoding, planner};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::CStr;
use std::time::Duration;

/// What every statement of ours runs under: nothing of the user's is found in front of pg_catalog, and a plan that was
/// made when a table was still empty does not read all of it when it is not.
const PINNED: [(&CStr, &CStr); 4] = [
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"enable_seqscan", c"off"),
    (c"enable_indexscan", c"on"),
    (c"jit", c"off"),
];

fn set(name: &CStr, value: &CStr, action: pg_sys::GucAction::Type) {
    // SAFETY: both strings are nul-terminated and outlive the call; an invalid value raises an ordinary error.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
}

/// Runs `f`, and undoes whatever it did to the settings. After an error the (sub)transaction's abort does that.
pub fn nested<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: called inside a transaction; the level is closed below, or by the abort.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    let value = f();
    // SAFETY: closes the level opened above; `false` puts every setting back as an abort would.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    value
}

/// Runs `f` under the settings that statements on the extension's own tables need.
pub fn pinned<T>(f: impl FnOnce() -> T) -> T {
    nested(|| {
        for (name, value) in PINNED {
            set(name, value, pg_sys::GucAction::GUC_ACTION_SAVE);
        }
        planner::own_statements(f)
    })
}

/// The same for the rest of a worker's life; for workers that run no user code.
/// They wait for nobody's lock for long, either: whoever holds a row of ours would stop them all.
pub fn pin_session() {
    planner::own_statements_only();
    let more = [
        (c"lock_timeout", c"1s"),
        // Their statements are all of a kind that no value changes the plan of.
        (c"plan_cache_mode", c"force_generic_plan"),
        // The database may have another default.
        (c"role", c"none"),
    ];
    for (name, value) in PINNED.into_iter().chain(more) {
        set(name, value, pg_sys::GucAction::GUC_ACTION_SET);
    }
}

/// Sets `name` until the enclosing `nested` or (sub)transaction ends.
pub fn set_local(name: &CStr, value: &str) {
    set(name, &encoding::to_c(value), pg_sys::GucAction::GUC_ACTION_LOCAL);
}

thread_local! {
    static LOCK_TIMEOUT_BEFORE: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Runs `f`, which waits for a lock no longer than `limit`, nor longer than an enclosing call allows. Sets the variable behind
/// the setting: that is a hundred times cheaper and leaves the user's setting alone. After an error `restore_lock_timeout` has
/// to be called.
pub fn with_lock_timeout<T>(limit: Duration, f: impl FnOnce() -> T) -> T {
    // SAFETY: a plain variable of this process, in milliseconds; the setting behind it is put back by its own means before.
    let before = unsafe { pg_sys::LockTimeout };
    let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let outermost = LOCK_TIMEOUT_BEFORE.get().is_none();
    if outermost {
        LOCK_TIMEOUT_BEFORE.set(Some(before));
    }
    // SAFETY: as above.
    unsafe { pg_sys::LockTimeout = if outermost { limit } else { limit.min(before) } };
    let value = f();
    // SAFETY: as above.
    unsafe { pg_sys::LockTimeout = before };
    if outermost {
        LOCK_TIMEOUT_BEFORE.set(None);
    }
    value
}

/// When the settings have been rolled back after an error inside `with_lock_timeout`.
pub fn restore_lock_timeout() {
    if let Some(before) = LOCK_TIMEOUT_BEFORE.take() {
        // SAFETY: as above.
        unsafe { pg_sys::LockTimeout = before };
    }
}

/// Sets `name` for the session.
pub fn set_session(name: &CStr, value: &CStr) {
    set(name, value, pg_sys::GucAction::GUC_ACTION_SET);
}

/// Makes `value` the session's default of `name`, which no RESET takes back.
fn set_default(name: &CStr, value: &CStr) {
    // SAFETY: as in `set`. An override is what the session falls back to.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
            pg_sys::GucAction::GUC_ACTION_SET,
            true,
            0,
            false,
        );
    }
}

/// In a deadlock the one that notices first gives up. That shall be our worker, never the session that it met: what a worker
/// gives up, it does again.
pub fn notice_deadlocks_first() {
    set_default(c"deadlock_timeout", c"100ms");
}

/// A limit that is meant for the transactions of clients ends the session, so that it would end workers, and jobs without an
/// error of their own. Before PostgreSQL 17 there is no such setting, and a worker knows none of its kind.
pub fn outlast_transaction_timeout() {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    set_default(c"transaction_timeout", c"0");
}

/// Makes a misspelt setting with our prefix an error rather than a placeholder.
pub fn reserve_prefix(prefix: &CStr) {
    // SAFETY: called once while the library is loaded, after all settings were defined.
    unsafe {
        #[cfg(feature = "pg14")]
        {
            unsafe extern "C-unwind" {
                fn EmitWarningsOnPlaceholders(class: *const std::ffi::c_char);
            }
            EmitWarningsOnPlaceholders(prefix.as_ptr());
        }
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(prefix.as_ptr());
    }
}
