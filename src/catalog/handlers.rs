//! The registry of handlers.

use super::*;
use crate::pg::spi::Name;

/// A handler's row. Durations that are none stand for the setting's value.
#[derive(Debug, Clone, PartialEq)]
pub struct Handler {
    pub table: u32,
    pub name: String,
    /// The first of its lanes.
    pub lanes: i64,
    pub schema: String,
    pub function: String,
    pub takes_id: bool,
    pub function_owner: Oid,
    pub max_attempts: Option<i32>,
    pub timeout: Option<Duration>,
    pub retry_delay: Option<Duration>,
    pub max_retry_delay: Option<Duration>,
    pub concurrency: Option<i32>,
    pub synchronous_commit: Option<String>,
    /// Differs after every registration, even one that changed nothing.
    pub registered_at: Timestamp,
}

impl Handler {
    /// The number of one of its lanes.
    pub fn lane(&self, key: &LaneKey) -> i64 {
        lane_number(self.lanes, key.priority, key.timing)
    }
}

/// What register_handler() was given, as datums.
pub struct NewHandler<'a> {
    pub table: u32,
    pub name: &'a str,
    pub schema: &'a str,
    pub function: &'a str,
    pub takes_id: bool,
    pub function_owner: Oid,
    pub owner: Oid,
    pub max_attempts: Option<i32>,
    pub timeout: Option<Datum>,
    pub retry_delay: Option<Datum>,
    pub max_retry_delay: Option<Datum>,
    pub concurrency: Option<i32>,
    pub queue: Option<&'a str>,
    pub priority: Option<i16>,
    pub synchronous_commit: Option<&'a str>,
}

