//! The extension itself comes, changes, goes and is missing, with jobs waiting and running. Every test's name is the
//! expected outcome. (`databases` has what CREATE and DROP EXTENSION do when they commit or roll back.)

use server_tests::{App, Cluster, Group, Stop, Uuid, ident, json, sqlstate};
use std::time::{Duration, Instant};

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "200ms"));

fn running(name: &str) -> (App<'static>, Uuid) {
    running_to(name, "")
}

/// `end`: what the handler does behind the gate.
fn running_to(name: &str, end: &str) -> (App<'static>, Uuid) {
    let mut app = SHARED.app(name);
    app.sql("CREATE SEQUENCE ends");
    app.handler(
        "held",
        &format!(
            "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); {end}
             RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));"
        ),
    );
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    (app, id)
}

#[test]
fn drop_without_cascade_is_refused_and_disturbs_no_run() {
    let (mut app, id) = running("refused");
    let error = app.admin().batch_execute("DROP EXTENSION background_jobs").unwrap_err();
    assert_eq!(sqlstate(&error), "2BP01");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
}

/// The handler is done while the DROP is not committed: it waits, and what then comes decides about its effects.
#[test]
fn a_job_that_ends_during_an_open_drop_completes_when_the_drop_is_rolled_back() {
    let (mut app, id) = running("open_drop");
    let mut admin = app.admin();
    let mut transaction = admin.transaction().unwrap();
    transaction.batch_execute("DROP EXTENSION background_jobs CASCADE").unwrap();
    app.open_gate("go");
    app.wait_executor_blocked();
    transaction.rollback().unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn a_job_that_ends_during_a_drop_that_commits_has_no_effects_and_its_row_is_unfinished() {
    let (mut app, id) = running("committed_drop");
    let mut admin = app.admin();
    let mut transaction = admin.transaction().unwrap();
    transaction.batch_execute("DROP EXTENSION background_jobs CASCADE").unwrap();
    app.open_gate("go");
    app.wait_executor_blocked();
    transaction.commit().unwrap();
    app.wait_workers("the workers to leave", |count| count == 0);
    assert_eq!(app.noted(id), 0);
    assert!(!app.row(id).is_final());
    // Back again: the table is the backlog.
    admin.batch_execute("CREATE EXTENSION background_jobs").unwrap();
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 1);
    app.register("held", "held(jsonb)", "");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn dropped_and_created_in_one_transaction_starts_afresh_and_runs_nothing_twice() {
    let (mut app, id) = running("recreated");
    app.admin()
        .batch_execute("BEGIN; DROP EXTENSION background_jobs CASCADE; CREATE EXTENSION background_jobs; COMMIT")
        .unwrap();
    app.open_gate("go");
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 1);
    app.register("held", "held(jsonb)", "");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
    let next = app.submit("held", json!({}));
    assert!(app.wait_final(next).completed);
}

#[test]
fn alter_extension_update_while_a_job_runs_disturbs_nothing() {
    let (mut app, id) = running("updated");
    let mut admin = app.admin();
    admin.batch_execute("ALTER EXTENSION background_jobs UPDATE").unwrap();
    let error = admin.batch_execute("ALTER EXTENSION background_jobs UPDATE TO '99'").unwrap_err();
    assert_eq!(sqlstate(&error), "22023");
    let error = admin.batch_execute("ALTER EXTENSION background_jobs SET SCHEMA public").unwrap_err();
    assert_eq!(sqlstate(&error), "0A000");
    admin.batch_execute("BEGIN; ALTER EXTENSION background_jobs DROP VIEW background_jobs.queue; ROLLBACK").unwrap();
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
}

/// A superuser can do that; nobody should. The jobs wait for the name that everything knows them by.
#[test]
fn the_schema_renamed_and_renamed_back_loses_no_job() {
    let (mut app, id) = running_to("renamed", "IF nextval('ends') = 1 THEN RAISE 'failed'; END IF;");
    let waiting: Uuid = app.one("SELECT background_jobs.enqueue('held', run_at => now() + interval '1 h')", &[]);
    let mut admin = app.admin();
    admin.batch_execute("ALTER SCHEMA background_jobs RENAME TO elsewhere").unwrap();
    app.open_gate("go");
    // The handler's failure is written down in the transaction that it ran in, in two tries, the second of which puts the job back for
    // an hour. Both shall meet the other name.
    app.wait_true(
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
            AND backend_type = 'background_jobs executor' AND xact_start IS NOT NULL)",
    );
    assert!(!app.row(id).is_final());
    assert_eq!(app.noted(id), 0);
    admin.batch_execute("ALTER SCHEMA elsewhere RENAME TO background_jobs").unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!(1)), "it was not charged");
    assert_eq!(app.noted(id), 1);
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&waiting]));
    assert!(app.wait_final(waiting).completed);
}

