//! Several databases and owners in one server, and everything that happens to a database as a whole.

use server_tests::{App, Cluster, Group, Uuid, ident, json};
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

/// Runs `statement` from another database while workers are connected, idle or busy; core would wait five seconds and fail.
fn as_a_whole(app: &App, statement: &str) {
    let mut admin = app.cluster.admin("postgres");
    let begin = Instant::now();
    admin.batch_execute("SET allow_in_place_tablespaces = on").unwrap();
    admin.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e:?}\n{}", app.cluster.log_tail()));
    assert!(begin.elapsed() < Duration::from_secs(4), "{statement}: {:?}", begin.elapsed());
}

/// An application whose own sessions are closed, with a job running or none.
fn deserted(name: &str, busy: bool) -> (App<'static>, Option<Uuid>) {
    let mut app = SHARED.app(name);
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));");
    app.open_gate("warm up");
    let running = busy.then(|| {
        let id = app.submit("held", json!({}));
        app.wait_reached(1);
        id
    });
    app.wait_workers("workers", |count| count > 0);
    leave(&mut app);
    (app, running)
}

/// Ends the application's session and waits until the server has seen it.
fn leave(app: &mut App) {
    app.client = app.cluster.connect("postgres", &app.role);
    let mut admin = app.cluster.admin("postgres");
    app.cluster.wait_until("the client to be gone", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
        let left: i64 = admin.query_one(query, &[&app.database]).unwrap().get(0);
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    });
}

/// The running job, interrupted by what was done to its database, runs again without having lost an attempt.
fn goes_on(app: &mut App, running: Option<Uuid>) {
    app.client = app.session();
    app.open_gate("go");
    let id = running.unwrap_or_else(|| app.submit("held", json!({})));
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn drop_database() {
    for busy in [false, true] {
        let (app, _) = deserted("dropped", busy);
        as_a_whole(&app, &format!("DROP DATABASE {}", ident(&app.database)));
    }
}

#[test]
fn rename_database() {
    for busy in [false, true] {
        let (mut app, running) = deserted("renamed", busy);
        let new = format!("{}_new", app.database);
        as_a_whole(&app, &format!("ALTER DATABASE {} RENAME TO {}", ident(&app.database), ident(&new)));
        app.database = new;
        goes_on(&mut app, running);
    }
}

#[test]
fn create_database_from_this_one() {
    for busy in [false, true] {
        let (mut app, running) = deserted("template", busy);
        let copy = format!("{}_copy", app.database);
        as_a_whole(&app, &format!("CREATE DATABASE {} TEMPLATE {}", ident(&copy), ident(&app.database)));
        goes_on(&mut app, running);

        // The copy has the extension, the table and the unfinished job, and is a database like any other.
        leave(&mut app);
        let original = std::mem::replace(&mut app.database, copy);
        goes_on(&mut app, running);
        leave(&mut app);
        as_a_whole(&app, &format!("DROP DATABASE {}", ident(&app.database)));
        app.database = original;
    }
}

#[test]
fn move_database_to_another_tablespace() {
    for busy in [false, true] {
        let (mut app, running) = deserted("moved", busy);
        let space = ident(&format!("space_{}", app.database));
        as_a_whole(&app, &format!("CREATE TABLESPACE {space} LOCATION ''"));
        as_a_whole(&app, &format!("ALTER DATABASE {} SET TABLESPACE {space}", ident(&app.database)));
        goes_on(&mut app, running);
        leave(&mut app);
        as_a_whole(&app, &format!("ALTER DATABASE {} SET TABLESPACE pg_default", ident(&app.database)));
        as_a_whole(&app, &format!("DROP TABLESPACE {space}"));
    }
}

/// Only who may drop a database makes its workers leave.
#[test]
fn a_refused_command_disturbs_nobody() {
    let mut app = SHARED.app("refused");
    app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb(pg_backend_pid());");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let pid: i32 = app.one("SELECT pid FROM background_jobs.status($1)", &[&id]);
    let stranger = format!("stranger_{}", app.database);
    app.cluster.create_role(&stranger);
    let name = ident(&app.database);
    let mut client = app.cluster.connect("postgres", &stranger);
    for statement in [
        format!("DROP DATABASE {name}"),
        format!("ALTER DATABASE {name} RENAME TO mine"),
        format!("CREATE DATABASE copy TEMPLATE {name}"),
        format!("ALTER DATABASE {name} SET TABLESPACE pg_default"),
    ] {
        let error = client.batch_execute(&statement).unwrap_err();
        assert_eq!(server_tests::sqlstate(&error), "42501", "{statement}");
    }
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!(pid)), "the first attempt ran through");
    app.admin().batch_execute(&format!("DROP ROLE {}", ident(&stranger))).unwrap();
}
