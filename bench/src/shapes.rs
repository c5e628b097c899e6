//! A full queue drained where jobs are not alike each other's: a handler with a limit, a table with many partitions.

use crate::book::Section;
use crate::options::Options;
use crate::scene::{self, Scene};
use crate::{machine, stats};

const PARTITIONS: u32 = 100;

pub fn run(options: &Options, section: &mut Section) {
    // A server each: the executors of one owner would give way to the other's.
    let (of_plain, of_partitioned) = (scene::cluster(&[]), scene::cluster(&[]));
    let mut plain = Scene::new(&of_plain, "plain");
    machine::note(section, &mut plain);
    println!("  no-op handlers; beside the drain of a plain table by a handler without a limit");
    plain.app.handler_with("limited", "RETURN NULL;", "concurrency => 1");
    let mut partitioned = Scene::new(&of_partitioned, "partitioned");
    partition(&mut partitioned);
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=options.rounds {
        let jobs = if round == 0 { options.jobs / 10 } else { options.jobs };
        let sides = [(&mut plain, "noop"), (&mut partitioned, "noop")];
        let [usual, partitions] = sides.map(|(scene, handler)| rate(scene, handler, jobs));
        let limited = rate(&mut plain, "limited", jobs);
        if round > 0 {
            rates.iter_mut().zip([usual, limited, partitions]).for_each(|(rates, rate)| rates.push(rate));
        }
    }
    let [usual, limited, partitions] = rates;
    let usual = section.figure("shapes.plain", "plain table, no limit", "jobs/s", usual);
    let limited = section.figure("shapes.limited", "a handler with concurrency => 1", "jobs/s", limited);
    let label = format!("rows spread over {PARTITIONS} partitions");
    let partitions = section.figure("shapes.partitions", &label, "jobs/s", partitions);
    section.figure("shapes.limited.ratio", "concurrency => 1 / no limit", "x", stats::ratios(&limited, &usual));
    let label = format!("{PARTITIONS} partitions / plain table");
    section.figure("shapes.partitions.ratio", &label, "x", stats::ratios(&partitions, &usual));
}

fn rate(scene: &mut Scene, handler: &str, jobs: i64) -> f64 {
    scene.clear();
    let last = scene.fill(handler, jobs);
    jobs as f64 / scene.drain(last, jobs)
}

/// Makes the job table one of partitions by day, and has rows come with any of the days.
fn partition(scene: &mut Scene) {
    scene.app.sql(&format!(
        "DROP TABLE background_jobs;
         CREATE TABLE background_jobs (
            id uuid NOT NULL DEFAULT gen_random_uuid(),
            timestamp timestamptz NOT NULL DEFAULT '2026-01-01'::timestamptz + random() * interval '{PARTITIONS} days',
            payload jsonb NOT NULL,
            completed boolean NOT NULL DEFAULT false,
            cancelled boolean NOT NULL DEFAULT false,
            progress real NOT NULL DEFAULT 0,
            result jsonb,
            PRIMARY KEY (id, timestamp)
         ) PARTITION BY RANGE (timestamp);
         DO $$ BEGIN
            FOR n IN 0..{PARTITIONS} LOOP
                EXECUTE format('CREATE TABLE day_%s PARTITION OF background_jobs FOR VALUES FROM (%L) TO (%L) WITH (fillfactor = 45)',
                    n, '2026-01-01'::timestamptz + n * interval '1 day', '2026-01-01'::timestamptz + (n + 1) * interval '1 day');
            END LOOP;
         END $$;
         SELECT background_jobs.attach('background_jobs');
         SELECT background_jobs.register_handler('noop', 'noop(jsonb)')"
    ));
}
