//! Submission, next to the same table without our triggers. Jobs are switched off: what is measured is the client's cost.

use crate::book::Section;
use crate::options::Options;
use crate::scene::{self, Scene};
use crate::{machine, stats};
use server_tests::{Uuid, json};
use std::io::Write as _;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// How long each number of clients commits at a time, and how many times in a round: a disk's pace changes by the second.
const WHILE: Duration = Duration::from_millis(400);
const TURNS: usize = 5;

const TABLES: [&str; 2] = ["background_jobs", "plain_job"];

pub fn run(options: &Options, section: &mut Section) {
    let cluster = scene::cluster(&[]);
    let mut scene = Scene::new(&cluster, "enqueue");
    machine::note(section, &mut scene);
    println!(
        "  with our triggers, and without them in a table of the same shape; a CHECKPOINT before each round; jobs switched off"
    );
    scene.copy_shape("background_jobs", "plain_job");
    for clients in [1, 2, 8] {
        let label = format!("{clients} clients, one row a commit");
        let key = format!("enqueue.{clients}");
        compare(options, section, &mut scene, (&key, &label, "commits/s"), TURNS, |scene, table, warm_up| {
            let time = if warm_up { WHILE / 10 } else { WHILE };
            single(scene, table, clients, time)
        });
    }
    let many = options.many();
    let rows = |warm_up| if warm_up { many / 10 } else { many };
    let label = format!("INSERT ... SELECT of {many} rows");
    compare(options, section, &mut scene, ("enqueue.select", &label, "rows/s"), 1, |scene, table, warm_up| {
        let rows = rows(warm_up);
        let statement = format!(
            "INSERT INTO {table} (payload)
             SELECT jsonb_build_object('handler', 'noop', 'n', n) FROM generate_series(1, $1::bigint) n"
        );
        let begin = Instant::now();
        scene.app.execute(&statement, &[&rows]);
        rows as f64 / begin.elapsed().as_secs_f64()
    });
    let label = format!("COPY of {many} rows");
    compare(options, section, &mut scene, ("enqueue.copy", &label, "rows/s"), 1, |scene, table, warm_up| {
        copy(scene, table, rows(warm_up))
    });
}

/// Rounds of both tables, each `count` times in turns, after a short round.
fn compare(
    options: &Options,
    section: &mut Section,
    scene: &mut Scene,
    (key, label, unit): (&str, &str, &str),
    count: usize,
    mut rate: impl FnMut(&mut Scene, &str, bool) -> f64,
) {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=options.rounds {
        scene.app.sql("TRUNCATE plain_job");
        scene.clear();
        let mut turns = [0.0, 0.0];
        for turn in 0..count {
            // Who comes first changes, too.
            for n in if (round + turn) % 2 == 0 { [0, 1] } else { [1, 0] } {
                turns[n] += rate(scene, TABLES[n], round == 0) / count as f64;
            }
        }
        for n in [0, 1].into_iter().filter(|_| round > 0) {
            rates[n].push(turns[n]);
        }
    }
    let [with, without] = rates;
    let with = section.figure(key, &format!("{label}: with"), unit, with);
    let without = section.figure(&format!("{key}.without"), &format!("{label}: without"), unit, without);
    section.figure(&format!("{key}.ratio"), &format!("{label}: ratio"), "x", stats::ratios(&with, &without));
}

/// Commits a second of so many sessions together.
fn single(scene: &Scene, table: &str, clients: usize, time: Duration) -> f64 {
    let ready = Arc::new(Barrier::new(clients));
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            let mut client = scene.app.session();
            let statement = format!("INSERT INTO {table} (id, payload) VALUES ($1, $2)");
            let ready = Arc::clone(&ready);
            std::thread::spawn(move || {
                let insert = client.prepare(&statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
                let payload = json!({"handler": "noop", "n": 1});
                // A session's first one loads what the others find.
                let first = client.execute(&insert, &[&Uuid::new_v4(), &payload]);
                first.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
                ready.wait();
                let begin = Instant::now();
                let mut count = 0;
                while begin.elapsed() < time {
                    client
                        .execute(&insert, &[&Uuid::new_v4(), &payload])
                        .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
                    count += 1;
                }
                f64::from(count) / begin.elapsed().as_secs_f64()
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panic!("a client has failed"))).sum()
}

fn copy(scene: &mut Scene, table: &str, rows: i64) -> f64 {
    let mut text = String::new();
    for n in 1..=rows {
        text += &format!("{}\t{{\"handler\": \"noop\", \"n\": {n}}}\n", Uuid::new_v4());
    }
    let statement = format!("COPY {table} (id, payload) FROM STDIN");
    let begin = Instant::now();
    let mut writer = scene.app.client.copy_in(&statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    writer.write_all(text.as_bytes()).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    let copied = writer.finish().unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(copied, rows as u64);
    rows as f64 / seconds
}
