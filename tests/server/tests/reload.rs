//! Settings follow a reload, while a job runs that knows the former ones. `enabled` and `databases` are in `settings`,
//! `max_attempts` in `restart`.

use server_tests::wait::yes;
use server_tests::{App, Cluster, Uuid, json};

/// Waits for what the new value brings about.
type Effect = fn(&mut App);

const ATTEMPT: &str = "(SELECT attempt FROM background_jobs.current_job())";

/// A job that runs on meanwhile; with two executors, the other one runs what the test is about.
fn running(cluster: &Cluster) -> (App<'_>, Uuid) {
    let mut app = App::with_table(cluster, "reload");
    app.handler_with("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;", "timeout => '0'");
    let held = app.submit("held", json!({}));
    app.wait_reached(1);
    (app, held)
}

/// A job that fails once is tried again soon, and not in an hour. An executor may have begun one before it has read the
/// settings anew.
fn is_retried_soon(app: &mut App) {
    let cluster = app.cluster;
    let settled = "SELECT completed OR EXISTS (SELECT FROM background_jobs.queue q WHERE q.job_id = j.id AND q.run_at > now() + interval '10 min')
        FROM background_jobs j WHERE id = $1";
    cluster.wait_until("a job to be tried again soon", || {
        let id = app.submit("fails_once", json!({}));
        cluster.wait_until("its first attempt to be over", || yes(app.one(settled, &[&id])));
        yes(app.row(id).result == Some(json!(2)))
    });
}

/// Begins with values with which none of what is waited for ever happens.
#[test]
fn what_was_never_to_happen_happens_after_a_reload() {
    let cluster = Cluster::builder()
        .conf("background_jobs.max_executors", "2")
        .conf("background_jobs.executor_idle_timeout", "0")
        .conf("background_jobs.retry_delay", "1h")
        .conf("background_jobs.max_retry_delay", "1h")
        .conf("background_jobs.progress_flush_interval", "1h")
        .conf("background_jobs.handler_timeout", "0")
        .conf("background_jobs.cancel_grace", "1h")
        .start();
    let (mut app, held) = running(&cluster);
    app.handler("fails_once", &format!("IF {ATTEMPT} = 1 THEN RAISE 'no'; END IF; RETURN to_jsonb({ATTEMPT});"));
    app.handler(
        "reports",
        "PERFORM background_jobs.set_progress(0.25); PERFORM pg_sleep(0.5);
         PERFORM background_jobs.set_progress(0.5); PERFORM await_gate('seen'); RETURN NULL;",
    );
    app.handler("sleeps", "PERFORM pg_sleep(600); RETURN NULL;");
    app.handler(
        "stubborn",
        "PERFORM reach(2); LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NULL;",
    );
    let settings: [(&str, &str, Effect); 6] = [
        // Both bound the delay.
        ("retry_delay", "10ms", is_retried_soon),
        ("max_retry_delay", "10ms", |app| {
            app.cluster.set("background_jobs.retry_delay", "1h");
            is_retried_soon(app);
        }),
        ("progress_flush_interval", "10ms", |app| {
            let id = app.submit("reports", json!({}));
            app.wait_true("SELECT count(*) = 1 FROM background_jobs WHERE progress = 0.5");
            app.open_gate("seen");
            app.wait_final(id);
        }),
        ("cancel_grace", "10ms", |app| {
            let id = app.submit("stubborn", json!({}));
            app.wait_reached(2);
            app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]);
            app.wait_left(2);
        }),
        ("handler_timeout", "300ms", |app| {
            let id = app.submit("sleeps", json!({}));
            app.wait_true(
                "SELECT count(*) > 0 FROM background_jobs.attempts WHERE outcome = 'timeout' AND handler = 'sleeps'",
            );
            app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]);
            app.wait_true("SELECT count(*) = 2 FROM background_jobs.workers WHERE role = 'executor'");
        }),
        ("executor_idle_timeout", "10ms", |app| {
            app.wait_true("SELECT count(*) = 1 FROM background_jobs.workers WHERE role = 'executor'");
        }),
    ];
    for (name, value, effect) in settings {
        cluster.set(&format!("background_jobs.{name}"), value);
        effect(&mut app);
        assert_eq!(app.state(held), "running", "after a change of {name}");
    }
}
