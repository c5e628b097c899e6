//! The life of a job: from the INSERT to the final row, and every state in between.

use server_tests::{App, Cluster, Group, Uuid, json};
use std::time::SystemTime;

static SHARED: Group = Group::new(Cluster::builder);

#[test]
fn an_insert_runs_the_handler_and_writes_its_result() {
    let mut app = SHARED.app("life");
    app.handler("double", "RETURN jsonb_build_object('twice', 2 * (payload ->> 'n')::int);");
    let id = app.submit("double", json!({"n": 21}));
    let before = app.row(id);
    let job = app.wait_final(id);
    assert!(job.completed && !job.cancelled);
    assert!((job.progress - 1.0).abs() < f32::EPSILON);
    assert_eq!(job.result, Some(json!({"twice": 42})));
    assert_eq!((job.timestamp, &job.payload), (before.timestamp, &before.payload));
    assert_eq!(app.state(id), "completed");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

#[test]
fn the_row_reads_back_as_it_was_inserted() {
    let mut app = SHARED.app("unchanged");
    app.handler("noop", "RETURN NULL;");
    let (id, timestamp) = (Uuid::new_v4(), SystemTime::UNIX_EPOCH);
    let payload = json!({"handler": "noop", "text": "äöü \u{1F418} \"\\", "list": [1, 1.5, null, {"a": []}]});
    let mut transaction = app.client.transaction().unwrap();
    transaction
        .execute(
            "INSERT INTO background_jobs (id, timestamp, payload, progress) VALUES ($1, $2, $3, 0.25)",
            &[&id, &timestamp, &payload],
        )
        .unwrap();
    let row = transaction.query_one("SELECT * FROM background_jobs WHERE id = $1", &[&id]).unwrap();
    let job = server_tests::Job::from(&row);
    assert_eq!((job.timestamp, &job.payload, job.progress), (timestamp, &payload, 0.25));
    assert!(!job.completed && !job.cancelled && job.result.is_none());
    transaction.commit().unwrap();
    let job = app.wait_final(id);
    assert_eq!((job.timestamp, job.payload), (timestamp, payload), "the engine changes neither");
}

#[test]
fn handlers_may_take_the_id_and_return_nothing() {
    let mut app = SHARED.app("shapes");
    app.sql(
        "CREATE FUNCTION with_id(job uuid, payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(job) $$;
         CREATE FUNCTION nothing(payload jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM note(); END $$;",
    );
    app.register("with_id", "with_id(uuid, jsonb)", "");
    app.register("nothing", "nothing(jsonb)", "");
    let (a, b) = (app.submit("with_id", json!({})), app.submit("nothing", json!({})));
    assert_eq!(app.wait_final(a).result, Some(json!(a.to_string())));
    let job = app.wait_final(b);
    assert!(job.completed);
    assert_eq!(job.result, None);
    assert_eq!(app.noted(b), 1);
}

#[test]
fn handlers_see_their_job() {
    let mut app = SHARED.app("current_job");
    app.handler_with("who", "RETURN (SELECT to_jsonb(j) FROM background_jobs.current_job() j);", "max_attempts => 7");
    let id = app.submit("who", json!({}));
    let result = app.wait_final(id).result.unwrap();
    assert_eq!(
        result,
        json!({"job_table": "background_jobs", "id": id.to_string(), "handler": "who", "attempt": 1, "max_attempts": 7})
    );
}

#[test]
fn which_handler_runs() {
    let mut app = SHARED.app_without_table("choice");
    app.sql("SELECT background_jobs.create_table('background_jobs', '{handler}')");
    for name in ["default", "a", "b"] {
        app.handler(name, &format!("RETURN to_jsonb('{name}'::text);"));
    }
    let mut run = |column: Option<&str>, payload: serde_json::Value| {
        let insert = "INSERT INTO background_jobs (handler, payload) VALUES ($1, $2) RETURNING id";
        let id: Uuid = app.one(insert, &[&column, &payload]);
        app.wait_final(id).result.unwrap()
    };
    assert_eq!(run(Some("a"), json!({"handler": "b"})), json!("a"), "the column goes before the payload");
    assert_eq!(run(None, json!({"handler": "b"})), json!("b"));
    assert_eq!(run(None, json!({})), json!("default"));
    assert_eq!(run(None, json!({"handler": null})), json!("default"));
    assert_eq!(run(None, json!([1])), json!("default"), "a payload need not be an object");

    app.sql("SELECT background_jobs.attach('background_jobs', columns => '{}', handler_key => 'kind')");
    let id: Uuid =
        app.one("INSERT INTO background_jobs (handler, payload) VALUES ('a', '{\"kind\": \"b\"}') RETURNING id", &[]);
    assert_eq!(app.wait_final(id).result, Some(json!("b")), "attach() changed the key and dropped the column");
}

#[test]
fn an_unregistered_name_waits_until_it_is_registered() {
    let mut app = SHARED.app("unhandled");
    let ids: Vec<Uuid> = (0..3).map(|n| app.submit("unhandled_to_be_registered", json!({"n": n}))).collect();
    ids.iter().for_each(|id| app.wait_state(*id, "unhandled"));
    let warned = |app: &App| app.cluster.log().matches("unhandled_to_be_registered").count();
    app.cluster.wait_until("the warning", || server_tests::wait::yes(warned(&app) > 0));
    app.handler("unhandled_to_be_registered", "RETURN payload -> 'n';");
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(app.wait_final(*id).result, Some(json!(n)));
    }
    assert_eq!(warned(&app), 1, "once per name, however many jobs");
}

/// The payload selects among registered names; it is never looked up as a function.
#[test]
fn client_data_never_names_a_function() {
    let mut app = SHARED.app("names");
    app.sql(
        "CREATE FUNCTION public.tempting(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT note(); SELECT payload'",
    );
    for name in ["tempting", "public.tempting", "tempting(jsonb)", "pg_catalog.now", ""] {
        let id = app.submit(name, json!({}));
        app.wait_state(id, "unhandled");
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 0);
}

#[test]
fn every_state_is_shown() {
    let mut app = SHARED.app("states");
    app.handler("ok", "RETURN NULL;");
    app.handler("held", "PERFORM reach(1); PERFORM await_gate('held'); RETURN NULL;");
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 1");
    app.handler_with("again", "RAISE 'not yet';", "retry_delay => '1 h'");
    app.handler_with("one_at_a_time", "PERFORM await_gate('one'); RETURN NULL;", "concurrency => 1");

    let scheduled: Uuid = app.one("SELECT background_jobs.enqueue('ok', run_at => now() + interval '1 h')", &[]);
    app.wait_state(scheduled, "scheduled");
    let running = app.submit("held", json!({}));
    app.wait_reached(1);
    app.wait_state(running, "running");
    let retrying = app.submit("again", json!({}));
    app.wait_state(retrying, "retrying");
    let first = app.submit("one_at_a_time", json!({}));
    app.wait_state(first, "running");
    let available = app.submit("one_at_a_time", json!({}));
    app.wait_state(available, "available");
    let unhandled = app.submit("nobody", json!({}));
    app.wait_state(unhandled, "unhandled");

    let mut queue: Vec<(Uuid, String)> = app
        .rows("SELECT job_id, state FROM background_jobs.queue WHERE job_table = 'background_jobs'::regclass", &[])
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut expected = [
        (scheduled, "scheduled"),
        (running, "running"),
        (retrying, "retrying"),
        (first, "running"),
        (available, "available"),
        (unhandled, "unhandled"),
    ]
    .map(|(id, state)| (id, state.to_owned()));
    queue.sort();
    expected.sort();
    assert_eq!(queue, expected);

    let completed = app.submit("ok", json!({}));
    app.wait_state(completed, "completed");
    let failed = app.submit("fails", json!({}));
    app.wait_state(failed, "failed");
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&running]);
    app.wait_state(running, "cancelled");
    app.open_gate("one");
    app.wait_state(available, "completed");
}

