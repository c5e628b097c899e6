//! Calls of a user's function without a statement around them: the call is all that is to be done, and what the executor sets up for
//! one costs more than many a function.

use crate::pg::error::PgError;
use crate::pg::function::{self, Exact};
use crate::pg::memory::Context;
use crate::pg::xact;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum};
use std::cell::{Cell, UnsafeCell};
use std::mem::offset_of;

/// The most arguments that a function is called with.
const ARGUMENTS: usize = 2;

/// The server's structure for a call, with room for the arguments behind it, where the server looks for them.
#[repr(C)]
struct CallInfo {
    base: pg_sys::FunctionCallInfoBaseData,
    arguments: [pg_sys::NullableDatum; ARGUMENTS],
}

const _: () = assert!(offset_of!(CallInfo, arguments) == offset_of!(pg_sys::FunctionCallInfoBaseData, args));

/// A function to be called time and again, with what it keeps between its calls.
pub struct Invoked {
    /// What `info` was made of. None: nothing, or a call that has failed and left it as it may be.
    of: Cell<Option<Exact>>,
    info: UnsafeCell<pg_sys::FmgrInfo>,
    /// The function's own.
    kept: Context,
}

impl Invoked {
    pub fn new() -> Self {
        Self {
            of: Cell::new(None),
            info: UnsafeCell::new(pg_sys::FmgrInfo::default()),
            kept: Context::new(c"background_jobs function"),
        }
    }

    /// Calls the function, which is not calling itself, as the current user and with a snapshot of this moment, and gives the result
    /// to `f`, if it is not null. What the call has allocated is freed then.
    pub fn call<T>(&self, function: &Exact, arguments: &[Datum], f: impl FnOnce(Datum) -> T) -> Option<T> {
        function::require_execute(function);
        Context::new_scratch(c"background_jobs call").run_and_delete(|| {
            xact::next_command();
            let result = xact::with_transaction_snapshot(|| self.result(function, arguments).map(f));
            xact::next_command();
            result
        })
    }

    fn result(&self, function: &Exact, arguments: &[Datum]) -> Option<Datum> {
        assert!(arguments.len() <= ARGUMENTS);
        let prepared = self.of.take().is_some_and(|of| of == *function);
        let info = self.info.get();
        // SAFETY: the information lives as long as this value, and nobody else uses it meanwhile; arguments are of the function's
        // types, and there is a place for each. The call's own is on this stack during the call, which may leave it with an error.
        let result = unsafe {
            if !prepared {
                self.kept.reset();
                pg_sys::fmgr_info_cxt(function.oid, info, self.kept.raw());
            }
            let mut call: CallInfo = std::mem::zeroed();
            call.base.flinfo = info;
            call.base.nargs = arguments.len() as i16;
            for (to, value) in call.arguments.iter_mut().zip(arguments) {
                to.value = *value;
            }
            let call = (&raw mut call).cast::<pg_sys::FunctionCallInfoBaseData>();
            let mut usage = pg_sys::PgStat_FunctionCallUsage::default();
            pg_sys::pgstat_init_function_usage(call, &mut usage);
            let Some(address) = (*info).fn_addr else {
                PgError::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "function has no address").raise();
            };
            let result = pg_sys::ffi::pg_guard_ffi_boundary(|| address(call));
            pg_sys::pgstat_end_function_usage(&mut usage, true);
            (!(*call).isnull).then_some(result)
        };
        self.of.set(Some(*function));
        result
    }
}

impl Drop for Invoked {
    fn drop(&mut self) {
        self.kept.delete();
    }
}
