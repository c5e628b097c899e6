//! Handlers that fail, or take long, in the middle of a batch.

use crate::SHARED;
use crate::scene::{DRAIN, N, NOTED, alone, check_others, id_of, in_one_batch, insert, scene, shared, warm};
use server_tests::{Uuid, json};

#[test]
fn a_job_that_fails_in_the_middle_of_a_batch_is_charged_once_and_retried() {
    let _alone = alone();
    let mut app = SHARED.app("middle");
    app.handler_with(
        "noted",
        "PERFORM note();
         IF payload -> 'n' = '3' AND payload ? 'fails' AND (SELECT attempt FROM background_jobs.current_job()) = 1 THEN
            RAISE 'once';
         END IF;
         RETURN jsonb_build_object('n', payload -> 'n');",
        "retry_delay => '10 ms'",
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "|| '{\"fails\": true}'")));
    app.wait_drained(DRAIN);
    let id = id_of(&mut app, 3);
    assert_eq!((app.row(id).result, app.noted(id)), (Some(json!({"n": 3})), 1));
    let charged: Vec<(Uuid, String)> = app
        .rows("SELECT job_id, outcome::text FROM background_jobs.attempts", &[])
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(charged, [(id, "error".to_owned())]);
    check_others(&mut app, &[3]);
    assert!(shared(&mut app), "the others shared a commit with it");
}

/// It is interrupted because finished jobs wait for it, which is none of its handler's business.
fn interrupted_for_its_batch(name: &str, heeds: &str) {
    let _alone = alone();
    let mut app = SHARED.app(name);
    app.handler(
        "noted",
        &format!(
            "PERFORM note();
             IF payload -> 'n' = '3' THEN
                BEGIN PERFORM pg_sleep(0.2); EXCEPTION WHEN query_canceled THEN {heeds}; END;
             END IF;
             RETURN jsonb_build_object('n', payload -> 'n');"
        ),
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
}

#[test]
fn a_job_that_takes_long_for_once_runs_again_alone() {
    interrupted_for_its_batch("long", "RAISE");
}

#[test]
fn a_job_that_swallows_being_interrupted_for_its_batch_runs_again_alone() {
    interrupted_for_its_batch("swallows", "RETURN '\"interrupted\"'");
}

#[test]
fn a_job_that_calls_being_interrupted_for_its_batch_something_else_is_not_charged() {
    interrupted_for_its_batch("renames", "RAISE 'took too long'");
}

/// Those that shared its commit would begin anew, free of charge, with every such end.
#[test]
fn a_handler_that_has_ended_its_executor_is_not_handed_out_behind_others() {
    let _alone = alone();
    let mut app = scene("fatal");
    app.sql("CREATE SEQUENCE runs");
    app.handler_with(
        "fatal",
        "IF payload ? 'ends' AND (SELECT attempt FROM background_jobs.current_job()) = 1 THEN
            PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60);
         END IF;
         PERFORM note(); RETURN NULL;",
        "priority => 1::smallint, retry_delay => '10 ms'",
    );
    let ends = "INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"fatal\", \"ends\": true}')";
    warm(&mut app, "fatal");
    in_one_batch(&mut app, |app| app.sql(ends));
    app.wait_drained(DRAIN);
    // The next executor knows it as a short one again.
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"fatal\"}' FROM generate_series(1, 5)");
    app.wait_drained(DRAIN);
    app.sql("INSERT INTO warmed SELECT count(*) FROM background_jobs; DELETE FROM background_jobs; DELETE FROM ledger");
    app.handler("noted", &format!("PERFORM nextval('runs'); {NOTED}"));
    in_one_batch(&mut app, |app| {
        app.sql(&insert("noted", ""));
        app.sql(ends);
    });
    app.wait_drained(DRAIN);
    let ended = "SELECT count(*) FROM background_jobs.attempts WHERE outcome = 'terminated' AND handler = 'fatal'";
    assert_eq!(app.one::<i64>(ended, &[]), 2);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 2, "nobody else was charged");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), N + 1);
    let runs: i64 = app.one("SELECT last_value FROM runs", &[]);
    assert!(runs < N + N / 4, "{N} jobs were begun {runs} times");
}

#[test]
fn jobs_of_a_batch_hand_their_keys_to_their_successors() {
    let _alone = alone();
    let mut app = SHARED.app("successors");
    app.handler(
        "noted",
        "PERFORM note();
         IF payload ? 'n' THEN
            PERFORM background_jobs.enqueue('later', run_at => 'infinity', job_key => 'key ' || (payload ->> 'n'));
         END IF;
         RETURN jsonb_build_object('n', payload -> 'n');",
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| {
        app.sql(&format!(
            "SELECT background_jobs.enqueue('noted', jsonb_build_object('n', n), job_key => 'key ' || n) FROM generate_series(1, {N}) n"
        ));
    });
    app.wait_true("SELECT count(*) = 0 FROM background_jobs WHERE payload ->> 'handler' = 'noted' AND NOT completed");
    assert!(shared(&mut app), "or this proves nothing about a batch");
    let keys =
        "SELECT count(DISTINCT job_key) FROM background_jobs.queued_job WHERE handler = 'later' AND job_key ~ '^key '";
    assert_eq!(app.admin().query_one(keys, &[]).unwrap().get::<_, i64>(0), N);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), N);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), N);
}
