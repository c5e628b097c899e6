//! Every statement on the extension's own tables, one function a verb.
//!
//! Callers are inside a transaction, inside `role::bookkeeping` (sessions and executors) or in a session that is pinned for
//! good (the dispatcher), and inside `spi::connect`. Every change of a queued job carries its guard: the identity of the
//! submission, and where it matters the number of attempts.

use crate::job::{JobId, JobRef, LaneKey, Setback, Timing};
use crate::pg::clock::Timestamp;
use crate::pg::error::PgError;
use crate::pg::memory::{Context, Current, HeldDatum};
use crate::pg::spi::{Statement, oid, text, timestamp, uuid};
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

/// The statement, prepared once per process.
macro_rules! statement {
    ($sql:literal, [$($type:expr),*]) => {{
        thread_local! {
            static STATEMENT: &'static Statement = Box::leak(Box::new(Statement::new($sql, &[$($type),*])));
        }
        STATEMENT.with(|statement| *statement)
    }};
}

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

// ---------------------------------------------------------------------------------------------------------------------
// Submitting and withdrawing

/// A job as it enters the queue.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub job: JobRef,
    pub handler: String,
    /// None: the handler's own, or 0.
    pub priority: Option<i16>,
    pub timing: Timing,
    pub run_at: Timestamp,
    pub enqueued_at: Timestamp,
    pub max_attempts: Option<i32>,
    pub queue: Option<String>,
    pub job_key: Option<String>,
}

/// Queues a job and returns its lane. What an earlier row of the same id may have left behind gives way: that row
/// is gone.
pub fn enqueue(new: &NewJob) -> LaneKey {
    let rows = statement!(
        "INSERT INTO background_jobs.queued_job
             (job_table, job_id, handler, priority, timing, run_at, enqueued_at, max_attempts, queue, job_key)
         VALUES ($1::regclass, $2, $3,
                 COALESCE($4, (SELECT h.priority FROM background_jobs.handler h
                                WHERE h.job_table = $1 AND h.name = $3), 0),
                 $5, $6, $7, $8, $9, $10)
         ON CONFLICT (job_table, job_id) DO UPDATE
            SET handler = excluded.handler, priority = excluded.priority, timing = excluded.timing,
                run_at = excluded.run_at, enqueued_at = excluded.enqueued_at, attempts = 0, conflicts = 0,
                max_attempts = excluded.max_attempts, queue = excluded.queue, job_key = excluded.job_key,
                last_error = NULL
         RETURNING priority",
        [OID, UUID, TEXT, INT2, INT2, TIME, TIME, INT4, TEXT, TEXT]
    )
    .execute(
        &[
            table(new.job.table),
            uuid(&new.job.id),
            text(&new.handler),
            new.priority.and_then(int2),
            int2(new.timing as i16),
            timestamp(new.run_at),
            timestamp(new.enqueued_at),
            new.max_attempts.and_then(int4),
            new.queue.as_deref().and_then(text),
            new.job_key.as_deref().and_then(text),
        ],
        0,
    );
    LaneKey {
        table: new.job.table,
        handler: new.handler.clone(),
        priority: rows.get(0, 1).unwrap_or_default(),
        timing: new.timing,
    }
}

/// Takes a job out of the queue; false if it was not there.
pub fn withdraw(job: JobRef) -> bool {
    statement!("DELETE FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2", [OID, UUID])
        .execute(&[table(job.table), uuid(&job.id)], 0)
        .processed
        > 0
}

pub fn withdraw_all(of: u32) -> usize {
    statement!("DELETE FROM background_jobs.queued_job WHERE job_table = $1", [OID])
        .execute(&[table(of)], 0)
        .processed
}

/// The queue's view of one job.
#[derive(Debug, Clone)]
pub struct QueuedJob {
    pub handler: String,
    pub priority: i16,
    pub timing: Timing,
    pub run_at: Timestamp,
    pub enqueued_at: Timestamp,
    pub attempts: i32,
    pub max_attempts: Option<i32>,
    pub queue: Option<String>,
    /// With `find_in` only.
    pub last_error: Option<Datum>,
    /// Bound to a handler that is registered.
    pub handled: bool,
    pub handler_max_attempts: Option<i32>,
}

