//! I8 and I9: the states and the progress of a row, as its readers saw them one after the other.

use crate::evidence::{Edge, Evidence};
use crate::history::{Outcome, What};
use crate::run::Run;
use server_tests::Uuid;
use std::collections::HashMap;

pub fn check(run: &Run, evidence: &Evidence) {
    let retries = retries(run);
    for (job, edges) in &evidence.edges {
        let table = evidence.jobs.get(job).map(|job| job.table);
        if let Some(text) = states(edges) {
            run.violated("I9", table, Some(*job), text);
        }
        let reopened = edges.iter().filter(|edge| is_reopening(edge)).count();
        let (told, at_most) = retries.get(job).copied().unwrap_or_default();
        if reopened < told || reopened > at_most {
            let text = format!("it was opened again {reopened} times, and retry() did so {told} to {at_most} times");
            run.violated("I9", table, Some(*job), text);
        }
        if reports(evidence, job)
            && let Some(text) = progress(edges)
        {
            run.violated("I8", table, Some(*job), text);
        }
    }
}

/// How often retry() has certainly and possibly opened a job again.
pub fn retries(run: &Run) -> HashMap<Uuid, (usize, usize)> {
    let mut retries: HashMap<Uuid, (usize, usize)> = HashMap::new();
    for operation in run.history.operations() {
        let What::Retry { job, hit: true } = operation.what else { continue };
        let (certain, possible) = retries.entry(job).or_default();
        *certain += usize::from(operation.outcome == Outcome::Acknowledged);
        *possible += usize::from(operation.outcome != Outcome::Failed);
    }
    retries
}

fn is_reopening(edge: &Edge) -> bool {
    matches!(edge.old.as_str(), "failed" | "cancelled") && edge.new == "open"
}

fn states(edges: &[Edge]) -> Option<String> {
    let mut before = "none";
    for edge in edges {
        let legal = match (edge.old.as_str(), edge.new.as_str()) {
            ("none", "open") => matches!(before, "none" | "gone"),
            ("open", "open" | "completed" | "failed" | "cancelled" | "gone") => before == "open",
            ("failed" | "cancelled", "open") => before == edge.old,
            _ => false,
        };
        if !legal {
            return Some(format!("it was {before} and went from {} to {}", edge.old, edge.new));
        }
        before = &edge.new;
    }
    None
}

/// Does its handler report tenths of progress, and its attempt in the last digit?
fn reports(evidence: &Evidence, job: &Uuid) -> bool {
    evidence.starts(job).next().is_some_and(|start| matches!(start.kind.as_str(), "slow" | "poison"))
}

/// It never falls within an attempt, and no attempt writes after a later one.
fn progress(edges: &[Edge]) -> Option<String> {
    let (mut attempt, mut highest, mut seq) = (0, 0.0_f32, 0);
    for edge in edges {
        if edge.seq != seq || is_reopening(edge) {
            (attempt, highest, seq) = (0, 0.0, edge.seq);
        }
        if edge.new != "open" || edge.progress == 0.0 {
            highest = 0.0;
            continue;
        }
        let writer = (edge.progress * 1000.0).round() as i32 % 10;
        if writer < attempt {
            return Some(format!("attempt {writer} wrote {} after attempt {attempt}", edge.progress));
        }
        if edge.progress < highest {
            return Some(format!("it fell from {highest} to {}", edge.progress));
        }
        (attempt, highest) = (writer, edge.progress);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(old: &str, new: &str, progress: f32) -> Edge {
        Edge { seq: 1, old: old.to_owned(), new: new.to_owned(), progress, pid: 1, at: 0.0 }
    }

    #[test]
    fn a_final_state_absorbs() {
        let lived = [edge("none", "open", 0.0), edge("open", "cancelled", 0.0)];
        assert_eq!(states(&lived), None);
        let revived = [edge("none", "open", 0.0), edge("open", "failed", 0.0), edge("failed", "completed", 1.0)];
        assert!(states(&revived).is_some());
        let undone = [edge("none", "open", 0.0), edge("open", "completed", 1.0), edge("completed", "open", 0.0)];
        assert!(states(&undone).is_some());
        let retried = [edge("none", "open", 0.0), edge("open", "failed", 0.0), edge("failed", "open", 0.0)];
        assert_eq!(states(&retried), None);
    }

    #[test]
    fn progress_rises_within_an_attempt() {
        let by_two = [edge("open", "open", 0.201), edge("open", "open", 0.0), edge("open", "open", 0.102)];
        assert_eq!(progress(&by_two), None);
        assert!(progress(&[edge("open", "open", 0.201), edge("open", "open", 0.101)]).is_some());
        assert!(progress(&[edge("open", "open", 0.102), edge("open", "open", 0.201)]).is_some());
    }
}
