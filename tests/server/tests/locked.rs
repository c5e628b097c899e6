//! Clients that have a job's row, or its place in the queue, locked while its run ends: that is no failure of the job's, and changes
//! neither its error nor its delay.

use server_tests::postgres::Client;
use server_tests::wait::{attempt, once_within, yes};
use server_tests::{App, Cluster, Group, Uuid, Value, json};
use std::time::{Duration, Instant};

/// Nothing here has the next poll to thank.
static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "1h"));

/// Here, what a machine that stalls makes of a scene is mended by the next poll; the scene counts the runs.
static POLLED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "1s"));

const ATTEMPT: &str = "(SELECT attempt FROM background_jobs.current_job())";

/// The attempts kept for a job: number, outcome, SQLSTATE.
fn attempts(app: &mut App, id: Uuid) -> Vec<(i32, String, Value)> {
    let query = "SELECT attempt, outcome, error -> 'sqlstate' FROM background_jobs.attempts WHERE job_id = $1 ORDER BY finished_at";
    app.rows(query, &[&id]).iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Nobody has set the lock timeout that the conflicts speak of; what they mean is said.
fn assert_hinted(app: &mut App) {
    let hinted = "SELECT bool_and(error ->> 'hint' = 'Another session held the job''s row or table: see pg_locks.')
        FROM background_jobs.attempts WHERE outcome = 'conflict'";
    assert!(app.one::<bool>(hinted, &[]));
}

/// A client's transaction that has the job's row locked.
fn lock_row(app: &App, id: Uuid) -> Client {
    let mut client = app.session();
    client.batch_execute("BEGIN").unwrap();
    client.execute("SELECT FROM background_jobs WHERE id = $1 FOR UPDATE", &[&id]).unwrap();
    client
}

/// Waits until the executor has waited for a lock so many times.
fn wait_waits(app: &mut App, times: usize) {
    let since = "SELECT max(waitstart)::text FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE NOT granted AND datname = current_database() AND backend_type = 'background_jobs executor'";
    let mut seen: Vec<String> = Vec::new();
    let cluster = app.cluster;
    cluster.wait_until("the executor to wait once more", || {
        seen.extend(app.one::<Option<String>>(since, &[]));
        seen.dedup();
        yes(seen.len() >= times)
    });
}

/// Its first attempt fails with this SQLSTATE.
fn fails_once(app: &mut App, sqlstate: &str, options: &str) {
    let body = format!(
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach({ATTEMPT}); PERFORM await_gate('go');
         IF nextval('runs') = 1 THEN RAISE 'no' USING ERRCODE = '{sqlstate}'; END IF;
         PERFORM note(); RETURN to_jsonb({ATTEMPT});"
    );
    app.sql("CREATE SEQUENCE runs");
    app.handler_with("fails", &body, options);
}

#[test]
fn a_row_that_is_locked_while_an_attempt_fails_delays_the_next_by_a_second() {
    let mut app = SHARED.app("row");
    // The timeout passes while the failure is written down.
    fails_once(&mut app, "BJ001", "retry_delay => '10 ms', timeout => '700 ms'");
    let id = app.submit("fails", json!({}));
    app.wait_reached(1);
    // There is something to take back from the row.
    app.wait_true("SELECT progress = 0.5 FROM background_jobs");
    let mut client = lock_row(&app, id);
    app.open_gate("go");
    app.wait_reached(2);
    client.batch_execute("ROLLBACK").unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!(2)));
    assert_eq!(app.noted(id), 1);
    assert_eq!(attempts(&mut app, id), [(1, "error".to_owned(), json!("BJ001"))]);
}

#[test]
fn a_row_that_is_locked_while_the_last_attempt_fails_gets_its_error_when_it_is_free() {
    let mut app = SHARED.app("last");
    app.handler_with(
        "fails",
        "PERFORM reach(1); PERFORM await_gate('go'); RAISE 'no' USING ERRCODE = 'BJ001';",
        "max_attempts => 1",
    );
    let id = app.submit("fails", json!({}));
    app.wait_reached(1);
    let mut client = lock_row(&app, id);
    app.open_gate("go");
    // For the failure, then with the attempts used up, and then once more.
    wait_waits(&mut app, 3);
    client.batch_execute("ROLLBACK").unwrap();
    let job = app.wait_final(id);
    assert_eq!((job.error("sqlstate"), job.error("attempts")), (Some(&json!("BJ001")), Some(&json!(1))), "{job:?}");
    // What it waited for is kept beside it, uncharged, each time that it could not be written.
    let kept = attempts(&mut app, id);
    let (first, later) = kept.split_first().unwrap();
    assert_eq!(*first, (1, "error".to_owned(), json!("BJ001")));
    assert!(!later.is_empty(), "{kept:?}");
    assert!(later.iter().all(|one| *one == (1, "conflict".to_owned(), json!("55P03"))), "{kept:?}");
    assert_hinted(&mut app);
}