pub fn find(job: JobRef) -> Option<QueuedJob> {
    find_in(job, None)
}

/// The same, with the error's document kept in `into`.
pub fn find_in(job: JobRef, into: Option<Current>) -> Option<QueuedJob> {
    let rows = statement!(
        "SELECT q.handler, q.priority, q.timing, q.run_at, q.enqueued_at, q.attempts, q.max_attempts,
                COALESCE(q.queue, h.queue), q.last_error, h.name IS NOT NULL, h.max_attempts
           FROM background_jobs.queued_job q
           LEFT JOIN background_jobs.handler h ON h.job_table = q.job_table AND h.name = q.handler
          WHERE q.job_table = $1 AND q.job_id = $2",
        [OID, UUID]
    )
    .execute(&[table(job.table), uuid(&job.id)], 1);
    (rows.processed > 0).then(|| QueuedJob {
        handler: rows.get(0, 1).unwrap_or_default(),
        priority: rows.get(0, 2).unwrap_or_default(),
        timing: Timing::from_i16(rows.get(0, 3).unwrap_or_default()),
        run_at: rows.timestamp(0, 4).unwrap_or_default(),
        enqueued_at: rows.timestamp(0, 5).unwrap_or_default(),
        attempts: rows.get(0, 6).unwrap_or_default(),
        max_attempts: rows.get(0, 7),
        queue: rows.get(0, 8),
        last_error: into.and_then(|into| rows.datum(0, 9).map(|datum| into.keep(datum))),
        handled: rows.get(0, 10).unwrap_or(false),
        handler_max_attempts: rows.get(0, 11),
    })
}

/// The unfinished job with this key.
pub fn find_by_key(of: u32, key: &str) -> Option<JobId> {
    statement!(
        "SELECT job_id FROM background_jobs.queued_job WHERE job_table = $1 AND job_key = $2 FOR UPDATE",
        [OID, TEXT]
    )
    .execute(&[table(of), text(key)], 1)
    .uuid(0, 1)
}

/// Lets go of a job's key, so that another job may take it.
pub fn release_key(job: JobRef) {
    statement!(
        "UPDATE background_jobs.queued_job SET job_key = NULL WHERE job_table = $1 AND job_id = $2",
        [OID, UUID]
    )
    .execute(&[table(job.table), uuid(&job.id)], 0);
}

