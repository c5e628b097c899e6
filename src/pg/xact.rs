//! Transactions and subtransactions as functions that end them, whatever happens inside.

use crate::pg::error::{PgError, catch, catch_as, catch_whole};
use crate::pg::memory::Context;
use crate::pg::{guc, latch};
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::OnceLock;

/// Runs `f` in a transaction of its own with an active snapshot, and commits. On an error (in `f` or at commit,
/// where deferred constraints speak up) everything is rolled back and the error returned.
///
/// The own latch is set when it ends: a wait for a lock inside clears it, and with it the wake-up of somebody else.
pub fn transaction<T>(f: impl FnOnce() -> T) -> Result<T, PgError> {
    run(true, None, f)
}

/// The same at the isolation level of the role's default, for code that is the user's; `transaction` itself is always READ
/// COMMITTED. `keep`: see `catch_as`.
pub fn user_transaction<T>(keep: &Context, f: impl FnOnce() -> T) -> Result<T, PgError> {
    run(false, Some(keep), f)
}

fn run<T>(read_committed: bool, keep: Option<&Context>, f: impl FnOnce() -> T) -> Result<T, PgError> {
    let body = || {
        // SAFETY: called by a worker outside any transaction; the order is that of a simple client command.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            // Whatever the role's default: what a worker does ends in writes.
            pg_sys::XactReadOnly = false;
            if read_committed {
                pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            }
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let value = f();
        // SAFETY: pops what was pushed above; the commit ends the transaction begun above.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        value
    };
    let result = match keep {
        Some(keep) => catch_whole(keep, body),
        None => catch(body),
    };
    if result.is_err() {
        // SAFETY: after an error this is what the server's own command loop does; it is a no-op when the
        // transaction had not even begun.
        unsafe { pg_sys::AbortCurrentTransaction() };
        guc::restore_lock_timeout();
    }
    latch::set_own();
    result
}

/// Runs `f` in a subtransaction; an error rolls back just that. `line` and `keep`: see `catch_as`.
pub fn subtransaction<T>(line: &str, keep: &Context, f: impl FnOnce() -> T) -> Result<T, PgError> {
    let result = within(true, || catch_as(line, keep, f));
    if result.is_err() {
        guc::restore_lock_timeout();
    }
    result
}

/// Runs `f`, which looks at something, in a subtransaction that is rolled back in any case: the locks that `f` took go with it.
/// One that writes nothing takes no transaction id.
pub fn rolled_back<T>(keep: &Context, f: impl FnOnce() -> T) -> Result<T, PgError> {
    within(false, || catch_whole(keep, f))
}

fn within<T>(stays: bool, f: impl FnOnce() -> Result<T, PgError>) -> Result<T, PgError> {
    // SAFETY: read only to be restored after the subtransaction, which changes both.
    let (context, owner) = unsafe { (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner) };
    let restore = || {
        // SAFETY: both belong to the enclosing transaction, which is still open.
        unsafe {
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
        }
    };
    // SAFETY: called inside a transaction.
    unsafe { pg_sys::BeginInternalSubTransaction(std::ptr::null()) };
    // SAFETY: what `f` allocates is the caller's: it must outlive the subtransaction.
    unsafe { pg_sys::MemoryContextSwitchTo(context) };
    let result = f();
    if stays && result.is_ok() {
        // SAFETY: ends the subtransaction begun above; `f` left none of its own open.
        unsafe { pg_sys::ReleaseCurrentSubTransaction() };
    } else {
        // SAFETY: as above.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
    }
    restore();
    result
}

/// Are the subtransactions that have written something still few enough for others to find them in shared memory, and will those
/// of one more job be? Beyond that every snapshot of the server's has to look for them elsewhere.
pub fn subtransactions_are_cached() -> bool {
    // A job has one, and as many as its handler catches errors in.
    const ONE_JOB: u32 = 8;
    // SAFETY: the state of this backend, which nobody else writes.
    let status = unsafe { (*pg_sys::MyProc).subxidStatus };
    !status.overflowed && u32::from(status.count) + ONE_JOB <= pg_sys::PGPROC_MAX_CACHED_SUBXIDS
}

/// When a transaction of this process ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Commit,
    Prepare,
    Abort,
}

static AFTER_END: OnceLock<fn(End)> = OnceLock::new();

thread_local! {
    /// How the transaction ends whose locks are being released.
    static ENDING: Cell<Option<End>> = const { Cell::new(None) };
}

