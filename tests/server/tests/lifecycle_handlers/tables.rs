//! Tables that are renamed, made anew, emptied or altered, and columns that come and go.

use crate::{SHARED, held, run_now, running, scheduled, setbacks, wait_setback};
use server_tests::wait::yes;
use server_tests::{App, Uuid, ident, json};

#[test]
fn a_table_renamed_and_moved_while_a_job_runs_gets_its_result_though_another_took_its_name() {
    let (mut app, id) = running("renamed", "");
    let queued = scheduled(&mut app, "held");
    let owner = ident(&app.role);
    app.admin().batch_execute(&format!("CREATE SCHEMA archive AUTHORIZATION {owner}")).unwrap();
    app.sql(
        "ALTER TABLE background_jobs SET SCHEMA archive;
         ALTER TABLE archive.background_jobs RENAME TO jobs;
         SELECT background_jobs.create_table();
         INSERT INTO background_jobs (id, payload) SELECT id, '{\"handler\": \"nobody\"}' FROM archive.jobs;",
    );
    app.open_gate("go");
    run_now_in(&mut app, queued, "archive.jobs");
    app.wait_true("SELECT bool_and(completed AND result = '\"old\"') FROM archive.jobs");
    assert_eq!((app.noted(id), app.noted(queued)), (1, 1));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE completed OR progress <> 0", &[]), 0);
}

fn run_now_in(app: &mut App, id: Uuid, table: &str) {
    assert!(app.one::<bool>(&format!("SELECT background_jobs.run_now($1, '{table}')"), &[&id]));
}

#[test]
fn a_table_dropped_and_created_anew_runs_nothing_of_the_old_one() {
    let (mut app, id) = running("recreated", "");
    let queued = scheduled(&mut app, "held");
    app.sql("DROP TABLE background_jobs; SELECT background_jobs.create_table()");
    app.wait_left(1);
    app.open_gate("go");
    app.handler("held", &held("'new'::text"));
    let next = app.submit("held", json!({}));
    assert_eq!(app.wait_final(next).result, Some(json!("new")));
    assert_eq!((app.noted(id), app.noted(queued), app.noted(next)), (0, 0, 1));
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
}

#[test]
fn a_truncate_that_is_rolled_back_disturbs_no_run() {
    let (mut app, id) = running("truncated", "");
    app.sql("BEGIN; TRUNCATE background_jobs; ROLLBACK");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(setbacks(&mut app, id).len(), 0);
}

