//! Partitioned job tables: rows of the same id in several partitions, and partitions that go away with their jobs.

use server_tests::{App, Cluster, Group, Uuid, json};

static SHARED: Group = Group::new(|| {
    Cluster::builder()
        .conf("background_jobs.poll_interval", "300ms")
        .conf("background_jobs.progress_flush_interval", "50ms")
});

const REGIONS: &str = "
    CREATE TABLE background_jobs (region text NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid(),
        timestamp timestamptz NOT NULL DEFAULT clock_timestamp(), payload jsonb NOT NULL DEFAULT '{}',
        completed boolean NOT NULL DEFAULT false, cancelled boolean NOT NULL DEFAULT false, progress real NOT NULL DEFAULT 0,
        result jsonb, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE north PARTITION OF background_jobs FOR VALUES IN ('north');
    CREATE TABLE south PARTITION OF background_jobs FOR VALUES IN ('south');
    SELECT background_jobs.attach('background_jobs')";

fn app(name: &str) -> App<'static> {
    let mut app = SHARED.app_without_table(name);
    app.sql(REGIONS);
    app.handler("fails", "PERFORM note(); PERFORM background_jobs.set_progress(0.25); RAISE 'no';");
    app.register("fails", "fails(jsonb)", "max_attempts => 1");
    app.handler(
        "held",
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); PERFORM note(); RETURN '\"held\"';",
    );
    app
}

fn submit(app: &mut App, region: &str, id: Uuid, handler: &str) {
    app.execute(
        "INSERT INTO background_jobs (region, id, payload) VALUES ($1, $2, jsonb_build_object('handler', $3::text))",
        &[&region, &id, &handler],
    );
}

const NORTH: &str = "SELECT to_jsonb(north)::text FROM north";

/// A job that has failed in one partition, where its handler got to a quarter, and another of its id that runs in the other; with
/// what the finished row was before.
fn failed_and_running(name: &str) -> (App<'static>, Uuid, String) {
    let (mut app, id) = (app(name), Uuid::new_v4());
    submit(&mut app, "north", id, "fails");
    app.wait_true("SELECT completed FROM north");
    let north = app.one(NORTH, &[]);
    submit(&mut app, "south", id, "held");
    app.wait_reached(1);
    (app, id, north)
}

#[test]
fn progress_leaves_a_finished_row_of_the_same_id_as_it_is() {
    let (mut app, _, before) = failed_and_running("progress");
    app.wait_true("SELECT progress = 0.5 AND NOT completed FROM south");
    assert_eq!(app.one::<String>(NORTH, &[]), before);
    app.open_gate("go");
    app.wait_true("SELECT completed AND progress = 1 FROM south");
    assert_eq!(app.one::<String>(NORTH, &[]), before);
}

#[test]
fn an_id_means_its_unfinished_row_and_then_the_newest() {
    let (mut app, id, _) = failed_and_running("meant");
    assert_eq!(app.state(id), "running");
    assert!(!app.one::<bool>("SELECT background_jobs.retry($1)", &[&id]), "it is unfinished");
    assert!(app.one::<bool>("SELECT completed FROM north", &[]), "retry() has left the other row alone");
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
    app.open_gate("go");
    let result: serde_json::Value = app.one("SELECT background_jobs.wait($1)", &[&id]);
    assert_eq!(result, json!("held"));
    assert_eq!(app.state(id), "completed");
    // Both are finished now.
    assert!(app.one::<bool>("SELECT background_jobs.retry($1)", &[&id]));
    let result: serde_json::Value = app.one("SELECT background_jobs.wait($1)", &[&id]);
    assert_eq!(result, json!("held"));
    assert!(app.one::<bool>("SELECT completed AND result ? 'error' FROM north", &[]), "retry() runs one row again");
    assert_eq!(app.noted(id), 2);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

const TAKEN_AWAY: [(&str, &str); 3] = [
    ("truncated", "TRUNCATE south"),
    ("dropped", "DROP TABLE south"),
    ("detached", "ALTER TABLE background_jobs DETACH PARTITION south"),
];

#[test]
fn a_job_that_runs_while_its_partition_goes_away_has_no_effects_and_is_charged_nothing() {
    for (name, statement) in TAKEN_AWAY {
        let (mut app, id) = (app(name), Uuid::new_v4());
        submit(&mut app, "south", id, "held");
        app.wait_reached(1);
        app.sql(statement);
        app.open_gate("go");
        app.wait_true("SELECT NOT EXISTS (SELECT FROM background_jobs.queue)");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0, "{statement}");
        assert_eq!(app.noted(id), 0, "{statement}");
        // The id is free.
        submit(&mut app, "north", id, "held");
        app.wait_true("SELECT completed FROM north");
        assert_eq!(app.noted(id), 1, "{statement}");
    }
}

