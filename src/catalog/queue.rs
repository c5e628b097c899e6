//! Submitting and withdrawing.

use super::*;

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
    /// Of its row.
    pub row: RowPlace,
}

impl NewJob {
    fn lane(&self, priority: i16) -> LaneKey {
        LaneKey { table: self.job.table, handler: self.handler.as_str().into(), priority, timing: self.timing }
    }
}

/// A job and where it goes.
pub struct Submission {
    pub new: NewJob,
    pub destination: Destination,
}

impl Submission {
    fn priority(&self) -> i16 {
        self.new.priority.unwrap_or(self.destination.priority)
    }

    pub fn lane(&self) -> LaneKey {
        self.new.lane(self.priority())
    }
}

/// The quick way into the queue, without SQL, for the ordinary case: no key, and nothing there under the same id. Tells where
/// the jobs are; none: it is not that case, use `enqueue`. Needs no `bookkeeping`.
pub fn insert(submissions: &[Submission]) -> Vec<Option<Tid>> {
    let Some(queue) = heap::Table::open(c"queued_job") else { return vec![None; submissions.len()] };
    let row = |submission: &Submission| {
        let (Submission { new, destination }, priority) = (submission, submission.priority());
        [
            uuid(&new.job.id),
            table(new.job.table),
            int2(priority),
            int2(new.timing as i16),
            timestamp(new.run_at),
            timestamp(new.enqueued_at),
            // As the column generates it.
            Some(Datum::from(lane_number(destination.lanes, priority, new.timing))),
            int4(0),
            int2(0),
            (new.row.tid != 0).then(|| item_pointer_datum(new.row.tid)),
            text(&new.handler),
            new.max_attempts.and_then(int4),
            new.queue.as_deref().and_then(text),
            None,
            None,
            (new.row.partition != 0).then(|| Datum::from(new.row.partition)),
        ]
    };
    queue.insert(submissions.iter().map(row))
}

/// Queues a job and returns its lane. What is in the queue under its id gives way, unless `or_leave`: then None.
pub fn enqueue(new: &NewJob, or_leave: bool) -> Option<LaneKey> {
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
                last_error = NULL, row_tid = NULL, row_partition = NULL
          WHERE NOT $11
         RETURNING priority",
        [OID, UUID, TEXT, INT2, INT2, TIME, TIME, INT4, TEXT, TEXT, BOOL]
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
            Some(Datum::from(or_leave)),
        ],
        0,
    );
    rows.get(0, 1).map(|priority| new.lane(priority))
}

/// Takes a job out of the queue; false if it was not there.
pub fn withdraw(job: JobRef) -> bool {
    statement!("DELETE FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2", [OID, UUID])
        .execute(&[table(job.table), uuid(&job.id)], 0)
        .processed
        > 0
}

pub fn withdraw_all(of: u32) -> usize {
    statement!("DELETE FROM background_jobs.queued_job WHERE job_table = $1", [OID]).execute(&[table(of)], 0).processed
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
           LEFT JOIN (background_jobs.handler h JOIN pg_catalog.pg_class c ON c.oid = h.job_table AND c.relowner = h.owner)
             ON h.job_table = q.job_table AND h.name = q.handler
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

/// Has the table any job in the queue?
pub fn has_any(of: u32) -> bool {
    statement!("SELECT 1 FROM background_jobs.queued_job WHERE job_table = $1 LIMIT 1", [OID])
        .execute(&[table(of)], 1)
        .processed
        > 0
}

/// Is there such a job, in the active snapshot?
pub fn is_there(job: JobRef) -> bool {
    statement!("SELECT 1 FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2", [OID, UUID])
        .read(&[table(job.table), uuid(&job.id)], 1)
        .processed
        > 0
}

/// The unfinished job with this key.
pub fn find_by_key(of: u32, key: &str) -> Option<JobId> {
    statement!("SELECT job_id FROM background_jobs.queued_job WHERE job_table = $1 AND job_key = $2", [OID, TEXT])
        .execute(&[table(of), text(key)], 1)
        .uuid(0, 1)
}

/// Gives a key to a job that was queued without one, if it is that submission that is in the queue.
pub fn give_key(job: JobRef, enqueued_at: Timestamp, key: &str) {
    statement!(
        "UPDATE background_jobs.queued_job SET job_key = $4
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND job_key IS NULL",
        [OID, UUID, TIME, TEXT]
    )
    .execute(&[table(job.table), uuid(&job.id), timestamp(enqueued_at), text(key)], 0);
}

/// Drops a queued job's delay; a suspect stays one. Returns its lane from then on, if there is such a job.
pub fn make_due(job: JobRef, now: Timestamp) -> Option<LaneKey> {
    let rows = statement!(
        "UPDATE background_jobs.queued_job SET timing = CASE timing WHEN 3 THEN timing ELSE 0 END, run_at = $3
          WHERE job_table = $1 AND job_id = $2 RETURNING handler, priority, timing",
        [OID, UUID, TIME]
    )
    .execute(&[table(job.table), uuid(&job.id), timestamp(now)], 0);
    (rows.processed > 0).then(|| LaneKey {
        table: job.table,
        handler: rows.get::<String>(0, 1).unwrap_or_default().into(),
        priority: rows.get(0, 2).unwrap_or_default(),
        timing: Timing::from_i16(rows.get(0, 3).unwrap_or_default()),
    })
}
