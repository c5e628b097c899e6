//! Errors of the server as values: caught whole, kept, raised again.

use crate::pg::encoding;
use crate::pg::memory::Context;
use crate::pg::raised;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::{PgLogLevel, PgSqlErrorCode, PgTryBuilder, pg_sys};
use std::cell::OnceCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::AssertUnwindSafe;

/// An error as its raiser meant it: user-defined SQLSTATEs and the context lines included.
#[derive(Debug, Clone, Default)]
pub struct PgError {
    /// Five characters.
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub context: Option<String>,
}

impl PgError {
    pub fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Self {
        Self { sqlstate: unpack(code as i32), message: message.into(), ..Self::default() }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn is(&self, code: PgSqlErrorCode) -> bool {
        self.sqlstate == unpack(code as i32)
    }

    /// Raises it as an ERROR of the current statement.
    pub fn raise(&self) -> ! {
        let code = PgSqlErrorCode::from(pack(&self.sqlstate));
        if unpack(code as i32) == self.sqlstate {
            let mut report = ErrorReport::new(code, self.message.clone(), "background_jobs");
            if let Some(detail) = &self.detail {
                report = report.set_detail(detail.clone());
            }
            if let Some(hint) = &self.hint {
                report = report.set_hint(hint.clone());
            }
            report.report(PgLogLevel::ERROR);
            unreachable!("an ERROR does not return");
        }
        // A SQLSTATE that some user made up, which pgrx's own value cannot hold.
        std::panic::panic_any(self.clone())
    }

    /// Writes it to the server log without touching the transaction, with where that was: see `log_from`.
    pub fn log(&self) {
        let place = PLACE.with(|place| place.get().cloned());
        let parts: Vec<String> = self.detail.iter().cloned().chain(place).collect();
        let detail = (!parts.is_empty()).then(|| parts.join(" "));
        report(pg_sys::LOG as c_int, &Self { detail, ..self.clone() });
    }

    /// The error for the server log, where nothing of the users' data may go: SQLSTATE and where it happened.
    pub fn without_data(&self) -> Self {
        let message = format!("background_jobs met an error with SQLSTATE {}", self.sqlstate);
        Self { sqlstate: self.sqlstate.clone(), message, ..Self::default() }
    }

    /// For the client, as what it wanted was there already.
    pub fn notice(&self) {
        report(pg_sys::NOTICE as c_int, self);
    }

    pub fn warn(&self) {
        report(pg_sys::WARNING as c_int, self);
    }
}

thread_local! {
    static PLACE: OnceCell<String> = const { OnceCell::new() };
}

/// A sentence about where this process is, for the detail of whatever it logs from here on.
pub fn log_from(place: String) {
    let _ = PLACE.with(|known| known.set(place));
}

fn unpack(code: i32) -> String {
    (0..5).map(|i| (((code >> (6 * i)) & 0x3f) as u8 + b'0') as char).collect()
}

fn pack(sqlstate: &str) -> c_int {
    let packed = sqlstate
        .bytes()
        .take(5)
        .enumerate()
        .fold(0, |code, (i, c)| code | ((c_int::from(c.wrapping_sub(b'0')) & 0x3f) << (6 * i)));
    if sqlstate.len() == 5 { packed } else { PgSqlErrorCode::ERRCODE_INTERNAL_ERROR as c_int }
}

unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
    fn errcode(code: c_int) -> c_int;
    fn errmsg_internal(format: *const c_char, ...) -> c_int;
    fn errdetail_internal(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errcontext_msg(format: *const c_char, ...) -> c_int;
}

/// A copy in the current memory context, so that no Rust value is left to be dropped when `errfinish` jumps away.
fn palloced(text: &str) -> *const c_char {
    let clean: Vec<u8> = encoding::to_server(text).iter().copied().filter(|b| *b != 0).collect();
    // SAFETY: there always is a current context; the length passed is that of the buffer.
    unsafe {
        let copy = pg_sys::palloc(clean.len() + 1).cast::<u8>();
        std::ptr::copy_nonoverlapping(clean.as_ptr(), copy, clean.len());
        *copy.add(clean.len()) = 0;
        copy.cast_const().cast()
    }
}

fn report(level: c_int, error: &PgError) {
    let format = c"%s".as_ptr();
    // SAFETY: the calls follow the order that ereport() has in C. Every string was copied into server memory,
    // so that when errfinish() jumps out for an ERROR no destructor is skipped in this frame.
    unsafe {
        if !errstart(level, std::ptr::null()) {
            return;
        }
        errcode(pack(&error.sqlstate));
        errmsg_internal(format, palloced(&error.message));
        if let Some(detail) = &error.detail {
            errdetail_internal(format, palloced(detail));
        }
        if let Some(hint) = &error.hint {
            errhint(format, palloced(hint));
        }
        errfinish(c"background_jobs".as_ptr(), 0, std::ptr::null());
    }
}

/// What the context callback of a guarded call knows: the line it adds, and where it keeps what it saw.
struct Watch {
    line: Option<CString>,
    keep: pg_sys::MemoryContext,
    seen: *mut pg_sys::ErrorData,
}

unsafe extern "C-unwind" fn on_error(arg: *mut c_void) {
    // SAFETY: `arg` is the Watch of the `catch_as` frame below us, alive while its callback is on the stack.
    // CopyErrorData wants another context than ErrorContext, which is the current one in a callback.
    unsafe {
        let watch = &mut *arg.cast::<Watch>();
        if let Some(line) = &watch.line {
            errcontext_msg(c"%s".as_ptr(), line.as_ptr());
        }
        let before = pg_sys::MemoryContextSwitchTo(watch.keep);
        let seen = pg_sys::CopyErrorData();
        pg_sys::MemoryContextSwitchTo(before);
        if (*seen).elevel >= pg_sys::PGERROR as c_int {
            raised::note((*seen).sqlerrcode);
        }
        // One at a time: a handler may catch a million of them.
        let outdated = std::mem::replace(&mut watch.seen, seen);
        if !outdated.is_null() {
            pg_sys::FreeErrorData(outdated);
        }
    }
}

/// Runs `f`; an ERROR (or a panic) inside comes back as a value. The caller has to roll back the (sub)transaction
/// that it happened in before it does anything else.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, PgError> {
    let mut f = Some(f);
    PgTryBuilder::new(AssertUnwindSafe(|| match f.take() {
        Some(f) => Ok(f()),
        None => Err(PgError::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "called twice")),
    }))
    .catch_others(|error| Err(from_caught(error)))
    .execute()
}

