//! What a handler may call: set_progress(), current_job(), check_cancelled().

use super::missing;
use crate::pg::error::PgError;
use crate::pg::fmgr::{Args, text_datum, uuid_datum};
use crate::pg::spi;
use crate::progress;
use crate::running::{self, Current};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{Datum, Oid};

fn current() -> Current {
    running::job().unwrap_or_else(|| {
        PgError::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "there is no current job")
            .detail("This function can only be called by a handler that runs a job.")
            .raise()
    })
}

/// set_progress(progress real): 0 to 1; a lower value than before changes nothing.
pub fn set_progress(args: &Args) -> Datum {
    set(args.float4(0).map(f64::from));
    args.finish(Some(Datum::from(0)))
}

/// set_progress(progress double precision)
pub fn set_progress_double(args: &Args) -> Datum {
    set(args.float8(0));
    args.finish(Some(Datum::from(0)))
}

fn set(value: Option<f64>) {
    current();
    let value = value.unwrap_or_else(|| missing("progress").raise());
    if !(0.0..=1.0).contains(&value) {
        PgError::new(PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, format!("progress {value} is out of range"))
            .detail("Progress is a number from 0 to 1.")
            .raise();
    }
    if let Some((_, slot)) = running::slot() {
        progress::report(slot, value as f32);
    }
    pgrx::check_for_interrupts!();
}

/// current_job(): one row with job_table, id, handler, attempt, max_attempts.
pub fn current_job(args: &Args) -> Datum {
    let Current { assignment, max_attempts, .. } = current();
    let row = vec![
        spi::oid(Oid::from(assignment.table)),
        uuid_datum(&assignment.id),
        text_datum(&assignment.handler.to_text()),
        Some(Datum::from(assignment.attempt)),
        Some(Datum::from(max_attempts)),
    ];
    args.finish_rows(&[row]).unwrap_or_else(|| args.finish(None))
}

/// check_cancelled(): raises the interrupt that is pending, if one is.
pub fn check_cancelled(args: &Args) -> Datum {
    current();
    pgrx::check_for_interrupts!();
    args.finish(Some(Datum::from(0)))
}
