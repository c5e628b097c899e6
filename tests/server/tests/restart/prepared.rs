//! Transactions that are prepared when the server crashes, and committed when it is back.

use super::configuration;
use server_tests::{App, Uuid, json};
use std::time::{Duration, Instant};

/// `poll_interval` and a second, as if nobody had woken the dispatcher.
const BOUND: Duration = Duration::from_millis(1500);

/// A busy machine.
const GRACE: Duration = Duration::from_secs(3);

/// The dispatcher has looked for suspects and hands out jobs.
fn wait_at_work(app: &mut App) {
    let id = app.submit("noted", json!({}));
    assert!(app.wait_final(id).completed);
}

#[test]
fn what_was_prepared_before_a_crash_and_is_committed_after_it_starts_and_cancels() {
    let builder = configuration().conf("background_jobs.poll_interval", "500ms");
    let cluster = builder.conf("max_prepared_transactions", "2").start();
    let mut app = App::with_table(&cluster, "prepared");
    app.handler("noted", "PERFORM note(); RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));");
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    let cancelled = app.submit("held", json!({}));
    app.wait_reached(1);
    let inserted = Uuid::new_v4();
    app.sql(&format!(
        "BEGIN; INSERT INTO background_jobs (id, payload) VALUES ('{inserted}', '{{\"handler\": \"noted\"}}');
         PREPARE TRANSACTION 'insert'"
    ));
    app.sql(&format!(
        "BEGIN; UPDATE background_jobs SET cancelled = true WHERE id = '{cancelled}'; PREPARE TRANSACTION 'cancel'"
    ));
    cluster.crash();
    app.client = app.session();
    // If it ran now, it would complete.
    app.open_gate("go");
    for _ in 0..3 {
        wait_at_work(&mut app);
        assert!(app.find(inserted).is_none(), "what is only prepared is not there");
        assert_ne!(app.state(cancelled), "running", "its cancel is decided, and not yet committed");
        assert!(!app.row(cancelled).is_final());
    }

    app.sql("COMMIT PREPARED 'cancel'");
    let begin = Instant::now();
    app.sql("COMMIT PREPARED 'insert'");
    assert_eq!(app.wait_final(inserted).result, Some(json!(1)));
    let took = begin.elapsed();
    assert!(took < BOUND + GRACE, "it took {took:?}");
    // Suspects are looked for before anything is handed out.
    for _ in 0..3 {
        wait_at_work(&mut app);
    }
    let job = app.row(cancelled);
    assert!(job.cancelled && !job.completed && job.result.is_none(), "{job:?}");
    assert_eq!((app.noted(inserted), app.noted(cancelled)), (1, 0));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0, "nobody was charged");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}
