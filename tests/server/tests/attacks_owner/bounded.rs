//! Jobs whose end is prevented or forged: their attempts are bounded all the same.

use crate::SHARED;
use server_tests::tenant::owner;
use server_tests::{json, lit};
use std::time::Duration;

/// A rule, trigger or policy that turns the engine's own UPDATE away makes the job fail; it does not make it run for ever.
#[test]
fn a_table_that_turns_completions_away_does_not_run_its_jobs_for_ever() {
    let mut app = SHARED.app("turned_away");
    let mut victim = owner(&app, "victim");
    victim.handler("fine", "RETURN '1';", "");
    app.sql("CREATE SEQUENCE starts; CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''never''; END'");
    app.handler_with(
        "counted",
        "PERFORM nextval('starts'); PERFORM note(); RETURN '1';",
        "max_attempts => 3, retry_delay => '10 ms', max_retry_delay => '20 ms'",
    );
    let mut failures = Vec::new();
    for (place, undo) in [
        (
            "CREATE TRIGGER away BEFORE UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION nothing()",
            "DROP TRIGGER away ON background_jobs",
        ),
        (
            "ALTER TABLE background_jobs ADD CONSTRAINT away CHECK (NOT completed) NOT VALID",
            "ALTER TABLE background_jobs DROP CONSTRAINT away",
        ),
        // Neither a completion nor a failure can be committed.
        (
            "CREATE CONSTRAINT TRIGGER away AFTER UPDATE ON background_jobs DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (NEW.completed) EXECUTE FUNCTION never()",
            "DROP TRIGGER away ON background_jobs",
        ),
        // Last: a plan that a rule has made empty depends on no table, so nothing tells the server that it is stale.
        ("CREATE RULE away AS ON UPDATE TO background_jobs DO INSTEAD NOTHING", "DROP RULE away ON background_jobs"),
    ] {
        app.sql("ALTER SEQUENCE starts RESTART");
        app.sql(place);
        let id = app.submit("counted", json!({}));
        app.wait_true(&format!("SELECT count(*) >= 3 FROM background_jobs.attempts WHERE job_id = '{id}'"));
        // Its attempts are used up; the executors are free for somebody else while only its row is still to be written.
        for _ in 0..5 {
            let job = victim.submit("fine");
            assert_eq!(victim.result(app.cluster, job), Some(json!(1)), "{place}");
        }
        assert_eq!(app.one::<i64>("SELECT last_value FROM starts", &[]), 3, "{place}: attempts are bounded (I5)");
        assert_eq!(app.noted(id), 0, "{place}");
        app.sql(undo);
        let errors = "SELECT count(*) || ' times: ' || (error ->> 'message') FROM background_jobs.attempts
            WHERE job_id = $1 GROUP BY error ->> 'message' ORDER BY 1";
        let done =
            server_tests::wait::attempt(Duration::from_secs(5), "the job to fail, nothing being in its way", || {
                if app.row(id).error("message").is_some() {
                    return Ok(());
                }
                Err(app.rows(errors, &[&id]).iter().map(|row| row.get::<_, String>(0) + ", ").collect())
            });
        if let Err(report) = done {
            failures.push(format!("{place}: {report}"));
        }
        app.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Handlers that take their own job away while it runs hurt themselves at most. Those that write a result themselves,
/// as the recipe's service did, are an honest mistake.
#[test]
fn a_handler_that_pulls_the_ground_from_under_itself_runs_a_bounded_number_of_times_and_harms_no_other_job() {
    let mut app = SHARED.app("ground");
    app.sql("CREATE SEQUENCE starts");
    app.handler("fine", "PERFORM note(); RETURN '1';");
    let own = "(SELECT id FROM background_jobs.current_job())";
    let acts = [
        format!("UPDATE background_jobs SET completed = true, progress = 1, result = '2' WHERE id = {own}"),
        format!("UPDATE background_jobs SET cancelled = true WHERE id = {own}"),
        format!("UPDATE background_jobs SET id = gen_random_uuid() WHERE id = {own}"),
        format!("DELETE FROM background_jobs WHERE id = {own}"),
        format!("SELECT background_jobs.cancel({own})"),
        format!("SELECT background_jobs.run_now({own})"),
        format!("SELECT background_jobs.retry({own})"),
        format!("SELECT background_jobs.wait({own}, '50 ms')"),
        format!("UPDATE background_jobs SET cancelled = true WHERE id = {own}; SELECT background_jobs.retry({own})"),
        format!(
            "WITH gone AS (DELETE FROM background_jobs WHERE id = {own} RETURNING *) INSERT INTO background_jobs SELECT * FROM gone"
        ),
        "SELECT background_jobs.unregister_handler('acts')".to_owned(),
        "SELECT background_jobs.attach('background_jobs')".to_owned(),
        "ALTER TABLE background_jobs ADD COLUMN IF NOT EXISTS extra int".to_owned(),
        "LOCK TABLE background_jobs".to_owned(),
        "SELECT background_jobs.detach('background_jobs'); SELECT background_jobs.attach('background_jobs')".to_owned(),
        "TRUNCATE background_jobs".to_owned(),
        "DROP TABLE background_jobs".to_owned(),
    ];
    let mut failures = Vec::new();
    for act in acts {
        app.sql("ALTER SEQUENCE starts RESTART");
        let steps: String = act.split("; ").map(|step| format!("EXECUTE {};", lit(step))).collect();
        let options = "max_attempts => 2, retry_delay => '10 ms', max_retry_delay => '10 ms'";
        app.handler_with(
            "acts",
            &format!("PERFORM nextval('public.starts'); PERFORM note(); {steps} RETURN '1';"),
            options,
        );
        let id = app.submit("acts", json!({}));
        let quiet = "SELECT NOT EXISTS (SELECT FROM background_jobs.queue WHERE job_id = $1 AND state <> 'unhandled')
            AND NOT EXISTS (SELECT FROM background_jobs.workers WHERE job_id = $1) AND (SELECT is_called FROM public.starts)";
        // Long enough for its two attempts and for several polls.
        let done = server_tests::wait::attempt(Duration::from_secs(4), &act, || {
            if app.one(quiet, &[&id]) { Ok(()) } else { Err(app.state(id)) }
        });
        let starts: i64 = app.one("SELECT last_value FROM starts", &[]);
        if done.is_err() || starts > 2 {
            failures.push(format!("{act}: {done:?}, {starts} starts for 2 attempts"));
        }
        if app.one("SELECT to_regclass('background_jobs') IS NULL", &[]) {
            app.sql("SELECT background_jobs.create_table()");
            app.register("fine", "fine(jsonb)", "");
        }
        let (row, noted) = (app.find(id), app.noted(id));
        let completed = row.as_ref().is_some_and(|job| job.completed && job.error("sqlstate").is_none());
        if row.is_some() && noted != i64::from(completed) || noted > 1 {
            failures.push(format!("{act}: {noted} effects (I3), {row:?}"));
        }
        app.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]);
        let next = app.submit("fine", json!({}));
        assert_eq!(app.wait_final(next).result, Some(json!(1)), "after {act}");
        assert_eq!(app.noted(next), 1, "after {act}");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Attempts end even for a handler that forges the errors which cost none.
#[test]
fn forged_sqlstates_buy_no_endless_attempts() {
    let mut app = SHARED.app("forged");
    app.sql("CREATE SEQUENCE starts");
    for code in
        ["40001", "40P01", "57014", "57P01", "57P02", "XX000", "XX001", "53200", "53100", "00001", "ZZZZZ", "P0004"]
    {
        app.sql("ALTER SEQUENCE starts RESTART");
        app.handler_with(
            "forges",
            &format!("PERFORM nextval('starts'); PERFORM note(); RAISE 'forged' USING ERRCODE = '{code}';"),
            "max_attempts => 2, retry_delay => '5 ms', max_retry_delay => '5 ms'",
        );
        let id = app.submit("forges", json!({}));
        let job = app.wait_final(id);
        assert_eq!(job.error("sqlstate"), Some(&json!(code)), "{job:?}");
        let starts: i64 = app.one("SELECT last_value FROM starts", &[]);
        assert!(starts <= 2 + 10 + 2, "{code}: {starts} starts for 2 attempts and 10 free conflicts");
        assert_eq!(app.noted(id), 0);
    }
}
