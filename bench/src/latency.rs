//! One job at a time on an idle server.

use crate::{Options, stats};
use server_tests::{App, Uuid, json};
use std::collections::HashMap;
use std::time::SystemTime;

pub fn run(app: &mut App, options: &Options) {
    app.sql("CREATE TABLE started (job uuid, at timestamptz)");
    app.handler(
        "starts",
        "INSERT INTO started SELECT id, clock_timestamp() FROM background_jobs.current_job(); RETURN NULL;",
    );
    println!(
        "\none at a time, {} jobs a round, {} rounds: median of the rounds (lowest to highest)",
        options.sequential, options.rounds
    );
    println!("  commit = the client's clock when its INSERT, a transaction of its own, has returned;");
    println!(
        "  start = clock_timestamp() in the handler, same machine, so it may come before the client has its answer;"
    );
    println!("  completed = the client's clock when background_jobs.wait(id), called after the commit, has returned");
    // Sessions, plans and caches of the first jobs are not what is measured.
    round(app, options.sequential.min(50));
    let mut figures: [Vec<f64>; 4] = Default::default();
    for _ in 0..options.rounds {
        let (mut start, mut completed) = round(app, options.sequential);
        figures[0].push(stats::percentile(&mut start, 50.0));
        figures[1].push(stats::percentile(&mut start, 99.0));
        figures[2].push(stats::percentile(&mut completed, 50.0));
        figures[3].push(stats::percentile(&mut completed, 99.0));
    }
    let names = [
        "commit to handler start, p50",
        "commit to handler start, p99",
        "commit to completed, p50",
        "commit to completed, p99",
    ];
    for (name, rounds) in names.into_iter().zip(figures) {
        stats::report(name, "ms", rounds);
    }
}

/// Milliseconds from commit to start and from commit to completed, of `count` jobs one after another.
fn round(app: &mut App, count: usize) -> (Vec<f64>, Vec<f64>) {
    let insert = app.client.prepare("INSERT INTO background_jobs (id, payload) VALUES ($1, $2)");
    let insert = insert.unwrap_or_else(|e| panic!("prepare: {e:?}"));
    let wait = app.client.prepare("SELECT background_jobs.wait($1)").unwrap_or_else(|e| panic!("prepare: {e:?}"));
    let payload = json!({"handler": "starts"});
    let mut committed = HashMap::new();
    let mut completed = Vec::new();
    for _ in 0..count {
        let id = Uuid::new_v4();
        app.client.execute(&insert, &[&id, &payload]).unwrap_or_else(|e| panic!("insert: {e:?}"));
        let commit = SystemTime::now();
        app.client.query_one(&wait, &[&id]).unwrap_or_else(|e| panic!("wait: {e:?}"));
        completed.push(milliseconds(commit, SystemTime::now()));
        committed.insert(id, commit);
    }
    let started = app.rows("SELECT job, at FROM started", &[]);
    let started =
        started.iter().filter_map(|row| Some(milliseconds(*committed.get(&row.get(0))?, row.get(1)))).collect();
    (started, completed)
}

fn milliseconds(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64() * 1e3,
        Err(before) => -before.duration().as_secs_f64() * 1e3,
    }
}
