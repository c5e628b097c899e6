//! What an UPDATE does besides writing a row: completions of a batch do it, too, though they are written without SQL.

use crate::SHARED;
use crate::scene::{DRAIN, N, NOTED, alone, check_others, in_one_batch, insert, scene, shared, warm};
use server_tests::App;
use server_tests::wait::yes;

fn run_batch(app: &mut App) {
    in_one_batch(app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
}

#[test]
fn every_index_finds_the_rows_of_a_batch_that_it_has_to_be_told_of() {
    let _alone = alone();
    let mut app = scene("elsewhere");
    app.sql(
        "CREATE INDEX by_state ON background_jobs (completed, id) INCLUDE (progress);
         CREATE UNIQUE INDEX by_result ON background_jobs (result, id)",
    );
    app.admin().batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck").unwrap();
    run_batch(&mut app);
    check_others(&mut app, &[]);
    assert!(shared(&mut app), "they shared a commit");
    for index in ["background_jobs_pkey", "by_state", "by_result"] {
        // Are all rows of the table in it, each where it is?
        let check = format!("SELECT bt_index_check('{index}', heapallindexed => true)");
        app.admin().batch_execute(&check).unwrap_or_else(|e| panic!("{index}: {e:?}"));
    }
    app.sql("SET enable_seqscan = off; SET enable_bitmapscan = off");
    let found = "SELECT count(*) FROM background_jobs WHERE completed AND id IS NOT NULL";
    assert_eq!(app.one::<i64>(found, &[]), N);
}

/// There they need no new entries in indexes.
#[test]
fn a_table_of_create_table_has_room_for_small_results_in_the_pages_of_their_rows() {
    let _alone = alone();
    let mut app = SHARED.app("beside");
    app.handler("noted", "PERFORM note(); RETURN '{\"ok\": true}';");
    warm(&mut app, "noted");
    app.sql("TRUNCATE background_jobs");
    in_one_batch(&mut app, |app| {
        (0..8).for_each(|_| app.sql(&insert("noted", "")));
        app.sql("CREATE TABLE places AS SELECT id, (ctid::text::point)[0] AS page FROM background_jobs");
    });
    app.wait_drained(DRAIN);
    assert!(shared(&mut app), "they shared commits");
    assert!(app.one::<i64>("SELECT count(DISTINCT page) FROM places", &[]) > 2);
    let moved =
        "SELECT count(*) FROM background_jobs j JOIN places p USING (id) WHERE p.page <> (j.ctid::text::point)[0]";
    assert_eq!(app.one::<i64>(moved, &[]), 0);
}

/// Not B-trees: these are written by a statement.
#[test]
fn indexes_of_other_kinds_find_the_rows_of_a_batch() {
    let _alone = alone();
    let mut app = scene("kinds");
    app.sql(
        "CREATE INDEX inverted ON background_jobs USING gin (result);
         CREATE INDEX hashed ON background_jobs USING hash (completed);
         CREATE INDEX ranges ON background_jobs USING brin (progress)",
    );
    run_batch(&mut app);
    check_others(&mut app, &[]);
    assert!(shared(&mut app), "they shared a commit");
    app.sql("SET enable_seqscan = off");
    for found in ["result ? 'n'", "completed = true", "progress >= 1"] {
        assert_eq!(app.one::<i64>(&format!("SELECT count(*) FROM background_jobs WHERE {found}"), &[]), N, "{found}");
    }
}

#[test]
fn a_constraint_of_the_table_that_one_result_breaks_fails_that_job_alone() {
    let _alone = alone();
    for (name, constraint, value, state) in [
        ("unique", "CREATE UNIQUE INDEX once ON background_jobs (result)", "'{\"n\": 4}'", "23505"),
        (
            "missing",
            "ALTER TABLE background_jobs ALTER result SET DEFAULT 'null', ALTER result SET NOT NULL",
            "NULL",
            "23502",
        ),
    ] {
        let mut app = SHARED.app(name);
        let body = format!(
            "PERFORM note(); IF payload -> 'n' = '5' THEN RETURN {value}; END IF;
             RETURN jsonb_build_object('n', coalesce(payload -> 'n', to_jsonb(random())));"
        );
        app.handler_with("noted", &body, "max_attempts => 1");
        warm(&mut app, "noted");
        app.sql(constraint);
        run_batch(&mut app);
        check_others(&mut app, &[5]);
        let failed = "SELECT result #>> '{error,sqlstate}' FROM background_jobs WHERE payload -> 'n' = '5'";
        assert_eq!(app.one::<Option<String>>(failed, &[]).as_deref(), Some(state), "{name}");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 1, "{name}");
    }
}

/// As an UPDATE would be refused, so is a completion without one.
#[test]
fn an_owner_who_may_not_update_the_table_completes_nothing_until_that_is_over() {
    let _alone = alone();
    for (name, forbid, allow, state) in [
        (
            "rights",
            "REVOKE UPDATE ON background_jobs FROM current_user",
            "GRANT UPDATE ON background_jobs TO current_user",
            "42501",
        ),
        (
            "identity",
            "ALTER TABLE background_jobs REPLICA IDENTITY NOTHING",
            "ALTER TABLE background_jobs REPLICA IDENTITY DEFAULT",
            "55000",
        ),
    ] {
        let mut app = SHARED.app(name);
        app.handler_with("noted", NOTED, "max_attempts => 100, retry_delay => '100 ms', max_retry_delay => '100 ms'");
        warm(&mut app, "noted");
        app.admin().batch_execute("CREATE PUBLICATION published FOR TABLE background_jobs").unwrap();
        app.sql(forbid);
        in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
        let refused = "SELECT EXISTS (SELECT FROM background_jobs.attempts WHERE error ->> 'sqlstate' = $1)";
        app.cluster.wait_until("an attempt to be refused", || yes(app.one::<bool>(refused, &[&state])));
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE completed", &[]), 0, "{name}");
        app.sql(allow);
        check_once(&mut app);
    }
}

/// What the owner may not read is not read without SQL either: nothing runs, and nobody is charged.
#[test]
fn jobs_of_an_owner_who_may_not_read_the_table_wait_until_that_is_over() {
    let _alone = alone();
    let mut app = scene("unread");
    let executors = app.pids("executor");
    in_one_batch(&mut app, |app| {
        app.sql(&insert("noted", ""));
        app.sql("REVOKE SELECT ON background_jobs FROM current_user");
    });
    app.wait_asleep(&executors);
    app.sql("GRANT SELECT ON background_jobs TO current_user");
    check_once(&mut app);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
}

fn check_once(app: &mut App) {
    app.wait_drained(DRAIN);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE completed AND progress = 1", &[]), N);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), N);
}
