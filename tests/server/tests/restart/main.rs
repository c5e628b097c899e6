//! Stops, restarts and crashes, of the server and of single workers, with jobs queued and running.

mod poison;
mod prepared;

use server_tests::{App, Builder, Cluster, Signal, Stop, Uuid, json};
use std::time::Duration;

fn configuration() -> Builder {
    Cluster::builder().conf("background_jobs.crash_quarantine", "200ms")
}

/// Notes itself and says where it is; sleeps for ten minutes or until the gate is open; returns its attempt.
const SLEEPER: &str = "PERFORM note(); PERFORM reach(1);
    FOR i IN 1..12000 LOOP
        EXIT WHEN EXISTS (SELECT FROM gates WHERE name = 'awake');
        PERFORM pg_sleep(0.05);
    END LOOP;
    RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));";

struct Scene<'a> {
    app: App<'a>,
    running: Uuid,
    scheduled: Uuid,
    unhandled: Uuid,
    waiting: Vec<Uuid>,
}

/// One job asleep, some waiting behind it, one scheduled, one unhandled.
fn scene<'a>(cluster: &'a Cluster, name: &str) -> Scene<'a> {
    let mut app = App::with_table(cluster, name);
    app.handler_with("sleeper", SLEEPER, "concurrency => 1");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let running = app.submit("sleeper", json!({}));
    app.wait_reached(1);
    let waiting = (0..5).map(|_| app.submit("sleeper", json!({}))).collect();
    let scheduled = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
    let unhandled = app.submit("later", json!({}));
    Scene { app, running, scheduled, unhandled, waiting }
}

impl Scene<'_> {
    /// After the restart: everything is still there, and nobody has lost an attempt but by a crash.
    fn check(mut self, attempt_of_running: i32) {
        let app = &mut self.app;
        app.client = app.session();
        app.open_gate("awake");
        assert_eq!(app.wait_final(self.running).result, Some(json!(attempt_of_running)));
        for id in &self.waiting {
            assert_eq!(app.wait_final(*id).result, Some(json!(1)));
        }
        app.wait_state(self.scheduled, "scheduled");
        app.wait_state(self.unhandled, "unhandled");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 2);
        app.handler("later", "PERFORM note(); RETURN NULL;");
        app.execute("SELECT background_jobs.run_now($1)", &[&self.scheduled]);
        for id in [self.scheduled, self.unhandled] {
            assert!(app.wait_final(id).completed);
        }
        let twice: i64 = app.one("SELECT count(*) - count(DISTINCT job) FROM ledger", &[]);
        assert_eq!(twice, 0);
        let lost: i64 = app.one("SELECT count(*) FROM background_jobs.attempts", &[]);
        assert_eq!(lost, i64::from(attempt_of_running - 1));
    }
}

#[test]
fn a_fast_stop_is_fast_and_loses_nothing() {
    let cluster = configuration().start();
    let scene = scene(&cluster, "fast");
    let took = cluster.stop(Stop::Fast);
    assert!(took < Duration::from_secs(3), "{took:?}");
    cluster.start();
    scene.check(1);
}

#[test]
fn a_smart_stop_waits_for_no_worker() {
    let cluster = configuration().start();
    let mut scene = scene(&cluster, "smart");
    // It waits for clients, as everywhere; ours are gone with their connections.
    scene.app.client = cluster.connect("postgres", &scene.app.role);
    let pid = cluster.postmaster_pid();
    cluster.kill(pid, Signal::SIGTERM);
    scene.app.client.batch_execute("SELECT 1").unwrap();
    scene.app.client.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").unwrap_err();
    let took = cluster.stop(Stop::Smart);
    assert!(took < Duration::from_secs(10), "{took:?}");
    cluster.start();
    scene.check(1);
}

/// An immediate stop is a crash to whatever ran: it is charged an attempt, so that a job that kills servers ends.
#[test]
fn an_immediate_stop_charges_what_was_running() {
    let cluster = configuration().start();
    let scene = scene(&cluster, "immediate");
    cluster.stop(Stop::Immediate);
    cluster.start();
    scene.check(2);
}

#[test]
fn a_crash_charges_what_was_running() {
    let cluster = configuration().start();
    let scene = scene(&cluster, "crash");
    cluster.crash();
    let mut app = cluster.connect(&scene.app.database, &scene.app.role);
    cluster.wait_until("the attempt to be charged", || {
        let query = "SELECT count(*) FROM background_jobs.attempts WHERE job_id = $1 AND outcome = 'crashed'";
        let count: i64 = app.query_one(query, &[&scene.running]).unwrap().get(0);
        if count == 1 { Ok(()) } else { Err(count.to_string()) }
    });
    scene.check(2);
}