fn end_of(event: pg_sys::XactEvent::Type) -> Option<End> {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT | pg_sys::XactEvent::XACT_EVENT_PARALLEL_COMMIT => Some(End::Commit),
        pg_sys::XactEvent::XACT_EVENT_PREPARE => Some(End::Prepare),
        pg_sys::XactEvent::XACT_EVENT_ABORT | pg_sys::XactEvent::XACT_EVENT_PARALLEL_ABORT => Some(End::Abort),
        _ => None,
    }
}

unsafe extern "C-unwind" fn on_xact_event(event: pg_sys::XactEvent::Type, arg: *mut c_void) {
    let Some(end) = end_of(event) else { return };
    // SAFETY: `arg` is the function given to `on_end`.
    let f = unsafe { std::mem::transmute::<*mut c_void, fn(End)>(arg) };
    f(end);
}

unsafe extern "C-unwind" fn before_release(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    let Some(end) = end_of(event) else { return };
    ENDING.set((end != End::Abort).then_some(end));
    // Nobody waits for what has not happened, and the server may have nothing to release.
    if end == End::Abort
        && let Some(f) = AFTER_END.get()
    {
        f(end);
    }
}

unsafe extern "C-unwind" fn on_release(
    phase: pg_sys::ResourceReleasePhase::Type,
    _is_commit: bool,
    is_top_level: bool,
    _arg: *mut c_void,
) {
    if is_top_level
        && phase == pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS
        && let Some(end) = ENDING.take()
        && let Some(f) = AFTER_END.get()
    {
        f(end);
    }
}

/// Calls `f` at the end of every transaction of this process. `f` must not raise an error: at that point
/// it would take the server down.
pub fn on_end(f: fn(End)) {
    // SAFETY: registered once, when the library is loaded; `f` is a plain function, valid for ever.
    unsafe { pg_sys::RegisterXactCallback(Some(on_xact_event), f as *mut c_void) };
}

/// The same when others have been told what changed in the catalogs, and the locks are released: somebody who is woken earlier than that
/// sees what was committed, but may still believe in the former version of a function. To be called once, while the library is loaded.
pub fn after_end(f: fn(End)) {
    AFTER_END.get_or_init(|| f);
    // SAFETY: plain functions, valid for ever.
    unsafe {
        pg_sys::RegisterXactCallback(Some(before_release), std::ptr::null_mut());
        pg_sys::RegisterResourceReleaseCallback(Some(on_release), std::ptr::null_mut());
    }
}

/// What was written so far is seen by what follows in this transaction; statements of SQL see to that themselves.
pub fn next_command() {
    // SAFETY: called inside a transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Is the transaction that wrote `xmin` the current one (or a part of it)?
pub fn is_own(xmin: u32) -> bool {
    // SAFETY: a pure look-up in the state of this backend.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xmin.into()) }
}

/// Has the current transaction, or the one that is just ending, changed anything? For a commit callback: never fails.
pub fn has_written() -> bool {
    // SAFETY: reads the state of the current transaction.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// Does every statement of the current transaction see what was committed before it?
pub fn sees_new_commits() -> bool {
    // SAFETY: reads the state of the current transaction.
    unsafe { pg_sys::XactIsoLevel <= pg_sys::XACT_READ_COMMITTED as i32 }
}

/// Does the current transaction keep one snapshot to its end?
pub fn keeps_snapshot() -> bool {
    !sees_new_commits()
}

/// Runs `f`, which reads, with a snapshot of this very moment.
pub fn with_latest_snapshot<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: called inside a transaction.
    with_snapshot(unsafe { pg_sys::GetLatestSnapshot() }, f)
}

/// The same with the one that a statement would have: above READ COMMITTED the transaction's.
pub fn with_transaction_snapshot<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: called inside a transaction.
    with_snapshot(unsafe { pg_sys::GetTransactionSnapshot() }, f)
}

fn with_snapshot<T>(snapshot: pg_sys::Snapshot, f: impl FnOnce() -> T) -> T {
    // SAFETY: called inside a transaction; popped again on the normal path, by the abort otherwise.
    unsafe { pg_sys::PushActiveSnapshot(snapshot) };
    let value = f();
    // SAFETY: pops what was pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    value
}

unsafe extern "C-unwind" fn on_pre_commit(event: pg_sys::XactEvent::Type, arg: *mut c_void) {
    if event == pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT {
        // SAFETY: `arg` is the function given to `before_commit`.
        let f = unsafe { std::mem::transmute::<*mut c_void, fn()>(arg) };
        f();
    }
}

/// Calls `f` when a transaction of this process is about to commit. `f` must not raise an error.
pub fn before_commit(f: fn()) {
    // SAFETY: registered once, when the library is loaded; `f` is a plain function, valid for ever.
    unsafe { pg_sys::RegisterXactCallback(Some(on_pre_commit), f as *mut c_void) };
}
