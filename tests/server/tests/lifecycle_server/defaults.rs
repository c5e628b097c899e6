//! Unusual defaults of transactions.

use crate::{SHARED, configuration};
use server_tests::{App, ident, json, sqlstate};
use std::time::Duration;

#[test]
fn read_only_by_default_runs_jobs_as_ever_for_a_database_a_role_and_the_server() {
    for place in ["DATABASE {database}", "ROLE {role}", "SYSTEM"] {
        let own;
        let mut app = if place == "SYSTEM" {
            own = configuration().conf("default_transaction_read_only", "off").start();
            App::with_table(&own, "read_only")
        } else {
            SHARED.app("read_only")
        };
        app.handler("noted", "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
        app.handler_with("fails", "RAISE 'no';", "max_attempts => 2, retry_delay => '1 ms'");
        let place = place.replace("{database}", &ident(&app.database)).replace("{role}", &ident(&app.role));
        let cluster = app.cluster;
        let admin = |statement: String| {
            let mut admin = cluster.admin("postgres");
            admin.batch_execute("SET default_transaction_read_only = off").unwrap();
            admin.batch_execute(&statement).unwrap();
            cluster.reload_conf();
        };
        admin(format!("ALTER {place} SET default_transaction_read_only = on"));
        // New workers, which find the setting when they start.
        let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%' AND datname = $1";
        app.cluster.admin("postgres").query(query, &[&app.database]).unwrap();
        app.client = app.session();
        assert_eq!(app.sqlstate("CREATE TABLE t ()"), "25006", "the test is about something");
        app.sql("SET default_transaction_read_only = off");
        let id = app.submit("noted", json!({}));
        app.wait_reached(1);
        app.wait_true("SELECT bool_or(progress = 0.5) FROM background_jobs");
        app.open_gate("go");
        assert!(app.wait_final(id).completed);
        let id = app.submit("fails", json!({}));
        assert_eq!(app.wait_final(id).error("attempts"), Some(&json!(2)));
        admin(format!("ALTER {place} RESET default_transaction_read_only"));
    }
}

#[test]
fn a_role_that_the_database_sets_for_its_sessions_keeps_no_job_from_running() {
    let mut app = SHARED.app("role");
    app.handler("who", "RETURN to_jsonb(current_user);");
    let database = ident(&app.database);
    let mut admin = app.cluster.admin("postgres");
    admin.batch_execute(&format!("CREATE ROLE of_database; ALTER DATABASE {database} SET role = of_database")).unwrap();
    let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%' AND datname = $1";
    admin.query(query, &[&app.database]).unwrap();
    let id = app.submit("who", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!(app.role)));
    admin.batch_execute(&format!("ALTER DATABASE {database} RESET role; DROP ROLE of_database")).unwrap();
}

#[test]
fn serializable_by_default_completes_every_job_once() {
    let mut app = SHARED.app("serializable");
    for place in ["DATABASE", "ROLE"] {
        let name = ident(if place == "ROLE" { &app.role } else { &app.database });
        let set = format!("ALTER {place} {name} SET default_transaction_isolation = serializable");
        app.cluster.admin("postgres").batch_execute(&set).unwrap();
    }
    let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%' AND datname = $1";
    app.cluster.admin("postgres").query(query, &[&app.database]).unwrap();
    app.sql("CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)");
    app.handler("isolation", "RETURN to_jsonb(current_setting('transaction_isolation'));");
    app.handler_with("noted", "PERFORM background_jobs.set_progress(0.5); PERFORM note(); RETURN NULL;", "");
    // Every job of this handler is in conflict with every other; one at a time is what its owner has to say then.
    app.handler_with("counts", "UPDATE counter SET n = n + 1; PERFORM note(); RETURN NULL;", "concurrency => 1");
    let id = app.submit("isolation", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!("serializable")));
    // The client that submits is serializable, too, and tries again as such a client has to. The one that watches was here
    // before the default and is not: at that level a mere look at rows that change may be refused.
    let mut writer = app.session();
    let submission =
        "INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"noted\"}' FROM generate_series(1, 400);
        INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"counts\"}' FROM generate_series(1, 50);
        WITH new AS (INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"nobody\"}') RETURNING id)
            SELECT set_config('app.cancelled', id::text, false) FROM new;
        UPDATE background_jobs SET cancelled = true WHERE id = current_setting('app.cancelled')::uuid;";
    app.cluster.wait_until("the submission to serialize", || match writer.batch_execute(submission) {
        Err(error) if sqlstate(&error) == "40001" => Err(error.to_string()),
        other => {
            other.unwrap();
            Ok(())
        }
    });
    app.wait_drained(Duration::from_secs(60));
    let outcome = app.rows(
        "SELECT count(*) FILTER (WHERE completed AND result IS NULL), (SELECT count(*) FROM ledger),
            (SELECT count(DISTINCT job) FROM ledger), (SELECT n::bigint FROM counter) FROM background_jobs",
        &[],
    );
    let seen: [i64; 4] = [0, 1, 2, 3].map(|n| outcome[0].get(n));
    assert_eq!(seen, [450, 450, 450, 50]);
}

/// The server's own serialization failure: what the handler's snapshot shows is changed under it.
#[test]
fn a_handler_at_repeatable_read_that_meets_an_update_runs_again_at_no_charge() {
    let mut app = SHARED.app("repeatable");
    let set = format!("ALTER ROLE {} SET default_transaction_isolation = 'repeatable read'", ident(&app.role));
    app.admin().batch_execute(&set).unwrap();
    app.sql("CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)");
    // A row that opens a gate is not seen at this level: a lock is one. With one attempt in all, a charge is a failure.
    app.handler_with(
        "counts",
        "PERFORM note(); PERFORM reach(1); PERFORM pg_advisory_xact_lock_shared(4712);
         UPDATE counter SET n = n + 1;
         RETURN jsonb_build_array(current_setting('transaction_isolation'), (SELECT attempt FROM background_jobs.current_job()));",
        "max_attempts => 1, retry_delay => '1 h'",
    );
    let mut other = app.session();
    let mut gate = app.session();
    gate.batch_execute("SELECT pg_advisory_lock(4712)").unwrap();
    let id = app.submit("counts", json!({}));
    app.wait_reached(1);
    app.wait_executor_blocked();
    other.batch_execute("UPDATE counter SET n = n + 10").unwrap();
    gate.batch_execute("SELECT pg_advisory_unlock(4712)").unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!(["repeatable read", 1])));
    assert_eq!((app.noted(id), app.one::<i32>("SELECT n FROM counter", &[])), (1, 11));
    let attempts: Vec<(String, String, i32)> = app
        .rows("SELECT outcome::text, error ->> 'sqlstate', attempt FROM background_jobs.attempts", &[])
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(attempts, [("conflict".to_owned(), "40001".to_owned(), 1)]);
}
