//! A session that commits a single job hands it to an idle executor itself, as long as the dispatcher is quiet. Here the dispatcher
//! stands still, so that nobody else can have done it.

use server_tests::app::{submission, with_handler};
use server_tests::{App, Builder, Cluster, Group, Still, Uuid, ident, json};

/// As many executors as the tests want at once: none has to give way to another's.
static SHARED: Group = Group::new(|| {
    let settings = [("poll_interval", "1min"), ("max_executors", "8")];
    let with = |builder: Builder, (name, value)| builder.conf(&format!("background_jobs.{name}"), value);
    settings.into_iter().fold(Cluster::builder(), with).conf("max_worker_processes", "32")
});

const HELD: &str = "PERFORM note(); PERFORM reach((payload ->> 'n')::int); PERFORM await_gate('go'); RETURN NULL;";

/// The dispatcher, standing still in its sleep until this is dropped.
fn still_dispatcher<'a>(app: &App<'a>) -> Still<'a> {
    let pids = app.pids("dispatcher");
    app.wait_asleep(&pids);
    Still::new(app.cluster, pids[0])
}

/// So many executors are there.
fn scene(name: &str, executors: usize) -> App<'static> {
    let mut app = SHARED.app(name);
    app.handler("noted", "PERFORM note(); RETURN payload -> 'n';");
    app.handler("held", HELD);
    let held: Vec<Uuid> = (0..executors).map(|n| app.submit("held", json!({"n": n}))).collect();
    for n in 0..executors {
        app.wait_reached(n as i32);
    }
    app.open_gate("go");
    for id in held {
        app.wait_final(id);
    }
    app.sql("DELETE FROM gates");
    app
}

/// A job runs at once, if one of the executors is idle that are not at work for long.
fn runs(app: &mut App) -> Uuid {
    let executors = app.pids("executor");
    app.wait_asleep(&executors);
    let id = app.submit("noted", json!({"n": 7}));
    assert_eq!(app.wait_final(id).result, Some(json!(7)));
    assert_eq!(app.noted(id), 1);
    id
}

#[test]
fn single_jobs_run_while_the_dispatcher_stands_still_and_it_counts_them_later() {
    let mut app = scene("still", 1);
    let still = still_dispatcher(&app);
    for _ in 0..10 {
        runs(&mut app);
    }
    drop(still);
    // It is as able as before to hand out what comes together.
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"noted\"}' FROM generate_series(1, 200)");
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    app.wait_true("SELECT sum(completed) = 211 FROM background_jobs.handler_stats");
    assert_eq!(app.one::<i64>("SELECT count(DISTINCT job) FROM ledger", &[]), 211);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 211);
}

#[test]
fn a_job_of_a_handler_that_may_run_only_so_often_at_once_waits_for_the_dispatcher() {
    let mut app = scene("limited", 1);
    app.handler_with("limited", "PERFORM note(); RETURN NULL;", "concurrency => 1");
    // The registration is known to the dispatcher.
    let id = app.submit("limited", json!({}));
    app.wait_final(id);
    let still = still_dispatcher(&app);
    let id = app.submit("limited", json!({}));
    runs(&mut app);
    assert_eq!((app.row(id).completed, app.noted(id)), (false, 0));
    drop(still);
    assert!(app.wait_final(id).completed);
}

#[test]
fn a_job_that_was_inserted_before_its_handler_got_a_limit_waits_for_the_dispatcher() {
    let mut app = scene("limited_later", 1);
    app.handler("limited", "PERFORM note(); RETURN NULL;");
    let mut early = app.session();
    early.batch_execute("BEGIN").unwrap();
    let id: Uuid =
        early.query_one(&submission(), &[&Uuid::new_v4(), &with_handler("limited", json!({}))]).unwrap().get(0);
    app.register("limited", "limited(jsonb)", "concurrency => 1");
    // The registration is known to the dispatcher.
    let other = app.submit("limited", json!({}));
    app.wait_final(other);
    let still = still_dispatcher(&app);
    early.batch_execute("COMMIT").unwrap();
    runs(&mut app);
    assert_eq!((app.row(id).completed, app.noted(id)), (false, 0));
    drop(still);
    assert!(app.wait_final(id).completed);
}

#[test]
fn what_is_submitted_again_under_the_id_of_a_running_job_waits_for_its_end() {
    let mut app = scene("again", 2);
    let still = still_dispatcher(&app);
    runs(&mut app);
    app.wait_asleep(&app.pids("executor"));
    let id = app.submit("held", json!({"n": 10}));
    app.wait_reached(10);
    let insert = "INSERT INTO background_jobs (id, payload) VALUES ($1, '{\"handler\": \"held\", \"n\": 11}')";
    app.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]);
    app.execute(insert, &[&id]);
    // The other executor would be held, too, had it been handed that.
    runs(&mut app);
    drop(still);
    app.wait_reached(11);
    app.open_gate("go");
    assert!(app.wait_final(id).completed);
    assert_eq!(app.noted(id), 1);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
}

#[test]
fn a_job_that_was_handed_over_is_cancelled_and_timed_out_like_any_other() {
    let mut app = scene("bounded", 1);
    app.handler_with(
        "slow",
        "PERFORM reach(20); PERFORM await_gate('never'); RETURN NULL;",
        "timeout => '300 ms', max_attempts => 1",
    );
    let id = app.submit("slow", json!({}));
    assert_eq!(app.wait_final(id).error("sqlstate"), Some(&json!("57014")));
    let still = still_dispatcher(&app);
    app.wait_asleep(&app.pids("executor"));
    let id = app.submit("held", json!({"n": 21}));
    app.wait_reached(21);
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]);
    drop(still);
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.workers WHERE job_id IS NOT NULL");
    assert_eq!((app.row(id).completed, app.row(id).cancelled, app.noted(id)), (false, true, 0));
}

#[test]
fn an_idle_executor_whose_owner_may_not_connect_any_more_runs_nothing() {
    let mut app = scene("disconnected", 1);
    let still = still_dispatcher(&app);
    app.wait_asleep(&app.pids("executor"));
    let database = ident(&app.database);
    let privilege = |app: &App, statement: &str| app.admin().batch_execute(statement).unwrap();
    privilege(&app, &format!("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC, {}", ident(&app.role)));
    let id = app.submit("noted", json!({"n": 7}));
    app.cluster.wait_until("the executor to leave", || match app.pids("executor")[..] {
        [] => Ok(()),
        ref left => Err(format!("{left:?}")),
    });
    assert_eq!((app.row(id).completed, app.noted(id)), (false, 0));
    drop(still);
    // Nobody tries to connect as that role, which the log would tell again and again.
    app.cluster.wait_until("a complaint", || {
        let complaint = format!("role \"{}\" may not connect to this database, so its jobs cannot run", app.role);
        if app.cluster.log().contains(&complaint) { Ok(()) } else { Err(app.cluster.log_tail()) }
    });
    assert!(!app.cluster.log().contains(&format!("permission denied for database \"{}\"", app.database)));
    privilege(&app, &format!("GRANT CONNECT ON DATABASE {database} TO PUBLIC"));
    // A registration has the dispatcher look who may run jobs, before its next poll.
    app.register("noted", "noted(jsonb)", "");
    assert!(app.wait_final(id).completed);
}
