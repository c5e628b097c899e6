//! Exactly-once effects: what the handler wrote, the result and the completion commit together or not at all.

use server_tests::{App, Cluster, Group, Signal, Uuid, json};
use std::time::Duration;

static SHARED: Group = Group::new(Cluster::builder);

/// I3: completed without error <=> exactly one ledger row; otherwise none; a result <=> completed.
fn check(app: &mut App) {
    let query = "SELECT j.id, j.completed, j.cancelled, j.result::text, l.n
        FROM background_jobs j CROSS JOIN LATERAL (SELECT count(*) n FROM ledger WHERE job = j.id) l
        WHERE l.n <> (j.completed AND NOT coalesce(j.result ? 'error', false))::int
           OR j.completed = (j.result IS NULL)
           OR j.completed = j.cancelled OR (j.completed AND (j.progress < 1) <> coalesce(j.result ? 'error', false))";
    let offenders: Vec<String> = app
        .rows(query, &[])
        .iter()
        .map(|row| {
            format!("{row:?}: {:?} {:?} {:?}", row.get::<_, Uuid>(0), row.get::<_, bool>(1), row.get::<_, i64>(4))
        })
        .collect();
    assert!(offenders.is_empty(), "{offenders:#?}");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

#[test]
fn effects_of_failed_attempts_are_gone() {
    let mut app = SHARED.app("failed");
    app.handler_with(
        "noted",
        "PERFORM note();
         IF random() < 0.5 THEN RAISE 'no'; END IF;
         BEGIN PERFORM note(); RAISE 'inner'; EXCEPTION WHEN raise_exception THEN NULL; END;
         IF random() < 0.2 THEN PERFORM 1 / 0; END IF;
         RETURN to_jsonb(true);",
        "retry_delay => '5 ms', max_attempts => 3",
    );
    for _ in 0..200 {
        app.submit("noted", json!({}));
    }
    app.wait_drained(Duration::from_secs(60));
    check(&mut app);
    let (good, bad): (i64, i64) = {
        let rows = app.rows("SELECT count(*) FILTER (WHERE NOT result ? 'error'), count(*) FROM background_jobs", &[]);
        (rows[0].get(0), rows[0].get(1))
    };
    assert!(good > 0 && good < bad, "both happened: {good} of {bad}");
}

/// A deferred constraint fails after the handler has returned: the job has failed all the same.
#[test]
fn a_failure_at_commit_is_a_failure() {
    let mut app = SHARED.app("deferred");
    app.sql(
        "CREATE TABLE parent (n int PRIMARY KEY);
         CREATE TABLE child (n int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);",
    );
    app.handler_with(
        "orphan",
        "PERFORM note(); INSERT INTO child VALUES (1); RETURN to_jsonb(true);",
        "max_attempts => 2, retry_delay => '5 ms'",
    );
    app.handler("fine", "PERFORM note(); RETURN to_jsonb(true);");
    let ids: Vec<Uuid> =
        (0..40).map(|n| app.submit(if n % 4 == 0 { "orphan" } else { "fine" }, json!({"n": n}))).collect();
    for (n, id) in ids.into_iter().enumerate() {
        let job = app.wait_final(id);
        if n % 4 == 0 {
            assert_eq!(job.error("sqlstate"), Some(&json!("23503")), "{job:?}");
            assert_eq!(job.error("attempts"), Some(&json!(2)));
        } else {
            assert_eq!(job.result, Some(json!(true)), "a neighbour in the same commit is not harmed");
        }
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM child", &[]), 0);
    check(&mut app);
}

#[test]
fn with_cancels_from_all_sides() {
    let mut app = SHARED.app("cancels");
    app.handler("noted", "PERFORM note(); PERFORM pg_sleep(random() * 0.01); RETURN to_jsonb(true);");
    let ids: Vec<Uuid> = (0..300).map(|_| app.submit("noted", json!({}))).collect();
    let mut canceller = app.session();
    let mut acknowledged = Vec::new();
    for id in ids.iter().rev().step_by(2) {
        let cancel = "UPDATE background_jobs SET cancelled = true WHERE id = $1 AND NOT completed";
        if canceller.execute(cancel, &[id]).unwrap() == 1 {
            acknowledged.push(*id);
        }
    }
    app.wait_drained(Duration::from_secs(60));
    check(&mut app);
    for id in acknowledged {
        assert!(app.row(id).cancelled, "an acknowledged cancel wins");
    }
}

#[test]
fn with_executors_terminated() {
    let mut app = SHARED.app("terminated");
    app.handler_with(
        "noted",
        "PERFORM note(); PERFORM pg_sleep(0.02); RETURN to_jsonb(true);",
        "max_attempts => 50, retry_delay => '5 ms'",
    );
    for _ in 0..200 {
        app.submit("noted", json!({}));
    }
    let mut admin = app.admin();
    for round in 1..=8_i64 {
        app.wait_true(&format!("SELECT count(*) >= {round} * 20 FROM background_jobs WHERE completed"));
        admin
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE backend_type = 'background_jobs executor' AND datname = current_database()",
                &[],
            )
            .unwrap();
    }
    app.wait_drained(Duration::from_secs(60));
    check(&mut app);
    let failed: i64 = app.one("SELECT count(*) FROM background_jobs WHERE result ? 'error'", &[]);
    assert_eq!(failed, 0, "nothing was wrong with these jobs");
}

/// Processes killed outright, and with them the whole server each time, while clients submit.
#[test]
fn with_the_server_crashing() {
    let cluster = Cluster::builder()
        .conf("background_jobs.crash_quarantine", "100ms")
        .allow_in_log("was terminated by signal 9")
        .start();
    let mut app = App::with_table(&cluster, "crashing");
    app.handler_with(
        "noted",
        "PERFORM note(); PERFORM pg_sleep(0.02); RETURN to_jsonb(true);",
        "max_attempts => 50, retry_delay => '5 ms'",
    );
    for round in 0..4 {
        let acknowledged: Vec<Uuid> = (0..40).map(|_| app.submit("noted", json!({"round": round}))).collect();
        app.wait_true("SELECT count(*) > 0 FROM background_jobs.workers WHERE job_id IS NOT NULL");
        if round % 2 == 0 {
            cluster.crash();
        } else {
            let executor =
                "SELECT pid FROM background_jobs.workers WHERE role = 'executor' AND job_id IS NOT NULL LIMIT 1";
            let pid: i32 = app.one(executor, &[]);
            cluster.kill(pid.cast_unsigned(), Signal::SIGKILL);
            cluster.wait_until("the server to notice", || match app.client.batch_execute("SELECT 1") {
                Ok(()) => Err("still there".to_string()),
                Err(_) => Ok(()),
            });
        }
        cluster.wait_until("a session after the crash", || {
            app.client = cluster.try_connect(&app.database, &app.role).map_err(|e| e.to_string())?;
            app.client.batch_execute("SELECT 1").map_err(|e| e.to_string())
        });
        for id in acknowledged {
            assert!(app.find(id).is_some(), "an acknowledged row is there");
        }
    }
    app.wait_drained(Duration::from_secs(90));
    check(&mut app);
    let left: i64 = app.one("SELECT count(*) FROM background_jobs WHERE result ? 'error'", &[]);
    assert_eq!(left, 0, "nothing was wrong with these jobs");
}