#[test]
fn finished_rows_are_never_run() {
    let mut app = SHARED.app("finished");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let insert = "INSERT INTO background_jobs (payload, completed, cancelled)
        VALUES ('{\"handler\": \"noted\"}', $1, $2) RETURNING id";
    let born_completed: Uuid = app.one(insert, &[&true, &false]);
    let born_cancelled: Uuid = app.one(insert, &[&false, &true]);
    let ran = app.submit("noted", json!({}));
    app.wait_final(ran);
    let cancelled: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&cancelled]);

    // A client that sets the flags back does not submit: only INSERT does.
    app.sql("UPDATE background_jobs SET completed = false, cancelled = false");
    // Jobs are handed out in the order of arrival, so a job that came later tells that nothing else is coming.
    let later = app.submit("noted", json!({}));
    app.wait_final(later);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
    let noted = [born_completed, born_cancelled, ran, cancelled, later].map(|id| app.noted(id));
    assert_eq!(noted, [0, 0, 1, 0, 1]);
}

#[test]
fn no_lock_is_held_on_the_row_of_a_running_job() {
    let mut app = SHARED.app("unlocked");
    app.handler(
        "held",
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;",
    );
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    app.sql("SET lock_timeout = '5 s'");
    let mut transaction = app.client.transaction().unwrap();
    transaction.query_one("SELECT FROM background_jobs WHERE id = $1 FOR UPDATE", &[&id]).unwrap();
    transaction.execute("UPDATE background_jobs SET timestamp = 'epoch' WHERE id = $1", &[&id]).unwrap();
    transaction.commit().unwrap();
    app.open_gate("go");
    let job = app.wait_final(id);
    assert!(job.completed);
    assert_eq!(job.timestamp, SystemTime::UNIX_EPOCH, "completion leaves the client's columns alone");
}

