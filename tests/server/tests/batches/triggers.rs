//! Triggers that fail, turn away or hold up one row of a batch.

use crate::SHARED;
use crate::scene::{DRAIN, N, NOTED, alone, check_others, id_of, in_one_batch, insert, on_completion, scene, warm};
use server_tests::json;

fn one_fails(name: &str, when: &str, deferred: &str, body: &str, sqlstate: &str) {
    let _alone = alone();
    let mut app = SHARED.app(name);
    app.handler_with("noted", NOTED, "max_attempts => 2, retry_delay => '10 ms'");
    warm(&mut app, "noted");
    on_completion(&mut app, when, deferred, body);
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    let id = id_of(&mut app, 3);
    let job = app.row(id);
    assert_eq!(job.error("sqlstate"), Some(&json!(sqlstate)), "{job:?}");
    assert_eq!(app.noted(id), 0);
    let charged: Vec<(i32, String)> = app
        .rows("SELECT attempt, outcome::text FROM background_jobs.attempts WHERE job_id = $1 ORDER BY 1", &[&id])
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(charged, [(1, "error".to_owned()), (2, "error".to_owned())]);
    check_others(&mut app, &[3]);
}

const RAISES: &str = "IF NEW.payload -> 'n' = '3' AND NOT coalesce(NEW.result ? 'error', false) THEN
    RAISE 'not this one' USING ERRCODE = 'BJ001'; END IF;";

#[test]
fn a_trigger_that_raises_for_one_row_fails_that_job_alone() {
    one_fails("raises", "BEFORE", "", RAISES, "BJ001");
}

#[test]
fn an_after_trigger_that_raises_for_one_row_fails_that_job_alone() {
    one_fails("raises_after", "AFTER", "", RAISES, "BJ001");
}

#[test]
fn a_deferred_trigger_that_raises_for_one_row_fails_that_job_alone() {
    let raises = RAISES.replace("BJ001", "23514");
    one_fails("raises_late", "AFTER", "DEFERRABLE INITIALLY DEFERRED", &raises, "23514");
}

#[test]
fn a_deferred_trigger_that_raises_a_code_of_its_own_fails_the_job_with_that_code() {
    one_fails("raises_own", "AFTER", "DEFERRABLE INITIALLY DEFERRED", RAISES, "BJ001");
}

#[test]
fn a_trigger_that_turns_one_row_away_fails_that_job_alone() {
    let body = "IF NEW.payload -> 'n' = '3' AND NOT coalesce(NEW.result ? 'error', false) THEN RETURN NULL; END IF;";
    one_fails("turned", "BEFORE", "", body, "27000");
}

#[test]
fn a_trigger_that_asks_for_the_current_job_is_told_it() {
    let _alone = alone();
    let mut app = scene("asks");
    app.sql("CREATE TABLE seen (row_id uuid, job uuid)");
    on_completion(
        &mut app,
        "AFTER",
        "",
        "INSERT INTO public.seen SELECT NEW.id, id FROM background_jobs.current_job();",
    );
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen WHERE row_id = job", &[]), N);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen", &[]), N);
}

/// Longer than a batch is given for all of them.
#[test]
fn a_trigger_that_takes_long_for_one_row_does_not_fail_any_job() {
    let _alone = alone();
    let mut app = scene("slow");
    on_completion(&mut app, "AFTER", "", "IF NEW.payload -> 'n' = '3' THEN PERFORM pg_sleep(6); END IF;");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
}
