//! What the dispatcher reads and tidies.

use super::*;

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

/// Lets no job of the lane wait beyond `latest`, except locked ones.
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
              WHERE finished_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1) LIMIT 5000
                FOR UPDATE SKIP LOCKED))",
        [FLOAT8]
    )
    .execute(&[float8(older_than.as_secs_f64())], 0)
    .processed
}