#[test]
fn optional_columns_are_read_and_written() {
    let mut app = SHARED.app_without_table("columns");
    app.sql(
        "SELECT background_jobs.create_table('background_jobs',
            '{handler, queue, priority, run_at, job_key, max_attempts, attempts, started_at, finished_at}')",
    );
    app.handler_with(
        "flaky",
        "IF (SELECT attempt FROM background_jobs.current_job()) < 2 THEN RAISE 'no'; END IF;
        RETURN to_jsonb((SELECT max_attempts FROM background_jobs.current_job()));",
        "retry_delay => '10 ms'",
    );
    let id: Uuid = app.one(
        "INSERT INTO background_jobs (handler, queue, priority, run_at, max_attempts)
         VALUES ('flaky', 'slow', -3, now() + interval '1 h', 9) RETURNING id",
        &[],
    );
    app.wait_state(id, "scheduled");
    let shown = app.rows(
        "SELECT 1 FROM background_jobs.queue q JOIN background_jobs j ON j.id = q.job_id
         WHERE q.handler = 'flaky' AND q.queue = 'slow' AND q.priority = -3 AND q.run_at = j.run_at
           AND q.max_attempts = 9 AND q.attempts = 0",
        &[],
    );
    assert_eq!(shown.len(), 1);
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
    assert_eq!(app.wait_final(id).result, Some(json!(9)));
    let finished: bool = app.one(
        "SELECT attempts = 2 AND started_at <= finished_at AND finished_at <= clock_timestamp() FROM background_jobs",
        &[],
    );
    assert!(finished, "{:?}", app.rows("SELECT attempts, started_at, finished_at FROM background_jobs", &[]));
}

/// Jobs of the handler `serial` run one at a time, from the opening of the gate `go` on.
fn hold_queue(app: &mut App) {
    app.handler_with(
        "serial",
        "IF payload ? 'first' THEN PERFORM reach(1); PERFORM await_gate('go'); END IF; PERFORM note(); RETURN NULL;",
        "concurrency => 1",
    );
    app.submit("serial", json!({"first": true}));
    app.wait_reached(1);
}

#[test]
fn order_is_priority_then_arrival() {
    let mut app = SHARED.app("order");
    hold_queue(&mut app);
    let mut enqueue =
        |priority: i32| -> Uuid { app.one("SELECT background_jobs.enqueue('serial', priority => $1)", &[&priority]) };
    let (late, normal, second, early) = (enqueue(5), enqueue(0), enqueue(0), enqueue(-5));
    app.open_gate("go");
    app.wait_drained(std::time::Duration::from_secs(30));
    let ran: Vec<Uuid> =
        app.rows("SELECT job FROM ledger ORDER BY entry OFFSET 1", &[]).iter().map(|row| row.get(0)).collect();
    assert_eq!(ran, [early, normal, second, late]);
}

/// More of them than the dispatcher reads at once.
#[test]
fn jobs_of_one_run_at_run_in_the_order_of_their_arrival() {
    let mut app = SHARED.app_without_table("same_run_at");
    app.sql("SELECT background_jobs.create_table(columns => '{run_at}')");
    hold_queue(&mut app);
    app.sql(
        "INSERT INTO background_jobs (payload, run_at)
         SELECT jsonb_build_object('handler', 'serial', 'n', n), '2020-02-20' FROM generate_series(1, 600) n",
    );
    app.open_gate("go");
    app.wait_drained(std::time::Duration::from_secs(60));
    assert_eq!(numbers_in_the_order_they_ran(&mut app), (1..=600).collect::<Vec<_>>());
}

/// They have arrived before what the dispatcher knows of already, and are more than it reads at once.
#[test]
fn jobs_that_are_committed_late_run_in_the_order_of_their_arrival() {
    let mut app = SHARED.app("committed_late");
    hold_queue(&mut app);
    let insert = |numbers: &str| {
        format!(
            "INSERT INTO background_jobs (payload)
             SELECT jsonb_build_object('handler', 'serial', 'n', n) FROM generate_series({numbers}) n"
        )
    };
    let mut late = app.session();
    late.batch_execute(&format!("BEGIN; {}", insert("1, 600"))).unwrap();
    app.sql(&insert("601, 1200"));
    // The look that finds this one reads those as well.
    app.handler("quick", "RETURN NULL;");
    let quick = app.submit("quick", json!({}));
    assert!(app.wait_final(quick).completed);
    late.batch_execute("COMMIT").unwrap();
    app.open_gate("go");
    app.wait_drained(std::time::Duration::from_secs(60));
    assert_eq!(numbers_in_the_order_they_ran(&mut app), (1..=1200).collect::<Vec<_>>());
}

fn numbers_in_the_order_they_ran(app: &mut App) -> Vec<i32> {
    let ran = "SELECT (j.payload ->> 'n')::int FROM ledger JOIN background_jobs j ON j.id = job
        WHERE j.payload ? 'n' ORDER BY entry";
    app.rows(ran, &[]).iter().map(|row| row.get(0)).collect()
}
