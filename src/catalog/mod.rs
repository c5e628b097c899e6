//! Every statement on the extension's own tables, one function a verb.
//!
//! Callers are inside a transaction, inside `role::bookkeeping` (sessions and executors) or in a session that is pinned for
//! good (the dispatcher), and inside `spi::connect`. Whatever ends or sets back an attempt carries its guard: the identity
//! of the submission, and the number of attempts.

mod attempts;
mod dispatch;
mod handlers;
mod lanes;
mod queue;

pub use attempts::*;
pub use dispatch::*;
pub use handlers::*;
pub use lanes::*;
pub use queue::*;

use crate::gaps::{self, Gap, Step};
use crate::job::{JobId, JobRef, LaneKey, RowPlace, Setback, Tid, Timing, Waiting, lane_number};
use crate::pg::clock::Timestamp;
use crate::pg::error::PgError;
use crate::pg::heap::{self, Key};
use crate::pg::memory::{Context, Current, HeldDatum};
use crate::pg::relation;
use crate::pg::spi::{Statement, int8s, item_pointer_datum, oid, oids, text, timestamp, uuid};
use crate::protocol::{self, Identity};
use crate::shmem::Assignment;
use pgrx::pg_sys::{self, Datum, Oid};
use std::time::Duration;

const OID: Oid = pg_sys::OIDOID;
const UUID: Oid = pg_sys::UUIDOID;
const TEXT: Oid = pg_sys::TEXTOID;
const INT2: Oid = pg_sys::INT2OID;
const INT4: Oid = pg_sys::INT4OID;
const INT8: Oid = pg_sys::INT8OID;
const FLOAT8: Oid = pg_sys::FLOAT8OID;
const BOOL: Oid = pg_sys::BOOLOID;
const TIME: Oid = pg_sys::TIMESTAMPTZOID;
const INTERVAL: Oid = pg_sys::INTERVALOID;
const JSONB: Oid = pg_sys::JSONBOID;
const OIDS: Oid = pg_sys::OIDARRAYOID;
const INT8S: Oid = pg_sys::INT8ARRAYOID;

/// Columns of queued_job, by number.
mod column {
    pub const JOB_ID: i32 = 1;
    pub const JOB_TABLE: i32 = 2;
    pub const RUN_AT: i32 = 5;
    pub const ENQUEUED_AT: i32 = 6;
    pub const ATTEMPTS: i32 = 8;
    pub const ROW_TID: i32 = 10;
    pub const HANDLER: i32 = 11;
    pub const MAX_ATTEMPTS: i32 = 12;
    pub const ROW_PARTITION: i32 = 16;
}

/// The statement, prepared once per process.
macro_rules! statement {
    ($sql:expr, [$($type:expr),*]) => {{
        thread_local! {
            static STATEMENT: &'static Statement = Box::leak(Box::new(Statement::new($sql, &[$($type),*])));
        }
        STATEMENT.with(|statement| *statement)
    }};
}
use statement;

fn table(oid: u32) -> Option<Datum> {
    self::oid(Oid::from(oid))
}

fn int4(value: i32) -> Option<Datum> {
    Some(Datum::from(value))
}

fn int2(value: i16) -> Option<Datum> {
    Some(Datum::from(value))
}

fn float8(value: f64) -> Option<Datum> {
    pgrx::IntoDatum::into_datum(value)
}
