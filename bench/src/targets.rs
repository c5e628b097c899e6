//! What the figures are held against. Every target is a ratio measured in one run, but for memory.

use crate::book::{Book, number};
use std::fmt;

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}
use Bound::{AtLeast, AtMost, Below};

/// What it is, the figure that says so, and its bound.
const TARGETS: &[(&str, &str, Bound)] = &[
    ("no-op jobs: share of the limit", "drain.noop.share", AtLeast(0.5)),
    ("jobs that insert a row: share of the limit", "drain.inserts.share", AtLeast(0.5)),
    ("no-op jobs / fastest peer", "peers.drain.fastest", AtLeast(2.0)),
    ("no-op jobs / the recipe with its Node listener", "peers.drain.recipe", AtLeast(25.0)),
    ("jobs that insert a row / fastest peer", "peers.db.fastest", AtLeast(6.0)),
    ("jobs that insert a row / the recipe with its Node listener", "peers.db.recipe", AtLeast(12.0)),
    // The commit is when the client has its answer, as in the benchmark of other job systems.
    ("commit to start / bare NOTIFY's delivery, p50", "latency.answer.ratio50", AtMost(0.5)),
    ("commit to start / bare NOTIFY's delivery, p99", "latency.answer.ratio99", AtMost(0.5)),
    ("the same of commits that are asynchronous and made, not answered, p50", "latency.start.ratio50", AtMost(0.5)),
    ("the same of commits that are asynchronous and made, not answered, p99", "latency.start.ratio99", AtMost(0.5)),
    ("commit to completed / a durable commit, p50", "latency.completed.commits", AtMost(2.0)),
    ("single-row commits, 1 client: with / without our triggers", "enqueue.1.ratio", AtLeast(0.85)),
    ("single-row commits, 2 clients: with / without our triggers", "enqueue.2.ratio", AtLeast(0.85)),
    ("single-row commits, 8 clients: with / without our triggers", "enqueue.8.ratio", AtLeast(0.85)),
    ("INSERT ... SELECT: with / without our triggers", "enqueue.select.ratio", AtLeast(0.4)),
    ("COPY: with / without our triggers", "enqueue.copy.ratio", AtLeast(0.4)),
    ("CPU a job / the peer's with the lowest", "peers.cpu.lowest", Below(1.0)),
    ("WAL a job / the lowest peer's but the one-update recipe", "peers.wal.lowest", Below(1.0)),
    ("WAL a job / the one-update recipe's", "peers.wal.recipe", AtMost(1.6)),
    ("drain, many queued / few", "size.queued.rate.ratio", AtLeast(0.85)),
    ("start, many queued / few", "size.queued.start.ratio", AtMost(1.15)),
    ("drain, many finished / few", "size.finished.rate.ratio", AtLeast(0.85)),
    ("start, many finished / few", "size.finished.start.ratio", AtMost(1.15)),
    ("drain, old snapshot / none (its last parts)", "snapshot.rate.ratio", AtLeast(0.7)),
    ("start, old snapshot / none (its last parts)", "snapshot.start.ratio", AtMost(1.3)),
    ("8 executors on handlers that wait / 1", "executors.ratio", AtLeast(7.5)),
    ("private memory of an executor, MB", "executors.private", Below(12.0)),
    ("shared memory, MB", "executors.shared", Below(1.0)),
];

pub struct Verdict {
    pub target: &'static str,
    pub measured: Option<f64>,
    pub spread: String,
    pub bound: String,
    pub met: bool,
}

pub fn verdicts(book: &Book) -> Vec<Verdict> {
    let verdict = |(target, key, bound): &(&'static str, &str, Bound)| {
        let figure = book.figure(key);
        let measured = figure.map(|figure| figure.median());
        let spread = figure.map_or(String::new(), |figure| {
            let (_, low, high) = figure.spread();
            format!("{low} to {high}")
        });
        let met = measured.is_some_and(|measured| bound.holds(measured));
        Verdict { target, measured, spread, bound: bound.to_string(), met }
    };
    TARGETS.iter().map(verdict).collect()
}

impl Bound {
    fn holds(self, measured: f64) -> bool {
        match self {
            AtLeast(bound) => measured >= bound,
            AtMost(bound) => measured <= bound,
            Below(bound) => measured < bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtLeast(bound) => write!(f, "at least {bound}"),
            AtMost(bound) => write!(f, "at most {bound}"),
            Below(bound) => write!(f, "below {bound}"),
        }
    }
}

impl Verdict {
    pub fn word(&self) -> &'static str {
        match (self.measured, self.met) {
            (None, _) => "not measured",
            (_, true) => "met",
            (_, false) => "NOT met",
        }
    }

    pub fn value(&self) -> String {
        self.measured.map_or(String::new(), number)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, value, spread) = (self.target, self.value(), &self.spread);
        write!(f, "{target:58} {value:>10} ({spread})  target {:14} {}", self.bound, self.word())
    }
}
