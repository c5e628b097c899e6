//! Policies, foreign keys and defaults of the server's table.

use crate::{HELD, assert_converged, connected, pair};
use server_tests::wait::once_within;
use server_tests::{Uuid, ident, json};
use std::time::{Duration, Instant};

/// The subscription's superuser is bound by no policy; forced, the owner in whose name jobs run is.
#[test]
fn row_level_security_on_the_server_keeps_no_job_from_running() {
    let mut pair = pair("rls");
    let other = format!("other_{}", pair.server.database);
    pair.server_cluster.create_role(&other);
    let owner = ident(&pair.server.role);
    pair.server.sql(&format!(
        "ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY theirs ON background_jobs TO {other} USING (payload ->> 'tenant' = current_user);
         CREATE POLICY own ON background_jobs TO {owner} USING (payload ->> 'tenant' IS DISTINCT FROM 'later');
         GRANT SELECT ON background_jobs TO {other};"
    ));
    // From PostgreSQL 16 on the owner's policies hold for the apply worker, too, unless it is told otherwise.
    pair.subscribe(if server_tests::major() > 15 { "run_as_owner = true" } else { "" });
    let later = pair.submit("noted", json!({"tenant": "later"}));
    let (hidden, theirs) = (pair.submit("noted", json!({})), pair.submit("noted", json!({"tenant": other})));
    assert!(pair.wait_final(hidden).completed && pair.wait_final(theirs).completed);
    let mut reader = pair.server_cluster.connect(&pair.server.database, &other);
    let seen: Vec<Uuid> =
        reader.query("SELECT id FROM background_jobs", &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(seen, [theirs]);
    drop(reader);

    // What the owner may not see, its executor has not seen either; it is kept, and runs once it is shown.
    let mut admin = pair.server.admin();
    pair.server_cluster.wait_until("an executor to have looked for the hidden job", || {
        let query = "SELECT count(*) FROM background_jobs.queued_job WHERE job_id = $1 AND conflicts > 0";
        let met: i64 = admin.query_one(query, &[&later]).unwrap().get(0);
        if met == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    assert!(pair.server.find(later).is_none() && !pair.row(later).is_final());
    pair.server.sql("ALTER POLICY own ON background_jobs USING (true)");
    pair.server.execute("SELECT background_jobs.run_now($1)", &[&later]);
    assert!(pair.wait_final(later).completed);
    assert_converged(&mut pair);
    admin.batch_execute(&format!("DROP OWNED BY {other}; DROP ROLE {other}")).unwrap();
}

/// The apply worker locks the row that it updates for itself alone, which a foreign key's lock keeps it from. Checked at
/// commit, the foreign key takes its lock when the handler is done.
#[test]
fn a_handler_with_a_deferred_foreign_key_to_its_row_holds_up_no_replication() {
    let mut pair = connected("deferred_key");
    pair.server
        .sql("CREATE TABLE pages (job uuid NOT NULL REFERENCES background_jobs DEFERRABLE INITIALLY DEFERRED, n int)");
    let body = format!("INSERT INTO pages SELECT id, 1 FROM background_jobs.current_job(); {HELD}");
    pair.server.handler("pages", &body);
    let kept = pair.submit("pages", json!({"point": 0, "gate": "go"}));
    pair.server.wait_reached(0);
    once_within(Duration::from_secs(1), "the cancel and the other job", |point| {
        let stopped = pair.submit("pages", json!({"point": point, "gate": "never"}));
        pair.server.wait_reached(point);
        let begin = Instant::now();
        pair.cancel(stopped);
        let other = pair.submit("noted", json!({}));
        assert!(pair.wait_final(other).completed);
        pair.server.wait_left(point);
        begin.elapsed()
    });
    assert_eq!(pair.server.state(kept), "running");
    pair.server.open_gate("go");
    assert!(pair.wait_final(kept).completed);
    assert_eq!(pair.server.one::<i64>("SELECT count(*) FROM pages", &[]), 1);
    assert_converged(&mut pair);
}

/// With a foreign key that is checked at once, replication waits for the end of the run, and then everything ends well.
#[test]
fn a_handler_with_an_immediate_foreign_key_to_its_row_delays_replication_until_it_ends() {
    let mut pair = connected("immediate_key");
    pair.server.sql("CREATE TABLE pages (job uuid NOT NULL REFERENCES background_jobs, n int)");
    let body = format!("INSERT INTO pages SELECT id, 1 FROM background_jobs.current_job(); {HELD}");
    pair.server.handler("pages", &body);
    let running = pair.submit("pages", json!({"point": 1, "gate": "go"}));
    pair.server.wait_reached(1);
    pair.cancel(running);
    let other = pair.submit("noted", json!({}));
    let mut admin = pair.server.admin();
    pair.server_cluster.wait_until("the apply worker to wait for the handler", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND backend_type ~ '^logical replication (apply )?worker$' AND wait_event_type = 'Lock'";
        let waiting: i64 = admin.query_one(query, &[]).unwrap().get(0);
        if waiting == 1 { Ok(()) } else { Err(format!("{waiting} waiting")) }
    });
    drop(admin);
    pair.server.open_gate("go");
    assert!(pair.wait_final(other).completed);
    // The handler was done before anybody here knew of the cancel.
    assert!(pair.wait_final(running).is_final());
    assert_converged(&mut pair);
    assert_eq!(pair.server.state(running), "completed");
    assert_eq!(pair.server.noted(running), 1);
}

/// A table that was made for clients that send every column has no defaults.
#[test]
fn a_column_without_a_default_on_the_server_holds_replication_up_until_it_has_one_and_loses_nothing() {
    let mut pair = connected("defaults");
    pair.server.sql("ALTER TABLE background_jobs ALTER completed DROP DEFAULT");
    let ids: Vec<Uuid> = (0..5).map(|n| pair.submit("noted", json!({"n": n}))).collect();
    let (cluster, database) = (pair.server_cluster, pair.server.database.clone());
    cluster.wait_until("the log to say so", || {
        let said = |line: &str| line.contains("null value in column \"completed\"");
        server_tests::wait::yes(cluster.log().lines().any(said))
    });
    assert_eq!(pair.server.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 0, "{database}");
    pair.server.sql("ALTER TABLE background_jobs ALTER completed SET DEFAULT false");
    for id in ids {
        assert!(pair.wait_final(id).completed);
        assert_eq!(pair.server.noted(id), 1);
    }
    assert_converged(&mut pair);
}
