//! background_jobs.wait(): the result of a job as the result of a call.

use server_tests::{App, Cluster, Group, Uuid, Value, json, tenant};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

static SHARED: Group = Group::new(Cluster::builder);

/// Here, a wait that ends in time was woken.
static UNPOLLED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "1h"));

fn noting(app: &mut App) {
    app.handler("noted", "PERFORM note(); RETURN payload;");
}

const LATER: &str = "now() + interval '1 h'";

/// A session that waits, asleep when this returns: the result, or SQLSTATE and message.
fn waiting(app: &mut App, id: Uuid, timeout: &str) -> JoinHandle<Result<Value, (String, String)>> {
    let mut session = app.session();
    session.batch_execute("SET statement_timeout = '30 s'").unwrap();
    let query = format!("SELECT background_jobs.wait('{id}', '{timeout}')");
    let asleep = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'Extension'
            AND query LIKE '%background_jobs.wait(''{id}''%' AND pid <> pg_backend_pid())"
    );
    let waiter = std::thread::spawn(move || match session.query_one(&query, &[]) {
        Ok(row) => Ok(row.get(0)),
        Err(error) => {
            let error = error.as_db_error().unwrap();
            Err((error.code().code().to_owned(), error.message().to_owned()))
        }
    });
    app.wait_true(&asleep);
    waiter
}

fn held(app: &mut App) -> Uuid {
    app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb('here'::text);");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    id
}

#[test]
fn a_table_can_be_altered_while_a_session_waits_for_one_of_its_jobs() {
    let mut app = UNPOLLED.app("wait_altered");
    let id = held(&mut app);
    let waiter = waiting(&mut app, id, "25 s");
    app.sql(
        "SET lock_timeout = '5 s';
         ALTER TABLE background_jobs ADD note text;
         ALTER TABLE background_jobs RENAME TO jobs;
         LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE;",
    );
    app.open_gate("go");
    assert_eq!(waiter.join().unwrap(), Ok(json!("here")));
}

#[test]
fn a_job_that_locks_its_own_table_ends_while_its_client_waits() {
    let mut app = UNPOLLED.app("wait_locked_out");
    app.handler(
        "locks",
        "PERFORM reach(1); PERFORM await_gate('go'); LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE;
         PERFORM reach(2); RETURN payload -> 'answer';",
    );
    let id = app.submit("locks", json!({"answer": 42}));
    app.wait_reached(1);
    let waiter = waiting(&mut app, id, "25 s");
    app.open_gate("go");
    assert_eq!(waiter.join().unwrap(), Ok(json!(42)));
}

#[test]
fn a_job_that_is_gone_ends_the_wait_at_once() {
    for (name, statement, sqlstate, message) in [
        ("deleted", "DELETE FROM background_jobs", "P0002", "there is no job"),
        ("truncated", "TRUNCATE background_jobs", "P0002", "there is no job"),
        ("dropped", "DROP TABLE background_jobs", "42P01", "relation \"background_jobs\" does not exist"),
        ("detached", "SELECT background_jobs.detach('background_jobs')", "55000", "is not attached"),
    ] {
        let mut app = UNPOLLED.app(name);
        let id = held(&mut app);
        let waiter = waiting(&mut app, id, "25 s");
        app.sql(&format!("SET lock_timeout = '5 s'; {statement}"));
        let (seen, text) = waiter.join().unwrap().unwrap_err();
        assert_eq!(seen, sqlstate, "{statement}: {text}");
        assert!(text.contains(message), "{statement}: {text}");
    }
}

#[test]
fn a_table_that_somebody_has_locked_prolongs_no_wait() {
    let mut app = SHARED.app("wait_locked");
    noting(&mut app);
    let id: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    let waiter = waiting(&mut app, id, "700 ms");
    let mut holder = app.session();
    let mut transaction = holder.transaction().unwrap();
    transaction.batch_execute("LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE").unwrap();
    let (sqlstate, message) = waiter.join().unwrap().unwrap_err();
    assert!(sqlstate == "57014" && message.contains("did not finish within 700 ms"), "{sqlstate}: {message}");
    // What the caller has set of its own is as it was.
    let mut session = app.session();
    session.batch_execute("SET lock_timeout = '20 ms'").unwrap();
    for timeout in ["0", "200 ms"] {
        let error = session.query(&format!("SELECT background_jobs.wait('{id}', '{timeout}')"), &[]).unwrap_err();
        let message = error.as_db_error().unwrap().message();
        assert!(message.contains("did not finish within"), "{message}");
    }
    let error = session.batch_execute("SELECT FROM background_jobs").unwrap_err();
    assert_eq!(server_tests::sqlstate(&error), "55P03");
    drop(transaction);
}

/// It leaves nothing in the transaction that it is called in.
#[test]
fn wait_takes_no_transaction_id_and_leaves_no_lock() {
    let mut app = SHARED.app("wait_traces");
    app.handler("answers", "RETURN payload -> 'answer';");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('answers', '{\"answer\": 42}', run_at => 'infinity')", &[]);
    app.sql(
        "CREATE FUNCTION waits(job uuid) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
            RETURN background_jobs.wait(job, '20 ms', 'background_jobs')::text;
         EXCEPTION WHEN query_canceled THEN RETURN 'in vain'; END $$;",
    );
    let mut session = app.session();
    let mut transaction = session.build_transaction().read_only(true).start().unwrap();
    let mut savepoint = transaction.transaction().unwrap();
    let traces = "SELECT count(*), pg_current_xact_id_if_assigned() IS NULL FROM pg_locks
        WHERE pid = pg_backend_pid() AND relation = 'background_jobs'::regclass";
    for expected in ["in vain", "42"] {
        let answer: String = savepoint.query_one("SELECT waits($1)", &[&id]).unwrap().get(0);
        assert_eq!(answer, expected);
        let row = savepoint.query_one(traces, &[]).unwrap();
        assert_eq!((row.get(0), row.get(1)), (0_i64, true), "{expected}");
        if expected == "in vain" {
            app.execute("SELECT background_jobs.run_now($1)", &[&id]);
            app.wait_final(id);
        }
    }
}

/// The owner's policies may have something to say to those who read the row: it is said as it was meant.
#[test]
fn an_error_of_a_policys_comes_out_of_a_wait_whole() {
    let mut app = SHARED.app("wait_policy");
    noting(&mut app);
    let id: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    app.sql(
        "CREATE FUNCTION refuses() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            RAISE 'no' USING ERRCODE = 'BJ042', DETAIL = 'why', HINT = 'what to do', CONSTRAINT = 'rule'; END $$;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (refuses());",
    );
    let error = app.client.query_one("SELECT background_jobs.wait($1)", &[&id]).unwrap_err();
    let error = error.as_db_error().unwrap();
    let told = (error.code().code(), error.message(), error.detail(), error.hint(), error.constraint());
    assert_eq!(told, ("BJ042", "no", Some("why"), Some("what to do"), Some("rule")));
    let context = error.where_().unwrap();
    assert!(context.starts_with("PL/pgSQL function refuses() line 2 at RAISE\nSQL statement"), "{context}");
}

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
