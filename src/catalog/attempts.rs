//! How attempts end, and what is counted.

use super::*;
use crate::pg::heap::Deleted;

/// The queue, open for `finish` below SQL. Needs no `bookkeeping`.
pub struct Queue(heap::Table);

impl Queue {
    /// None: the extension is being dropped, or was renamed.
    pub fn open() -> Option<Self> {
        heap::Table::open(c"queued_job").map(Self)
    }

    /// Is this submission where it was in the queue, in the active snapshot?
    pub fn has(&self, assignment: &Assignment) -> bool {
        self.0.look_at(assignment.tid, |row| is_submission(row, assignment)).unwrap_or(false)
    }

    /// `finish` for the ordinary case, up to `xact::next_command`. None: it is not that case.
    pub fn finish(&self, assignment: &Assignment) -> Option<bool> {
        let (id, of) = (uuid(&assignment.id)?, table(assignment.table)?);
        let identity = Identity::of(assignment.enqueued_at, assignment.attempt, assignment.action);
        let is_this_attempt =
            |row: &heap::Row| is_submission(row, assignment) && row.int4(column::ATTEMPTS) == Some(identity.attempts);
        let mut deleted = self.0.delete_at(assignment.tid, is_this_attempt);
        if deleted == Deleted::No {
            let keys = [Key::Uuid(column::JOB_ID as i16, id), Key::Oid(column::JOB_TABLE as i16, of)];
            deleted = self.0.delete(c"queued_job_pkey", &keys, is_this_attempt);
        }
        match deleted {
            Deleted::Yes => Some(true),
            Deleted::No => Some(false),
            Deleted::Changed => None,
        }
    }
}

fn is_submission(row: &heap::Row, assignment: &Assignment) -> bool {
    row.uuid(column::JOB_ID) == Some(assignment.id)
        && row.oid(column::JOB_TABLE) == Some(assignment.table)
        && row.timestamp(column::ENQUEUED_AT) == Some(assignment.enqueued_at)
}

/// The fence: takes the job out of the queue for good. False: this attempt is not the one that may finish it, so nothing
/// of it may be committed.
pub fn finish(assignment: &Assignment) -> bool {
    statement!(protocol::FINISH, [OID, UUID, TIME, INT4]).execute(&identity(assignment, &assignment.id), 0).processed
        == 1
}

fn identity(assignment: &Assignment, id: &JobId) -> [Option<Datum>; 4] {
    let identity = Identity::of(assignment.enqueued_at, assignment.attempt, assignment.action);
    [table(assignment.table), uuid(id), timestamp(identity.enqueued_at), int4(identity.attempts)]
}

/// Puts the job back for another attempt at `run_at`, charging this one. False: see `finish`.
pub fn put_back(assignment: &Assignment, timing: Timing, run_at: Timestamp, error: Option<Datum>) -> bool {
    let [job_table, id, enqueued_at, attempts] = identity(assignment, &assignment.id);
    statement!(protocol::PUT_BACK, [OID, UUID, TIME, INT4, TIME, JSONB, INT2])
        .execute(&[job_table, id, enqueued_at, attempts, timestamp(run_at), error, int2(timing as i16)], 0)
        .processed
        == 1
}

/// Puts the job back without charging the attempt. Returns how often that has happened, or none: see `finish`.
pub fn put_back_free(assignment: &Assignment, run_at: Timestamp) -> Option<i16> {
    let [job_table, id, enqueued_at, attempts] = identity(assignment, &assignment.id);
    statement!(protocol::PUT_BACK_FREE, [OID, UUID, TIME, INT4, TIME])
        .execute(&[job_table, id, enqueued_at, attempts, timestamp(run_at)], 0)
        .get(0, 1)
}

/// The same of a job whose row is not there, of which `error` tells if nothing else has happened to it. Since when is kept with
/// the error, until the job has been run.
pub fn put_back_missing(assignment: &Assignment, run_at: Timestamp, error: Option<Datum>, now: Timestamp) -> bool {
    let [job_table, id, enqueued_at, attempts] = identity(assignment, &assignment.id);
    statement!(
        "UPDATE background_jobs.queued_job
            SET conflicts = LEAST(conflicts + 1, 30000)::smallint, timing = 2, run_at = $5,
                last_error = pg_catalog.jsonb_build_object('missing_since', $7) || COALESCE(last_error, $6)
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND attempts = $4",
        [OID, UUID, TIME, INT4, TIME, JSONB, TIME]
    )
    .execute(&[job_table, id, enqueued_at, attempts, timestamp(run_at), error, timestamp(now)], 0)
    .processed
        == 1
}

/// When the row of a job was first found missing, if it was the last time that somebody looked.
pub fn missing_since(job: JobRef) -> Option<Timestamp> {
    statement!(
        "SELECT (last_error ->> 'missing_since')::timestamptz FROM background_jobs.queued_job
          WHERE job_table = $1 AND job_id = $2",
        [OID, UUID]
    )
    .execute(&[table(job.table), uuid(&job.id)], 1)
    .timestamp(0, 1)
}

/// Locks the submission's place in the queue, unless somebody else has it locked. False: somebody has, or it is not there
/// any more.
pub fn lock_if_free(job: JobRef, enqueued_at: Timestamp) -> bool {
    statement!(
        "SELECT 1 FROM background_jobs.queued_job
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 FOR UPDATE SKIP LOCKED",
        [OID, UUID, TIME]
    )
    .execute(&[table(job.table), uuid(&job.id), timestamp(enqueued_at)], 1)
    .processed
        > 0
}

/// How many conflicts of the job went uncharged so far.
pub fn conflicts(job: JobRef) -> i16 {
    statement!("SELECT conflicts FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2", [OID, UUID])
        .execute(&[table(job.table), uuid(&job.id)], 1)
        .get(0, 1)
        .unwrap_or(0)
}

/// The document of the last charged attempt's error.
pub fn last_error(job: JobRef, into: &Context) -> Option<HeldDatum> {
    statement!("SELECT last_error FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2", [OID, UUID])
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
                ((COALESCE($1, '{}') OPERATOR(pg_catalog.-) '{context,missing_since}'::pg_catalog.text[])
                 OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('attempts', $2)))",
        [JSONB, INT4]
    )
    .execute(&[document, int4(attempts)], 1)
    .hold(0, 1, into)
}

/// Keeps an attempt that did not complete its job. `pid` 0: nobody knows any more whose it was.
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
            (pid != 0).then(|| int4(pid)).flatten(),
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
