//! What a crash makes of several jobs that ran at it: all are suspects, wait, and run one at a time, whoever owns them and in
//! whichever database they are; and of those that did not run: nothing. (`suspects.rs` has the second crash.)

use server_tests::tenant::{self, Tenant};
use server_tests::{App, Builder, Cluster, Signal, Uuid, json};

fn configuration(quarantine: &str) -> Builder {
    Cluster::builder()
        .conf("background_jobs.crash_quarantine", quarantine)
        .conf("background_jobs.poll_interval", "200ms")
        // Room for all at once: it is not for want of it that they run one at a time.
        .conf("background_jobs.max_executors", "10")
}

/// Runs until there is a gate that is called as its job, and writes down from when to when it ran; returns its attempt.
const HELD: &str = "DECLARE began timestamptz := clock_timestamp(); job record; BEGIN
        SELECT * INTO job FROM background_jobs.current_job();
        WHILE NOT EXISTS (SELECT FROM public.gates WHERE name = job.id::text) LOOP PERFORM pg_sleep(0.005); END LOOP;
        INSERT INTO public.spans VALUES (job.id, began, clock_timestamp());
        RETURN to_jsonb(job.attempt);
    END;";

/// Two databases, three owners of job tables in them, and two jobs of each owner that run.
struct Scene<'a> {
    apps: [App<'a>; 2],
    owners: Vec<Tenant>,
    /// With the number of its owner.
    jobs: Vec<(usize, Uuid)>,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster) -> Scene<'a> {
        let mut apps = [App::with_table(cluster, "one"), App::with_table(cluster, "other")];
        for app in &mut apps {
            app.sql(
                "CREATE TABLE spans (job uuid, began timestamptz, ended timestamptz);
                 GRANT INSERT ON spans TO PUBLIC; GRANT SELECT ON gates TO PUBLIC",
            );
        }
        let itself =
            |app: &App| Tenant { role: app.role.clone(), database: app.database.clone(), client: app.session() };
        let mut owners = vec![itself(&apps[0]), tenant::owner(&apps[0], "tenant"), itself(&apps[1])];
        let mut jobs = Vec::new();
        for (number, owner) in owners.iter_mut().enumerate() {
            owner.handler("held", HELD, "");
            owner.handler("quick", "RETURN NULL;", "");
            for _ in 0..2 {
                jobs.push((number, owner.submit("held")));
            }
        }
        let mut scene = Scene { apps, owners, jobs };
        cluster.wait_until("all jobs to run", || match scene.running().len() {
            6 => Ok(()),
            running => Err(format!("{running} run")),
        });
        scene
    }

    fn crash(&mut self) {
        let cluster = self.apps[0].cluster;
        cluster.crash();
        self.apps.iter_mut().for_each(|app| app.client = app.session());
        self.owners.iter_mut().for_each(|owner| owner.client = cluster.connect(&owner.database, &owner.role));
        for (owner, id) in self.jobs.clone() {
            cluster.wait_until("the job to be charged", || match self.attempts(owner, id).len() {
                0 => Err("no attempt".to_owned()),
                _ => Ok(()),
            });
        }
    }

    /// Number and outcome of each attempt that is known.
    fn attempts(&mut self, owner: usize, id: Uuid) -> Vec<(i32, String)> {
        let query = "SELECT attempt, outcome FROM background_jobs.attempts WHERE job_id = $1 ORDER BY attempt";
        let rows = self.owners[owner].client.query(query, &[&id]).unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    fn running(&mut self) -> Vec<(usize, Uuid)> {
        let owners = &mut self.owners;
        let runs = |(owner, id): &&(usize, Uuid)| {
            owners[*owner].one::<bool>("SELECT state = 'running' FROM background_jobs.status($1)", &[id])
        };
        self.jobs.iter().filter(runs).copied().collect()
    }

    /// Whoever may run has been handed out after this: each owner has several times had an executor that was idle.
    fn wait_at_work(&mut self) {
        let cluster = self.apps[0].cluster;
        for _ in 0..4 {
            for owner in &mut self.owners {
                let id = owner.submit("quick");
                owner.result(cluster, id);
            }
        }
    }

    fn open_gate(&mut self, (owner, id): (usize, Uuid)) {
        let database = &self.owners[owner].database;
        let app = self.apps.iter_mut().find(|app| app.database == *database).expect("its database");
        app.open_gate(&id.to_string());
    }

    /// It completes in its second attempt.
    fn check_ends(&mut self, (owner, id): (usize, Uuid)) {
        let cluster = self.apps[0].cluster;
        assert_eq!(self.owners[owner].result(cluster, id), Some(json!(2)));
        assert_eq!(self.attempts(owner, id), [(1, "crashed".to_owned())]);
    }

    fn check_spans(&mut self) {
        let spans = self.spans();
        assert_eq!(spans.len(), self.jobs.len());
        for pair in spans.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "two ran at the same time: {spans:?}");
        }
    }

    /// From when to when the handlers ran that have ended, in microseconds.
    fn spans(&mut self) -> Vec<(i64, i64)> {
        let micros = |column: &str| format!("(extract(epoch FROM {column}) * 1000000)::bigint");
        let query = format!("SELECT {}, {} FROM spans", micros("began"), micros("ended"));
        let rows = self.apps.iter_mut().flat_map(|app| app.rows(&query, &[]));
        let mut spans: Vec<(i64, i64)> = rows.map(|row| (row.get(0), row.get(1))).collect();
        spans.sort_unstable();
        spans
    }
}

