//! Looks at the tables in one snapshot after the other while everything is going on: what holds in every snapshot.

use crate::rhythm::pause;
use crate::run::{Run, Session};
use server_tests::Uuid;
use server_tests::postgres::{Client, Error};
use std::sync::atomic::Ordering;

const QUERY: &str = "
    WITH job AS MATERIALIZED (
        SELECT id, (payload ->> 'seq')::int AS seq, progress, result,
               @owner@.job_state(completed, cancelled, result) AS state
          FROM @owner@.background_jobs),
    queued AS MATERIALIZED (
        SELECT job_id FROM background_jobs.queued_job WHERE job_table = '@owner@.background_jobs'::regclass)
    SELECT 'I10', 'an unfinished row is not in the queue', job.id
      FROM job WHERE state = 'open' AND NOT EXISTS (SELECT FROM queued WHERE job_id = job.id)
    UNION ALL
    SELECT 'I10', 'a job in the queue has no unfinished row', job_id
      FROM queued WHERE NOT EXISTS (SELECT FROM job WHERE id = job_id AND state = 'open')
    UNION ALL
    SELECT 'I3', 'a completed job without exactly one effect: ' || count(l.job), job.id
      FROM job LEFT JOIN @owner@.ledger l ON l.job = job.id AND l.seq = job.seq
     WHERE state = 'completed' GROUP BY job.id HAVING count(l.job) <> 1
    UNION ALL
    SELECT 'I3', 'an effect of a job that is ' || COALESCE(max(state), 'gone'), l.job
      FROM @owner@.ledger l LEFT JOIN job ON l.job = job.id AND l.seq = job.seq
     GROUP BY l.job, l.seq HAVING COALESCE(max(state), 'gone') <> 'completed'
    UNION ALL
    SELECT 'I3', 'a result of a job that is ' || state, id
      FROM job WHERE (result IS NULL) = (state IN ('completed', 'failed'))
    UNION ALL
    SELECT 'I8', 'progress ' || progress || ' of a job that is ' || state, id
      FROM job WHERE NOT (progress >= 0 AND progress <= 1) OR (progress = 1) <> (state = 'completed')
    UNION ALL
    SELECT 'I9', 'completed and cancelled', id FROM job WHERE state = 'completed and cancelled'
    UNION ALL
    SELECT 'open', count(*)::text, NULL FROM job WHERE state = 'open'";

pub fn work(run: &Run, database: &str) {
    let mut session = Session::new(run, database, "postgres");
    while !run.done.load(Ordering::Relaxed) {
        if let Some(client) = session.get() {
            for (number, table) in run.tables.iter().enumerate().filter(|(_, table)| table.database == database) {
                if look(run, client, number, &table.owner).is_err() {
                    break;
                }
            }
        }
        // A snapshot costs the server something: no more of them than that.
        pause(300);
    }
}

/// One snapshot; `Err` when the session ended.
pub fn look(run: &Run, client: &mut Client, number: usize, owner: &str) -> Result<(), Error> {
    let mut snapshot = client.build_transaction().read_only(true).start()?;
    for row in snapshot.query(&QUERY.replace("@owner@", owner), &[])? {
        let (invariant, text, job): (String, String, Option<Uuid>) = (row.get(0), row.get(1), row.get(2));
        let invariant = match invariant.as_str() {
            "open" => {
                run.tables[number].backlog.store(text.parse().unwrap_or(0), Ordering::Relaxed);
                continue;
            }
            "I3" => "I3",
            "I8" => "I8",
            "I9" => "I9",
            _ => "I10",
        };
        run.violated(invariant, Some(number), job, format!("in a snapshot: {text}"));
    }
    snapshot.rollback()
}