/// A job that fails with this SQLSTATE while a client keeps its place in the queue locked: the executor waits for that a second, and
/// then once more for as long. The client goes in the second one: that is no failure of the row's, after which the job would
/// wait for an hour with the lock for its error. Returns what came of it, the attempts, and how often the handler ran.
fn fails_beside_run_now(name: &str, sqlstate: &str, options: &str) -> (Option<Value>, Vec<(i32, String, Value)>, i64) {
    let mut app = POLLED.app(name);
    // Fails until a failure of it is kept.
    let body = format!(
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach({ATTEMPT}); PERFORM await_gate('go'), nextval('runs');
         IF NOT EXISTS (SELECT FROM background_jobs.attempts) THEN RAISE 'no' USING ERRCODE = '{sqlstate}'; END IF;
         PERFORM note(); RETURN to_jsonb({ATTEMPT});"
    );
    app.sql("CREATE SEQUENCE runs");
    app.handler_with("fails", &body, options);
    let id = app.submit("fails", json!({}));
    app.wait_reached(1);
    let mut client = app.session();
    client.batch_execute("BEGIN").unwrap();
    client.execute("SELECT background_jobs.run_now($1)", &[&id]).unwrap();
    app.open_gate("go");
    wait_waits(&mut app, 2);
    client.batch_execute("ROLLBACK").unwrap();
    let result = app.wait_final(id).result;
    assert_eq!(app.noted(id), 1);
    (result, attempts(&mut app, id), app.one("SELECT last_value FROM runs", &[]))
}

/// The same result and the same attempts each time. On a busy machine the client may be late, and go when nothing could be kept of the
/// failure: then the job has run once more after a poll, for free. What came of it must be the same, and one of three clients in time.
fn assert_fails_beside_run_now(name: &str, sqlstate: &str, options: &str, result: i32, outcome: &str) {
    let in_time = (0..3).any(|_| {
        let (seen, attempts, runs) = fails_beside_run_now(name, sqlstate, options);
        assert_eq!(seen, Some(json!(result)), "after {runs} runs");
        assert_eq!(attempts, [(1, outcome.to_owned(), json!(sqlstate))], "after {runs} runs");
        runs == 2
    });
    assert!(in_time, "nothing was kept of the failure in the second wait");
}

#[test]
fn a_client_that_has_the_queues_row_while_a_job_fails_changes_neither_its_error_nor_its_delay() {
    assert_fails_beside_run_now("held", "BJ001", "retry_delay => '10 ms'", 2, "error");
}

#[test]
fn a_conflict_stays_free_of_charge_while_a_client_has_the_queues_row() {
    assert_fails_beside_run_now("free", "40P01", "max_attempts => 1", 1, "conflict");
}

/// An open cancel has the row and the place in the queue, for as long as it likes.
#[test]
fn a_client_that_keeps_a_failing_job_locked_holds_up_no_other_job_of_the_table() {
    let mut app = SHARED.app("open");
    fails_once(&mut app, "BJ001", "retry_delay => '10 ms'");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let id = app.submit("fails", json!({}));
    app.wait_reached(1);
    let mut client = app.session();
    client.batch_execute("BEGIN").unwrap();
    client.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]).unwrap();
    app.open_gate("go");
    app.wait_true("SELECT NOT EXISTS (SELECT FROM background_jobs.workers WHERE job_id IS NOT NULL)");
    wait_waits(&mut app, 1);
    app.wait_true("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))");
    let other = app.submit("noted", json!({}));
    assert!(app.wait_final(other).completed);
    client.batch_execute("COMMIT").unwrap();
    assert!(app.wait_final(id).cancelled);
    assert_eq!((app.noted(id), app.noted(other)), (0, 1));
}

