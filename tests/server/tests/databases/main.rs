//! Several databases and owners in one server, and everything that happens to a database as a whole.

mod alone;

use server_tests::{Cluster, Group, Uuid, ident, json};
use std::time::{Duration, Instant};

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "500ms"));

const WHO: &str = "RETURN jsonb_build_object('user', session_user, 'database', current_database());";

#[test]
fn jobs_run_in_their_database_as_their_owner() {
    let mut apps = [SHARED.app("first"), SHARED.app("second")];
    for app in &mut apps {
        app.handler("who", WHO);
    }
    let ids: Vec<Vec<Uuid>> =
        apps.iter_mut().map(|app| (0..5).map(|_| app.submit("who", json!({}))).collect()).collect();
    for (app, ids) in apps.iter_mut().zip(ids) {
        for id in ids {
            let expected = json!({"user": app.role, "database": app.database});
            assert_eq!(app.wait_final(id).result, Some(expected));
        }
    }
}

#[test]
fn two_owners_in_one_database() {
    let mut app = SHARED.app("owners");
    app.handler("who", WHO);
    let other = format!("other_{}", app.database);
    app.cluster.create_role(&other);
    app.admin().batch_execute(&format!("CREATE SCHEMA {0} AUTHORIZATION {0}", ident(&other))).unwrap();
    let mut client = app.cluster.connect(&app.database, &other);
    client
        .batch_execute(&format!(
            "SELECT background_jobs.create_table();
             CREATE FUNCTION who(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN {WHO} END $$;
             SELECT background_jobs.register_handler('who', 'who(jsonb)');"
        ))
        .unwrap();
    let mut theirs = || -> serde_json::Value {
        let id: Uuid = client.query_one("SELECT background_jobs.enqueue('who')", &[]).unwrap().get(0);
        client.query_one("SELECT background_jobs.wait($1)", &[&id]).unwrap().get(0)
    };
    for _ in 0..3 {
        assert_eq!(theirs()["user"], json!(other));
        let id = app.submit("who", json!({}));
        assert_eq!(app.wait_final(id).result.unwrap()["user"], json!(app.role));
    }
    // A flood of one owner delays the other's job by a bounded time only.
    app.handler("slow", "PERFORM pg_sleep(0.1); RETURN NULL;");
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"slow\"}' FROM generate_series(1, 400)");
    app.wait_true("SELECT count(*) > 3 FROM background_jobs WHERE completed AND payload ->> 'handler' = 'slow'");
    let begin = Instant::now();
    theirs();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    app.sql("UPDATE background_jobs SET cancelled = true WHERE NOT completed");
    drop(client);
    app.admin().batch_execute(&format!("DROP OWNED BY {0} CASCADE; DROP ROLE {0}", ident(&other))).unwrap();
}

#[test]
fn the_extension_comes_and_goes_without_a_restart() {
    let mut app = SHARED.app("comes");
    let mut admin = app.admin();
    app.wait_workers("a dispatcher", |count| count > 0);
    app.sql("DROP TABLE IF EXISTS x");

    // Rolled back: nothing happens, and jobs run on.
    app.handler("who", WHO);
    let mut transaction = admin.transaction().unwrap();
    transaction.batch_execute("DROP EXTENSION background_jobs CASCADE").unwrap();
    transaction.rollback().unwrap();
    let id = app.submit("who", json!({}));
    assert!(app.wait_final(id).completed);

    // Committed, with a job running: the table and its rows stay, the workers go.
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    let running = app.submit("held", json!({}));
    app.wait_reached(1);
    let begin = Instant::now();
    admin.batch_execute("DROP EXTENSION background_jobs CASCADE").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    app.wait_left(1);
    app.wait_workers("the workers to leave", |count| count == 0);
    assert_eq!(app.noted(running), 0);
    assert!(!app.row(running).is_final());

    let mut transaction = admin.transaction().unwrap();
    transaction.batch_execute("CREATE EXTENSION background_jobs").unwrap();
    transaction.rollback().unwrap();

    admin.batch_execute("CREATE EXTENSION background_jobs").unwrap();
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 1, "the backlog");
    app.handler("held", "PERFORM note(); RETURN NULL;");
    assert!(app.wait_final(running).completed);
    assert_eq!(app.noted(running), 1);
}

#[test]
fn a_rolled_back_create_extension_starts_nothing() {
    let app = SHARED.app_without_table("rolled_back");
    let mut admin = app.admin();
    admin.batch_execute("DROP EXTENSION background_jobs").unwrap();
    app.wait_workers("the workers to leave", |count| count == 0);
    admin.batch_execute("BEGIN; CREATE EXTENSION background_jobs; ROLLBACK").unwrap();
    admin.batch_execute("BEGIN; SAVEPOINT s; CREATE EXTENSION background_jobs; ROLLBACK TO s; COMMIT").unwrap();
    // Whatever the launcher does about it, it has done once another database has its dispatcher.
    let other = SHARED.app("rolled_back_other");
    other.wait_workers("a dispatcher elsewhere", |count| count > 0);
    assert_eq!(app.workers(), 0);
    admin.batch_execute("BEGIN; CREATE EXTENSION background_jobs; COMMIT").unwrap();
    app.wait_workers("a dispatcher", |count| count > 0);
}