#[test]
fn a_column_dropped_while_a_job_runs_keeps_the_job_until_the_table_is_mended() {
    let (mut app, id) = running("column", "retry_delay => '100 ms', max_attempts => 1000");
    app.sql("ALTER TABLE background_jobs RENAME result TO outcome");
    app.open_gate("go");
    assert_eq!(wait_setback(&mut app, id), "55000");
    assert_eq!(app.noted(id), 0, "no effects without a result");
    app.sql("ALTER TABLE background_jobs RENAME outcome TO result");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn a_column_whose_type_changes_while_jobs_wait_keeps_them_until_it_is_what_it_was() {
    let mut app = SHARED.app("retyped_column");
    app.handler("held", &held("'old'::text"));
    app.open_gate("go");
    let id = scheduled(&mut app, "held");
    app.sql("ALTER TABLE background_jobs ALTER result TYPE text");
    run_now(&mut app, id);
    // Another table's jobs run meanwhile; several of them, so that this one has had its turn.
    app.sql("SELECT background_jobs.create_table('other')");
    app.sql("SELECT background_jobs.register_handler('held', 'held(jsonb)', 'other')");
    for _ in 0..3 {
        let other: Uuid = app.one("SELECT background_jobs.enqueue('held', job_table => 'other')", &[]);
        app.one::<serde_json::Value>("SELECT background_jobs.wait($1, job_table => 'other')", &[&other]);
    }
    assert_eq!(app.noted(id), 0);
    app.sql("ALTER TABLE background_jobs ALTER result TYPE jsonb USING result::jsonb");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn columns_added_and_constraints_that_refuse_the_result_fail_the_job_and_not_its_row() {
    let (mut app, id) = running("constraint", "max_attempts => 1");
    app.sql(
        "ALTER TABLE background_jobs ADD tenant int NOT NULL DEFAULT 7, ADD note text,
            ADD CHECK (result IS NULL OR jsonb_typeof(result) = 'object')",
    );
    app.open_gate("go");
    let job = app.wait_final(id);
    assert_eq!(job.error("sqlstate"), Some(&json!("23514")), "{job:?}");
    assert_eq!(app.noted(id), 0);
    assert_eq!(app.one::<i32>("SELECT tenant FROM background_jobs", &[]), 7);
}

#[test]
fn a_used_column_that_is_dropped_keeps_the_jobs_until_attach_is_told() {
    let mut app = SHARED.app_without_table("used_column");
    app.sql("SELECT background_jobs.create_table('background_jobs', '{finished_at}')");
    app.handler("held", &held("'old'::text"));
    app.open_gate("go");
    let id = scheduled(&mut app, "held");
    app.sql("ALTER TABLE background_jobs DROP COLUMN finished_at");
    run_now(&mut app, id);
    app.sql("SELECT background_jobs.attach('background_jobs', columns => '{}')");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

/// CASCADE takes the triggers of UPDATE and DELETE along, and leaves that of INSERT.
#[test]
fn a_job_submitted_while_a_required_column_is_missing_waits_until_it_is_back_and_attach_is_told() {
    let mut app = SHARED.app("required_column");
    app.handler("held", &held("'old'::text"));
    app.open_gate("go");
    app.sql("ALTER TABLE background_jobs DROP COLUMN completed CASCADE");
    let id: Uuid =
        app.one("INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"held\"}') RETURNING id", &[]);
    let why = "table \"background_jobs\" cannot hold jobs: column \"completed\" is missing";
    app.cluster.wait_until("the log to say why", || yes(app.cluster.log().contains(why)));
    app.sql(
        "ALTER TABLE background_jobs ADD completed boolean NOT NULL DEFAULT false;
         SELECT background_jobs.attach('background_jobs')",
    );
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

/// Kept it would be another job than the client has asked for: of another handler, or without its time.
#[test]
fn an_insert_is_refused_while_a_column_is_missing_that_decides_about_the_job() {
    let mut app = SHARED.app_without_table("deciding_column");
    app.sql(
        "SELECT background_jobs.create_table('background_jobs', '{handler,run_at,finished_at}');
         SELECT background_jobs.create_table('plain')",
    );
    let insert = "INSERT INTO background_jobs DEFAULT VALUES";
    let changes = [
        ("RENAME handler TO was", "RENAME was TO handler"),
        ("RENAME run_at TO was", "RENAME was TO run_at"),
        ("ALTER run_at TYPE text", "ALTER run_at TYPE timestamptz USING run_at::timestamptz"),
        ("RENAME payload TO was", "RENAME was TO payload"),
    ];
    for (change, back) in changes {
        app.sql(&format!("ALTER TABLE background_jobs {change}"));
        assert_eq!(app.sqlstate(insert), "42703", "{change}");
        app.sql(&format!("ALTER TABLE background_jobs {back}; {insert}"));
    }
    // What is written when the job ends may come back until then.
    app.sql(&format!("ALTER TABLE background_jobs RENAME finished_at TO was; {insert}"));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 5);
    app.sql("ALTER TABLE plain RENAME payload TO was");
    assert_eq!(app.sqlstate("INSERT INTO plain (was) VALUES ('{\"handler\": \"x\"}')"), "42703");
    app.sql("INSERT INTO plain (was, cancelled) VALUES ('{}', true)");
    assert_eq!(
        app.one::<i64>("SELECT count(*) FROM background_jobs.queue WHERE job_table = 'plain'::regclass", &[]),
        0
    );
}

#[test]
fn detach_stops_a_run_and_attach_runs_it_again_once() {
    let (mut app, id) = running("detached", "");
    app.sql("SELECT background_jobs.detach('background_jobs')");
    app.wait_left(1);
    assert_eq!(app.noted(id), 0);
    assert!(!app.row(id).is_final());
    app.open_gate("go");
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 1);
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn detach_and_attach_in_one_transaction_while_a_job_runs_run_it_once() {
    let (mut app, id) = running("reattached", "");
    app.sql("BEGIN; SELECT background_jobs.detach('background_jobs'); SELECT background_jobs.attach('background_jobs'); COMMIT");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    assert_eq!(app.noted(id), 1);
}

/// A row that its owner does not see any more (row-level security without exception) is not lost.
#[test]
fn a_row_hidden_from_its_owner_waits_until_it_is_seen_again() {
    let mut app = SHARED.app("hidden");
    app.handler("held", &held("'old'::text"));
    app.open_gate("go");
    let id = scheduled(&mut app, "held");
    app.sql(
        "CREATE POLICY visible ON background_jobs USING (payload ? 'seen');
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;",
    );
    run_now(&mut app, id);
    // A job that came later tells that this one has had its turn.
    let seen = app.submit("held", json!({"seen": true}));
    assert!(app.wait_final(seen).completed);
    let queued: i64 = app.one("SELECT count(*) FROM background_jobs.queue WHERE job_id = $1", &[&id]);
    assert_eq!(queued, 1, "a row that is not seen is not finished");
    app.sql("ALTER TABLE background_jobs NO FORCE ROW LEVEL SECURITY");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}
