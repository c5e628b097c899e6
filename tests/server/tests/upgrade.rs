//! pg_upgrade, from and to the same major version: the way is the same, and everything of ours has to survive it.

use server_tests::{App, Cluster, Uuid, json};

#[test]
fn pg_upgrade_keeps_jobs_attempts_handlers_and_schedules_and_everything_runs_once() {
    let old = Cluster::builder().start();
    let new;
    let mut app = App::with_table(&old, "upgraded");
    let noted = "PERFORM note(); RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));";
    app.handler("noted", noted);
    app.handler("held", &format!("PERFORM reach(1); PERFORM await_gate('go'); {noted}"));
    app.handler_with(
        "flaky",
        &format!("IF NOT EXISTS (SELECT FROM gates WHERE name = 'mended') THEN RAISE 'not yet'; END IF; {noted}"),
        "retry_delay => '1 h'",
    );
    // What pg_upgrade has refused other extensions for is in the tables of ours; here a user's view on top of them.
    app.sql("CREATE VIEW my_jobs AS SELECT q.*, j.payload FROM background_jobs.queue q JOIN background_jobs j ON j.id = q.job_id");
    let finished = app.submit("noted", json!({}));
    app.wait_final(finished);
    let scheduled: Uuid =
        app.one("SELECT background_jobs.enqueue('noted', run_at => '2099-12-31', max_attempts => 3)", &[]);
    let retrying = app.submit("flaky", json!({}));
    app.wait_state(retrying, "retrying");
    let unhandled = app.submit("later", json!({}));
    let running = app.submit("held", json!({}));
    app.wait_reached(1);
    let knowledge = "SELECT jsonb_agg(to_jsonb(k) ORDER BY k::text) FROM (
        SELECT to_jsonb(q) || jsonb_build_object('state', '') FROM background_jobs.queue q WHERE handler <> 'held'
        UNION ALL SELECT to_jsonb(h) FROM background_jobs.handlers h
        UNION ALL SELECT to_jsonb(a) FROM background_jobs.attempts a) k";
    let before: serde_json::Value = app.one(knowledge, &[]);

    new = Cluster::builder().start_upgrade_of(&old);
    app.cluster = &new;
    app.client = app.session();
    let after: serde_json::Value = app.one(knowledge, &[]);
    assert_eq!(after, before);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM my_jobs", &[]), 4);
    let always: bool = app.one(
        "SELECT count(*) > 0 AND bool_and(tgenabled = 'A') FROM pg_trigger WHERE tgrelid = 'background_jobs'::regclass
            AND NOT tgisinternal",
        &[],
    );
    assert!(always, "the triggers fire always");

    app.open_gate("go");
    app.open_gate("mended");
    app.handler("later", noted);
    for id in [scheduled, retrying] {
        assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
    }
    for (id, attempt) in [(scheduled, 1), (unhandled, 1), (running, 1), (retrying, 2)] {
        assert_eq!(app.wait_final(id).result, Some(json!(attempt)));
        assert_eq!(app.noted(id), 1);
    }
    assert_eq!(app.noted(finished), 1);
    let next = app.submit("noted", json!({}));
    assert!(app.wait_final(next).completed, "and new jobs run");
    new.amcheck(&app.database);
}