/// Like `catch`, with `line` in the context of whatever is reported meanwhile, and with the whole error
/// kept: pgrx's own error value knows neither user-defined SQLSTATEs nor the context.
///
/// `keep` receives the copies; its owner resets it once the error was dealt with.
pub fn catch_as<T>(line: &str, keep: &Context, f: impl FnOnce() -> T) -> Result<T, PgError> {
    let watch = Watch { line: Some(encoding::to_c(line)), keep: keep.raw(), seen: std::ptr::null_mut() };
    let (result, seen) = watched(watch, f);
    result.map_err(|error| complete(error, seen))
}

/// The same without a line of its own.
pub fn catch_whole<T>(keep: &Context, f: impl FnOnce() -> T) -> Result<T, PgError> {
    let (result, seen) = watched(Watch { line: None, keep: keep.raw(), seen: std::ptr::null_mut() }, f);
    result.map_err(|error| complete(error, seen))
}

/// Runs `f` and tells what it raised, and the server's own record of the last error that was seen meanwhile.
fn watched<T>(mut watch: Watch, f: impl FnOnce() -> T) -> (Result<T, PgError>, *mut pg_sys::ErrorData) {
    // SAFETY: reads the state of this process.
    let previous = unsafe { pg_sys::error_context_stack };
    let mut callback =
        pg_sys::ErrorContextCallback { previous, callback: Some(on_error), arg: (&raw mut watch).cast() };
    // SAFETY: the callback is taken off the stack again before `watch` and `callback` go out of scope: on
    // success below, on an error by the boundary that caught it, which restores the stack it found.
    unsafe { pg_sys::error_context_stack = &raw mut callback };
    let result = catch(f);
    // SAFETY: as above.
    unsafe { pg_sys::error_context_stack = previous };
    (result, watch.seen)
}

