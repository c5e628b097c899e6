//! Rows that are not where they were when somebody looked.

use crate::SHARED;
use crate::scene::{
    DRAIN, N, NOTED, alone, check_others, in_one_batch, in_one_batch_then, insert, scene, shared, warm,
};
use server_tests::{App, Still};

fn check_all(app: &mut App) {
    app.wait_drained(DRAIN);
    check_others(app, &[]);
    assert!(shared(app), "they shared a commit");
}

#[test]
fn rows_that_clients_change_before_their_batch_is_loaded_are_found() {
    let _alone = alone();
    let mut app = scene("changed");
    in_one_batch(&mut app, |app| {
        app.sql(&insert("noted", ""));
        app.sql("UPDATE background_jobs SET payload = payload || '{\"changed\": true}'");
    });
    check_all(&mut app);
}

/// Each place has the row of another job then.
#[test]
fn rows_that_change_places_before_their_batch_is_loaded_are_not_confused() {
    let _alone = alone();
    let mut app = scene("swapped");
    in_one_batch(&mut app, |app| {
        app.sql("INSERT INTO background_jobs (payload, cancelled) SELECT '{}', true FROM generate_series(1, 5)");
        app.sql(&insert("noted", ""));
        app.sql("DELETE FROM background_jobs WHERE cancelled");
        app.sql("VACUUM FULL background_jobs");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE ctid = '(0,1)'", &[]), 1);
    });
    check_all(&mut app);
}

/// So do set_progress() and clients, while the batch runs.
#[test]
fn rows_that_change_while_their_batch_runs_are_completed_with_it() {
    let _alone = alone();
    let mut app = SHARED.app("moving");
    app.sql("ALTER TABLE background_jobs ADD COLUMN seen integer");
    let every_other = "IF (payload ->> 'n')::int % 2 = 0 THEN
        UPDATE background_jobs SET seen = (payload ->> 'n')::int WHERE id = (SELECT id FROM background_jobs.current_job());
    END IF;";
    app.handler("noted", &(every_other.replace("payload ->>", "noted.payload ->>") + NOTED));
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    check_all(&mut app);
    let seen = "SELECT count(seen) FROM background_jobs WHERE seen = (payload ->> 'n')::int";
    assert_eq!(app.one::<i64>(seen, &[]), N / 2);
}

/// By somebody who calls run_now() while the job runs: here the handler itself.
#[test]
fn jobs_whose_place_in_the_queue_changes_while_they_run_are_finished_with_their_batch() {
    let _alone = alone();
    let mut app = SHARED.app("hurried");
    app.handler(
        "noted",
        &format!("PERFORM background_jobs.run_now((SELECT id FROM background_jobs.current_job())); {NOTED}"),
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    check_all(&mut app);
}

/// Some places have the row of another job then, and some are behind the end.
#[test]
fn a_queue_that_is_rewritten_under_a_batch_loses_no_job() {
    let _alone = alone();
    let mut app = scene("rewritten");
    in_one_batch_then(
        &mut app,
        |app| {
            app.sql(&insert("nobody", ""));
            app.sql(&insert("noted", ""));
        },
        |app| {
            app.sql("DELETE FROM background_jobs WHERE payload ->> 'handler' = 'nobody'");
            app.admin().batch_execute("VACUUM FULL background_jobs.queued_job").unwrap();
        },
    );
    check_all(&mut app);
}

/// Under the same ids, and before the dispatcher hears of it: what is in the mailbox is no longer what is in the table.
#[test]
fn jobs_that_are_submitted_again_before_their_batch_is_loaded_are_started_once() {
    let _alone = alone();
    let mut app = SHARED.app("again");
    app.sql("CREATE SEQUENCE starts");
    app.handler("noted", &format!("PERFORM nextval('starts'); {NOTED}"));
    warm(&mut app, "noted");
    app.sql("ALTER SEQUENCE starts RESTART");
    let (executor, dispatcher) = (app.pids("executor"), app.pids("dispatcher"));
    let (cluster, mut stopped) = (app.cluster, None);
    in_one_batch_then(
        &mut app,
        |app| app.sql(&insert("noted", "")),
        |app| {
            stopped = Some(Still::new(cluster, dispatcher[0]));
            app.sql(
                "WITH former AS (DELETE FROM background_jobs RETURNING *)
                 INSERT INTO background_jobs (id, payload) SELECT id, payload || '{\"again\": true}' FROM former",
            );
        },
    );
    app.wait_asleep(&executor);
    drop(stopped);
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
    assert_eq!(app.one::<i64>("SELECT last_value FROM starts", &[]), N, "none was started as a former one");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE payload ? 'again'", &[]), N);
}