#[test]
fn a_schema_that_somebody_else_made_is_refused_and_a_role_of_no_privilege_cannot_create() {
    let mut app = SHARED.app_without_table("squatted");
    let mut admin = app.admin();
    admin.batch_execute("DROP EXTENSION background_jobs").unwrap();
    admin
        .batch_execute(&format!(
            "DROP SCHEMA IF EXISTS background_jobs; CREATE SCHEMA background_jobs AUTHORIZATION {}",
            ident(&app.role)
        ))
        .unwrap();
    app.sql("CREATE TABLE background_jobs.queued_job (n int)");
    let error = admin.batch_execute("CREATE EXTENSION background_jobs").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "42P06");
    assert!(error.hint().is_some(), "{error:?}");
    let error = admin.batch_execute("CREATE EXTENSION background_jobs SCHEMA public").unwrap_err();
    assert_eq!(sqlstate(&error), "0A000");
    assert_eq!(app.sqlstate("CREATE EXTENSION background_jobs"), "42501");
    app.sql("DROP SCHEMA background_jobs CASCADE");
    assert_eq!(app.sqlstate("CREATE EXTENSION background_jobs"), "42501");
    admin.batch_execute("CREATE EXTENSION background_jobs").unwrap();
    app.sql("SELECT background_jobs.create_table()");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let id = app.submit("noted", json!({}));
    assert!(app.wait_final(id).completed);
}

/// An administrator has taken the library out of the configuration. A submission may be refused, but not with a riddle, and one
/// that was accepted runs as soon as the library is back.
#[test]
fn without_the_library_every_refusal_says_what_is_missing_and_what_is_accepted_runs_later() {
    let cluster = Cluster::builder().start();
    let mut app = App::with_table(&cluster, "unloaded");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let done = app.submit("noted", json!({}));
    app.wait_final(done);
    let waiting: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
    // An empty list would be written as the name of a library that is empty.
    cluster.admin("postgres").batch_execute("ALTER SYSTEM SET shared_preload_libraries = plpgsql").unwrap();
    cluster.restart(Stop::Fast);
    app.client = app.session();
    let says_what_is_missing = |what: &str, error: &server_tests::postgres::Error| {
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "55000", "{what}: {error:?}");
        assert!(error.hint().unwrap_or("").contains("shared_preload_libraries"), "{what}: {error:?}");
    };
    let insert = "INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"noted\"}') RETURNING id";
    let accepted: Option<Uuid> = match app.client.query_one(insert, &[]) {
        Ok(row) => Some(row.get(0)),
        Err(error) => {
            says_what_is_missing(insert, &error);
            None
        }
    };
    let cancel = "UPDATE background_jobs SET cancelled = true WHERE id = $1";
    let cancelled = match app.client.execute(cancel, &[&waiting]) {
        Ok(_) => true,
        Err(error) => {
            says_what_is_missing(cancel, &error);
            false
        }
    };
    let calls = [
        "enqueue('noted')",
        "attach('background_jobs')",
        "create_table('x')",
        "unregister_handler('noted')",
        "cancel(gen_random_uuid())",
        "run_now(gen_random_uuid())",
        "wait(gen_random_uuid())",
    ];
    for call in calls {
        let error = app.client.batch_execute(&format!("SELECT background_jobs.{call}")).unwrap_err();
        says_what_is_missing(call, &error);
    }
    // The views that operators look into first either answer or say the same.
    for view in ["queue", "workers", "handlers", "attempts", "handler_stats"] {
        if let Err(error) = app.client.batch_execute(&format!("SELECT * FROM background_jobs.{view}")) {
            says_what_is_missing(view, &error);
        }
    }
    cluster.admin("postgres").batch_execute("ALTER SYSTEM RESET shared_preload_libraries").unwrap();
    cluster.restart(Stop::Fast);
    app.client = app.session();
    assert_eq!(app.state(waiting), if cancelled { "cancelled" } else { "scheduled" });
    for id in accepted.into_iter().chain([done]) {
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
    }
}

#[test]
fn many_creations_and_drops_leave_the_server_as_it_was() {
    let app = SHARED.app_without_table("cycles");
    let mut admin = app.admin();
    let begin = Instant::now();
    for _ in 0..60 {
        admin.batch_execute("DROP EXTENSION background_jobs; CREATE EXTENSION background_jobs").unwrap();
    }
    admin.batch_execute("DROP EXTENSION background_jobs").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    app.wait_workers("the workers to leave", |count| count == 0);
    admin.batch_execute("CREATE EXTENSION background_jobs").unwrap();
    let query =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'background_jobs dispatcher'";
    app.cluster.wait_until("one dispatcher", || {
        let count: i64 = admin.query_one(query, &[&app.database]).unwrap().get(0);
        if count == 1 { Ok(()) } else { Err(count.to_string()) }
    });
}
