//! Whom the server charges for a crash when that is not plain: a suspect of an earlier crash ran in another database, or a job
//! cannot be charged yet, because somebody has its row in the queue locked. (`restart` has the plain cases.)
//!
//! A database is kept from its suspects by the setting that says where jobs run, and a row is kept locked across a crash by a
//! prepared transaction: so the order of events is the test's.

use server_tests::wait::yes;
use server_tests::{App, Cluster, Signal, Uuid, json};

fn cluster() -> Cluster {
    Cluster::builder()
        .conf("background_jobs.crash_quarantine", "200ms")
        .conf("background_jobs.poll_interval", "300ms")
        // Who is cancelled here is still running when the server crashes.
        .conf("background_jobs.cancel_grace", "60s")
        .conf("max_prepared_transactions", "2")
        .allow_in_log("was terminated by signal 9")
        .start()
}

/// Runs until the gate is open, whoever interrupts it; returns its attempt.
const HELD: &str = "PERFORM reach(1);
    WHILE NOT EXISTS (SELECT FROM gates WHERE name = 'go') LOOP
        BEGIN PERFORM pg_sleep(0.02); EXCEPTION WHEN query_canceled THEN NULL; END;
    END LOOP;
    RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));";

fn application<'a>(cluster: &'a Cluster, name: &str) -> App<'a> {
    let mut app = App::with_table(cluster, name);
    app.handler("held", HELD);
    app.handler("quick", "RETURN NULL;");
    app
}

fn crash(apps: &mut [&mut App]) {
    apps[0].cluster.crash();
    for app in apps {
        app.client = app.session();
    }
}

fn charged(app: &mut App, id: Uuid) -> i64 {
    app.one("SELECT count(*) FROM background_jobs.attempts WHERE job_id = $1 AND outcome = 'crashed'", &[&id])
}

fn wait_charged(app: &mut App, id: Uuid, times: i64) {
    let cluster = app.cluster;
    cluster.wait_until(&format!("{times} crashes to be charged"), || match charged(app, id) {
        seen if seen == times => Ok(()),
        seen => Err(format!("{seen}, {}", app.state(id))),
    });
}

/// The dispatcher of this database has looked for suspects, which comes first, and hands out jobs.
fn wait_at_work(app: &mut App) {
    let id = app.submit("quick", json!({}));
    app.wait_final(id);
}

fn assert_waits_uncharged(app: &mut App, id: Uuid, charged_before: i64) {
    assert_ne!(app.state(id), "running");
    assert_eq!(charged(app, id), charged_before);
}

fn check_ends(app: &mut App, id: Uuid, attempt: i32) {
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!(attempt)));
    assert_eq!(charged(app, id), i64::from(attempt) - 1);
}

/// A job that runs as the suspect of a crash.
fn suspect(app: &mut App) -> Uuid {
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    crash(&mut [app]);
    app.wait_reached(1);
    assert_eq!(charged(app, id), 1);
    id
}

/// A suspect runs in one database, somebody in another when the server crashes for the second time; then jobs may run only here.
struct Scene<'a> {
    here: App<'a>,
    there: App<'a>,
    bystander: Uuid,
    suspect: Uuid,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster, before_the_crash: impl FnOnce(&mut App, Uuid)) -> Scene<'a> {
        let mut there = application(cluster, "there");
        let suspect = suspect(&mut there);
        let mut here = application(cluster, "here");
        let bystander = here.submit("held", json!({}));
        here.wait_reached(1);
        before_the_crash(&mut there, suspect);
        // Read when the server starts again.
        let only_here = format!("ALTER SYSTEM SET background_jobs.databases = '{}'", here.database);
        cluster.admin("postgres").batch_execute(&only_here).unwrap();
        crash(&mut [&mut here, &mut there]);
        Scene { here, there, bystander, suspect }
    }

    fn may_run_there(&self) {
        self.here.cluster.set("background_jobs.databases", "*");
    }
}

