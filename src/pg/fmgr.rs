//! SQL-callable functions: their C entry points, their arguments as they are, and their results.
//!
//! Arguments and results are datums, so that a jsonb passes through untouched, however deep and whatever its numbers.

use crate::pg::encoding;
use pgrx::pg_sys::{self, Datum, Oid};

/// One call of a function.
pub struct Args(pg_sys::FunctionCallInfo);

impl Args {
    /// # Safety
    /// `fcinfo` is what the server called the function with, and the value is used only during that call.
    pub unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        Self(fcinfo)
    }

    /// The n-th argument (counted from 0), or none if it is NULL.
    pub fn datum(&self, n: usize) -> Option<Datum> {
        // SAFETY: the call is alive; n is checked against the number of arguments passed.
        unsafe {
            let info = &*self.0;
            if n >= info.nargs as usize {
                return None;
            }
            let argument = info.args.as_slice(info.nargs as usize)[n];
            (!argument.isnull).then_some(argument.value)
        }
    }

    pub fn oid(&self, n: usize) -> Option<Oid> {
        self.datum(n).map(|datum| Oid::from(datum.value() as u32))
    }

    pub fn text(&self, n: usize) -> Option<String> {
        self.datum(n).map(encoding::from_text)
    }

    pub fn int4(&self, n: usize) -> Option<i32> {
        self.datum(n).map(|datum| datum.value() as i32)
    }

    pub fn int8(&self, n: usize) -> Option<i64> {
        self.datum(n).map(|datum| datum.value() as i64)
    }

    pub fn float8(&self, n: usize) -> Option<f64> {
        self.datum(n).map(|datum| f64::from_bits(datum.value() as u64))
    }

    pub fn float4(&self, n: usize) -> Option<f32> {
        self.datum(n).map(|datum| f32::from_bits(datum.value() as u32))
    }

    pub fn uuid(&self, n: usize) -> Option<[u8; 16]> {
        self.datum(n).map(crate::pg::spi::uuid_bytes)
    }

    /// Ends the call with this result.
    pub fn finish(&self, result: Option<Datum>) -> Datum {
        // SAFETY: the call is alive.
        unsafe { (*self.0).isnull = result.is_none() };
        result.unwrap_or(Datum::from(0))
    }

    /// Ends the call of a set-returning function with these rows; `None` if the caller cannot take a set.
    pub fn finish_rows(&self, rows: &[Vec<Option<Datum>>]) -> Option<Datum> {
        // SAFETY: follows the protocol of a function that materialises its result: the tuplestore and its descriptor live in the
        // per-query context of the caller, which owns them from here on.
        unsafe {
            let info = (*self.0).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            if info.is_null()
                || (*info).type_ != pg_sys::NodeTag::T_ReturnSetInfo
                || (*info).allowedModes & pg_sys::SetFunctionReturnMode::SFRM_Materialize as i32 == 0
            {
                return None;
            }
            let before = pg_sys::MemoryContextSwitchTo((*(*info).econtext).ecxt_per_query_memory);
            let mut descriptor: pg_sys::TupleDesc = std::ptr::null_mut();
            pg_sys::get_call_result_type(self.0, std::ptr::null_mut(), &mut descriptor);
            let store = pg_sys::tuplestore_begin_heap(true, false, pg_sys::work_mem);
            (*info).returnMode = pg_sys::SetFunctionReturnMode::SFRM_Materialize;
            (*info).setResult = store;
            (*info).setDesc = descriptor;
            pg_sys::MemoryContextSwitchTo(before);
            for row in rows {
                let mut values: Vec<Datum> = row.iter().map(|value| value.unwrap_or(Datum::from(0))).collect();
                let mut nulls: Vec<bool> = row.iter().map(Option::is_none).collect();
                pg_sys::tuplestore_putvalues(store, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            }
            (*self.0).isnull = true;
        }
        Some(Datum::from(0))
    }
}

/// Microseconds of an interval, with a month of 30 days and a day of 24 hours.
pub fn interval_micros(interval: Datum) -> i64 {
    // SAFETY: the caller passes an interval, which is a fixed-size structure passed by reference.
    let interval = unsafe { &*interval.cast_mut_ptr::<pg_sys::Interval>() };
    let days = i64::from(interval.month) * 30 + i64::from(interval.day);
    days.saturating_mul(86_400_000_000).saturating_add(interval.time)
}

pub fn text_datum(value: &str) -> Option<Datum> {
    Some(encoding::to_text(value))
}

pub fn float4_datum(value: f32) -> Option<Datum> {
    Some(Datum::from(value.to_bits()))
}

/// A uuid datum in the current memory context.
pub fn uuid_datum(id: &[u8; 16]) -> Option<Datum> {
    pgrx::IntoDatum::into_datum(pgrx::Uuid::from_bytes(*id))
}

/// Defines the C entry points of SQL functions: `$symbol` calls `$body: fn(&Args) -> Datum`.
macro_rules! sql_functions {
    ($($symbol:ident, $finfo:ident => $body:path;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[doc(hidden)]
            pub extern "C" fn $finfo() -> &'static pgrx::pg_sys::Pg_finfo_record {
                const RECORD: pgrx::pg_sys::Pg_finfo_record =
                    pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
                &RECORD
            }

            #[unsafe(no_mangle)]
            #[doc(hidden)]
            pub unsafe extern "C-unwind" fn $symbol(fcinfo: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
                // SAFETY: the server calls this with a valid fcinfo, and the arguments do not outlive the call.
                unsafe { crate::pg::error::at_boundary(|| $body(&crate::pg::fmgr::Args::new(fcinfo))) }
            }
        )*
    };
}

pub(crate) use sql_functions;

/// Defines the C entry points of the workers: `$symbol` calls `$body: fn(u64)` with the registered argument.
macro_rules! worker_mains {
    ($($symbol:ident => $body:path;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[doc(hidden)]
            #[pgrx::pg_guard]
            pub extern "C-unwind" fn $symbol(argument: pgrx::pg_sys::Datum) {
                $body(argument.value() as u64);
            }
        )*
    };
}

pub(crate) use worker_mains;
