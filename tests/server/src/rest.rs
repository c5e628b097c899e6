//! What a server looks like once all its jobs are final (invariant I13).

use crate::wait::attempt;
use postgres::Client;
use std::time::{Duration, Instant};

/// Each counts what should not be there.
const QUIET: &[(&str, &str)] = &[
    ("a job is queued", "SELECT count(*) FROM background_jobs.queued_job"),
    ("a job is running", "SELECT count(*) FROM background_jobs.workers WHERE job_id IS NOT NULL"),
    (
        "a worker is in a transaction or holds a snapshot",
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%'
            AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)",
    ),
    (
        "a worker holds a lock",
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE backend_type LIKE 'background_jobs%'",
    ),
    (
        "a process is in the view and not in the server, or the other way round",
        "SELECT count(*) FROM background_jobs.workers w
           FULL JOIN (SELECT * FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%') a USING (pid)
          WHERE w.pid IS NULL OR a.pid IS NULL",
    ),
    (
        "there is not exactly one launcher",
        "SELECT abs(1 - count(*)) FROM pg_stat_activity WHERE backend_type = 'background_jobs launcher'",
    ),
    ("a temporary table is left", "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"),
    ("a prepared transaction is left", "SELECT count(*) FROM pg_prepared_xacts"),
];

/// What is not as it should be in an idle server with `databases` dispatchers, as `admin`, a superuser in one of them, sees it.
/// The server is given ten seconds in all, because a worker may look into its queue at any moment.
pub fn unrest(admin: &mut Client, databases: u32) -> Vec<String> {
    let dispatchers = format!(
        "SELECT abs({databases} - count(*)) + abs({databases} - count(DISTINCT datid)) FROM pg_stat_activity
          WHERE backend_type = 'background_jobs dispatcher'"
    );
    let all = QUIET.iter().copied().chain([("there is not exactly one dispatcher in each database", &*dispatchers)]);
    let begun = Instant::now();
    let mut unrest = Vec::new();
    for (what, query) in all {
        let quiet = attempt(Duration::from_secs(10).saturating_sub(begun.elapsed()), what, || {
            match admin.query_one(query, &[]) {
                Ok(row) if row.get::<_, i64>(0) == 0 => Ok(()),
                Ok(row) => Err(row.get::<_, i64>(0).to_string()),
                Err(error) => Err(format!("{error:?}")),
            }
        });
        unrest.extend(quiet.err());
    }
    unrest
}