#[test]
fn a_job_whose_process_crashes_beside_a_suspect_is_charged_and_the_suspect_is_not() {
    let cluster = cluster();
    let mut app = application(&cluster, "culprit");
    let innocent = suspect(&mut app);
    app.handler("fatal", "PERFORM reach(2); PERFORM await_gate('never'); RETURN NULL;");
    let culprit = app.submit("fatal", json!({}));
    app.wait_reached(2);
    let executor: i32 = app.one("SELECT pid FROM background_jobs.workers WHERE job_id = $1", &[&culprit]);
    cluster.kill(executor.cast_unsigned(), Signal::SIGKILL);
    cluster.wait_until("the server to notice", || yes(app.client.batch_execute("SELECT 1").is_err()));
    cluster.wait_until("the server to be back", || {
        app.client = cluster.try_connect(&app.database, &app.role).map_err(|e| e.to_string())?;
        Ok(())
    });
    wait_charged(&mut app, culprit, 1);
    // Both are suspects now, and run one after the other.
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&culprit]);
    check_ends(&mut app, innocent, 2);
}

#[test]
fn who_ran_beside_a_suspect_of_another_database_waits_for_its_charge_and_is_not_charged() {
    let cluster = cluster();
    let mut scene = Scene::new(&cluster, |_, _| ());
    wait_at_work(&mut scene.here);
    assert_waits_uncharged(&mut scene.here, scene.bystander, 0);
    scene.may_run_there();
    wait_charged(&mut scene.there, scene.suspect, 2);
    check_ends(&mut scene.here, scene.bystander, 1);
    check_ends(&mut scene.there, scene.suspect, 3);
}

#[test]
fn who_ran_beside_a_suspect_of_another_database_is_charged_if_that_one_was_cancelled() {
    let cluster = cluster();
    let mut scene = Scene::new(&cluster, |there, suspect| {
        assert_eq!(there.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&suspect]), 1);
    });
    wait_at_work(&mut scene.here);
    assert_waits_uncharged(&mut scene.here, scene.bystander, 0);
    scene.may_run_there();
    wait_charged(&mut scene.here, scene.bystander, 1);
    check_ends(&mut scene.here, scene.bystander, 2);
    assert!(scene.there.row(scene.suspect).cancelled);
    assert_eq!(charged(&mut scene.there, scene.suspect), 1);
}

#[test]
fn who_ran_beside_a_suspect_does_not_wait_for_ever_for_a_database_where_nothing_runs() {
    let cluster = cluster();
    let mut scene = Scene::new(&cluster, |_, _| ());
    check_ends(&mut scene.here, scene.bystander, 1);
    assert_eq!(charged(&mut scene.there, scene.suspect), 1);
    // Late, but not forgotten.
    scene.may_run_there();
    wait_charged(&mut scene.there, scene.suspect, 2);
    check_ends(&mut scene.there, scene.suspect, 3);
}

/// Locks the job's row in the queue until `release`, across a crash.
fn lock(app: &mut App, id: Uuid) {
    app.sql(&format!("BEGIN; SELECT background_jobs.run_now('{id}'); PREPARE TRANSACTION 'lock'"));
}

fn release(app: &mut App) {
    app.sql("ROLLBACK PREPARED 'lock'");
}

#[test]
fn a_job_whose_row_in_the_queue_is_locked_is_charged_before_it_runs_again() {
    let cluster = cluster();
    let mut app = application(&cluster, "locked");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    lock(&mut app, id);
    crash(&mut [&mut app]);
    // Others are not held up; it has been there for longer, and would have gone first.
    for _ in 0..3 {
        wait_at_work(&mut app);
        assert_waits_uncharged(&mut app, id, 0);
    }
    release(&mut app);
    wait_charged(&mut app, id, 1);
    check_ends(&mut app, id, 2);
}

#[test]
fn who_ran_beside_a_suspect_that_is_locked_does_not_wait_for_ever_and_the_suspect_is_charged_in_the_end() {
    let cluster = cluster();
    let mut app = application(&cluster, "beside");
    let suspect = suspect(&mut app);
    let bystander = app.submit("held", json!({}));
    app.wait_state(bystander, "running");
    lock(&mut app, suspect);
    crash(&mut [&mut app]);
    check_ends(&mut app, bystander, 1);
    assert_waits_uncharged(&mut app, suspect, 1);
    release(&mut app);
    wait_charged(&mut app, suspect, 2);
    check_ends(&mut app, suspect, 3);
}
