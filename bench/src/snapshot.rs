//! Many jobs pass while a transaction elsewhere holds an old snapshot, so that nothing of them can be cleaned up; in turns
//! with a server where nobody does.

use crate::book::Section;
use crate::options::Options;
use crate::scene::{self, Scene};
use crate::{latency, machine, stats};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The jobs come in so many parts, evenly over the time.
const PARTS: usize = 10;
/// Of the parts, so many at the end are held against the target.
const LAST: usize = 3;

/// Starts at the end, one after the other: some ten seconds.
const POLLED: usize = 1000;

pub fn run(options: &Options, section: &mut Section) {
    let (held, free) = (scene::cluster(scene::COMMIT_TIMES), scene::cluster(scene::COMMIT_TIMES));
    let (mut held, mut free) = (Scene::new(&held, "held"), Scene::new(&free, "free"));
    machine::note(section, &mut held);
    let part = options.snapshot_jobs / PARTS as i64;
    let total = Duration::from_secs_f64(options.snapshot_minutes * 60.0);
    println!(
        "  {PARTS} times {part} jobs within {total:?}, a REPEATABLE READ transaction open all the while on one of two servers"
    );
    for scene in [&mut held, &mut free] {
        drain(scene, part / 10);
        latency(options, scene);
    }
    let mut elsewhere = held.app.session();
    elsewhere
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM background_jobs")
        .unwrap_or_else(|e| panic!("the snapshot: {e:?}"));
    let begin = Instant::now();
    let (mut ages, mut rates, mut starts) = (Vec::new(), [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for n in 1..=PARTS {
        // The parts are spread over the time: a snapshot's age is a part of what is measured.
        sleep((total * n as u32 / PARTS as u32).saturating_sub(begin.elapsed()));
        ages.push(begin.elapsed().as_secs_f64() / 60.0);
        for (side, scene) in [(0, &mut held), (1, &mut free)] {
            rates[side].push(drain(scene, part));
            starts[side].push(latency(options, scene));
        }
        println!(
            "  {:6.2} min, {:7} jobs: {:6.0} jobs/s, start {:.3} ms; without the snapshot {:6.0} jobs/s, start {:.3} ms",
            ages[n - 1],
            part * n as i64,
            rates[0][n - 1],
            starts[0][n - 1],
            rates[1][n - 1],
            starts[1][n - 1],
        );
    }
    // Long enough for some polls, which look through what the snapshot keeps.
    for (key, label, scene) in [("held", "old snapshot", &mut held), ("free", "none", &mut free)] {
        scene.switch(true);
        let mut starts = latency::starts(scene, POLLED);
        let worst = vec![stats::percentile(&mut starts, 100.0)];
        section.figure(&format!("snapshot.worst.{key}"), &format!("slowest of {POLLED} starts, {label}"), "ms", worst);
    }
    drop(elsewhere);
    for (key, label, values) in [("rate", "drain", &rates), ("start", "commit to start p50", &starts)] {
        let unit = if key == "rate" { "jobs/s" } else { "ms" };
        let last = |list: &[f64]| list[PARTS - LAST..].to_vec();
        let with =
            section.figure(&format!("snapshot.{key}.held"), &format!("{label}, old snapshot"), unit, last(&values[0]));
        let without =
            section.figure(&format!("snapshot.{key}.free"), &format!("{label}, none"), unit, last(&values[1]));
        let ratio = stats::ratios(&with, &without);
        section.figure(&format!("snapshot.{key}.ratio"), &format!("{label}, old snapshot / none"), "x", ratio);
        for (side, name) in [(0, "with an old snapshot"), (1, "without")] {
            let points = ages.iter().copied().zip(values[side].iter().copied()).collect();
            section.curve(&format!("snapshot.{key}.{side}"), name, points);
        }
    }
}

/// Jobs a second.
fn drain(scene: &mut Scene, count: i64) -> f64 {
    scene.switch(false);
    let last = scene.fill("noop", count);
    count as f64 / scene.drain_from(last, count)
}

fn latency(options: &Options, scene: &mut Scene) -> f64 {
    scene.switch(true);
    stats::percentile(&mut latency::starts(scene, options.sequential.min(200)), 50.0)
}