pub fn register(new: &NewHandler) {
    statement!(
        "INSERT INTO background_jobs.handler
             (job_table, name, function_schema, function_name, takes_id, function_owner, owner, max_attempts, timeout, retry_delay,
              max_retry_delay, concurrency, queue, priority, synchronous_commit)
         VALUES ($1::regclass, $2, $3, $4, $5, $15::regrole, $6::regrole, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (job_table, name) DO UPDATE
            SET function_schema = excluded.function_schema, function_name = excluded.function_name,
                takes_id = excluded.takes_id, function_owner = excluded.function_owner, owner = excluded.owner, max_attempts = excluded.max_attempts,
                timeout = excluded.timeout, retry_delay = excluded.retry_delay,
                max_retry_delay = excluded.max_retry_delay, concurrency = excluded.concurrency,
                queue = excluded.queue, priority = excluded.priority,
                synchronous_commit = excluded.synchronous_commit, registered_at = pg_catalog.clock_timestamp()",
        [OID, TEXT, TEXT, TEXT, BOOL, OID, INT4, INTERVAL, INTERVAL, INTERVAL, INT4, TEXT, INT2, TEXT, OID]
    )
    .execute(
        &[
            table(new.table),
            text(new.name),
            text(new.schema),
            text(new.function),
            Some(Datum::from(new.takes_id)),
            oid(new.owner),
            new.max_attempts.and_then(int4),
            new.timeout,
            new.retry_delay,
            new.max_retry_delay,
            new.concurrency.and_then(int4),
            new.queue.and_then(text),
            new.priority.and_then(int2),
            new.synchronous_commit.and_then(text),
            oid(new.function_owner),
        ],
        0,
    );
}

/// What a submission has to know of its handler.
#[derive(Debug, Clone, Copy, Default)]
pub struct Destination {
    /// The first of the handler's lanes.
    pub lanes: i64,
    /// That the handler gives to its jobs.
    pub priority: i16,
    /// The owner whose executors may run any number of its jobs at once. None: it is limited, or not registered for the owner of
    /// the table as it is.
    pub owner: Option<u32>,
}

pub fn destination(of: u32, name: &str) -> Destination {
    let rows = statement!(
        "SELECT background_jobs.lane_of($2, (-32768)::int2, 0::int2), h.priority, c.relowner
           FROM (SELECT) AS always
           LEFT JOIN background_jobs.handler h ON h.job_table = $1 AND h.name = $2
           LEFT JOIN pg_catalog.pg_class c ON c.oid = h.job_table AND c.relowner = h.owner AND h.concurrency IS NULL",
        [OID, TEXT]
    )
    .execute(&[table(of), text(name)], 1);
    Destination {
        lanes: rows.get(0, 1).unwrap_or_default(),
        priority: rows.get(0, 2).unwrap_or(0),
        owner: rows.get::<Oid>(0, 3).map(Oid::to_u32),
    }
}

/// Who has registered that name; perhaps a former owner of the table, for whom alone it is.
pub fn registered_by(of: u32, name: &str) -> Option<Oid> {
    statement!("SELECT owner::oid FROM background_jobs.handler WHERE job_table = $1 AND name = $2", [OID, TEXT])
        .execute(&[table(of), text(name)], 1)
        .get(0, 1)
}

pub fn unregister(of: u32, name: &str) -> bool {
    statement!("DELETE FROM background_jobs.handler WHERE job_table = $1 AND name = $2", [OID, TEXT])
        .execute(&[table(of), text(name)], 0)
        .processed
        > 0
}

/// The handlers of all tables, or one of them. Handlers that a former owner of the table registered are left out:
/// they are not for the present owner to run.
pub fn handlers(only: Option<(u32, &str)>) -> Vec<Handler> {
    let rows = statement!(
        "SELECT h.job_table::oid, h.name, h.function_schema, h.function_name, h.takes_id, h.max_attempts,
                (extract(epoch FROM LEAST(h.timeout, CASE WHEN h.timeout IS NOT NULL THEN '30 years'::interval END)) * 1000000)::bigint,
                (extract(epoch FROM LEAST(h.retry_delay, CASE WHEN h.retry_delay IS NOT NULL THEN '30 years'::interval END)) * 1000000)::bigint,
                (extract(epoch FROM LEAST(h.max_retry_delay, CASE WHEN h.max_retry_delay IS NOT NULL THEN '30 years'::interval END)) * 1000000)::bigint,
                h.concurrency, h.synchronous_commit, h.function_owner::oid, h.registered_at,
                background_jobs.lane_of(h.name, (-32768)::int2, 0::int2)
           FROM background_jobs.handler h
           JOIN pg_catalog.pg_class c ON c.oid = h.job_table AND c.relowner = h.owner
          WHERE ($1 IS NULL OR h.job_table = $1) AND ($2 IS NULL OR h.name = $2)",
        [OID, TEXT]
    )
    .execute(&[only.and_then(|(of, _)| table(of)), only.and_then(|(_, name)| text(name))], 0);
    let micros = |row, column| rows.get::<i64>(row, column).map(|micros| Duration::from_micros(micros.max(0) as u64));
    (0..rows.processed)
        .map(|row| Handler {
            table: rows.get::<Oid>(row, 1).unwrap_or(Oid::INVALID).to_u32(),
            name: rows.get(row, 2).unwrap_or_default(),
            schema: rows.get::<Name>(row, 3).map(|name| name.0).unwrap_or_default(),
            function: rows.get::<Name>(row, 4).map(|name| name.0).unwrap_or_default(),
            takes_id: rows.get(row, 5).unwrap_or(false),
            max_attempts: rows.get(row, 6),
            timeout: micros(row, 7),
            retry_delay: micros(row, 8),
            max_retry_delay: micros(row, 9),
            concurrency: rows.get(row, 10),
            synchronous_commit: rows.get(row, 11),
            function_owner: rows.get(row, 12).unwrap_or(Oid::INVALID),
            registered_at: rows.timestamp(row, 13).unwrap_or_default(),
            lanes: rows.get(row, 14).unwrap_or_default(),
        })
        .collect()
}
