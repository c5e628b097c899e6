//! An idle executor is woken before a single job is committed, and nothing depends on it.

use server_tests::postgres::error::SqlState;
use server_tests::wait::{attempt, yes};
use server_tests::{App, Cluster, Uuid, json, naps};
use std::time::Duration;

const INSERT: &str = "INSERT INTO background_jobs (id, payload) VALUES ($1, '{\"handler\": \"noted\"}')";

/// Sessions that ask for it wait with their commits for a standby that does not exist. One executor.
fn cluster() -> Cluster {
    let settings = [
        ("synchronous_standby_names", "nobody"),
        ("synchronous_commit", "local"),
        ("background_jobs.poll_interval", "1min"),
        ("background_jobs.max_executors", "1"),
    ];
    settings.into_iter().fold(Cluster::builder(), |builder, (name, value)| builder.conf(name, value)).start()
}

fn app(cluster: &Cluster) -> App<'_> {
    let mut app = App::with_table(cluster, "app");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    app
}

/// Runs some jobs, and waits until the executor has nothing left to do, not even its counts to write.
fn idle_executor(app: &mut App) -> u32 {
    for _ in 0..20 {
        let id = app.submit("noted", json!({}));
        app.wait_final(id);
    }
    app.wait_true("SELECT coalesce(sum(completed), 0) = (SELECT count(*) FROM background_jobs) FROM background_jobs.handler_stats");
    app.wait_asleep(&app.pids("dispatcher"));
    let pids = app.pids("executor");
    app.wait_asleep(&pids);
    pids[0]
}

#[test]
fn an_executor_is_woken_before_the_commit_and_sleeps_again_when_that_takes_long() {
    let cluster = cluster();
    let mut app = app(&cluster);
    // It is left alone where other processes have made commits slow, so one try may not be enough.
    let woken = (0..10).any(|_| {
        let executor = idle_executor(&mut app);
        let before = naps(executor);
        let (mut session, id) = (app.session(), Uuid::new_v4());
        let inserting = std::thread::spawn(move || {
            session.batch_execute("SET synchronous_commit = on")?;
            session.execute(INSERT, &[&id])
        });
        app.wait_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        let woken = attempt(Duration::from_secs(2), "the executor to wake up", || yes(naps(executor) > before)).is_ok();
        app.wait_asleep(&[executor]);
        assert_eq!((app.find(id).is_none(), app.noted(id)), (true, 0));
        // It commits then, and says that it did not wait.
        app.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        assert_eq!(inserting.join().unwrap_or_else(|_| panic!("inserting")).unwrap_or_else(|e| panic!("{e:?}")), 1);
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
        woken
    });
    assert!(woken);
}

#[test]
fn an_executor_that_was_woken_for_a_commit_that_fails_runs_nothing_and_then_the_next_job() {
    let cluster = cluster();
    let mut app = app(&cluster);
    app.sql("CREATE TABLE skew (n int)");
    for _ in 0..3 {
        idle_executor(&mut app);
        let (mut one, mut other, id) = (app.session(), app.session(), Uuid::new_v4());
        for session in [&mut one, &mut other] {
            let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM skew; INSERT INTO skew VALUES (1)";
            session.batch_execute(begin).unwrap_or_else(|e| panic!("{begin}: {e:?}"));
        }
        one.execute(INSERT, &[&id]).unwrap_or_else(|e| panic!("{INSERT}: {e:?}"));
        other.batch_execute("COMMIT").unwrap_or_else(|e| panic!("commit: {e:?}"));
        let failed = one.batch_execute("COMMIT").map_err(|error| error.code().cloned());
        assert_eq!(failed, Err(Some(SqlState::T_R_SERIALIZATION_FAILURE)));
        let next = app.submit("noted", json!({}));
        assert!(app.wait_final(next).completed);
        assert_eq!((app.find(id).is_none(), app.noted(id), app.noted(next)), (true, 0, 1));
    }
}