#[test]
fn a_job_that_waits_while_its_partition_goes_away_is_looked_for_an_hour() {
    for (name, statement) in TAKEN_AWAY {
        let (mut app, id) = (app(name), Uuid::new_v4());
        submit(&mut app, "south", id, "later");
        app.wait_state(id, "unhandled");
        app.sql(statement);
        app.handler("later", "PERFORM note(); RETURN '1';");
        app.wait_true(
            "SELECT count(*) = 1 FROM background_jobs.queue WHERE state = 'retrying' AND last_error ->> 'missing_since' IS NOT NULL",
        );
        let age = "UPDATE background_jobs.queued_job
            SET last_error = jsonb_set(last_error, '{missing_since}', to_jsonb(now() - interval '61 min')), timing = 0";
        assert_eq!(app.admin().execute(age, &[]).unwrap(), 1);
        app.wait_true("SELECT NOT EXISTS (SELECT FROM background_jobs.queue)");
        assert_eq!(app.noted(id), 0, "{statement}");
    }
}

/// A transaction that keeps its snapshot looks handlers up for itself. One whose statement fails after that leaves nothing of it to the
/// next one.
#[test]
fn a_handler_that_was_looked_up_for_a_statement_that_failed_is_looked_up_again() {
    let (mut app, id) = (app("looked_up"), Uuid::new_v4());
    submit(&mut app, "north", id, "held");
    app.wait_reached(1);
    let mut late = app.session();
    late.batch_execute("SET default_transaction_isolation = 'repeatable read'").unwrap();
    let insert = |id: Uuid| {
        format!(
            "INSERT INTO background_jobs (region, id, payload) VALUES ('south', '{id}', '{{\"handler\": \"fails\"}}')"
        )
    };
    let refused = late.batch_execute(&insert(id)).unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "23505");
    app.register("fails", "fails(jsonb)", "max_attempts => 1, priority => 7");
    let other = Uuid::new_v4();
    late.batch_execute(&format!("BEGIN; {}", insert(other))).unwrap();
    let query = "SELECT priority FROM background_jobs.queue WHERE job_id = $1";
    assert_eq!(late.query_one(query, &[&other]).unwrap().get::<_, i16>(0), 7);
    late.batch_execute("ROLLBACK").unwrap();
    app.open_gate("go");
}

/// The row is inserted anew in its other partition, which is no client's submission.
#[test]
fn a_retry_that_moves_the_row_to_another_partition_queues_its_job_once() {
    for column in ["completed", "cancelled"] {
        let mut app = SHARED.app_without_table("moved");
        app.sql(&format!(
            "CREATE TABLE background_jobs (id uuid NOT NULL DEFAULT gen_random_uuid(),
                timestamp timestamptz NOT NULL DEFAULT clock_timestamp(), payload jsonb NOT NULL DEFAULT '{{}}',
                completed boolean NOT NULL DEFAULT false, cancelled boolean NOT NULL DEFAULT false,
                progress real NOT NULL DEFAULT 0, result jsonb, PRIMARY KEY (id, {column})) PARTITION BY LIST ({column});
             CREATE TABLE open PARTITION OF background_jobs FOR VALUES IN (false);
             CREATE TABLE done PARTITION OF background_jobs FOR VALUES IN (true);
             SELECT background_jobs.attach('background_jobs')"
        ));
        app.handler("noted", "PERFORM note(); RETURN '1';");
        let id = app.submit("noted", json!({"handler": "noted"}));
        assert!(app.wait_final(id).completed);
        assert!(app.one::<bool>("SELECT background_jobs.retry($1)", &[&id]), "{column}");
        assert!(app.wait_final(id).completed);
        let later: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => 'infinity')", &[]);
        assert!(app.one::<bool>("SELECT background_jobs.cancel($1)", &[&later]), "{column}");
        assert!(app.one::<bool>("SELECT background_jobs.retry($1)", &[&later]), "{column}");
        assert!(app.wait_final(later).completed);
        assert_eq!((app.noted(id), app.noted(later)), (2, 1), "{column}");
        app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    }
}
