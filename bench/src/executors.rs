//! Eight executors next to one on handlers that wait, and the memory of an executor and of the extension.

use crate::book::Section;
use crate::options::Options;
use crate::scene::{self, Scene};
use crate::{machine, meter, stats};

/// Jobs of `waits` for each executor.
const EACH: i64 = 200;

pub fn run(options: &Options, section: &mut Section) {
    let (one, eight) = (scene::cluster(&[("background_jobs.max_executors", "1")]), {
        scene::cluster(&[("background_jobs.max_executors", "8")])
    });
    let usual = scene::cluster(&[]);
    let mut scene = Scene::new(&usual, "usual");
    machine::note(section, &mut scene);
    println!(
        "  handlers that wait: PERFORM pg_sleep(0.01); memory: RssAnon of the only executor, before and after so many jobs,"
    );
    println!(
        "  half of them no-op and half inserting a row; shared memory: pg_shmem_allocations at the default settings"
    );
    shared_memory(section, &mut scene);
    drop(scene);
    drop(usual);
    let (mut one, mut eight) = (Scene::new(&one, "one"), Scene::new(&eight, "eight"));
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=options.rounds {
        for (n, scene, executors) in [(0, &mut one, 1), (1, &mut eight, 8)] {
            let jobs = if round == 0 { EACH / 10 } else { EACH } * executors;
            scene.clear();
            let last = scene.fill("waits", jobs);
            let rate = jobs as f64 / scene.drain(last, jobs);
            if round > 0 {
                rates[n].push(rate);
            }
        }
    }
    let [of_one, of_eight] = rates;
    let of_one = section.figure("executors.1", "1 executor, handlers that wait", "jobs/s", of_one);
    let of_eight = section.figure("executors.8", "8 executors, handlers that wait", "jobs/s", of_eight);
    section.figure("executors.ratio", "8 executors / 1", "x", stats::ratios(&of_eight, &of_one));
    private_memory(options, section, &mut one);
}

fn private_memory(options: &Options, section: &mut Section, scene: &mut Scene) {
    let mut executor = |scene: &mut Scene, label: &str, key: &str| {
        let query = "SELECT pid::bigint FROM background_jobs.workers WHERE role = 'executor'";
        let pid = scene.count(query) as u32;
        section.figure(key, label, "MB", vec![meter::private_megabytes(pid)]);
        pid
    };
    let before = executor(scene, "private memory of an executor, early", "executors.private.early");
    for handler in ["noop", "inserts"] {
        scene.clear();
        let jobs = options.many() / 2;
        let last = scene.fill(handler, jobs);
        scene.drain(last, jobs);
    }
    let label = format!("private memory of an executor after {} jobs", options.many());
    let after = executor(scene, &label, "executors.private");
    assert_eq!(before, after, "another executor has taken over meanwhile");
}

fn shared_memory(section: &mut Section, scene: &mut Scene) {
    let query = "SELECT sum(allocated_size)::bigint FROM pg_shmem_allocations WHERE name LIKE 'background\\_jobs%'";
    let bytes = scene.count(query);
    section.figure("executors.shared", "shared memory of the extension", "MB", vec![bytes as f64 / 1024.0 / 1024.0]);
}