/// The executor waits for the row ten seconds, as it would for a deadlock to be found.
#[test]
fn a_row_that_is_locked_while_a_job_completes_makes_it_run_again_uncharged() {
    let mut app = SHARED.app("completes");
    app.handler_with(
        "noted",
        "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN payload -> 'n';",
        "max_attempts => 1",
    );
    let id = app.submit("noted", json!({"n": 5}));
    app.wait_reached(1);
    let mut client = lock_row(&app, id);
    app.open_gate("go");
    app.wait_true("SELECT count(*) > 0 FROM background_jobs.attempts WHERE outcome = 'conflict'");
    assert!(!app.row(id).is_final());
    client.batch_execute("ROLLBACK").unwrap();
    let job = app.wait_final(id);
    assert_eq!((job.completed, &job.result), (true, &Some(json!(5))), "{job:?}");
    assert_eq!(app.noted(id), 1);
    let kept = attempts(&mut app, id);
    assert!(
        kept.iter().all(|(attempt, outcome, code)| (*attempt, &**outcome, code) == (1, "conflict", &json!("55P03"))),
        "{kept:?}"
    );
    assert_hinted(&mut app);
}

/// Nobody can write down that the attempt has ended with its executor, as long as a client's cancel is open: until then there is no
/// other attempt, and nobody else waits.
#[test]
fn an_attempt_that_ends_its_executor_beside_an_open_cancel_is_charged_before_the_job_runs_again() {
    let mut app = SHARED.app("fatal");
    app.sql("CREATE SEQUENCE runs");
    let body = "PERFORM nextval('runs'); PERFORM reach(1); PERFORM await_gate('go');
        PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60); RETURN NULL;";
    app.handler_with("fatal", body, "max_attempts => 2, retry_delay => '10 ms'");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let id = app.submit("fatal", json!({}));
    app.wait_reached(1);
    let mut client = app.session();
    client.batch_execute("BEGIN").unwrap();
    client.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]).unwrap();
    app.open_gate("go");
    app.wait_left(1);
    // It has been there for longer than these, and would go first.
    let again = attempt(Duration::from_secs(3), "another run", || {
        let other = app.submit("noted", json!({}));
        assert!(app.wait_final(other).completed);
        yes(app.one::<i64>("SELECT last_value FROM runs", &[]) > 1)
    });
    assert!(again.is_err(), "it ran again before its first attempt was charged");
    assert_eq!(attempts(&mut app, id), []);
    client.batch_execute("ROLLBACK").unwrap();
    let job = app.wait_final(id);
    assert_eq!((job.error("sqlstate"), job.error("attempts")), (Some(&json!("57P01")), Some(&json!(2))), "{job:?}");
    let each = |attempt| (attempt, "terminated".to_owned(), json!("57P01"));
    assert_eq!(attempts(&mut app, id), [each(1), each(2)]);
    assert_eq!(app.one::<i64>("SELECT last_value FROM runs", &[]), 2, "no attempt was given away");
}

/// The same of a cancel that is committed in the end, and of a row that takes the place of the one that is gone.
#[test]
fn a_job_that_was_cancelled_before_its_attempt_could_be_charged_does_not_hold_up_another_of_its_id() {
    let mut app = SHARED.app("fatal_again");
    let body = "PERFORM reach(1); PERFORM await_gate('go'); PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(60); RETURN NULL;";
    app.handler("fatal", body);
    app.handler("noted", "PERFORM note(); RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));");
    let id = app.submit("fatal", json!({}));
    app.wait_reached(1);
    let mut client = app.session();
    client.batch_execute("BEGIN").unwrap();
    client.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]).unwrap();
    client
        .execute("INSERT INTO background_jobs (id, payload) VALUES ($1, '{\"handler\": \"noted\"}')", &[&id])
        .unwrap();
    app.open_gate("go");
    app.wait_left(1);
    app.wait_true("SELECT NOT EXISTS (SELECT FROM background_jobs.workers WHERE job_id IS NOT NULL)");
    let other = app.submit("noted", json!({}));
    assert!(app.wait_final(other).completed);
    client.batch_execute("COMMIT").unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
}

