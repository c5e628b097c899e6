//! Commands that need a database for themselves, while its workers are connected: idle, or with a job running.

use crate::SHARED;
use server_tests::{App, Cluster, Uuid, ident, json};
use std::time::{Duration, Instant};

/// Runs `statement` from another database while workers are connected, idle or busy; core would wait five seconds and fail.
fn as_a_whole(app: &App, statement: &str) {
    let mut admin = app.cluster.admin("postgres");
    let begin = Instant::now();
    admin.batch_execute("SET allow_in_place_tablespaces = on").unwrap();
    admin.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e:?}\n{}", app.cluster.log_tail()));
    assert!(begin.elapsed() < Duration::from_secs(4), "{statement}: {:?}", begin.elapsed());
}

/// An application whose own sessions are closed, with a dispatcher, an executor and a progress writer, and a job running or none.
fn deserted(name: &str, busy: bool) -> (App<'static>, Option<Uuid>) {
    let mut app = SHARED.app(name);
    app.handler("held", "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate(payload ->> 'gate'); RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));");
    let first = app.submit("held", json!({"gate": "first"}));
    app.wait_true("SELECT bool_and(progress = 0.5) FROM background_jobs");
    app.open_gate("first");
    assert!(app.wait_final(first).completed);
    let running = busy.then(|| {
        let id = app.submit("held", json!({"gate": "go"}));
        app.wait_reached(1);
        id
    });
    let kinds: Vec<String> = workers(&app).into_iter().map(|(_, kind)| kind).collect();
    for kind in ["dispatcher", "executor", "progress writer"] {
        assert!(kinds.contains(&format!("background_jobs {kind}")), "no {kind} to be in the way: {kinds:?}");
    }
    leave(&mut app);
    (app, running)
}

/// The extension's processes in the database.
fn workers(app: &App) -> Vec<(i32, String)> {
    let query =
        "SELECT pid, backend_type FROM pg_stat_activity WHERE datname = $1 AND backend_type LIKE 'background_jobs%'";
    let rows = app.cluster.admin("postgres").query(query, &[&app.database]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
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
    let id = running.unwrap_or_else(|| app.submit("held", json!({"gate": "go"})));
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0, "no attempt was charged");
}

#[test]
fn drop_database() {
    for busy in [false, true] {
        let (app, _) = deserted("dropped", busy);
        let pids: Vec<i32> = workers(&app).into_iter().map(|(pid, _)| pid).collect();
        as_a_whole(&app, &format!("DROP DATABASE {}", ident(&app.database)));
        let mut admin = app.cluster.admin("postgres");
        app.cluster.wait_until("the workers to be gone", || {
            let query = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
            let left: i64 = admin.query_one(query, &[&pids]).unwrap().get(0);
            if left == 0 { Ok(()) } else { Err(format!("{left} of {} left", pids.len())) }
        });
        // Whatever the launcher does about it, it has done once another database has its dispatcher.
        let other = SHARED.app("dropped_other");
        other.wait_workers("a dispatcher elsewhere", |count| count > 0);
        let log = app.cluster.log();
        let fatal: Vec<&str> =
            log.lines().filter(|line| line.contains("FATAL") && line.contains(&app.database)).collect();
        assert_eq!(fatal, Vec::<&str>::new(), "busy: {busy}");
    }
}

/// There is no dispatcher then that would be told to leave, but an executor that was busy when it left.
#[test]
fn drop_database_where_no_job_may_run_any_more() {
    let cluster = Cluster::builder().conf("background_jobs.poll_interval", "200ms").start();
    let mut app = App::with_table(&cluster, "forbidden");
    app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    cluster.set("background_jobs.databases", "");
    app.wait_workers("the dispatcher to leave", |count| count == 1);
    app.open_gate("go");
    assert!(app.wait_final(id).completed);
    leave(&mut app);
    assert_eq!(app.workers(), 1, "an executor to be in the way");
    as_a_whole(&app, &format!("DROP DATABASE {}", ident(&app.database)));
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

/// As names are swapped for a release. Each database is kept from its workers until the transaction ends, and no longer.
#[test]
fn databases_that_are_renamed_in_one_transaction_all_go_on() {
    let mut all = [deserted("swapped_1", true), deserted("swapped_2", false), deserted("swapped_3", false)];
    let rename = |(app, _): &(App, _)| {
        format!("ALTER DATABASE {} RENAME TO {}", ident(&app.database), ident(&format!("{}_new", app.database)))
    };
    let renames: Vec<String> = all.iter().map(rename).collect();
    as_a_whole(&all[0].0, &format!("BEGIN; {}; COMMIT", renames.join("; ")));
    for (app, running) in &mut all {
        app.database = format!("{}_new", app.database);
        goes_on(app, *running);
    }
}

#[test]
fn databases_that_sessions_keep_to_themselves_keep_no_other_from_its_dispatcher() {
    let kept = [deserted("kept_1", false).0, deserted("kept_2", false).0];
    let mut other = SHARED.app("not_kept");
    other.handler("quick", "RETURN NULL;");
    let mut keepers = kept.each_ref().map(|app| {
        let mut keeper = app.cluster.admin("postgres");
        let new = ident(&format!("{}_new", app.database));
        keeper.batch_execute(&format!("BEGIN; ALTER DATABASE {} RENAME TO {new}", ident(&app.database))).unwrap();
        keeper
    });
    let dispatcher = other.pids("dispatcher")[0];
    other.admin().execute("SELECT pg_terminate_backend($1)", &[&(dispatcher as i32)]).unwrap();
    other.cluster.wait_until("another dispatcher", || {
        let pids = other.pids("dispatcher");
        if pids.iter().any(|pid| *pid != dispatcher) { Ok(()) } else { Err(format!("{pids:?}")) }
    });
    let id = other.submit("quick", json!({}));
    assert!(other.wait_final(id).completed);
    keepers.iter_mut().for_each(|keeper| keeper.batch_execute("ROLLBACK").unwrap());
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

/// Past the owner check, when the workers have been told to leave, a command can fail all the same.
#[test]
fn a_command_that_fails_after_the_workers_left_costs_the_evicted_job_nothing() {
    let (mut app, running) = deserted("failing", true);
    let before = workers(&app);
    let mut admin = app.cluster.admin("postgres");
    let statement = format!("ALTER DATABASE {} RENAME TO postgres", ident(&app.database));
    let error = admin.batch_execute(&statement).unwrap_err();
    assert_eq!(server_tests::sqlstate(&error), "42P04");
    let executor =
        |all: &[(i32, String)]| all.iter().any(|worker| before.contains(worker) && worker.1.ends_with("executor"));
    app.cluster.wait_until("the executor to be gone", || {
        let left = workers(&app);
        if executor(&left) { Err(format!("{left:?}")) } else { Ok(()) }
    });
    goes_on(&mut app, running);
}