/// Drops a queued job's delay. Returns its lane before, if there is such a job.
pub fn make_due(job: JobRef, now: Timestamp) -> Option<LaneKey> {
    let rows = statement!(
        "UPDATE background_jobs.queued_job SET timing = 0, run_at = $3
          WHERE job_table = $1 AND job_id = $2 RETURNING handler, priority",
        [OID, UUID, TIME]
    )
    .execute(&[table(job.table), uuid(&job.id), timestamp(now)], 0);
    (rows.processed > 0).then(|| LaneKey {
        table: job.table,
        handler: rows.get(0, 1).unwrap_or_default(),
        priority: rows.get(0, 2).unwrap_or_default(),
        timing: Timing::Immediate,
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// Handlers

/// A handler's row. Durations that are none stand for the setting's value.
#[derive(Debug, Clone)]
pub struct Handler {
    pub table: u32,
    pub name: String,
    pub schema: String,
    pub function: String,
    pub takes_id: bool,
    pub max_attempts: Option<i32>,
    pub timeout: Option<Duration>,
    pub retry_delay: Option<Duration>,
    pub max_retry_delay: Option<Duration>,
    pub concurrency: Option<i32>,
    pub synchronous_commit: Option<String>,
}

/// What register_handler() was given, as datums.
pub struct NewHandler<'a> {
    pub table: u32,
    pub name: &'a str,
    pub schema: &'a str,
    pub function: &'a str,
    pub takes_id: bool,
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
             (job_table, name, function_schema, function_name, takes_id, owner, max_attempts, timeout, retry_delay,
              max_retry_delay, concurrency, queue, priority, synchronous_commit)
         VALUES ($1::regclass, $2, $3, $4, $5, $6::regrole, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (job_table, name) DO UPDATE
            SET function_schema = excluded.function_schema, function_name = excluded.function_name,
                takes_id = excluded.takes_id, owner = excluded.owner, max_attempts = excluded.max_attempts,
                timeout = excluded.timeout, retry_delay = excluded.retry_delay,
                max_retry_delay = excluded.max_retry_delay, concurrency = excluded.concurrency,
                queue = excluded.queue, priority = excluded.priority,
                synchronous_commit = excluded.synchronous_commit, registered_at = pg_catalog.clock_timestamp()",
        [OID, TEXT, TEXT, TEXT, BOOL, OID, INT4, INTERVAL, INTERVAL, INTERVAL, INT4, TEXT, INT2, TEXT]
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
        ],
        0,
    );
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
                (extract(epoch FROM h.timeout) * 1000000)::bigint,
                (extract(epoch FROM h.retry_delay) * 1000000)::bigint,
                (extract(epoch FROM h.max_retry_delay) * 1000000)::bigint,
                h.concurrency, h.synchronous_commit
           FROM background_jobs.handler h
           JOIN pg_catalog.pg_class c ON c.oid = h.job_table AND c.relowner = h.owner
          WHERE ($1 IS NULL OR h.job_table = $1) AND ($2 IS NULL OR h.name = $2)",
        [OID, TEXT]
    )
    .execute(&[only.and_then(|(of, _)| table(of)), only.and_then(|(_, name)| text(name))], 0);
    let micros = |row, column| {
        rows.get::<i64>(row, column).map(|micros| Duration::from_micros(micros.max(0) as u64))
    };
    (0..rows.processed)
        .map(|row| Handler {
            table: rows.get::<Oid>(row, 1).unwrap_or(Oid::INVALID).to_u32(),
            name: rows.get(row, 2).unwrap_or_default(),
            schema: rows.get::<&std::ffi::CStr>(row, 3).unwrap_or_default().to_string_lossy().into_owned(),
            function: rows.get::<&std::ffi::CStr>(row, 4).unwrap_or_default().to_string_lossy().into_owned(),
            takes_id: rows.get(row, 5).unwrap_or(false),
            max_attempts: rows.get(row, 6),
            timeout: micros(row, 7),
            retry_delay: micros(row, 8),
            max_retry_delay: micros(row, 9),
            concurrency: rows.get(row, 10),
            synchronous_commit: rows.get(row, 11),
        })
        .collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Dispatching

/// A place in a lane.
pub type Position = (Timestamp, JobId);

/// What the dispatcher keeps of a waiting job.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    pub id: JobId,
    pub run_at: Timestamp,
    pub enqueued_at: Timestamp,
    pub attempts: i32,
    pub max_attempts: Option<i32>,
}

/// The lanes with jobs in them whose handler is registered. Walks from lane to lane, not from job to job.
pub fn lanes() -> Vec<LaneKey> {
    let rows = statement!(
        "WITH RECURSIVE lane AS (
             SELECT n.* FROM background_jobs.handler h
              CROSS JOIN LATERAL (
                    SELECT q.job_table, q.handler, q.priority, q.timing FROM background_jobs.queued_job q
                     WHERE q.job_table = h.job_table AND q.handler = h.name
                     ORDER BY q.priority, q.timing LIMIT 1) n
              UNION ALL
             SELECT n.* FROM lane l
              CROSS JOIN LATERAL (
                    SELECT q.job_table, q.handler, q.priority, q.timing FROM background_jobs.queued_job q
                     WHERE q.job_table = l.job_table AND q.handler = l.handler
                       AND (q.priority, q.timing) > (l.priority, l.timing)
                     ORDER BY q.priority, q.timing LIMIT 1) n)
         SELECT job_table::oid, handler, priority, timing FROM lane",
        []
    )
    .execute(&[], 0);
    (0..rows.processed)
        .map(|row| LaneKey {
            table: rows.get::<Oid>(row, 1).unwrap_or(Oid::INVALID).to_u32(),
            handler: rows.get(row, 2).unwrap_or_default(),
            priority: rows.get(row, 3).unwrap_or_default(),
            timing: Timing::from_i16(rows.get(row, 4).unwrap_or_default()),
        })
        .collect()
}

