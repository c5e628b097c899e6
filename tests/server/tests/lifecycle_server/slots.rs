//! Worker slots and connections, too few and very many. `settings.rs` has executors without a worker slot.

use crate::{HELD, SHARED, assert_completes, configuration, noting};
use server_tests::{App, Cluster, Stop, Uuid, ident, json, sqlstate};
use std::time::{Duration, Instant};

#[test]
fn without_a_slot_for_a_dispatcher_it_is_said_once_and_jobs_wait() {
    // Room for our launcher and for that of logical replication.
    let cluster = configuration().conf("max_worker_processes", "2").start();
    let mut app = App::with_table(&cluster, "no_dispatcher");
    noting(&mut app);
    let ids: Vec<Uuid> = (0..20).map(|_| app.submit("noted", json!({}))).collect();
    let hints = || cluster.log().matches("Raise max_worker_processes").count();
    cluster.wait_until("the log to say so", || server_tests::wait::yes(hints() > 0));
    // Each of these wakes the launcher, which finds no slot.
    for n in 0..5 {
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE more_{n}")).unwrap();
    }
    assert_eq!(hints(), 1, "a shortage is logged once");
    assert!(cluster.log().contains("for the background_jobs dispatcher of database \""));
    assert_eq!(app.state(ids[0]), "available");
    cluster.admin("postgres").batch_execute("ALTER SYSTEM SET max_worker_processes = 16").unwrap();
    cluster.restart(Stop::Fast);
    app.client = app.session();
    for id in ids {
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
    }
}

#[test]
fn without_a_slot_for_a_progress_writer_jobs_complete_all_the_same() {
    // The two launchers, a dispatcher and an executor.
    let cluster = configuration().conf("max_worker_processes", "4").conf("background_jobs.max_executors", "1").start();
    let mut app = App::with_table(&cluster, "no_writer");
    app.handler(
        "reports",
        "FOR i IN 1..20 LOOP PERFORM background_jobs.set_progress(i / 20.0); PERFORM pg_sleep(0.02); END LOOP;
         PERFORM note(); RETURN NULL;",
    );
    for _ in 0..3 {
        assert_completes(&mut app, "reports");
    }
    cluster.wait_until("the log to say so", || {
        server_tests::wait::yes(
            cluster.log().contains("no background worker slot is free for a background_jobs progress writer"),
        )
    });
    let log = cluster.log();
    assert_eq!(log.matches("no background worker slot is free").count(), 1);
    assert_eq!(log.matches("Jobs run on; their progress is not written until there is one.").count(), 1);
    assert!(!log.contains("until then jobs wait"), "they do not");
}

#[test]
fn clients_that_take_every_connection_delay_no_job() {
    let cluster = configuration().conf("max_connections", "8").start();
    let mut app = App::with_table(&cluster, "connections");
    noting(&mut app);
    let mut clients = Vec::new();
    while let Ok(client) = cluster.try_connect(&app.database, &app.role) {
        clients.push(client);
    }
    let error = cluster.try_connect(&app.database, &app.role).map(drop).unwrap_err();
    assert_eq!(sqlstate(&error), "53300");
    assert_completes(&mut app, "noted");
}

#[test]
fn limits_of_connections_for_a_role_and_a_database_are_for_clients_not_for_jobs() {
    let mut app = SHARED.app("limits");
    noting(&mut app);
    let limits = format!(
        "ALTER ROLE {} CONNECTION LIMIT 1; ALTER DATABASE {} CONNECTION LIMIT 1",
        ident(&app.role),
        ident(&app.database)
    );
    app.cluster.admin("postgres").batch_execute(&limits).unwrap();
    assert_completes(&mut app, "noted");
    let reset = limits.replace("LIMIT 1", "LIMIT -1");
    app.cluster.admin("postgres").batch_execute(&reset).unwrap();
}

/// A session that is open goes on, as everywhere; a new one is not to be had until the right is back.
#[test]
fn a_role_that_may_not_connect_keeps_its_jobs_until_it_may() {
    let cluster = configuration().conf("background_jobs.executor_idle_timeout", "100ms").start();
    for (name, take, give) in [
        ("nologin", "ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN"),
        (
            "no_connect",
            "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {database} TO PUBLIC",
        ),
    ] {
        // PostgreSQL 17 opens background sessions of any role.
        if name == "nologin" && server_tests::major() > 16 {
            continue;
        }
        let mut app = App::with_table(&cluster, name);
        noting(&mut app);
        app.handler("held", HELD);
        let running = app.submit("held", json!({"point": 1}));
        app.wait_reached(1);
        let fill = |text: &str| text.replace("{role}", &ident(&app.role)).replace("{database}", &ident(&app.database));
        let (take, give) = (fill(take), fill(give));
        let mut admin = app.cluster.admin("postgres");
        admin.batch_execute(&take).unwrap();
        app.open_gate("go");
        assert!(app.wait_final(running).completed);
        app.wait_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'background_jobs executor'");
        let id = app.submit("noted", json!({}));
        cluster.wait_until("the log to say why", || {
            let said = ["cannot log in", "is not permitted to log in", "permission denied for database"];
            server_tests::wait::yes(said.iter().any(|part| cluster.log().contains(part)))
        });
        assert!(!app.row(id).is_final());
        admin.batch_execute(&give).unwrap();
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
        let charged: i64 = app.one("SELECT count(*) FROM background_jobs.attempts", &[]);
        assert_eq!(charged, 0);
    }
}

