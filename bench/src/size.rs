//! Drain rate and start latency next to very many waiting and very many finished jobs, in turns with a server that has few.

use crate::book::Section;
use crate::options::Options;
use crate::scene::{self, Scene};
use crate::{latency, machine, stats};
use server_tests::Uuid;
use std::collections::VecDeque;

/// Rows of one INSERT when a table is filled.
const STEP: i64 = 1_000_000;

pub fn run(options: &Options, section: &mut Section) {
    let (small, large) = (scene::cluster(scene::COMMIT_TIMES), scene::cluster(scene::COMMIT_TIMES));
    let mut small = Scene::new(&small, "small");
    machine::note(section, &mut small);
    println!(
        "  {} jobs drained and {} one after another, on a server with few jobs and",
        options.jobs,
        sequential(options)
    );
    println!(
        "  on one with many, in turns; waiting jobs belong to a handler that is unknown while latency is measured"
    );
    let mut scene = Scene::new(&large, "queued");
    let (mut queue, mut queued) = (VecDeque::new(), Vec::new());
    for size in [options.queued / 10, options.queued] {
        while queue.len() as i64 * options.jobs < size + options.jobs * (options.rounds as i64 + 1) {
            scene.switch(false);
            queue.push_back(scene.fill("bulk", options.jobs));
        }
        let label = format!("{size} queued");
        let mut drained = |scene: &mut Scene| drain_part(options, scene, &mut queue);
        let rate = compare(
            options,
            section,
            "size.queued",
            &label,
            size == options.queued,
            (&mut small, &mut scene),
            &mut drained,
        );
        add(&mut queued, options, size, rate);
    }
    drop(scene);

    let mut scene = Scene::new(&large, "finished");
    let (mut rows, mut finished) = (0, Vec::new());
    for size in [options.finished / 100, options.finished / 10, options.finished] {
        fill_finished(&mut scene, size - rows);
        rows = size;
        let label = format!("{size} finished");
        let mut drained = |scene: &mut Scene| drain_all(options, scene);
        let last = size == options.finished;
        let rate = compare(options, section, "size.finished", &label, last, (&mut small, &mut scene), &mut drained);
        add(&mut finished, options, size, rate);
    }
    section.curve("size.queued", "jobs waiting", queued);
    section.curve("size.finished", "jobs finished", finished);
}

/// A point of the curve; it begins with the small table.
fn add(curve: &mut Vec<(f64, f64)>, options: &Options, size: i64, (few, many): (f64, f64)) {
    if curve.is_empty() {
        curve.push((options.jobs as f64, few));
    }
    curve.push((size as f64, many));
}

fn sequential(options: &Options) -> usize {
    options.sequential.min(200)
}

/// Rounds of both servers; returns their median rates, of few jobs and of many. The target is about the last size.
fn compare(
    options: &Options,
    section: &mut Section,
    key: &str,
    label: &str,
    last: bool,
    (small, large): (&mut Scene, &mut Scene),
    drain_large: &mut dyn FnMut(&mut Scene) -> f64,
) -> (f64, f64) {
    let (mut rates, mut starts) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..=options.rounds {
        // No checkpoint on either side: a large table's would cost the next round more than a small one's.
        small.empty();
        let figures = if round % 2 == 0 {
            let few = drain_all(options, small);
            [few, drain_large(large)]
        } else {
            let many = drain_large(large);
            [drain_all(options, small), many]
        };
        let start = |scene: &mut Scene| {
            scene.switch(true);
            stats::percentile(&mut latency::starts(scene, sequential(options)), 50.0)
        };
        let latencies = [start(small), start(large)];
        for n in [0, 1].into_iter().filter(|_| round > 0) {
            rates[n].push(figures[n]);
            starts[n].push(latencies[n]);
        }
    }
    let key = if last { key.to_owned() } else { format!("{key} {label}") };
    let mut pair = |what: &str, name: &str, unit: &str, [few, many]: [Vec<f64>; 2]| {
        let few = section.figure(&format!("{key}.{what}.few"), &format!("{name}, few jobs beside {label}"), unit, few);
        let many = section.figure(&format!("{key}.{what}.many"), &format!("{name}, {label}"), unit, many);
        let ratio = stats::ratios(&many, &few);
        section.figure(&format!("{key}.{what}.ratio"), &format!("{name}, {label} / few"), "x", ratio);
        (stats::median(&few), stats::median(&many))
    };
    let medians = pair("rate", "drain", "jobs/s", rates);
    pair("start", "commit to start p50", "ms", starts);
    medians
}

fn drain_all(options: &Options, scene: &mut Scene) -> f64 {
    scene.switch(false);
    scene.administer("VACUUM background_jobs.queued_job");
    let last = scene.fill("noop", options.jobs);
    options.jobs as f64 / scene.drain_from(last, options.jobs)
}

/// The first jobs of a long queue, up to a known one; what ran over the last time is not counted again.
fn drain_part(options: &Options, scene: &mut Scene, queue: &mut VecDeque<Uuid>) -> f64 {
    scene.switch(false);
    scene.app.sql("SELECT background_jobs.register_handler('bulk', 'noop(jsonb)')");
    let marker = queue.pop_front().unwrap_or_else(|| panic!("no jobs are left"));
    let behind = queue.len() as i64 * options.jobs;
    let count = scene.count("SELECT count(*) FROM background_jobs.queued_job") - behind;
    let seconds = scene.until_completed(marker);
    scene.switch(false);
    scene.app.sql("SELECT background_jobs.unregister_handler('bulk')");
    count as f64 / seconds
}

fn fill_finished(scene: &mut Scene, mut rows: i64) {
    scene.switch(false);
    while rows > 0 {
        let step = rows.min(STEP);
        scene.app.execute(
            "INSERT INTO background_jobs (payload, completed, progress, result)
             SELECT jsonb_build_object('handler', 'noop', 'n', n), true, 1, '{\"ok\": true}'
               FROM generate_series(1, $1::bigint) n",
            &[&step],
        );
        rows -= step;
    }
    scene.app.sql("VACUUM ANALYZE background_jobs");
    scene.administer("CHECKPOINT");
}