/// Only one suspect runs at a time, so it alone is accused when the server crashes again; but somebody has cancelled this one.
#[test]
fn a_crash_under_a_suspect_that_was_cancelled_charges_who_ran_beside_it() {
    let cluster = configuration().conf("background_jobs.cancel_grace", "60s").start();
    let mut app = App::with_table(&cluster, "beside");
    app.handler(
        "stubborn",
        "LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; RETURN NULL;",
    );
    let running = |app: &mut App, id: Uuid| app.wait_state(id, "running");
    let suspect = app.submit("stubborn", json!({}));
    running(&mut app, suspect);
    cluster.crash();
    app.client = cluster.connect(&app.database, &app.role);
    running(&mut app, suspect);
    let beside = app.submit("stubborn", json!({}));
    running(&mut app, beside);
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&suspect]);
    cluster.crash();
    app.client = cluster.connect(&app.database, &app.role);
    let charged = "SELECT outcome = 'crashed' AND attempt = 1 FROM background_jobs.attempts WHERE job_id = $1";
    cluster.wait_until("the attempt to be charged", || {
        let rows = app.rows(charged, &[&beside]);
        if rows.len() == 1 && rows[0].get::<_, bool>(0) { Ok(()) } else { Err(format!("{} attempts", rows.len())) }
    });
    app.execute("UPDATE background_jobs SET cancelled = true", &[]);
}

#[test]
fn what_was_acknowledged_survives_a_crash() {
    let cluster = configuration().start();
    let mut app = App::with_table(&cluster, "acknowledged");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let ids: Vec<Uuid> = (0..200).map(|_| app.submit("noted", json!({}))).collect();
    cluster.crash();
    app.client = app.session();
    app.wait_drained(Duration::from_secs(60));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE completed", &[]), 200);
    for id in ids {
        assert_eq!(app.noted(id), 1);
    }
}

/// Workers come back by themselves, whoever ended them.
#[test]
fn single_workers_are_replaced() {
    let cluster = configuration().start();
    let mut app = App::with_table(&cluster, "workers");
    app.handler("noted", "PERFORM background_jobs.set_progress(0.5); PERFORM note(); RETURN NULL;");
    let id = app.submit("noted", json!({}));
    app.wait_final(id);
    let mut admin = app.admin();
    for kind in ["launcher", "dispatcher", "executor", "progress writer"] {
        let query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background_jobs ' || $1";
        for row in admin.query(query, &[&kind]).unwrap() {
            let pid: i32 = row.get(0);
            cluster.kill(pid.cast_unsigned(), Signal::SIGTERM);
            cluster.wait_until("it to be gone", || {
                let query = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
                server_tests::wait::yes(admin.query_one(query, &[&pid]).unwrap().get::<_, i64>(0) == 0)
            });
        }
        let id = app.submit("noted", json!({}));
        assert!(app.wait_final(id).completed, "after the end of the {kind}");
        assert_eq!(app.noted(id), 1);
    }
    let launchers = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'background_jobs launcher'";
    cluster.wait_until("one launcher", || server_tests::wait::yes(admin.query_one(launchers, &[]).unwrap().get(0)));
}

#[test]
fn settings_change_while_jobs_run() {
    let cluster = configuration().conf("background_jobs.retry_delay", "10ms").start();
    let mut scene = scene(&cluster, "reload");
    scene.app.handler("fails", "RAISE 'no';");
    let id = scene.app.submit("fails", json!({}));
    assert_eq!(scene.app.wait_final(id).error("attempts"), Some(&json!(5)));
    cluster.set("background_jobs.poll_interval", "100ms");
    cluster.set("background_jobs.max_attempts", "7");
    // Each process reads them when it comes to it.
    cluster.wait_until("a job to have as many attempts", || {
        let id = scene.app.submit("fails", json!({}));
        match scene.app.wait_final(id).error("attempts") {
            Some(attempts) if attempts == 7 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let id = scene.app.submit("fails", json!({}));
    assert_eq!(scene.app.wait_final(id).error("attempts"), Some(&json!(7)));
    assert_eq!(scene.app.state(scene.running), "running");
}
