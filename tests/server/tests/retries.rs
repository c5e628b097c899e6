//! Attempts: what a failing handler leaves behind, when it runs again, and when it does not any more.

use server_tests::{App, Cluster, Group, Uuid, Value, json};

static SHARED: Group = Group::new(|| Cluster::builder().conf("deadlock_timeout", "100ms"));

const ATTEMPT: &str = "(SELECT attempt FROM background_jobs.current_job())";

/// The attempts kept for a job: number, outcome, error.
fn attempts(app: &mut App, id: Uuid) -> Vec<(i32, String, Value)> {
    app.rows("SELECT attempt, outcome, error FROM background_jobs.attempts WHERE job_id = $1 ORDER BY attempt", &[&id])
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect()
}

#[test]
fn a_failing_handler_runs_again_until_it_succeeds() {
    let mut app = SHARED.app("flaky");
    app.handler_with(
        "flaky",
        &format!("PERFORM note(); IF {ATTEMPT} < 3 THEN RAISE 'attempt % fails', {ATTEMPT}; END IF; RETURN to_jsonb({ATTEMPT});"),
        "retry_delay => '10 ms'",
    );
    let id = app.submit("flaky", json!({}));
    let job = app.wait_final(id);
    assert!(job.completed);
    assert_eq!(job.result, Some(json!(3)));
    assert_eq!(app.noted(id), 1, "the failed attempts have no effects");
    let kept = attempts(&mut app, id);
    assert_eq!(
        kept.iter().map(|(n, outcome, _)| (*n, outcome.as_str())).collect::<Vec<_>>(),
        [(1, "error"), (2, "error")]
    );
    assert_eq!(kept[1].2["message"], "attempt 2 fails");
    let (shown, consistent): (i32, bool) = {
        let rows = app.rows(
            "SELECT s.attempts, a.handler = 'flaky' AND a.job_table = 'background_jobs'::regclass
                AND a.started_at <= a.finished_at AND a.pid IS NOT NULL
             FROM background_jobs.status($1) s, background_jobs.attempts a WHERE a.job_id = $1 AND a.attempt = 1",
            &[&id],
        );
        (rows[0].get(0), rows[0].get(1))
    };
    assert_eq!((shown, consistent), (3, true));
}

#[test]
fn between_attempts_the_job_waits_with_no_progress() {
    let mut app = SHARED.app("waiting");
    app.handler_with(
        "fails",
        "PERFORM background_jobs.set_progress(0.7); RAISE 'no' USING ERRCODE = 'BJ001';",
        "retry_delay => '1 h', max_retry_delay => '1 h'",
    );
    let id = app.submit("fails", json!({}));
    app.wait_state(id, "retrying");
    let job = app.row(id);
    assert!(!job.completed && !job.cancelled && job.result.is_none());
    assert!(job.progress.abs() < f32::EPSILON, "{}", job.progress);
    let shown: bool = app.one(
        "SELECT q.attempts = 1 AND q.last_error ->> 'message' = 'no' AND q.last_error ->> 'sqlstate' = 'BJ001'
            AND q.run_at BETWEEN now() + interval '30 min' AND now() + interval '1 h'
            AND s.last_error = q.last_error
         FROM background_jobs.queue q, background_jobs.status($1) s WHERE q.job_id = $1",
        &[&id],
    );
    assert!(shown);
}