/// The next jobs of a lane behind `after`, in order.
pub fn next_in_lane(lane: &LaneKey, after: &Position, limit: usize) -> Vec<Waiting> {
    let rows = statement!(
        "SELECT job_id, run_at, enqueued_at, attempts, max_attempts FROM background_jobs.queued_job
          WHERE job_table = $1 AND handler = $2 AND priority = $3 AND timing = $4 AND (run_at, job_id) > ($5, $6)
          ORDER BY run_at, job_id LIMIT $7",
        [OID, TEXT, INT2, INT2, TIME, UUID, INT8]
    )
    .read(
        &[
            table(lane.table),
            text(&lane.handler),
            int2(lane.priority),
            int2(lane.timing as i16),
            timestamp(after.0),
            uuid(&after.1),
            Some(Datum::from(limit as i64)),
        ],
        0,
    );
    (0..rows.processed)
        .map(|row| Waiting {
            id: rows.uuid(row, 1).unwrap_or_default(),
            run_at: rows.timestamp(row, 2).unwrap_or_default(),
            enqueued_at: rows.timestamp(row, 3).unwrap_or_default(),
            attempts: rows.get(row, 4).unwrap_or_default(),
            max_attempts: rows.get(row, 5),
        })
        .collect()
}

/// Names in the queue that no handler is registered for, a few at a time, behind `after`.
pub fn unhandled(after: &(u32, String), limit: i64) -> Vec<(u32, String, bool)> {
    let rows = statement!(
        "WITH RECURSIVE name AS (
             (SELECT q.job_table, q.handler FROM background_jobs.queued_job q
               WHERE (q.job_table, q.handler) > ($1, $2 COLLATE \"C\")
               ORDER BY q.job_table, q.handler LIMIT 1)
              UNION ALL
             SELECT n.* FROM name l
              CROSS JOIN LATERAL (
                    SELECT q.job_table, q.handler FROM background_jobs.queued_job q
                     WHERE (q.job_table, q.handler) > (l.job_table, l.handler)
                     ORDER BY q.job_table, q.handler LIMIT 1) n)
         SELECT n.job_table::oid, n.handler,
                EXISTS (SELECT FROM background_jobs.handler h WHERE h.job_table = n.job_table AND h.name = n.handler)
           FROM (SELECT * FROM name LIMIT $3) n",
        [OID, TEXT, INT8]
    )
    .execute(&[table(after.0), text(&after.1), Some(Datum::from(limit))], 0);
    (0..rows.processed)
        .map(|row| {
            (
                rows.get::<Oid>(row, 1).unwrap_or(Oid::INVALID).to_u32(),
                rows.get(row, 2).unwrap_or_default(),
                rows.get(row, 3).unwrap_or(true),
            )
        })
        .collect()
}

/// Is this submission still unfinished?
pub fn is_queued(job: JobRef, enqueued_at: Timestamp) -> bool {
    statement!(
        "SELECT 1 FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3",
        [OID, UUID, TIME]
    )
    .read(&[table(job.table), uuid(&job.id), timestamp(enqueued_at)], 1)
    .processed
        > 0
}

/// Forgets tables that no longer exist; returns how many rows went.
pub fn purge_dropped_tables() -> usize {
    let mut gone = statement!(
        "DELETE FROM background_jobs.handler h
          WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = h.job_table)",
        []
    )
    .execute(&[], 0)
    .processed;
    // Table by table, because the queue may be long: its tables are found by walking from one to the next.
    gone += statement!(
        "WITH RECURSIVE tab AS (
             (SELECT q.job_table FROM background_jobs.queued_job q ORDER BY q.job_table LIMIT 1)
              UNION ALL
             SELECT n.* FROM tab l
              CROSS JOIN LATERAL (
                    SELECT q.job_table FROM background_jobs.queued_job q WHERE q.job_table > l.job_table
                     ORDER BY q.job_table LIMIT 1) n)
         DELETE FROM background_jobs.queued_job q
          USING (SELECT t.job_table FROM tab t
                  WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t.job_table)) d
          WHERE q.job_table = d.job_table",
        []
    )
    .execute(&[], 0)
    .processed;
    gone
}

