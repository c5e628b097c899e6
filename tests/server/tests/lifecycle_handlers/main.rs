//! Handlers, roles and job tables that change while jobs wait or run. Every test's name is the expected outcome.

mod handlers;
mod owners;
mod tables;

use server_tests::{App, Cluster, Group, Job, Uuid, json};

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "200ms"));

const LATER: &str = "now() + interval '1 h'";

/// Says where it is, waits for the gate `go`, and returns `value`, an SQL expression.
fn held(value: &str) -> String {
    format!("PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb({value});")
}

/// An application with one job of the handler `held` in the middle of its run.
fn running(name: &str, options: &str) -> (App<'static>, Uuid) {
    let mut app = SHARED.app(name);
    app.handler_with("held", &held("'old'::text"), options);
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    (app, id)
}

fn scheduled(app: &mut App, handler: &str) -> Uuid {
    app.one(&format!("SELECT background_jobs.enqueue($1, run_at => {LATER})"), &[&handler])
}

fn run_now(app: &mut App, id: Uuid) {
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
}

/// The SQLSTATEs of the attempts that did not succeed.
fn setbacks(app: &mut App, id: Uuid) -> Vec<String> {
    let query = "SELECT error ->> 'sqlstate' FROM background_jobs.attempts WHERE job_id = $1 ORDER BY attempt";
    app.rows(query, &[&id]).iter().map(|row| row.get(0)).collect()
}

fn wait_setback(app: &mut App, id: Uuid) -> String {
    let cluster = app.cluster;
    cluster.wait_until("an attempt to fail", || setbacks(app, id).pop().ok_or_else(|| "none".to_owned()))
}

fn result_of(app: &mut App, handler: &str) -> Job {
    let id = app.submit(handler, json!({}));
    app.wait_final(id)
}

/// The executor, which is idle, hears of the job from the committing session itself.
#[test]
fn a_job_that_is_committed_together_with_its_function_runs_that_function() {
    let mut app = SHARED.app("together");
    app.handler("version", "RETURN '0';");
    for n in 1..=400 {
        let mut transaction = app.client.transaction().unwrap();
        transaction
            .batch_execute(&format!(
                "CREATE OR REPLACE FUNCTION version(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN {n}; END'"
            ))
            .unwrap();
        let insert = "INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"version\"}') RETURNING id";
        let id = transaction.query_one(insert, &[]).unwrap().get(0);
        transaction.commit().unwrap();
        assert_eq!(app.wait_final(id).result, Some(json!(n)));
    }
}