/// What leaves a function of ours, in memory of the server, so that nothing is left to be dropped when it is thrown.
enum Thrown {
    /// The server's error as it came: SQLSTATE, context, names of tables and constraints.
    Whole(*mut pg_sys::ErrorData),
    /// An error of our own.
    Own { code: c_int, message: *const c_char, detail: *const c_char, hint: *const c_char },
}

/// Calls `f`, the body of a function that the server has called, and throws what it raises in the server's way. pgrx's own
/// boundary would lose what `Thrown::Whole` keeps.
///
/// # Safety
/// The caller is the function's entry point, with nothing to be dropped in its frame.
pub unsafe fn at_boundary<T>(f: impl FnOnce() -> T) -> T {
    let thrown = match thrown_by(f) {
        Ok(value) => return value,
        Err(thrown) => thrown,
    };
    unsafe extern "C-unwind" {
        fn ThrowErrorData(error: *mut pg_sys::ErrorData);
    }
    // SAFETY: no Rust value lives in this frame or, by its promise, in the caller's; the strings are the server's.
    unsafe {
        match thrown {
            // With the contexts that the callers add.
            Thrown::Whole(error) => ThrowErrorData(error),
            Thrown::Own { code, message, detail, hint } => {
                let format = c"%s".as_ptr();
                errstart(pg_sys::PGERROR as c_int, std::ptr::null());
                errcode(code);
                errmsg_internal(format, message);
                if !detail.is_null() {
                    errdetail_internal(format, detail);
                }
                if !hint.is_null() {
                    errhint(format, hint);
                }
                errfinish(c"background_jobs".as_ptr(), 0, std::ptr::null());
            }
        }
    }
    unreachable!("an ERROR does not return")
}

fn thrown_by<T>(f: impl FnOnce() -> T) -> Result<T, Thrown> {
    // SAFETY: reads the state of this process; it is the context of the caller, which outlives the call.
    let keep = unsafe { pg_sys::CurrentMemoryContext };
    let (result, seen) = watched(Watch { line: None, keep, seen: std::ptr::null_mut() }, f);
    result.map_err(|error| {
        if same_message(&error, seen) {
            return Thrown::Whole(seen);
        }
        let optional = |text: &Option<String>| text.as_deref().map_or(std::ptr::null(), palloced);
        Thrown::Own {
            code: pack(&error.sqlstate),
            message: palloced(&error.message),
            detail: optional(&error.detail),
            hint: optional(&error.hint),
        }
    })
}

/// Is what was seen last what was raised? It need not be: PL/pgSQL can raise an older error again, which calls no callback.
fn same_message(error: &PgError, seen: *mut pg_sys::ErrorData) -> bool {
    if seen.is_null() {
        return false;
    }
    // SAFETY: `seen` was filled by CopyErrorData in a context that has not been reset since.
    unsafe {
        let message = (*seen).message;
        !message.is_null() && CStr::from_ptr(message).to_string_lossy() == error.message
    }
}

/// Adds what only the server's own error record has: pgrx knows no context and spoils what is not UTF-8.
fn complete(mut error: PgError, seen: *mut pg_sys::ErrorData) -> PgError {
    if same_message(&error, seen) {
        // SAFETY: as in `same_message`.
        unsafe {
            error.sqlstate = unpack((*seen).sqlerrcode);
            error.message = encoding::from_c((*seen).message).unwrap_or_default();
            error.detail = encoding::from_c((*seen).detail);
            error.hint = encoding::from_c((*seen).hint);
            error.context = encoding::from_c((*seen).context);
        }
    }
    error
}

fn from_caught(error: CaughtError) -> PgError {
    if let CaughtError::RustPanic { payload, .. } = &error
        && let Some(own) = payload.downcast_ref::<PgError>()
    {
        return own.clone();
    }
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = error;
    PgError {
        sqlstate: unpack(report.sql_error_code() as i32),
        message: report.message().to_string(),
        detail: report.detail().map(str::to_string),
        hint: report.hint().map(str::to_string),
        context: None,
    }
}

/// Clears a pending cancel request, so that it cannot hit what runs next.
pub fn forget_cancel() {
    // SAFETY: a sig_atomic_t of this process, written by its signal handlers and read by its interrupt checks.
    unsafe { pg_sys::QueryCancelPending = 0 }
}
