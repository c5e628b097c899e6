//! What the dispatcher reads and tidies.

use super::*;

/// A place in a lane: when a job is due there, and when it arrived.
pub type Position = (Timestamp, Timestamp);

/// The lanes with jobs in them whose handler is registered; of these handlers, if any are named. Walks from lane to lane, not from job
/// to job.
pub fn lanes(only: Option<&[(u32, Rc<str>)]>) -> Vec<LaneKey> {
    let rows = statement!(
        "WITH RECURSIVE lane AS (
             SELECT h.job_table, h.name, h.last, n.lane
               FROM (SELECT job_table, name, background_jobs.lane_of(name, (-32768)::int2, 0::int2) AS first,
                            background_jobs.lane_of(name, 32767::int2, 3::int2) AS last
                       FROM background_jobs.handler
                      WHERE $1 IS NULL OR (job_table, name) IN (SELECT * FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS one)) h
              CROSS JOIN LATERAL (
                    SELECT q.lane FROM background_jobs.queued_job q
                     WHERE q.job_table = h.job_table AND q.lane BETWEEN h.first AND h.last
                     ORDER BY q.lane LIMIT 1) n
              UNION ALL
             SELECT l.job_table, l.name, l.last, n.lane FROM lane l
              CROSS JOIN LATERAL (
                    SELECT q.lane FROM background_jobs.queued_job q
                     WHERE q.job_table = l.job_table AND q.lane > l.lane AND q.lane <= l.last
                     ORDER BY q.lane LIMIT 1) n)
         SELECT job_table::oid, name, ((lane >> 2 & 65535) - 32768)::int2, (lane & 3)::int2 FROM lane",
        [OIDS, TEXTS]
    )
    .execute(
        &[
            only.and_then(|only| oids(only.iter().map(|(table, _)| Oid::from(*table)))),
            only.and_then(|only| texts(only.iter().map(|(_, name)| &**name))),
        ],
        0,
    );
    (0..rows.processed)
        .map(|row| LaneKey {
            table: rows.get::<Oid>(row, 1).unwrap_or(Oid::INVALID).to_u32(),
            handler: rows.get::<String>(row, 2).unwrap_or_default().into(),
            priority: rows.get(row, 3).unwrap_or_default(),
            timing: Timing::from_i16(rows.get(row, 4).unwrap_or_default()),
        })
        .collect()
}

/// The next jobs of a lane behind `after`, in order.
pub fn next_in_lane(lane: &LaneKey, after: &Position, limit: usize) -> Vec<Waiting> {
    let rows = statement!(
        "SELECT job_id, run_at, enqueued_at, attempts, max_attempts, ctid, row_tid FROM background_jobs.queued_job
          WHERE job_table = $1 AND lane = background_jobs.lane_of($2, $3, $4) AND handler = $2
            AND (run_at, enqueued_at) > ($5, $6)
          ORDER BY run_at, enqueued_at LIMIT $7",
        [OID, TEXT, INT2, INT2, TIME, TIME, INT8]
    )
    .read(
        &[
            table(lane.table),
            text(&lane.handler),
            int2(lane.priority),
            int2(lane.timing as i16),
            timestamp(after.0),
            timestamp(after.1),
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
            tid: rows.tid(row, 6),
            row_tid: rows.tid(row, 7),
        })
        .collect()
}

/// No job of the lane waits for longer than until `latest`, but for those that somebody has locked.
pub fn bring_forward(lane: &LaneKey, latest: Timestamp) {
    statement!(
        "UPDATE background_jobs.queued_job SET run_at = $5
          WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM background_jobs.queued_job
                 WHERE job_table = $1 AND lane = background_jobs.lane_of($2, $3, $4) AND handler = $2 AND run_at > $5
                   FOR UPDATE SKIP LOCKED))",
        [OID, TEXT, INT2, INT2, TIME]
    )
    .execute(
        &[table(lane.table), text(&lane.handler), int2(lane.priority), int2(lane.timing as i16), timestamp(latest)],
        0,
    );
}

/// Names in the queue that no handler is registered for, a few at a time, behind `after`.
pub fn unhandled(after: &(u32, String), limit: i64) -> Vec<(u32, String, bool)> {
    let rows = statement!(
        "WITH RECURSIVE name AS (
             (SELECT q.job_table, q.lane, q.handler FROM background_jobs.queued_job q
               WHERE (q.job_table, q.lane) > ($1, background_jobs.lane_of($2, 32767::int2, 3::int2))
               ORDER BY q.job_table, q.lane LIMIT 1)
              UNION ALL
             SELECT n.* FROM name l
              CROSS JOIN LATERAL (
                    SELECT q.job_table, q.lane, q.handler FROM background_jobs.queued_job q
                     WHERE (q.job_table, q.lane) > (l.job_table, l.lane | 262143)
                     ORDER BY q.job_table, q.lane LIMIT 1) n)
         SELECT n.job_table::oid, n.handler,
                EXISTS (SELECT FROM background_jobs.handler h JOIN pg_catalog.pg_class c ON c.oid = h.job_table AND c.relowner = h.owner
                         WHERE h.job_table = n.job_table AND h.name = n.handler)
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
    statement!(protocol::IS_QUEUED, [OID, UUID, TIME])
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
    gone += statement!(
        "DELETE FROM background_jobs.handler_stat s
          WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = s.job_table)",
        []
    )
    .execute(&[], 0)
    .processed;
    gone + dropped_tables().into_iter().map(withdraw_all).sum::<usize>()
}

/// Tables that have jobs in the queue and no longer exist. The queue may be long: its tables are found by walking from one to
/// the next.
fn dropped_tables() -> Vec<u32> {
    let rows = statement!(
        "WITH RECURSIVE tab AS (
             (SELECT q.job_table FROM background_jobs.queued_job q ORDER BY q.job_table LIMIT 1)
              UNION ALL
             SELECT n.* FROM tab l
              CROSS JOIN LATERAL (
                    SELECT q.job_table FROM background_jobs.queued_job q WHERE q.job_table > l.job_table
                     ORDER BY q.job_table LIMIT 1) n)
         SELECT t.job_table::oid FROM tab t
          WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t.job_table)",
        []
    )
    .execute(&[], 0);
    (0..rows.processed).filter_map(|row| rows.get::<Oid>(row, 1)).map(Oid::to_u32).collect()
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
