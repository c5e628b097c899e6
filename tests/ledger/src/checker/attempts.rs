//! I5, I6 and I14: how often handlers were started, one after the other, and in what session.

use super::edges::retries;
use crate::evidence::{Evidence, Start};
use crate::kinds::Kind;
use crate::run::{Blow, Run};
use server_tests::Uuid;
use std::collections::BTreeMap;

/// Starts of one attempt that need no reason: a batch in which it overran its company, one whose commit failed, one more.
const FREE: usize = 4;

pub fn check(run: &Run, evidence: &Evidence) {
    for start in &evidence.starts {
        let table = evidence.jobs.get(&start.job).map(|job| job.table);
        if start.attempt > Kind::named(&start.kind).max_attempts {
            run.violated("I5", table, Some(start.job), format!("attempt {} was started", start.attempt));
        }
        if !start.dirt.is_empty() {
            run.violated("I14", table, Some(start.job), format!("its session had: {}", start.dirt));
        }
        if start.attempt > 1 && !was_charged(evidence, start) {
            let text = format!("attempt {} was started, and none before it of this submission is known", start.attempt);
            run.violated("I5", table, Some(start.job), text);
        }
    }
    let retries = retries(run);
    for job in evidence.starts_of.keys() {
        let lives = 1 + retries.get(job).map_or(0, |(_, possible)| *possible);
        repeated(run, evidence, job, lives);
        overlapping(run, evidence, job);
    }
}

fn was_charged(evidence: &Evidence, start: &Start) -> bool {
    // An earlier row of the same id has attempts of its own.
    let inserted = evidence.edges(&start.job).iter().find(|edge| edge.seq == start.seq).map_or(0.0, |edge| edge.at);
    evidence.attempts(&start.job).iter().any(|attempt| {
        attempt.attempt == start.attempt - 1 && attempt.outcome != "conflict" && attempt.finished > inserted
    })
}

/// The same attempt is started again only if there was a reason: a conflict, a stop or a crash, a signal.
fn repeated(run: &Run, evidence: &Evidence, job: &Uuid, lives: usize) {
    let mut attempts: BTreeMap<(i32, i32), Vec<&Start>> = BTreeMap::new();
    for start in evidence.starts(job) {
        attempts.entry((start.seq, start.attempt)).or_default().push(start);
    }
    for ((_, number), starts) in attempts {
        if starts.len() <= FREE * lives {
            continue;
        }
        let (first, last) = (starts[0].at, starts[starts.len() - 1].at);
        let conflicts =
            evidence.attempts(job).iter().filter(|attempt| attempt.attempt == number && attempt.outcome == "conflict");
        let blows = run.events().into_iter().filter(|event| event.kind != Blow::Other);
        let reasons = conflicts.count() + blows.filter(|event| event.at > first - 0.1 && event.at < last).count();
        if starts.len() > FREE * lives + reasons {
            let table = evidence.jobs.get(job).map(|job| job.table);
            let text = format!("attempt {number} was started {} times, with {reasons} reasons to", starts.len());
            run.violated("I5", table, Some(*job), text);
        }
    }
}

/// No run of the job begins between the beginning and the end of another.
fn overlapping(run: &Run, evidence: &Evidence, job: &Uuid) {
    let starts: Vec<&Start> = evidence.starts(job).collect();
    for start in &starts {
        let overlap = starts
            .iter()
            .find(|other| other.pid != start.pid && start.line < other.line && Some(other.line) < start.ended);
        if let Some(other) = overlap {
            let table = evidence.jobs.get(job).map(|job| job.table);
            let text = format!("attempts {} and {} ran at the same time", start.attempt, other.attempt);
            run.violated("I6", table, Some(*job), text);
        }
    }
}
