//! background_jobs.wait(): the result of a job as the result of a call.

use server_tests::{App, Cluster, Group, Uuid, json, tenant};
use std::time::{Duration, Instant};

static SHARED: Group = Group::new(Cluster::builder);

fn noting(app: &mut App) {
    app.handler("noted", "PERFORM note(); RETURN payload;");
}

const LATER: &str = "now() + interval '1 h'";

#[test]
fn wait_returns_the_result() {
    let mut app = SHARED.app("wait");
    app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb('here'::text);");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut session = app.session();
    let waiter = std::thread::spawn(move || {
        let row = session.query_one("SELECT background_jobs.wait($1)", &[&id]).unwrap();
        (row.get::<_, serde_json::Value>(0), Instant::now())
    });
    app.wait_true(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
            AND query LIKE '%background_jobs.wait($1)%' AND pid <> pg_backend_pid())",
    );
    let opened = Instant::now();
    app.open_gate("go");
    let (result, woken) = waiter.join().unwrap();
    assert_eq!(result, json!("here"));
    assert!(woken - opened < Duration::from_secs(2), "it does not wait for a poll: {:?}", woken - opened);
    assert_eq!(app.one::<serde_json::Value>("SELECT background_jobs.wait($1)", &[&id]), json!("here"), "at once");
}

#[test]
fn wait_raises_what_went_wrong() {
    let mut app = SHARED.app("wait_errors");
    app.handler_with(
        "fails",
        "RAISE 'broken' USING ERRCODE = 'BJ007', DETAIL = 'why', HINT = 'what to do';",
        "max_attempts => 1",
    );
    noting(&mut app);
    let id = app.submit("fails", json!({}));
    let error = app.client.query_one("SELECT background_jobs.wait($1)", &[&id]).unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "BJ007");
    assert!(error.message().contains("broken"), "{error:?}");

    let cancelled: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    app.execute("SELECT background_jobs.cancel($1)", &[&cancelled]);
    let error = app.client.query_one("SELECT background_jobs.wait($1)", &[&cancelled]).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("cancel"), "{error:?}");

    let scheduled: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    let begin = Instant::now();
    app.sqlstate(&format!("SELECT background_jobs.wait('{scheduled}', '300 ms')"));
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    app.sqlstate(&format!("SELECT background_jobs.wait('{}', '1 s')", Uuid::new_v4()));
}

/// Whether a job has failed is told by its progress: wait() and status() agree about that.
#[test]
fn a_result_that_looks_like_a_failure_is_a_result_and_a_failure_stays_one() {
    let mut app = SHARED.app("wait_forged");
    app.handler("answers", "RETURN payload -> 'answer';");
    let whole = json!({"message": "no", "sqlstate": "08006", "detail": null, "hint": null, "attempts": 1});
    for answer in [json!({"error": {"sqlstate": "08006", "message": "no"}}), json!({"error": whole})] {
        let id = app.submit("answers", json!({"answer": answer}));
        assert_eq!(app.one::<serde_json::Value>("SELECT background_jobs.wait($1)", &[&id]), answer);
        let shown: bool = app.one(
            "SELECT state = 'completed' AND attempts = 1 AND last_error IS NULL FROM background_jobs.status($1)",
            &[&id],
        );
        assert!(shown, "{answer}");
    }
    app.handler_with(
        "fails",
        "PERFORM reach(1); PERFORM await_gate('go'); RAISE 'no' USING ERRCODE = '08006';",
        "max_attempts => 1",
    );
    let id = app.submit("fails", json!({}));
    app.wait_reached(1);
    // Not a client's to write, but it may.
    app.execute("UPDATE background_jobs SET progress = 1 WHERE id = $1", &[&id]);
    app.open_gate("go");
    assert_eq!(app.sqlstate(&format!("SELECT background_jobs.wait('{id}')")), "08006");
    assert_eq!(app.state(id), "failed");
}

/// There are 128 places for the sessions that wait in the whole server; whoever gets none looks for itself, twenty times a second.
#[test]
fn a_session_whose_waits_fail_takes_no_place_from_others() {
    let builder = Cluster::builder().conf("background_jobs.poll_interval", "1h");
    let cluster = builder.start();
    let mut app = App::with_table(&cluster, "wait_places");
    noting(&mut app);
    let mut stranger = tenant::stranger(&app, "stranger");
    let id: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    app.sql(
        "CREATE SEQUENCE looks;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (nextval('looks') > 0) WITH CHECK (true);",
    );
    // Sessions with an open transaction while others wait.
    let failing = |id: Uuid, timeout: &str| {
        format!(
            "BEGIN; DO $$ BEGIN FOR i IN 1..128 LOOP
                BEGIN PERFORM background_jobs.wait('{id}', '{timeout}', 'background_jobs'); RAISE 'no error';
                EXCEPTION WHEN insufficient_privilege OR no_data_found OR query_canceled THEN NULL; END;
             END LOOP; END $$"
        )
    };
    stranger.sql(&failing(id, "1 s"));
    let mut owners = [app.session(), app.session()];
    owners[0].batch_execute(&failing(Uuid::new_v4(), "1 s")).unwrap();
    owners[1].batch_execute(&failing(id, "1 ms")).unwrap();
    let before: i64 = app.one("SELECT nextval('looks')", &[]);
    assert_eq!(app.sqlstate(&format!("SELECT background_jobs.wait('{id}', '1 s')")), "57014");
    let looks = app.one::<i64>("SELECT nextval('looks')", &[]) - before;
    assert!(looks <= 6, "{looks} looks in a second: there was no place");
}

/// A session that waits can be cancelled, and sees nothing but the end of the job it waits for.
#[test]
fn wait_can_be_interrupted() {
    let mut app = SHARED.app("wait_cancel");
    noting(&mut app);
    let id: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    app.sql("SET statement_timeout = '200 ms'");
    let begin = Instant::now();
    assert_eq!(app.sqlstate(&format!("SELECT background_jobs.wait('{id}', '50 s')")), "57014");
    assert!(begin.elapsed() < Duration::from_secs(5));
}