/// As a table is while ALTER TABLE rewrites it. There is one executor, which has more jobs of that table in hand.
#[test]
fn a_table_that_a_client_has_for_itself_while_a_job_completes_holds_up_no_other_table() {
    let builder = Cluster::builder().conf("background_jobs.max_executors", "1");
    let cluster = builder.conf("background_jobs.poll_interval", "300ms").start();
    let mut app = App::with_table(&cluster, "rewritten");
    app.handler_with(
        "held",
        "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';",
        "max_attempts => 1",
    );
    app.handler_with("quick", "PERFORM note(); RETURN '2';", "max_attempts => 1");
    app.sql("SELECT background_jobs.create_table('others')");
    app.register("quick", "quick(jsonb)", "job_table => 'others'");
    let held = app.submit("held", json!({}));
    app.wait_reached(1);
    let quick = app.submit("quick", json!({}));
    let mut client = app.session();
    client.batch_execute("BEGIN; LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE").unwrap();
    app.sql("SELECT background_jobs.enqueue('quick', job_table => 'others')");
    app.open_gate("go");
    app.wait_true("SELECT bool_and(completed) FROM others");
    assert_eq!(attempts(&mut app, held), [(1, "conflict".to_owned(), json!("55P03"))]);
    assert_eq!((app.noted(held), app.noted(quick)), (0, 0));
    client.batch_execute("ROLLBACK").unwrap();
    assert!(app.wait_final(held).completed && app.wait_final(quick).completed);
    assert_eq!((app.noted(held), app.noted(quick)), (1, 1));
}

/// To wait for no lock is the handler's choice, and to be tried again after a delay is what it may expect then.
#[test]
fn a_lock_that_a_handler_does_not_wait_for_is_an_ordinary_error() {
    let mut app = SHARED.app("nowait");
    app.sql("CREATE TABLE wanted ()");
    app.handler_with("nowait", "LOCK TABLE wanted NOWAIT; RETURN '1';", "max_attempts => 1");
    let mut client = app.session();
    client.batch_execute("BEGIN; LOCK TABLE wanted").unwrap();
    let id = app.submit("nowait", json!({}));
    assert_eq!(app.wait_final(id).error("sqlstate"), Some(&json!("55P03")));
    assert_eq!(attempts(&mut app, id), [(1, "error".to_owned(), json!("55P03"))]);
}

/// A commit tells of its jobs before it lets go of its locks: the executor comes too early, and comes again. There is no other job, and
/// no poll, that would bring it back.
#[test]
fn a_job_whose_own_transaction_has_the_table_locked_starts_when_that_ends() {
    let mut app = SHARED.app("own_lock");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let warm = app.submit("noted", json!({}));
    assert!(app.wait_final(warm).completed);
    once_within(Duration::from_secs(1), "jobs from behind a lock", |_| {
        let begun = Instant::now();
        for _ in 0..5 {
            let mut client = app.session();
            let mut transaction = client.transaction().unwrap();
            transaction.batch_execute("LOCK TABLE background_jobs").unwrap();
            let id: Uuid = transaction.query_one("SELECT background_jobs.enqueue('noted')", &[]).unwrap().get(0);
            transaction.commit().unwrap();
            assert!(app.wait_final(id).completed);
            assert_eq!(app.noted(id), 1);
        }
        begun.elapsed()
    });
}

/// The lock of somebody else ends at a moment that nobody tells of.
#[test]
fn a_table_that_another_client_has_locked_is_tried_again_without_a_poll() {
    let mut app = SHARED.app("other_lock");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    app.sql("SELECT background_jobs.create_table('others')");
    app.register("noted", "noted(jsonb)", "job_table => 'others'");
    let mut client = app.session();
    client.batch_execute("BEGIN; LOCK TABLE background_jobs").unwrap();
    let id: Uuid = client.query_one("SELECT background_jobs.enqueue('noted')", &[]).unwrap().get(0);
    // It gets the lock before the job is anybody's.
    let mut other = app.session();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| other.batch_execute("BEGIN; LOCK TABLE background_jobs").unwrap());
        app.wait_true(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'background_jobs'::regclass)",
        );
        client.batch_execute("COMMIT").unwrap();
        waits.join().unwrap();
    });
    for _ in 0..20 {
        let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', job_table => 'others')", &[]);
        app.execute("SELECT background_jobs.wait($1, job_table => 'others')", &[&id]);
    }
    assert_eq!(app.noted(id), 0);
    other.batch_execute("COMMIT").unwrap();
    assert!(app.wait_final(id).completed);
}
