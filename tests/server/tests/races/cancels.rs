//! A cancel that comes at any moment.

use crate::dice::Dice;
use crate::{CANCEL, check, scene, session};
use server_tests::{json, times};
use std::time::Duration;

/// Rounds of one job each: it is submitted, and a canceller comes in at any point of its short life.
#[test]
fn a_cancel_at_any_moment_of_a_short_job_wins_or_comes_too_late() {
    let mut app = scene("cancels");
    app.handler("quick", "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.5); RETURN '1';");
    app.handler(
        "longer",
        "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(0.004); RETURN '1';",
    );
    let mut dice = Dice::new("cancel");
    let mut canceller = session(&app);
    let (mut acknowledged, mut late) = (Vec::new(), Vec::new());
    for _ in 0..times(500) {
        let id = app.submit(if dice.one_in(2) { "quick" } else { "longer" }, json!({}));
        dice.pause(Duration::from_millis(6));
        let won = canceller.execute(CANCEL, &[&id]).unwrap_or_else(|e| panic!("a cancel never fails: {e:?}"));
        if won == 1 { acknowledged.push(id) } else { late.push(id) }
    }
    check(&mut app);
    let cancelled: i64 =
        app.one("SELECT count(*) FROM background_jobs WHERE cancelled AND id = ANY($1)", &[&acknowledged]);
    assert_eq!(cancelled, acknowledged.len() as i64, "an acknowledged cancel is final (I4)");
    let completed: i64 = app.one("SELECT count(*) FROM background_jobs WHERE completed AND id = ANY($1)", &[&late]);
    assert_eq!(completed, late.len() as i64, "one that found nothing to cancel came after the end (I4)");
    assert!(!acknowledged.is_empty() && !late.is_empty(), "both happened: {} and {}", acknowledged.len(), late.len());
}

/// Failing attempts put jobs back, executors are killed under them, and cancels come at any moment in between.
#[test]
fn a_cancel_meets_attempts_that_fail_and_are_put_back() {
    let mut app = scene("failing");
    app.handler_with(
        "fails",
        "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(random()); PERFORM pg_sleep(random() * 0.003);
         IF random() < 0.7 THEN RAISE 'no'; END IF; RETURN '1';",
        "max_attempts => 4, retry_delay => '2 ms', max_retry_delay => '4 ms'",
    );
    let mut dice = Dice::new("failing");
    let (mut canceller, mut owner) = (session(&app), session(&app));
    let mut acknowledged = Vec::new();
    for round in 0..times(300) {
        let id = app.submit("fails", json!({}));
        dice.pause(Duration::from_millis(15));
        if canceller.execute(CANCEL, &[&id]).unwrap_or_else(|e| panic!("a cancel never fails: {e:?}")) == 1 {
            acknowledged.push(id);
        }
        if round % 60 == 30 {
            owner
                .batch_execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user
                AND backend_type IN ('background_jobs executor', 'background_jobs progress writer')",
                )
                .unwrap();
        }
    }
    check(&mut app);
    let cancelled: i64 =
        app.one("SELECT count(*) FROM background_jobs WHERE cancelled AND id = ANY($1)", &[&acknowledged]);
    assert_eq!(cancelled, acknowledged.len() as i64, "an acknowledged cancel is final (I4)");
    let many: i64 = app.one(
        "SELECT count(*) FROM (SELECT FROM background_jobs.attempts WHERE outcome <> 'conflict'
        GROUP BY job_id HAVING count(*) > 4 OR max(attempt) > 4) a",
        &[],
    );
    assert_eq!(many, 0, "attempts are bounded (I5)");
}
