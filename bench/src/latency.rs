//! One job at a time on an idle server, next to a durable commit and a bare NOTIFY.

use crate::bare::{Bare, COMMITTED, commit_time, milliseconds, moment, prepare};
use crate::book::Section;
use crate::options::Options;
use crate::scene::{self, Scene};
use crate::{machine, stats};
use server_tests::postgres::{Client, Statement};
use server_tests::{Uuid, Value, json};
use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

/// Between two measurements, so that the server is idle again.
const GAP: Duration = Duration::from_millis(10);

/// Two moments that are both called the commit: when the server made it, and when the client has its answer.
const COMMIT: &str = "  commit: when the server has made it (pg_xact_commit_timestamp); the submission is asynchronous here, as a bare NOTIFY is
  by nature, because that time is taken before a flush. Its answer: when the client's INSERT, synchronous, has returned; a
  start or a NOTIFY may come before that. Start: clock_timestamp() in the handler. NOTIFY: pg_notify(), a transaction of its
  own, to a client that is blocked waiting for it. Completed: background_jobs.wait(id), called after the answer, has
  returned. Durable commit: one INSERT into a plain table, from sending to its answer";

/// Milliseconds.
#[derive(Default)]
struct Samples {
    start: Vec<f64>,
    notify: Vec<f64>,
    start_from_answer: Vec<f64>,
    notify_from_answer: Vec<f64>,
    completed: Vec<f64>,
    commit: Vec<f64>,
}

pub fn run(options: &Options, section: &mut Section) {
    let cluster = scene::cluster(scene::COMMIT_TIMES);
    let mut scene = Scene::new(&cluster, "latency");
    machine::note(section, &mut scene);
    println!("{COMMIT}. All in turns, {GAP:?} apart");
    scene.app.sql("CREATE TABLE plain (n bigint)");
    let mut bare = Bare::new(&scene);
    round(&mut scene, &mut bare, options.sequential.min(50));

    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..options.rounds {
        let samples = round(&mut scene, &mut bare, options.sequential);
        let lists = [
            ("start", samples.start),
            ("notify", samples.notify),
            ("start from answer", samples.start_from_answer),
            ("notify from answer", samples.notify_from_answer),
            ("completed", samples.completed),
            ("commit", samples.commit),
        ];
        for (name, mut list) in lists {
            for percent in [50.0, 99.0] {
                let figure = stats::percentile(&mut list, percent);
                figures.entry(format!("{name}, p{percent}")).or_default().push(figure);
            }
        }
    }
    bare.end();
    let labels = [
        ("start", "commit to handler start"),
        ("notify", "commit to a bare NOTIFY's delivery"),
        ("start from answer", "commit's answer to handler start"),
        ("notify from answer", "NOTIFY's answer to its delivery"),
        ("completed", "commit's answer to completed"),
        ("commit", "a durable commit"),
    ];
    for (name, label) in labels {
        for percent in ["p50", "p99"] {
            let rounds = figures[&format!("{name}, {percent}")].clone();
            section.figure(&format!("latency.{name}.{percent}"), &format!("{label}, {percent}"), "ms", rounds);
        }
    }
    let mut ratio = |key: &str, label: &str, above: &str, below: &str| {
        section.figure(key, label, "x", stats::ratios(&figures[above], &figures[below]));
    };
    for percent in ["50", "99"] {
        let (start, notify) = (format!("start from answer, p{percent}"), format!("notify from answer, p{percent}"));
        let label = format!("start / NOTIFY, from the answers, p{percent}");
        ratio(&format!("latency.answer.ratio{percent}"), &label, &start, &notify);
        let (start, notify) = (format!("start, p{percent}"), format!("notify, p{percent}"));
        let label = format!("start / NOTIFY, from asynchronous commits, p{percent}");
        ratio(&format!("latency.start.ratio{percent}"), &label, &start, &notify);
    }
    ratio("latency.completed.commits", "completed / durable commit, p50", "completed, p50", "commit, p50");
}

/// Milliseconds from commit to start of so many jobs one after the other.
pub fn starts(scene: &mut Scene, count: usize) -> Vec<f64> {
    let mut job = Job::new(scene);
    let mut start = || {
        let submitted = job.submit(false);
        job.wait(&submitted);
        sleep(GAP);
        job.start(&submitted)
    };
    (0..count).map(|_| start()).collect()
}

fn round(scene: &mut Scene, bare: &mut Bare, count: usize) -> Samples {
    let mut job = Job::new(scene);
    let mut samples = Samples::default();
    for _ in 0..count {
        let submitted = job.submit(true);
        job.wait(&submitted);
        samples.completed.push(milliseconds(submitted.answered, SystemTime::now()));
        samples.start_from_answer.push(job.start_from_answer(&submitted));
        sleep(GAP);
        let submitted = job.submit(false);
        job.wait(&submitted);
        samples.start.push(job.start(&submitted));
        sleep(GAP);
        samples.commit.push(bare.durable_commit());
        sleep(GAP);
        let (delivered, answered, commit) = bare.notify();
        samples.notify.push(milliseconds(commit, delivered));
        samples.notify_from_answer.push(milliseconds(answered, delivered));
        sleep(GAP);
    }
    samples
}

/// One session that submits jobs and waits for them.
struct Job {
    client: Client,
    insert: Statement,
    wait: Statement,
    start: Statement,
    committed: Statement,
    payload: Value,
    durable: bool,
}

struct Submitted {
    id: Uuid,
    transaction: String,
    answered: SystemTime,
}

impl Job {
    fn new(scene: &Scene) -> Job {
        let mut client = scene.app.session();
        let mut prepare = |statement: &str| prepare(&mut client, statement);
        Job {
            insert: prepare(
                "INSERT INTO background_jobs (id, payload) VALUES ($1, $2) RETURNING pg_current_xact_id()::text",
            ),
            wait: prepare("SELECT background_jobs.wait($1)"),
            start: prepare("SELECT (result ->> 'at')::float8 FROM background_jobs WHERE id = $1"),
            committed: prepare(COMMITTED),
            payload: json!({"handler": "starts"}),
            durable: true,
            client,
        }
    }

    fn submit(&mut self, durable: bool) -> Submitted {
        if self.durable != durable {
            let statement = format!("SET synchronous_commit = {}", if durable { "on" } else { "off" });
            self.client.batch_execute(&statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
            self.durable = durable;
        }
        let id = Uuid::new_v4();
        let row = self.client.query_one(&self.insert, &[&id, &self.payload]);
        let answered = SystemTime::now();
        Submitted { id, transaction: row.unwrap_or_else(|e| panic!("insert: {e:?}")).get(0), answered }
    }

    fn wait(&mut self, job: &Submitted) {
        self.client.query_one(&self.wait, &[&job.id]).unwrap_or_else(|e| panic!("wait: {e:?}"));
    }

    fn started(&mut self, job: &Submitted) -> SystemTime {
        moment(self.client.query_one(&self.start, &[&job.id]).unwrap_or_else(|e| panic!("start: {e:?}")).get(0))
    }

    fn start(&mut self, job: &Submitted) -> f64 {
        let started = self.started(job);
        milliseconds(commit_time(&mut self.client, &self.committed, &job.transaction), started)
    }

    fn start_from_answer(&mut self, job: &Submitted) -> f64 {
        milliseconds(job.answered, self.started(job))
    }
}