/// Deletes old attempts, a few thousand at a time; returns how many went.
pub fn prune(older_than: Duration) -> usize {
    statement!(
        "DELETE FROM background_jobs.attempt WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM background_jobs.attempt
              WHERE finished_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1) LIMIT 5000))",
        [FLOAT8]
    )
    .execute(&[float8(older_than.as_secs_f64())], 0)
    .processed
}

// ---------------------------------------------------------------------------------------------------------------------
// How an attempt ends

/// The fence: takes the job out of the queue for good. False: this attempt is not the one that may finish it, so nothing
/// of it may be committed.
pub fn finish(assignment: &Assignment) -> bool {
    statement!(
        "DELETE FROM background_jobs.queued_job
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND attempts = $4",
        [OID, UUID, TIME, INT4]
    )
    .execute(&identity(assignment, &assignment.id), 0)
    .processed
        == 1
}

fn identity(assignment: &Assignment, id: &JobId) -> [Option<Datum>; 4] {
    [
        table(assignment.table),
        uuid(id),
        timestamp(assignment.enqueued_at),
        int4(if assignment.exhausted { assignment.attempt } else { assignment.attempt - 1 }),
    ]
}

/// Puts the job back for another attempt at `run_at`, charging this one. False: see `finish`.
pub fn put_back(assignment: &Assignment, timing: Timing, run_at: Timestamp, error: Option<Datum>) -> bool {
    let [job_table, id, enqueued_at, attempts] = identity(assignment, &assignment.id);
    statement!(
        "UPDATE background_jobs.queued_job
            SET attempts = attempts + 1, run_at = $5, last_error = COALESCE($6, last_error), timing = $7
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND attempts = $4",
        [OID, UUID, TIME, INT4, TIME, JSONB, INT2]
    )
    .execute(&[job_table, id, enqueued_at, attempts, timestamp(run_at), error, int2(timing as i16)], 0)
    .processed
        == 1
}

/// Puts the job back without charging the attempt. Returns how often that has happened, or none: see `finish`.
pub fn put_back_free(assignment: &Assignment, run_at: Timestamp) -> Option<i16> {
    let [job_table, id, enqueued_at, attempts] = identity(assignment, &assignment.id);
    statement!(
        "UPDATE background_jobs.queued_job SET conflicts = conflicts + 1, timing = 2, run_at = $5
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND attempts = $4 RETURNING conflicts",
        [OID, UUID, TIME, INT4, TIME]
    )
    .execute(&[job_table, id, enqueued_at, attempts, timestamp(run_at)], 0)
    .get(0, 1)
}

/// How many conflicts of the job went uncharged so far.
pub fn conflicts(job: JobRef) -> i16 {
    statement!(
        "SELECT conflicts FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2",
        [OID, UUID]
    )
    .execute(&[table(job.table), uuid(&job.id)], 1)
    .get(0, 1)
    .unwrap_or(0)
}

/// The document of the last charged attempt's error.
pub fn last_error(job: JobRef, into: &Context) -> Option<HeldDatum> {
    statement!(
        "SELECT last_error FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2",
        [OID, UUID]
    )
    .execute(&[table(job.table), uuid(&job.id)], 1)
    .hold(0, 1, into)
}

/// The error as jsonb, the way `attempts` shows it.
pub fn error_document(error: &PgError) -> Option<Datum> {
    statement!(
        "SELECT pg_catalog.jsonb_build_object('message', $1, 'sqlstate', $2, 'detail', $3, 'hint', $4, 'context', $5)",
        [TEXT, TEXT, TEXT, TEXT, TEXT]
    )
    .execute(
        &[
            text(&error.message),
            text(&error.sqlstate),
            error.detail.as_deref().and_then(text),
            error.hint.as_deref().and_then(text),
            error.context.as_deref().and_then(text),
        ],
        1,
    )
    .datum(0, 1)
}

