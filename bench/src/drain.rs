//! A full queue drained, next to one statement that changes the same rows; what a job costs.

use crate::book::Section;
use crate::meter::Used;
use crate::options::Options;
use crate::scene::{self, Scene};
use crate::{machine, stats};
use std::time::Instant;

/// One side of one round.
#[derive(Clone, Copy)]
struct Side {
    rate: f64,
    cpu_per_1000: f64,
    /// Submission included.
    wal_per_job: f64,
}

impl Side {
    fn new(count: i64, seconds: f64, cpu: f64, wal: f64) -> Side {
        let count = count as f64;
        Side { rate: count / seconds, cpu_per_1000: cpu * 1000.0 / count, wal_per_job: wal / count }
    }
}

pub fn run(options: &Options, section: &mut Section) {
    let cluster = scene::cluster(&[]);
    let mut scene = Scene::new(&cluster, "drain");
    machine::note(section, &mut scene);
    println!(
        "  from the signal that switches jobs on to an empty queue; handlers in PL/pgSQL; CPU of all server processes"
    );
    println!(
        "  limit: one statement deletes the queue's rows, calls the handler and finishes the jobs' rows, same shapes"
    );
    make_limit(&mut scene);
    for (handler, name) in [("noop", "no-op"), ("inserts", "inserts a row")] {
        round(&mut scene, handler, options.jobs / 10, true);
        let rounds = (0..options.rounds).map(|n| round(&mut scene, handler, options.jobs, n % 2 == 0));
        let (ours, limit): (Vec<Side>, Vec<Side>) = rounds.unzip();
        let mut both = |what: &str, unit: &str, of: fn(&Side) -> f64| {
            let ours: Vec<f64> = ours.iter().map(of).collect();
            let limit: Vec<f64> = limit.iter().map(of).collect();
            let ours = section.figure(&format!("drain.{handler}.{what}"), &format!("{name}: {what}"), unit, ours);
            let label = format!("{name}: {what}, limit");
            let limit = section.figure(&format!("limit.{handler}.{what}"), &label, unit, limit);
            stats::ratios(&ours, &limit)
        };
        let share = both("jobs a second", "jobs/s", |side| side.rate);
        both("CPU seconds per 1000 jobs", "s", |side| side.cpu_per_1000);
        both("WAL bytes per job with its submission", "B", |side| side.wal_per_job);
        section.figure(&format!("drain.{handler}.share"), &format!("{name}: share of the limit"), "x", share);
    }
}

/// A job table and a queue of the same shapes and indexes, without triggers.
fn make_limit(scene: &mut Scene) {
    scene.copy_shape("background_jobs", "limit_job");
    scene.copy_shape("background_jobs.queued_job", "limit_queue");
}

/// The same jobs drained by the extension and by the one statement, one after the other.
fn round(scene: &mut Scene, handler: &str, count: i64, ours_first: bool) -> (Side, Side) {
    let postmaster = scene.app.cluster.postmaster_pid();
    scene.clear();
    scene.app.sql("TRUNCATE limit_job, limit_queue");
    let before = Used::now(postmaster, &mut scene.admin);
    let last = scene.fill(handler, count);
    let submitted = Used::now(postmaster, &mut scene.admin).since(before);
    scene.administer("INSERT INTO limit_job SELECT * FROM background_jobs");
    scene.administer("INSERT INTO limit_queue SELECT * FROM background_jobs.queued_job");
    scene.administer("ANALYZE limit_job, limit_queue");

    let drain = |scene: &mut Scene| {
        let before = Used::now(postmaster, &mut scene.admin);
        let seconds = scene.drain(last, count);
        let used = Used::now(postmaster, &mut scene.admin).since(before);
        Side::new(count, seconds, used.cpu_seconds, used.wal_bytes + submitted.wal_bytes)
    };
    let limit = |scene: &mut Scene| {
        let statement = format!(
            "WITH gone AS (DELETE FROM limit_queue RETURNING job_id)
             UPDATE limit_job j SET completed = true, progress = 1, result = {handler}(j.payload)
               FROM gone WHERE j.id = gone.job_id AND j.completed IS NOT TRUE AND j.cancelled IS NOT TRUE"
        );
        let before = Used::now(postmaster, &mut scene.admin);
        let begin = Instant::now();
        let changed = scene.app.execute(&statement, &[]);
        let seconds = begin.elapsed().as_secs_f64();
        assert_eq!(changed, count as u64);
        let used = Used::now(postmaster, &mut scene.admin).since(before);
        Side::new(count, seconds, used.cpu_seconds, used.wal_bytes + submitted.wal_bytes)
    };
    if ours_first {
        let ours = drain(scene);
        (ours, limit(scene))
    } else {
        let theirs = limit(scene);
        (drain(scene), theirs)
    }
}
