//! A full queue, drained.

use crate::{Options, stats};
use server_tests::App;
use std::time::{Duration, Instant};

pub fn run(app: &mut App, options: &Options) {
    app.sql("CREATE TABLE effects (n bigint NOT NULL, at timestamptz NOT NULL DEFAULT now())");
    app.handler("noop", "RETURN NULL;");
    app.handler("inserts", "INSERT INTO effects (n) VALUES ((payload ->> 'n')::bigint); RETURN NULL;");
    println!(
        "\ndrained from a queue of {}, {} rounds: median of the rounds (lowest to highest)",
        options.queued, options.rounds
    );
    println!("  from background_jobs.enabled = on to no unfinished row, looked for every 5 ms; handlers in PL/pgSQL");
    for (name, handler) in [("jobs that do nothing", "noop"), ("jobs that insert a row", "inserts")] {
        round(app, handler, options.queued / 10 + 1);
        let rounds = (0..options.rounds).map(|_| round(app, handler, options.queued)).collect();
        stats::report(name, "jobs/s", rounds);
    }
}

/// Jobs a second.
fn round(app: &mut App, handler: &str, count: i64) -> f64 {
    let cluster = app.cluster;
    app.sql("TRUNCATE background_jobs, effects");
    cluster.set("background_jobs.enabled", "off");
    app.execute(
        "INSERT INTO background_jobs (payload)
         SELECT jsonb_build_object('handler', $1::text, 'n', n) FROM generate_series(1, $2::bigint) n",
        &[&handler, &count],
    );
    // The checkpoint of the submission is not the drain's.
    cluster.admin("postgres").batch_execute("CHECKPOINT").unwrap_or_else(|e| panic!("checkpoint: {e:?}"));
    let begin = Instant::now();
    cluster.set("background_jobs.enabled", "on");
    cluster.wait_within(Duration::from_secs(600), "the queue to be empty", || {
        let left: bool = app.one("SELECT EXISTS (SELECT FROM background_jobs WHERE NOT completed)", &[]);
        if left { Err("not yet".to_owned()) } else { Ok(()) }
    });
    count as f64 / begin.elapsed().as_secs_f64()
}