#[test]
fn who_ran_at_a_crash_is_charged_one_attempt_and_does_not_run_before_the_quarantine_is_over() {
    let cluster = configuration("1h").start();
    let mut scene = Scene::new(&cluster);
    scene.crash();
    let jobs = scene.jobs.clone();
    // Who ran now would complete.
    jobs.iter().for_each(|job| scene.open_gate(*job));
    scene.wait_at_work();
    for (owner, id) in &jobs {
        assert_eq!(scene.attempts(*owner, *id), [(1, "crashed".to_owned())]);
        let query = "SELECT state, attempts, run_at - now() BETWEEN interval '55 min' AND interval '65 min'
            FROM background_jobs.status($1)";
        let row = scene.owners[*owner].client.query_one(query, &[id]).unwrap();
        assert_eq!((row.get(0), row.get(1), row.get(2)), ("retrying", 1, Some(true)));
    }
    assert_eq!(scene.spans(), []);
    // Whoever knows better ends it, and has them run one at a time all the same.
    for (owner, id) in &jobs {
        assert!(scene.owners[*owner].one::<bool>("SELECT background_jobs.run_now($1)", &[id]));
    }
    jobs.iter().for_each(|job| scene.check_ends(*job));
    scene.check_spans();
}

#[test]
fn no_two_suspects_run_at_the_same_time_in_the_whole_server() {
    let cluster = configuration("200ms").start();
    let mut scene = Scene::new(&cluster);
    scene.crash();
    for (owner, id) in scene.jobs.clone() {
        cluster.wait_until("the quarantine to be over", || {
            let query = "SELECT run_at <= now() FROM background_jobs.status($1)";
            server_tests::wait::yes(scene.owners[owner].one(query, &[&id]))
        });
    }
    for _ in 0..scene.jobs.len() {
        let first =
            cluster.wait_until("a suspect to run", || scene.running().first().copied().ok_or("none".to_owned()));
        scene.wait_at_work();
        assert_eq!(scene.running(), [first], "and nobody beside it");
        scene.open_gate(first);
        scene.check_ends(first);
    }
    scene.check_spans();
}

/// Who has run, and is done, failed, or waits after a conflict, has nothing to do with a crash that comes afterwards.
#[test]
fn a_crash_at_which_no_job_ran_charges_nobody() {
    let cluster = configuration("1h").allow_in_log("was terminated by signal 9").start();
    let mut app = App::with_table(&cluster, "idle");
    app.handler("done", "PERFORM note(); RETURN NULL;");
    app.handler_with("again", "RAISE 'no';", "retry_delay => '1 h', max_retry_delay => '1 h'");
    app.handler(
        "conflict",
        "PERFORM reach(1); PERFORM await_gate('go');
         IF EXISTS (SELECT FROM gates WHERE name = 'peace') THEN
            RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));
         END IF;
         RAISE serialization_failure;",
    );
    let again = app.submit("again", json!({}));
    app.wait_state(again, "retrying");
    let done = app.submit("done", json!({}));
    assert!(app.wait_final(done).completed);
    // It is the last to run, and not handed out again before the crash.
    let conflict = app.submit("conflict", json!({}));
    app.wait_reached(1);
    cluster.set("background_jobs.enabled", "off");
    app.open_gate("go");
    app.wait_state(conflict, "retrying");
    app.wait_true(
        "SELECT count(*) > 0 AND bool_and(state = 'idle') FROM background_jobs.workers WHERE role = 'executor'",
    );
    let known = "SELECT job_id, attempt, outcome FROM background_jobs.attempts ORDER BY finished_at";
    let seen = |app: &mut App| -> Vec<(Uuid, i32, String)> {
        app.rows(known, &[]).iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    let before = [(again, 1, "error".to_owned()), (conflict, 1, "conflict".to_owned())];
    assert_eq!(seen(&mut app), before);
    let run_at = "SELECT run_at::text FROM background_jobs.status($1)";
    let due: String = app.one(run_at, &[&again]);

    let mut victim = app.session();
    let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    cluster.kill(pid.cast_unsigned(), Signal::SIGKILL);
    cluster.wait_until("the server to notice", || match app.client.batch_execute("SELECT 1") {
        Ok(()) => Err("still there".to_owned()),
        Err(_) => Ok(()),
    });
    cluster.wait_until("the server to be back", || {
        app.client = cluster.try_connect(&app.database, &app.role).map_err(|e| e.to_string())?;
        Ok(())
    });
    app.open_gate("peace");
    cluster.set("background_jobs.enabled", "on");
    assert_eq!(app.wait_final(conflict).result, Some(json!(1)), "not in quarantine, and its first attempt");
    assert!(cluster.log().contains("was terminated by signal 9"));
    assert_eq!(seen(&mut app), before);
    assert_eq!((app.state(again), app.one::<String>(run_at, &[&again])), ("retrying".to_owned(), due));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 1);
    assert_eq!(app.noted(done), 1);
}
