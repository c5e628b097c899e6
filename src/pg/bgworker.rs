//! Starting background workers and knowing how they fare.

use crate::pg::{database, encoding, error, guc, latch, role, signal, xact};
use pgrx::pg_sys;
use std::ffi::{CStr, c_char};

/// How a worker is registered.
pub struct Registration<'a> {
    /// Shown by the process title and in log lines.
    pub name: String,
    /// Shown as pg_stat_activity.backend_type.
    pub kind: &'a str,
    /// The exported main function.
    pub function: &'static str,
    pub argument: u64,
}

fn fill(target: &mut [c_char], text: &str) {
    for (to, from) in target.iter_mut().take(95).zip(text.bytes()) {
        *to = from as c_char;
    }
}

fn describe(wanted: &Registration, restart_seconds: i32) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker::default();
    fill(&mut worker.bgw_name, &wanted.name);
    fill(&mut worker.bgw_type, wanted.kind);
    fill(&mut worker.bgw_library_name, "background_jobs");
    fill(&mut worker.bgw_function_name, wanted.function);
    worker.bgw_flags = (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32;
    // Not before recovery is over: nothing of ours runs on a standby.
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = restart_seconds;
    worker.bgw_main_arg = pg_sys::Datum::from(wanted.argument);
    worker
}

/// Registers a worker that the postmaster starts by itself and restarts when it failed.
pub fn register_static(wanted: &Registration, restart_seconds: i32) {
    let mut worker = describe(wanted, restart_seconds);
    // SAFETY: called while the postmaster loads its libraries; the structure is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    NotYetStarted,
    Started,
    Stopped,
}

/// A worker that this process has started, and of whose end it is told by its latch.
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

/// Starts a worker once. None: the server has no free slot (max_worker_processes).
pub fn start(wanted: &Registration) -> Option<Handle> {
    let mut worker = describe(wanted, pg_sys::BGW_NEVER_RESTART);
    worker.bgw_notify_pid = latch::own_pid();
    let mut handle = std::ptr::null_mut();
    // SAFETY: the handle has to live until it is dropped, so it is allocated in lasting memory.
    let started = unsafe {
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(before);
        started
    };
    started.then(|| Handle(handle))
}

impl Handle {
    pub fn status(&self) -> Status {
        let mut pid = 0;
        // SAFETY: the handle is valid until dropped.
        match unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) } {
            pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED => Status::NotYetStarted,
            pg_sys::BgwHandleStatus::BGWH_STARTED => Status::Started,
            _ => Status::Stopped,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker in lasting memory, freed once.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

/// Becomes a session of `role` in `database`. Refusals (no such database, no LOGIN, connection limits) are FATAL.
pub fn connect(database: pg_sys::Oid, role: pg_sys::Oid) {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    let flags = pg_sys::BGWORKER_BYPASS_ROLELOGINCHECK;
    #[cfg(not(any(feature = "pg17", feature = "pg18")))]
    let flags = 0;
    // SAFETY: called once in a worker's life, before any transaction.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(database, role, flags) };
    guc::outlast_transaction_timeout();
    role::remember_session();
    // log_line_prefix knows a worker's database by no escape.
    if let Ok(name) = xact::transaction(database::current_name) {
        error::log_from(format!("This is in database \"{name}\"."));
    }
}

/// Becomes a session without a database, which sees the shared catalogs only.
pub fn connect_shared() {
    // SAFETY: as above.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) };
    guc::outlast_transaction_timeout();
}

unsafe extern "C-unwind" fn on_exit(_code: i32, arg: pg_sys::Datum) {
    // SAFETY: `arg` is the function given to `at_exit`.
    let f = unsafe { std::mem::transmute::<usize, fn()>(arg.value()) };
    f();
}

/// Calls `f` when the process ends in an orderly way, before it leaves shared memory. `f` must not raise an error.
pub fn at_exit(f: fn()) {
    // SAFETY: a plain function, valid for ever.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(f as usize)) };
}

/// Shows what the worker is at in pg_stat_activity: `None` is idle.
pub fn report_activity(activity: Option<&str>) {
    let state = match activity {
        Some(_) => pg_sys::BackendState::STATE_RUNNING,
        None => pg_sys::BackendState::STATE_IDLE,
    };
    let text = activity.map(encoding::to_c);
    // SAFETY: the text is copied.
    unsafe {
        pg_sys::pgstat_report_activity(state, text.as_deref().map_or(c"".as_ptr(), CStr::as_ptr));
    }
}

/// Shows `name` as pg_stat_activity.application_name.
pub fn report_application_name(name: &str) {
    let name = encoding::to_c(name);
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_appname(name.as_ptr()) };
}

/// Hands this session's table statistics to the server, so that autovacuum sees the churn.
pub fn report_statistics() {
    // SAFETY: called outside a transaction.
    unsafe { pg_sys::pgstat_report_stat(true) };
}

/// Ends the calling worker quietly if it was asked to end.
pub fn leave_if_asked(code: i32) {
    if signal::termination_pending() {
        signal::exit(code);
    }
}

pub fn postmaster_is_alive() -> bool {
    unsafe extern "C-unwind" {
        fn PostmasterIsAliveInternal() -> bool;
    }
    // SAFETY: a plain look at the postmaster's pipe; raises no error.
    unsafe { PostmasterIsAliveInternal() }
}

pub fn in_binary_upgrade() -> bool {
    // SAFETY: set at server start.
    unsafe { pg_sys::IsBinaryUpgrade }
}

pub fn preloading() -> bool {
    // SAFETY: set at server start.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

pub fn max_worker_processes() -> usize {
    // SAFETY: set at server start.
    unsafe { pg_sys::max_worker_processes as usize }
}
