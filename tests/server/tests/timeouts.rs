//! Handlers that run too long, and handlers that will not be told.

use server_tests::{App, Builder, Cluster, Group, Uuid, json};
use std::time::{Duration, Instant};

fn strict() -> Builder {
    Cluster::builder().conf("background_jobs.handler_timeout", "400ms").conf("background_jobs.cancel_grace", "300ms")
}

static SHARED: Group = Group::new(strict);

const SWALLOW: &str = "LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;";

fn outcomes(app: &mut App, id: Uuid) -> Vec<String> {
    app.rows("SELECT outcome FROM background_jobs.attempts WHERE job_id = $1 ORDER BY attempt", &[&id])
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Runs the handler once and returns how long it took to be final, as seen from here.
fn run_once(app: &mut App, body: &str, options: &str) -> (Uuid, server_tests::Job, Duration) {
    app.handler_with("slow", body, options);
    let begin = Instant::now();
    let id = app.submit("slow", json!({}));
    let job = app.wait_final(id);
    (id, job, begin.elapsed())
}

#[test]
fn a_handler_has_the_time_that_the_setting_gives() {
    let mut app = SHARED.app("setting");
    let (id, job, took) =
        run_once(&mut app, "PERFORM note(); PERFORM pg_sleep(600); RETURN NULL;", "max_attempts => 1");
    assert_eq!(job.error("sqlstate"), Some(&json!("57014")));
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(outcomes(&mut app, id), ["timeout"]);
    assert_eq!(app.noted(id), 0);
}

#[test]
fn a_timeout_is_an_attempt_like_any_failure() {
    let mut app = SHARED.app("again");
    let body =
        "IF (SELECT attempt FROM background_jobs.current_job()) = 1 THEN PERFORM pg_sleep(600); END IF; RETURN '1';";
    let (id, job, _) = run_once(&mut app, body, "retry_delay => '10 ms'");
    assert_eq!(job.result, Some(json!(1)));
    assert_eq!(outcomes(&mut app, id), ["timeout"]);
}

#[test]
fn the_limits_of_the_roles_other_sessions_are_not_the_handlers() {
    let mut app = SHARED.app("limits");
    let role = server_tests::ident(&app.role);
    let mut admin = app.admin();
    admin.batch_execute(&format!("ALTER ROLE {role} SET statement_timeout = '100ms'")).unwrap();
    if server_tests::major() > 16 {
        admin.batch_execute(&format!("ALTER ROLE {role} SET transaction_timeout = '100ms'")).unwrap();
    }
    let body = "PERFORM pg_sleep(0.3); RETURN '1';";
    let (id, job, _) = run_once(&mut app, body, "timeout => '60 s'");
    assert_eq!(job.result, Some(json!(1)));
    assert_eq!(outcomes(&mut app, id), [""; 0]);
}

#[test]
fn a_handlers_own_timeout_goes_before_the_setting() {
    let mut app = SHARED.app("own");
    let (_, job, _) = run_once(&mut app, "PERFORM pg_sleep(0.9); RETURN '1';", "max_attempts => 1, timeout => '60 s'");
    assert_eq!(job.result, Some(json!(1)), "longer than the setting");
    let (_, job, took) =
        run_once(&mut app, "PERFORM pg_sleep(600); RETURN '1';", "max_attempts => 1, timeout => '50 ms'");
    assert_eq!(job.error("sqlstate"), Some(&json!("57014")));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_loop_that_never_waits_is_interrupted() {
    let mut app = SHARED.app("busy");
    let (id, job, took) = run_once(&mut app, "LOOP END LOOP;", "max_attempts => 1");
    assert_eq!(job.error("sqlstate"), Some(&json!("57014")));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(outcomes(&mut app, id), ["timeout"]);
}

/// Catching the interrupt and returning a result does not make a late handler a successful one.
#[test]
fn a_timeout_cannot_be_swallowed() {
    let mut app = SHARED.app("swallowed");
    let body =
        "PERFORM note(); BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; RETURN '\"ha\"';";
    let (id, job, _) = run_once(&mut app, body, "max_attempts => 1");
    assert_eq!(app.state(id), "failed");
    assert_eq!(job.error("sqlstate"), Some(&json!("57014")));
    assert_eq!(app.noted(id), 0);
}

#[test]
fn a_handler_that_goes_on_is_terminated_after_the_grace() {
    let mut app = SHARED.app("stubborn");
    let (id, job, took) = run_once(&mut app, &format!("PERFORM note(); {SWALLOW}"), "max_attempts => 1");
    assert!(job.completed && job.error("sqlstate").is_some(), "{job:?}");
    assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(10), "{took:?}");
    let outcome = outcomes(&mut app, id);
    assert!(outcome == ["timeout"] || outcome == ["terminated"], "{outcome:?}");
    assert_eq!(app.noted(id), 0);

    app.handler("fine", "RETURN '1';");
    let id = app.submit("fine", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!(1)), "others run on");
}

#[test]
fn a_cancelled_handler_that_goes_on_is_terminated_after_the_grace() {
    let mut app = SHARED.app("cancelled");
    app.handler_with("slow", &format!("PERFORM note(); PERFORM reach(1); {SWALLOW}"), "timeout => '10 min'");
    let id = app.submit("slow", json!({}));
    app.wait_reached(1);
    let begin = Instant::now();
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]);
    app.wait_left(1);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let job = app.row(id);
    assert!(job.cancelled && !job.completed && job.result.is_none());
    assert_eq!(app.noted(id), 0);
}

/// The time is measured from each job's own start.
#[test]
fn short_jobs_in_a_row_do_not_add_up() {
    let mut app = SHARED.app("row");
    app.handler_with("short", "PERFORM pg_sleep(0.05); RETURN NULL;", "max_attempts => 1, concurrency => 1");
    let ids: Vec<Uuid> = (0..20).map(|_| app.submit("short", json!({}))).collect();
    for id in ids {
        let job = app.wait_final(id);
        assert_eq!((job.completed, job.result), (true, None));
    }
}

#[test]
fn no_timeout_at_all() {
    let cluster = strict().conf("background_jobs.handler_timeout", "0").start();
    let mut app = App::with_table(&cluster, "none");
    let (_, job, _) = run_once(&mut app, "PERFORM pg_sleep(0.9); RETURN '1';", "max_attempts => 1");
    assert_eq!(job.result, Some(json!(1)));
}
