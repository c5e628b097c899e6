//! I13, I17, I18 and I19: what the server itself looks like once everything is over.

use crate::run::Run;
use crate::workload::look;
use server_tests::postgres::Error;
use server_tests::rest::unrest;

pub fn at_rest(run: &Run) -> Result<(), Error> {
    let mut admin = run.cluster.admin(&run.tables[0].database);
    for what in unrest(&mut admin, 3) {
        run.violated("I13", None, None, format!("once everything is final: {what}"));
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
            WHERE nspname IN ('background_jobs', $1) AND amname = 'btree' AND indisvalid AND c.relkind = 'i'";
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