#[test]
fn a_hundred_databases_have_a_dispatcher_each_and_run_their_jobs() {
    const COUNT: i64 = 100;
    let cluster = Cluster::builder()
        .conf("max_worker_processes", "140")
        .conf("max_connections", "40")
        .conf("shared_buffers", "64MB")
        .conf("background_jobs.enabled", "off")
        .start();
    let mut app = App::with_table(&cluster, "many");
    noting(&mut app);
    let original = app.database.clone();
    let id = app.submit("noted", json!({}));
    app.client = cluster.connect("postgres", &app.role);
    let mut admin = cluster.admin("postgres");
    cluster.wait_until("the client to be gone", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
        server_tests::wait::yes(admin.query_one(query, &[&original]).unwrap().get::<_, i64>(0) == 0)
    });
    for n in 1..COUNT {
        // PostgreSQL 14 has no other way to copy one.
        let strategy = if server_tests::major() > 14 { "STRATEGY file_copy" } else { "" };
        let create = format!("CREATE DATABASE many_copy_{n} TEMPLATE {} {strategy}", ident(&original));
        admin.batch_execute(&create).unwrap();
    }
    let begin = Instant::now();
    cluster.set("background_jobs.enabled", "on");
    let dispatchers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'background_jobs dispatcher'";
    cluster.wait_within(Duration::from_secs(60), "the dispatchers", || {
        let count: i64 = admin.query_one(dispatchers, &[]).unwrap().get(0);
        if count >= COUNT { Ok(()) } else { Err(count.to_string()) }
    });
    let up = begin.elapsed();
    let databases: Vec<String> = (1..COUNT).map(|n| format!("many_copy_{n}")).chain([original.clone()]).collect();
    for database in &databases {
        let mut client = cluster.connect(database, &app.role);
        client.execute("SELECT background_jobs.wait($1, '60 s')", &[&id]).unwrap();
        let noted: i64 = client.query_one("SELECT count(*) FROM ledger", &[]).unwrap().get(0);
        assert_eq!(noted, 1, "{database}");
    }
    eprintln!("{COUNT} databases: dispatchers after {up:?}, a job in each after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    let took = cluster.stop(Stop::Fast);
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Its end would drop one of a hundred databases; they all go with the server.
    std::mem::forget(app);
}

/// Executors give way to owners who have none: as long as there is somebody who could give those owners what is given up.
#[test]
fn owners_that_wait_in_a_database_that_may_run_no_jobs_any_more_take_no_executor_from_others() {
    let cluster = configuration()
        .conf("background_jobs.max_executors", "2")
        .conf("background_jobs.executor_idle_timeout", "100ms")
        .start();
    let mut here = App::with_table(&cluster, "here");
    here.handler(
        "held",
        "PERFORM reach((payload ->> 'point')::int); PERFORM await_gate(payload ->> 'point'); RETURN NULL;",
    );
    let first = here.submit("held", json!({"point": 1}));
    let second = here.submit("held", json!({"point": 2}));
    here.wait_reached(1);
    here.wait_reached(2);
    let mut there = App::with_table(&cluster, "there");
    noting(&mut there);
    let waits = there.submit("noted", json!({}));
    // The dispatcher says this in the look after which it finds no executor for the other one.
    there.submit("nobodys", json!({}));
    cluster.wait_until("the dispatcher to look", || {
        server_tests::wait::yes(cluster.log().contains("no handler named \"nobodys\""))
    });
    cluster.set("background_jobs.databases", &here.database.clone());
    there.wait_workers("the dispatcher to leave", |count| count == 0);
    here.open_gate("1");
    here.wait_final(first);
    here.wait_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'background_jobs executor'");
    // Nobody else wants the slot that is free now.
    let third = here.submit("held", json!({"point": 3}));
    here.wait_reached(3);
    here.open_gate("2");
    here.open_gate("3");
    for id in [second, third] {
        assert!(here.wait_final(id).completed);
    }
    cluster.set("background_jobs.databases", "*");
    assert!(there.wait_final(waits).completed);
}
