//! What the dispatcher reads and tidies.

use super::*;

/// A place in a lane: when a job is due there, and when it arrived.
pub type Position = (Timestamp, Timestamp);

pub const NO_LIMIT: usize = i64::MAX as usize;

/// Something that was found in a gap.
pub struct Found {
    /// Which gap, counted from 0.
    pub gap: usize,
    pub lane: i64,
    pub handler: String,
}

/// What the queue has in these gaps, in their order: one job of each step, and not more than `limit` of them. Walks from step to step,
/// not from job to job.
pub fn in_gaps(gaps: &[Gap], step: Step, limit: usize) -> Vec<Found> {
    if gaps.is_empty() {
        return Vec::new();
    }
    // Only behind an equality does the index know where a range ends: a comparison of rows would go on to the end of the table's lanes.
    let rows = statement!(
        "SELECT g.n, q.lane, q.handler
           FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3))
                WITH ORDINALITY AS g (job_table, first, last, n)
          CROSS JOIN LATERAL (
                WITH RECURSIVE found AS (
                     (SELECT q.lane, q.handler FROM background_jobs.queued_job q
                       WHERE q.job_table = g.job_table AND q.lane >= g.first AND q.lane <= g.last
                       ORDER BY q.lane LIMIT 1)
                      UNION ALL
                     SELECT n.* FROM found f
                      CROSS JOIN LATERAL (
                            SELECT q.lane, q.handler FROM background_jobs.queued_job q
                             WHERE q.job_table = g.job_table AND q.lane > (f.lane | $4) AND q.lane <= g.last
                             ORDER BY q.lane LIMIT 1) n)
                SELECT * FROM found) q
          LIMIT $5",
        [OIDS, INT8S, INT8S, INT8, INT8]
    )
    .execute(
        &[
            oids(gaps.iter().map(|gap| Oid::from(gap.table))),
            int8s(gaps.iter().map(|gap| *gap.lanes.start())),
            int8s(gaps.iter().map(|gap| *gap.lanes.end())),
            Some(Datum::from(step.mask())),
            Some(Datum::from(limit as i64)),
        ],
        0,
    );
    (0..rows.processed)
        .map(|row| Found {
            gap: rows.get::<i64>(row, 1).map_or(0, |n| n as usize - 1),
            lane: rows.get(row, 2).unwrap_or_default(),
            handler: rows.get(row, 3).unwrap_or_default(),
        })
        .collect()
}

/// The tables that have jobs in the queue, but for these.
pub fn tables_but(known: impl Iterator<Item = u32>) -> Vec<u32> {
    let gaps = gaps::between(gaps::TABLES, known.map(|table| i64::from(table)..=i64::from(table)).collect());
    let oid = |end: &i64| Oid::from(*end as u32);
    let rows = statement!(
        "SELECT q.job_table::oid
           FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS g (first, last)
          CROSS JOIN LATERAL (
                WITH RECURSIVE found AS (
                     (SELECT q.job_table FROM background_jobs.queued_job q
                       WHERE q.job_table >= g.first AND q.job_table <= g.last
                       ORDER BY q.job_table LIMIT 1)
                      UNION ALL
                     SELECT n.* FROM found f
                      CROSS JOIN LATERAL (
                            SELECT q.job_table FROM background_jobs.queued_job q
                             WHERE q.job_table > f.job_table AND q.job_table <= g.last
                             ORDER BY q.job_table LIMIT 1) n)
                SELECT * FROM found) q",
        [OIDS, OIDS]
    )
    .execute(&[oids(gaps.iter().map(|gap| oid(gap.start()))), oids(gaps.iter().map(|gap| oid(gap.end())))], 0);
    (0..rows.processed).filter_map(|row| rows.get::<Oid>(row, 1)).map(Oid::to_u32).collect()
}

/// What came of a look at some entries of a lane.
pub enum Searched {
    /// A job, which is due then.
    Missed(Timestamp),
    /// None up to there; it goes on.
    UpTo(Position),
    /// None.
    End,
}

/// Looks through what a lane has behind `after`, up to `last`, for a job that `is_known` does not know; at no more than `limit` entries of
/// the index, dead ones included. `number` is that of the lane.
pub fn search_lane(
    lane: &LaneKey,
    number: i64,
    (after, last): (&Position, &Position),
    limit: usize,
    mut is_known: impl FnMut(&LaneKey, &JobRef, &Waiting) -> bool,
) -> Searched {
    let Some(queue) = heap::Table::open(c"queued_job") else { return Searched::End };
    let (table, number) = (Key::Oid(1, Datum::from(Oid::from(lane.table))), Key::Int8(2, Datum::from(number)));
    let due_then = [table, number, Key::At(3, after.0), Key::After(4, after.1)];
    let due_later = [table, number, Key::After(3, after.0), Key::UpTo(3, last.0)];
    for keys in [due_then, due_later] {
        let mut missed = None;
        let walked = queue.walk(c"queued_job_order", &keys, limit, |row| {
            let job = JobRef { table: lane.table, id: row.uuid(column::JOB_ID).unwrap_or_default() };
            let waiting = Waiting {
                id: job.id,
                run_at: row.timestamp(column::RUN_AT).unwrap_or_default(),
                enqueued_at: row.timestamp(column::ENQUEUED_AT).unwrap_or_default(),
                attempts: 0,
                max_attempts: None,
                tid: 0,
                row_tid: 0,
            };
            let is_meant = (waiting.run_at, waiting.enqueued_at) <= *last
                && row.text(column::HANDLER).as_deref() == Some(&*lane.handler);
            if is_meant && !is_known(lane, &job, &waiting) {
                missed = Some(waiting.run_at);
            }
            missed.is_none()
        });
        if let Some(run_at) = missed {
            return Searched::Missed(run_at);
        }
        if let Some([.., run_at, enqueued_at]) = walked {
            return Searched::UpTo((run_at.value() as Timestamp, enqueued_at.value() as Timestamp));
        }
    }
    Searched::End
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

/// Is this submission still unfinished?
pub fn is_queued(job: JobRef, enqueued_at: Timestamp) -> bool {
    statement!(protocol::IS_QUEUED, [OID, UUID, TIME])
        .read(&[table(job.table), uuid(&job.id), timestamp(enqueued_at)], 1)
        .processed
        > 0
}

/// Forgets tables that no longer exist; returns how many rows went. `queued` are those that have jobs in the queue and may be gone.
pub fn purge_dropped_tables(queued: &[u32]) -> usize {
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
    let dropped = queued.iter().filter(|table| relation::owner(Oid::from(**table)).is_none());
    gone + dropped.map(|table| withdraw_all(*table)).sum::<usize>()
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
