//! I13, I17, I18 and I19: what the server itself looks like once everything is over.

use crate::run::Run;
use crate::workload::look;
use server_tests::postgres::Error;
use server_tests::wait::attempt;
use std::time::Duration;

/// Nothing may be left half done in a quiet server; it is given a moment to become quiet.
const QUIET: &[(&str, &str)] = &[
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
        "there is not exactly one dispatcher in each database",
        "SELECT abs(3 - count(*)) + abs(3 - count(DISTINCT datid)) FROM pg_stat_activity
          WHERE backend_type = 'background_jobs dispatcher'",
    ),
    (
        "there is not exactly one launcher",
        "SELECT abs(1 - count(*)) FROM pg_stat_activity WHERE backend_type = 'background_jobs launcher'",
    ),
    ("a prepared transaction is left", "SELECT count(*) FROM pg_prepared_xacts"),
];

pub fn at_rest(run: &Run) -> Result<(), Error> {
    let mut admin = run.cluster.admin(&run.tables[0].database);
    for (what, query) in QUIET {
        let quiet = attempt(Duration::from_secs(10), what, || match admin.query_one(*query, &[]) {
            Ok(row) if row.get::<_, i64>(0) == 0 => Ok(()),
            Ok(row) => Err(row.get::<_, i64>(0).to_string()),
            Err(error) => Err(format!("{error:?}")),
        });
        if quiet.is_err() {
            run.violated("I13", None, None, format!("ten seconds after everything is final: {what}"));
        }
    }
    for (number, table) in run.tables.iter().enumerate() {
        let mut admin = run.cluster.admin(&table.database);
        let owner = &table.owner;
        look(run, &mut admin, number, owner)?;
        let hits = format!(
            "SELECT (SELECT sum(hits) FROM {owner}.pairs)::bigint,
                    COALESCE(sum(CASE payload ->> 'handler' WHEN 'deadlock' THEN 2 WHEN 'contend' THEN 1 ELSE 0 END), 0)
               FROM {owner}.background_jobs JOIN {owner}.ledger ON job = id"
        );
        let row = admin.query_one(&hits, &[])?;
        let (hits, expected): (i64, i64) = (row.get(0), row.get(1));
        if hits != expected {
            let text = format!("counters of contended rows: {hits} counted, {expected} by completed jobs");
            run.violated("I3", Some(number), None, text);
        }
        let sound = "SELECT bt_index_check(indexrelid, true) FROM pg_index JOIN pg_class c ON c.oid = indexrelid
            JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_am a ON a.oid = relam
            WHERE nspname IN ('background_jobs', $1) AND amname = 'btree' AND indisvalid";
        if let Err(error) = admin.query(sound, &[owner]) {
            run.violated("I18", Some(number), None, format!("amcheck: {error:?}"));
        }
    }
    Ok(())
}

/// What the server's log may not hold: signs of a broken server, and what users keep in their payloads.
pub fn log(run: &Run) {
    for line in run.cluster.offences().iter().take(5) {
        run.violated("I17", None, None, line.clone());
    }
    if run.cluster.log().contains("never in a log") {
        run.violated("I17", None, None, "a payload is in the server's log".to_owned());
    }
}
