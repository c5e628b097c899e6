//! A standby runs nothing; once promoted it runs everything.

use server_tests::{App, Cluster, json};

#[test]
fn nothing_runs_before_promotion() {
    let primary = Cluster::builder().conf("wal_level", "replica").start();
    let mut app = App::with_table(&primary, "standby");
    app.handler("noted", "PERFORM note(); RETURN to_jsonb(pg_is_in_recovery());");
    let done = app.submit("noted", json!({}));
    app.wait_final(done);

    let standby = Cluster::builder().conf("background_jobs.poll_interval", "200ms").start_standby_of(&primary);
    primary.set("background_jobs.enabled", "off");
    let waiting = app.submit("noted", json!({}));
    let mut reader = standby.connect(&app.database, &app.role);
    standby.wait_until("the row to arrive", || {
        let count: i64 = reader.query_one("SELECT count(*) FROM background_jobs", &[]).unwrap().get(0);
        if count == 2 { Ok(()) } else { Err(count.to_string()) }
    });
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%'";
    assert_eq!(reader.query_one(workers, &[]).unwrap().get::<_, i64>(0), 0);
    let state: String = reader.query_one("SELECT state FROM background_jobs.status($1)", &[&waiting]).unwrap().get(0);
    assert_eq!(state, "available", "it can be looked at");
    let error = reader.batch_execute("SELECT background_jobs.enqueue('noted')").unwrap_err();
    assert_eq!(server_tests::sqlstate(&error), "25006");

    let mut admin = standby.admin("postgres");
    assert!(admin.query_one("SELECT pg_promote()", &[]).unwrap().get::<_, bool>(0));
    let result: serde_json::Value = reader.query_one("SELECT background_jobs.wait($1)", &[&waiting]).unwrap().get(0);
    assert_eq!(result, json!(false));
    assert!(!app.row(waiting).is_final(), "the old primary has not run it");
}
