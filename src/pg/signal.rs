//! Signals of the workers: the server's own handlers, so that cancel, termination, reloads and barriers work in
//! a handler's code as they do in any session.

use pgrx::pg_sys;
use std::ffi::c_int;
use std::sync::OnceLock;

mod handlers {
    use std::ffi::c_int;
    // The server's own handlers under their C names: pgrx's wrappers are Rust functions, which pqsignal cannot take.
    unsafe extern "C-unwind" {
        pub fn die(signal: c_int);
        pub fn StatementCancelHandler(signal: c_int);
        pub fn SignalHandlerForConfigReload(signal: c_int);
        pub fn SignalHandlerForCrashExit(signal: c_int);
    }
}

#[cfg(not(feature = "pg18"))]
use pg_sys::pqsignal;
#[cfg(feature = "pg18")]
use pg_sys::pqsignal_be as pqsignal;

static WANTED: OnceLock<fn() -> bool> = OnceLock::new();
static LAST_WORDS: OnceLock<fn()> = OnceLock::new();

unsafe extern "C-unwind" fn on_interrupt(_signal: c_int) {
    // SAFETY: sets flags of this process and its latch, which is what signal handlers of the server do; `wanted`
    // only reads atomics.
    unsafe {
        if WANTED.get().is_some_and(|wanted| wanted()) && !pg_sys::proc_exit_inprogress {
            pg_sys::InterruptPending = 1;
            pg_sys::QueryCancelPending = 1;
            pg_sys::SetLatch(pg_sys::MyLatch);
        }
    }
}

unsafe extern "C-unwind" fn on_quit(signal: c_int) {
    if let Some(f) = LAST_WORDS.get() {
        f();
    }
    // SAFETY: what the server does itself at this signal: it ends the process, and nothing else.
    unsafe { handlers::SignalHandlerForCrashExit(signal) };
}

/// Calls `f` when the process is told to end at once, because another one has crashed or the server is stopped immediately. It runs in a
/// signal handler: atomics only.
pub fn at_quit(f: fn()) {
    LAST_WORDS.get_or_init(|| f);
    // SAFETY: the handler is as short as the server's own, which it calls.
    unsafe { pqsignal(libc::SIGQUIT, Some(on_quit)) };
}

/// Installs the handlers of a worker and unblocks its signals.
///
/// `wanted` answers SIGUSR2, our own interrupt: it tells whether what runs at this moment is to be interrupted,
/// so that a signal that arrives late cannot hit what came after. It must only read atomics.
pub fn install(wanted: Option<fn() -> bool>) {
    if let Some(wanted) = wanted {
        WANTED.get_or_init(|| wanted);
    }
    // SAFETY: installs handlers that the server itself installs in its sessions; called once at the start of a worker,
    // before the signals are unblocked.
    unsafe {
        pqsignal(libc::SIGTERM, Some(handlers::die));
        pqsignal(libc::SIGINT, Some(handlers::StatementCancelHandler));
        pqsignal(libc::SIGHUP, Some(handlers::SignalHandlerForConfigReload));
        if wanted.is_some() {
            pqsignal(libc::SIGUSR2, Some(on_interrupt));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Has the process been asked to end? Asked between two pieces of work, where it can leave quietly.
pub fn termination_pending() -> bool {
    // SAFETY: a sig_atomic_t of this process.
    unsafe { pg_sys::ProcDiePending != 0 }
}

/// Ends the process, running its exit callbacks.
pub fn exit(code: i32) -> ! {
    // SAFETY: the regular way out of a worker.
    unsafe { pg_sys::proc_exit(code) };
    #[allow(unreachable_code, reason = "the bindings of 18 do not say that it never returns")]
    {
        unreachable!("proc_exit does not return")
    }
}

/// Rereads the configuration if a SIGHUP asked for it.
pub fn reload_if_asked() {
    // SAFETY: a sig_atomic_t of this process; ProcessConfigFile is called between transactions only.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Interrupts the calling process as SIGUSR2 would.
pub fn interrupt_self() {
    // SAFETY: our own handler, called as the signal would call it.
    unsafe { on_interrupt(libc::SIGUSR2) };
}
