//! What an administrator can turn, each on a server of its own.

use server_tests::tenant::owner;
use server_tests::wait::yes;
use server_tests::{App, Cluster, Signal, Uuid, ident, json};

#[test]
fn not_preloaded() {
    let cluster = Cluster::builder().plain().start();
    let error = cluster.admin("postgres").batch_execute("CREATE EXTENSION background_jobs").unwrap_err();
    let error = error.as_db_error().unwrap();
    let hint = error.hint().unwrap_or("");
    assert!(hint.contains("shared_preload_libraries") && hint.contains("background_jobs"), "{error:?}");
    assert_eq!(error.code().code(), "55000");
}

#[test]
fn off_lets_running_jobs_finish_and_queues_the_others() {
    let cluster = Cluster::builder().start();
    let mut app = App::with_table(&cluster, "off");
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    let running = app.submit("held", json!({}));
    app.wait_reached(1);
    cluster.set("background_jobs.enabled", "off");
    let waiting: Vec<Uuid> = (0..5).map(|_| app.submit("held", json!({}))).collect();
    app.open_gate("go");
    assert!(app.wait_final(running).completed);
    let queued = "SELECT count(*) FROM background_jobs.queue WHERE state = 'available'";
    assert_eq!(app.one::<i64>(queued, &[]), 5);
    cluster.set("background_jobs.enabled", "on");
    for id in waiting {
        assert!(app.wait_final(id).completed);
    }
}

#[test]
fn only_the_named_databases_run_jobs() {
    let cluster = Cluster::builder().conf("background_jobs.databases", "production, other").start();
    let mut app = App::with_table(&cluster, "restored_copy");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let id = app.submit("noted", json!({}));
    assert_eq!(app.state(id), "available");
    cluster.set("background_jobs.databases", &format!("production, {}", app.database));
    assert!(app.wait_final(id).completed);
    cluster.set("background_jobs.databases", "production");
    cluster.wait_until("the workers to leave", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type LIKE 'background_jobs%'";
        let left: i64 = cluster.admin("postgres").query_one(query, &[&app.database]).unwrap().get(0);
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    });
    let id = app.submit("noted", json!({}));
    assert_eq!(app.state(id), "available");
}

/// No process can be had: that is said once, and the job waits.
#[test]
fn out_of_worker_slots() {
    // Room for the launchers (ours and that of logical replication) and for one dispatcher.
    let cluster =
        Cluster::builder().conf("max_worker_processes", "3").conf("background_jobs.poll_interval", "50ms").start();
    let mut app = App::with_table(&cluster, "slots");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let id = app.submit("noted", json!({}));
    let hints =
        || cluster.log().lines().filter(|line| line.contains("HINT") && line.contains("max_worker_processes")).count();
    cluster.wait_until("the log to say so", || server_tests::wait::yes(hints() > 0));
    // Each of these wakes the dispatcher, which finds no slot.
    for _ in 0..50 {
        app.submit("noted", json!({}));
    }
    assert_eq!(hints(), 1, "a shortage is logged once");
    assert!(!app.row(id).is_final());
    assert_eq!(app.noted(id), 0);

    let mut admin = cluster.admin("postgres");
    admin.batch_execute("ALTER SYSTEM SET max_worker_processes = 16").unwrap();
    cluster.restart(server_tests::Stop::Fast);
    assert_eq!(hints(), 1, "until the end");
    app.client = app.session();
    assert!(app.wait_final(id).completed);
    app.wait_drained(std::time::Duration::from_secs(30));
}

#[test]
fn max_executors_bounds_the_whole_server() {
    let cluster = Cluster::builder().conf("background_jobs.max_executors", "2").start();
    let mut apps = [App::with_table(&cluster, "one"), App::with_table(&cluster, "two")];
    for app in &mut apps {
        app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
        for _ in 0..3 {
            app.submit("held", json!({}));
        }
    }
    let running = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'background_jobs executor'";
    let mut admin = cluster.admin("postgres");
    cluster.wait_until("two executors", || {
        let count: i64 = admin.query_one(running, &[]).unwrap().get(0);
        if count == 2 { Ok(()) } else { Err(count.to_string()) }
    });
    for app in &mut apps {
        app.open_gate("go");
    }
    for app in &mut apps {
        app.wait_drained(std::time::Duration::from_secs(30));
        let count: i64 = admin.query_one(running, &[]).unwrap().get(0);
        assert!(count <= 2);
    }
}

#[test]
fn idle_executors_leave() {
    let cluster = Cluster::builder().conf("background_jobs.executor_idle_timeout", "200ms").start();
    let mut app = App::with_table(&cluster, "idle");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    for _ in 0..2 {
        let id = app.submit("noted", json!({}));
        assert!(app.wait_final(id).completed);
        app.wait_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'background_jobs executor'");
    }
}