#[test]
fn a_job_that_fails_for_good_says_why_in_its_result() {
    let mut app = SHARED.app("fails");
    app.handler_with(
        "fails",
        "PERFORM note(); PERFORM background_jobs.set_progress(0.375);
         RAISE 'cannot frobnicate' USING ERRCODE = 'BJ042', DETAIL = 'the frob is gone', HINT = 'buy another';",
        "max_attempts => 3, retry_delay => '10 ms'",
    );
    let id = app.submit("fails", json!({}));
    let job = app.wait_final(id);
    assert!(job.completed && !job.cancelled);
    assert!((job.progress - 0.375).abs() < f32::EPSILON, "progress as it stood: {}", job.progress);
    assert_eq!(
        job.result,
        Some(json!({"error": {
            "message": "cannot frobnicate", "sqlstate": "BJ042", "detail": "the frob is gone", "hint": "buy another",
            "attempts": 3
        }}))
    );
    assert_eq!(app.state(id), "failed");
    assert_eq!(app.noted(id), 0);
    assert_eq!(attempts(&mut app, id).len(), 3);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

#[test]
fn an_attempt_keeps_the_whole_error() {
    let mut app = SHARED.app("error_kept");
    app.sql(
        "CREATE FUNCTION inner_step(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            RAISE 'inner trouble' USING ERRCODE = 'XY123', DETAIL = 'a detail', HINT = 'a hint';
         END $$;
         CREATE FUNCTION outer_step(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN inner_step(n); END $$;",
    );
    app.handler_with("deep", "PERFORM outer_step(1); RETURN NULL;", "max_attempts => 1");
    app.handler_with("division", "PERFORM 1 / 0; RETURN NULL;", "max_attempts => 1");
    let deep = app.submit("deep", json!({}));
    app.wait_final(deep);
    let kept = attempts(&mut app, deep);
    let error = &kept[0].2;
    for (field, value) in
        [("message", "inner trouble"), ("sqlstate", "XY123"), ("detail", "a detail"), ("hint", "a hint")]
    {
        assert_eq!(error[field], value);
    }
    let context = error["context"].as_str().unwrap();
    for part in ["inner_step(integer) line 2 at RAISE", "outer_step(integer) line 1", "deep(jsonb) line 1"] {
        assert!(context.contains(part), "{part} is missing from the context:\n{context}");
    }
    let division = app.submit("division", json!({}));
    let result = app.wait_final(division).result.unwrap();
    assert_eq!(result["error"]["sqlstate"], "22012");
    assert_eq!(result["error"]["message"], "division by zero");
    assert_eq!((&result["error"]["detail"], &result["error"]["hint"]), (&Value::Null, &Value::Null));
}

#[test]
fn the_delay_grows_up_to_its_limit() {
    let mut app = SHARED.app("backoff");
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 5, retry_delay => '200 ms', max_retry_delay => '500 ms'");
    let id = app.submit("fails", json!({}));
    app.wait_final(id);
    let delays: Vec<f64> = app
        .rows(
            "SELECT extract(epoch FROM started_at - lag(finished_at) OVER (ORDER BY attempt))::float8
             FROM background_jobs.attempts WHERE job_id = $1 ORDER BY attempt OFFSET 1",
            &[&id],
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(delays.len(), 4);
    for (delay, nominal) in delays.iter().zip([0.2, 0.4, 0.5, 0.5]) {
        // Jitter takes some of it off and never puts any on; the rest is how late a busy machine is.
        assert!((nominal * 0.5..nominal + 1.0).contains(delay), "{delays:?}");
    }
}

#[test]
fn how_often_is_decided_by_the_job_then_its_handler_then_the_setting() {
    let mut app = SHARED.app("how_often");
    app.handler_with("by_setting", "RAISE 'no';", "retry_delay => '5 ms'");
    app.handler_with("by_handler", "RAISE 'no';", "retry_delay => '5 ms', max_attempts => 2");
    let ids: [Uuid; 3] = [
        app.submit("by_setting", json!({})),
        app.submit("by_handler", json!({})),
        app.one("SELECT background_jobs.enqueue('by_handler', max_attempts => 3)", &[]),
    ];
    let used = ids.map(|id| app.wait_final(id).error("attempts").cloned());
    assert_eq!(used, [Some(json!(5)), Some(json!(2)), Some(json!(3))]);
}

#[test]
fn a_deadlock_is_not_an_attempt() {
    let mut app = SHARED.app("deadlock");
    app.sql("CREATE TABLE accounts (n int PRIMARY KEY, balance int); INSERT INTO accounts VALUES (1, 0), (2, 0)");
    app.handler_with(
        "transfer",
        "UPDATE accounts SET balance = balance - 1 WHERE n = (payload ->> 'from')::int;
         PERFORM reach((payload ->> 'from')::int);
         PERFORM await_gate('both');
         UPDATE accounts SET balance = balance + 1 WHERE n = (payload ->> 'to')::int;
         PERFORM note();
         RETURN NULL;",
        "max_attempts => 1",
    );
    let there = app.submit("transfer", json!({"from": 1, "to": 2}));
    let back = app.submit("transfer", json!({"from": 2, "to": 1}));
    app.wait_reached(1);
    app.wait_reached(2);
    app.open_gate("both");
    for id in [there, back] {
        let job = app.wait_final(id);
        assert_eq!((job.completed, job.result), (true, None), "neither job may fail for the deadlock");
        assert_eq!(app.noted(id), 1);
    }
    assert_eq!(app.one::<i64>("SELECT sum(abs(balance)) FROM accounts", &[]), 0);
    assert!(
        app.one::<bool>(
            "SELECT count(*) > 0 AND bool_and(outcome = 'conflict' AND error ->> 'sqlstate' = '40P01') FROM background_jobs.attempts",
            &[],
        ),
        "the test was about a deadlock"
    );
}

#[test]
fn serialization_failures_are_free_only_up_to_a_bound() {
    let mut app = SHARED.app("serialization");
    // A sequence counts the runs: it does not roll back.
    app.sql("CREATE SEQUENCE runs; CREATE SEQUENCE endless");
    app.handler_with(
        "three_times",
        "IF nextval('runs') <= 3 THEN RAISE 'conflict' USING ERRCODE = 'serialization_failure'; END IF;
         PERFORM note(); RETURN NULL;",
        "max_attempts => 1, retry_delay => '1 h'",
    );
    app.handler_with(
        "for_ever",
        "PERFORM nextval('endless'); RAISE 'conflict' USING ERRCODE = 'serialization_failure';",
        "max_attempts => 1, retry_delay => '1 h'",
    );
    let id = app.submit("three_times", json!({}));
    let job = app.wait_final(id);
    assert_eq!((job.completed, job.result), (true, None));
    assert_eq!(app.noted(id), 1);

    let id = app.submit("for_ever", json!({}));
    let job = app.wait_final(id);
    assert_eq!(job.error("sqlstate"), Some(&json!("40001")));
    let runs: i64 = app.one("SELECT last_value FROM endless", &[]);
    assert!((2..=100).contains(&runs), "{runs} runs");
}

/// Errors of a handler are for its owner, in the tables; the server's log goes to other people.
#[test]
fn the_servers_log_never_holds_a_payload() {
    let mut app = SHARED.app("canary");
    let canary = Uuid::new_v4().simple().to_string();
    app.sql("CREATE TABLE strict (v text CHECK (length(v) < 5))");
    app.handler_with("raises", "RAISE 'bad payload %', payload;", "max_attempts => 2, retry_delay => '5 ms'");
    app.handler_with("detail", "INSERT INTO strict VALUES (payload ->> 'secret'); RETURN NULL;", "max_attempts => 1");
    app.handler_with("casts", "RETURN to_jsonb((payload ->> 'secret')::int);", "max_attempts => 1");
    app.handler("fine", "RETURN payload;");
    for handler in ["raises", "detail", "casts", "fine", "nobody"] {
        let id = app.submit(handler, json!({"secret": canary}));
        if handler == "nobody" {
            app.wait_state(id, "unhandled");
        } else {
            let job = app.wait_final(id);
            assert!(handler == "casts" || handler == "detail" || job.result.unwrap().to_string().contains(&canary));
        }
    }
    let log = app.cluster.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&canary)).collect();
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn a_handler_may_be_replaced_and_its_function_dropped_while_jobs_wait() {
    let mut app = SHARED.app("replaced");
    app.handler("changing", "RETURN to_jsonb(1);");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('changing', run_at => now() + interval '1 h')", &[]);
    app.sql("DROP FUNCTION changing(jsonb)");
    app.handler("changing", "RETURN to_jsonb(2);");
    app.execute("SELECT background_jobs.run_now($1)", &[&id]);
    assert_eq!(app.wait_final(id).result, Some(json!(2)));
    app.handler("changing", "RETURN to_jsonb(3);");
    let id = app.submit("changing", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!(3)), "a session that has run it before sees the new body");
}

/// Waits until the dispatcher has looked at its lanes: a look that finds an unknown name ends with a warning.
fn wait_for_a_look(app: &mut App, name: &str) {
    app.submit(name, json!({}));
    let cluster = app.cluster;
    cluster.wait_until("the dispatcher to look", || {
        server_tests::wait::yes(cluster.log().contains(&format!("no handler named \"{name}\"")))
    });
}

#[test]
fn a_job_that_run_now_has_moved_is_not_handed_out_from_where_it_waited_before() {
    let cluster = Cluster::builder()
        .conf("background_jobs.max_executors", "1")
        .conf("background_jobs.poll_interval", "60s")
        .start();
    let mut app = App::with_table(&cluster, "moved");
    app.sql("CREATE SEQUENCE starts");
    app.handler_with(
        "fails",
        "PERFORM nextval('public.starts'); PERFORM reach(1); PERFORM await_gate('first'); RAISE 'no';",
        "retry_delay => '50 ms', max_attempts => 3",
    );
    app.handler("blocks", "PERFORM reach(2); PERFORM await_gate('second'); RETURN '1';");
    let id = app.submit("fails", json!({}));
    app.wait_reached(1);
    app.submit("blocks", json!({}));
    app.open_gate("first");
    // The only executor is busy while the failed job becomes due, and the dispatcher sees it twice: where it waits for its
    // retry, and where run_now() puts it.
    app.wait_reached(2);
    let due = format!("SELECT run_at < now() AND attempts = 1 FROM background_jobs.queue WHERE job_id = '{id}'");
    app.wait_true(&due);
    wait_for_a_look(&mut app, "nobody");
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
    wait_for_a_look(&mut app, "nobody_else");
    app.open_gate("second");
    let job = app.wait_final(id);
    assert_eq!(job.error("message"), Some(&json!("no")));
    let kept: Vec<_> = attempts(&mut app, id).into_iter().map(|(n, _, error)| (n, error["message"].clone())).collect();
    assert_eq!(kept, [(1, json!("no")), (2, json!("no")), (3, json!("no"))]);
    assert_eq!(app.one::<i64>("SELECT last_value FROM starts", &[]), 3, "the third attempt was the last");
}

/// However its row comes: with others of its statement, or with a key.
#[test]
fn a_row_that_allows_no_attempt_has_one() {
    let mut app = SHARED.app_without_table("allows_none");
    app.sql("SELECT background_jobs.create_table(columns => '{max_attempts, job_key}')");
    app.handler("once", "PERFORM note(); RETURN to_jsonb('ran'::text);");
    app.sql(
        "INSERT INTO background_jobs (payload, max_attempts) SELECT '{\"handler\": \"once\"}', -n FROM generate_series(0, 2) n;
         INSERT INTO background_jobs (payload, max_attempts, job_key) VALUES ('{\"handler\": \"once\"}', 0, 'key')",
    );
    app.wait_true("SELECT count(*) = 4 AND bool_and(result = '\"ran\"') FROM background_jobs WHERE completed");
}