/// The `result` of a job that failed for good, out of the document of its last error: without the context, which
/// is for the owner's eyes, and with the number of attempts.
pub fn failure_result(document: Option<Datum>, attempts: i32, into: &Context) -> Option<HeldDatum> {
    statement!(
        "SELECT pg_catalog.jsonb_build_object('error',
                ((COALESCE($1, '{}') OPERATOR(pg_catalog.-) 'context')
                 OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('attempts', $2)))",
        [JSONB, INT4]
    )
    .execute(&[document, int4(attempts)], 1)
    .hold(0, 1, into)
}

/// Keeps an attempt that did not complete its job.
pub fn log_attempt(assignment: &Assignment, outcome: Setback, error: Option<Datum>, started_at: Timestamp, pid: i32) {
    statement!(
        "INSERT INTO background_jobs.attempt
             (job_table, job_id, attempt, handler, outcome, error, started_at, finished_at, pid)
         VALUES ($1::regclass, $2, $3, $4, $5, COALESCE($6, '{}'), $7, pg_catalog.clock_timestamp(), $8)",
        [OID, UUID, INT4, TEXT, TEXT, JSONB, TIME, INT4]
    )
    .execute(
        &[
            table(assignment.table),
            uuid(&assignment.id),
            int4(assignment.attempt),
            text(&assignment.handler.to_text()),
            text(outcome.as_str()),
            error,
            (started_at != 0).then(|| Datum::from(started_at)),
            int4(pid),
        ],
        0,
    );
}

/// The number of the job's last attempt that did not complete it, since it was submitted or run again by retry().
pub fn last_attempt(job: JobRef) -> Option<i32> {
    statement!(
        "SELECT max(attempt) FROM background_jobs.attempt
          WHERE job_table = $1 AND job_id = $2 AND NOT superseded AND outcome <> 'conflict'",
        [OID, UUID]
    )
    .execute(&[table(job.table), uuid(&job.id)], 1)
    .get(0, 1)
}

/// The job's attempts are counted anew from here.
pub fn supersede_attempts(job: JobRef) {
    statement!(
        "UPDATE background_jobs.attempt SET superseded = true WHERE job_table = $1 AND job_id = $2 AND NOT superseded",
        [OID, UUID]
    )
    .execute(&[table(job.table), uuid(&job.id)], 0);
}

/// Counts of one handler since they were last written; times in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub completed: i64,
    pub failed: i64,
    pub retried: i64,
    pub cancelled: i64,
    pub total_run: f64,
    pub max_run: f64,
    pub total_wait: f64,
    pub max_wait: f64,
}

pub fn count(of: u32, handler: &str, counts: &Counts) {
    statement!(
        "INSERT INTO background_jobs.handler_stat AS s
             (job_table, handler, completed, failed, retried, cancelled, total_run, max_run, total_wait, max_wait)
         VALUES ($1::regclass, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (job_table, handler) DO UPDATE
            SET completed = s.completed + excluded.completed, failed = s.failed + excluded.failed,
                retried = s.retried + excluded.retried, cancelled = s.cancelled + excluded.cancelled,
                total_run = s.total_run + excluded.total_run, max_run = GREATEST(s.max_run, excluded.max_run),
                total_wait = s.total_wait + excluded.total_wait, max_wait = GREATEST(s.max_wait, excluded.max_wait)",
        [OID, TEXT, INT8, INT8, INT8, INT8, FLOAT8, FLOAT8, FLOAT8, FLOAT8]
    )
    .execute(
        &[
            table(of),
            text(handler),
            Some(Datum::from(counts.completed)),
            Some(Datum::from(counts.failed)),
            Some(Datum::from(counts.retried)),
            Some(Datum::from(counts.cancelled)),
            float8(counts.total_run),
            float8(counts.max_run),
            float8(counts.total_wait),
            float8(counts.max_wait),
        ],
        0,
    );
}