/// At rest nothing holds anything: no transaction, no lock, no temporary schema in use (I13).
#[test]
fn idle_workers_hold_nothing() {
    let cluster = Cluster::builder().start();
    let mut app = App::with_table(&cluster, "rest");
    app.handler("noted", "PERFORM background_jobs.set_progress(0.5); PERFORM note(); RETURN NULL;");
    let ids: Vec<Uuid> = (0..20).map(|_| app.submit("noted", json!({}))).collect();
    for id in ids {
        app.wait_final(id);
    }
    let mut admin = app.admin();
    cluster.wait_until("the workers to be at rest", || {
        let row = admin
            .query_one(
                "SELECT count(*), count(*) FILTER (WHERE backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR xact_start IS NOT NULL),
                    (SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.backend_type LIKE 'background_jobs%'
                        AND l.locktype <> 'virtualxid')
                 FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%'",
                &[],
            )
            .unwrap();
        let (workers, open, locks): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if workers >= 3 && open == 0 && locks == 0 { Ok(()) } else { Err(format!("{workers} {open} {locks}")) }
    });
    let states: Vec<String> = app
        .rows("SELECT role FROM background_jobs.workers GROUP BY role ORDER BY role", &[])
        .iter()
        .map(|r| r.get(0))
        .collect();
    assert!(["dispatcher", "executor", "launcher"].iter().all(|role| states.iter().any(|s| s == role)), "{states:?}");
}

#[test]
fn attempts_are_kept_as_long_as_they_are_to_be() {
    let cluster = Cluster::builder().start();
    let mut app = App::with_table(&cluster, "retention");
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 2, retry_delay => '5 ms'");
    let id = app.submit("fails", json!({}));
    app.wait_final(id);
    let kept = "SELECT count(*) FROM background_jobs.attempts WHERE job_id = $1";
    // Old ones are looked for once a minute, and by every dispatcher that has just started.
    let new_dispatcher = |app: &mut App| {
        let pid = "SELECT pid FROM background_jobs.workers WHERE role = 'dispatcher' AND database = current_database()";
        let former: i32 = app.one(pid, &[]);
        cluster.kill(former.cast_unsigned(), Signal::SIGTERM);
        cluster.wait_until("another dispatcher", || {
            yes(app.rows(pid, &[]).iter().any(|row| row.get::<_, i32>(0) != former))
        });
        // It has begun to work when it hands out a job, and has been through its first round when it hands out the next.
        app.handler("noted", "PERFORM note(); RETURN NULL;");
        for _ in 0..2 {
            let id = app.submit("noted", json!({}));
            app.wait_final(id);
        }
    };
    new_dispatcher(&mut app);
    assert_eq!(app.one::<i64>(kept, &[&id]), 2, "kept for thirty days");
    cluster.set("background_jobs.attempts_retention", "0");
    new_dispatcher(&mut app);
    cluster.wait_until("the attempts to go", || match app.one::<i64>(kept, &[&id]) {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    });
}

#[test]
fn a_superusers_jobs_run_only_while_they_are_allowed() {
    let cluster = Cluster::builder().conf("background_jobs.poll_interval", "100ms").start();
    let mut app = App::with_table(&cluster, "superuser");
    app.handler("names", "RETURN to_jsonb(current_setting('is_superuser'));");
    let role = ident(&app.role);
    app.admin().batch_execute(&format!("ALTER ROLE {role} SUPERUSER")).unwrap();
    app.end_executors();
    let mut ordinary = owner(&app, "ordinary");
    ordinary.handler("fine", "RETURN '1';", "");
    // What is due only after some looks at the queue runs, and this does not.
    let mut refused = |app: &mut App| {
        let id = app.submit("names", json!({}));
        let later: Uuid = ordinary
            .one("SELECT background_jobs.enqueue('fine', run_at => clock_timestamp() + interval '500 ms')", &[]);
        assert_eq!(ordinary.result(&cluster, later), Some(json!(1)));
        assert_eq!(app.state(id), "available");
        id
    };
    let first = refused(&mut app);
    assert!(cluster.log().contains("job tables may not belong to superuser"));
    cluster.set("background_jobs.allow_superuser_jobs", "on");
    assert_eq!(app.wait_final(first).result, Some(json!("on")));
    cluster.set("background_jobs.allow_superuser_jobs", "off");
    refused(&mut app);
}

/// Its session would be as good as the superuser's: RESET SESSION AUTHORIZATION goes by what the role was when it was opened.
#[test]
fn a_session_that_was_opened_as_a_superusers_runs_nothing_more_when_the_role_is_none() {
    let cluster = Cluster::builder()
        .conf("background_jobs.poll_interval", "100ms")
        .conf("background_jobs.allow_superuser_jobs", "on")
        .conf("background_jobs.max_executors", "1")
        .start();
    let mut app = App::with_table(&cluster, "demoted");
    app.handler(
        "climbs",
        "BEGIN
            EXECUTE 'SET SESSION AUTHORIZATION postgres';
         EXCEPTION WHEN insufficient_privilege THEN
            RETURN to_jsonb('no'::text);
         END;
         RETURN to_jsonb(session_user::text);",
    );
    app.handler("pid", "RETURN to_jsonb(pg_backend_pid());");
    let role = ident(&app.role);
    for (kind, climbed) in
        [("SUPERUSER", json!("postgres")), ("NOSUPERUSER", json!("no")), ("SUPERUSER", json!("postgres"))]
    {
        let before = app.submit("pid", json!({}));
        let before = app.wait_final(before).result;
        app.admin().batch_execute(&format!("ALTER ROLE {role} {kind}")).unwrap();
        let id = app.submit("climbs", json!({}));
        assert_eq!(app.wait_final(id).result, Some(climbed), "{kind}");
        let after = app.submit("pid", json!({}));
        assert_ne!(app.wait_final(after).result, before, "another session");
        let charged = "SELECT count(*) FROM background_jobs.attempts";
        assert_eq!(app.one::<i64>(charged, &[]), 0);
    }
}
