//! One suspect of a crash runs at a time in the whole server: for as long as it runs, and no longer, whatever becomes of its database.
//! (`quarantine` has the plain case.)

use server_tests::{App, Cluster, Uuid, json};

fn cluster() -> Cluster {
    Cluster::builder()
        .conf("background_jobs.crash_quarantine", "200ms")
        .conf("background_jobs.poll_interval", "200ms")
        // Room for all at once, and for those who stay a while.
        .conf("background_jobs.max_executors", "8")
        .start()
}

const HELD: &str = "PERFORM reach(1); PERFORM await_gate('go');
    RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));";

/// Two databases with a suspect each, of which one runs and the other one waits for its end.
struct Scene<'a> {
    running: (App<'a>, Uuid),
    waiting: (App<'a>, Uuid),
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster) -> Scene<'a> {
        let mut suspects = ["one", "other"].map(|name| {
            let mut app = App::with_table(cluster, name);
            app.handler("held", HELD);
            app.handler("quick", "RETURN NULL;");
            let id = app.submit("held", json!({}));
            app.wait_reached(1);
            (app, id)
        });
        cluster.crash();
        suspects.iter_mut().for_each(|(app, _)| app.client = app.session());
        for (app, id) in &mut suspects {
            app.wait_true(&format!("SELECT count(*) = 1 FROM background_jobs.attempts WHERE job_id = '{id}'"));
        }
        let first = cluster.wait_until("a suspect to run", || {
            let states: Vec<String> = suspects.iter_mut().map(|(app, id)| app.state(*id)).collect();
            states.iter().position(|state| state == "running").ok_or_else(|| format!("{states:?}"))
        });
        let [one, other] = suspects;
        let (running, waiting) = if first == 0 { (one, other) } else { (other, one) };
        let mut scene = Scene { running, waiting };
        scene.assert_waits();
        scene
    }

    /// Its dispatcher hands out other jobs.
    fn assert_waits(&mut self) {
        let (app, id) = &mut self.waiting;
        for _ in 0..3 {
            let quick = app.submit("quick", json!({}));
            app.wait_final(quick);
            assert_eq!(app.state(*id), "retrying");
        }
    }

    fn assert_runs(self) {
        let (mut app, id) = self.waiting;
        app.open_gate("go");
        assert_eq!(app.wait_final(id).result, Some(json!(2)));
    }
}

#[test]
fn a_suspect_whose_extension_is_dropped_while_it_runs_lets_the_next_one_run() {
    let cluster = cluster();
    let scene = Scene::new(&cluster);
    scene.running.0.admin().batch_execute("DROP EXTENSION background_jobs CASCADE").unwrap();
    scene.assert_runs();
}

#[test]
fn a_suspect_whose_database_is_dropped_while_it_runs_lets_the_next_one_run() {
    let cluster = cluster();
    let Scene { running, waiting } = Scene::new(&cluster);
    // Which ends its sessions, and drops it.
    drop(running.0);
    let (mut app, id) = waiting;
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!(2)));
}

#[test]
fn a_suspect_whose_database_may_run_no_jobs_any_more_lets_the_next_one_run_when_it_has_ended() {
    let cluster = cluster();
    let mut scene = Scene::new(&cluster);
    cluster.set("background_jobs.databases", &scene.waiting.0.database.clone());
    // It runs on, and is still the only one.
    scene.running.0.wait_workers("the dispatcher to leave", |count| count == 1);
    scene.assert_waits();
    let (app, id) = &mut scene.running;
    assert_eq!(app.state(*id), "running");
    app.open_gate("go");
    assert_eq!(app.wait_final(*id).result, Some(json!(2)));
    scene.assert_runs();
}
