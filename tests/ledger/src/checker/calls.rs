//! I9 and I11: what wait() and run_now() said about a job, against what had become of it by then.

use crate::evidence::{Edge, Evidence};
use crate::history::{Operation, Outcome, Time, Told, What};
use crate::run::Run;
use crate::scene::POLL_SECONDS;

/// The caller's own session may have been stopped for a second, and times are taken on both sides.
const MARGIN: f64 = 1.5;

pub fn check(run: &Run, evidence: &Evidence) {
    for operation in run.history.operations() {
        let (job, wrong) = match operation.what {
            What::Wait { job, told } => (job, wait(&operation, told, evidence.edges(&job))),
            What::RunNow { job, hit: true } if operation.outcome == Outcome::Acknowledged => {
                let since = final_since(evidence.edges(&job), operation.begun);
                (
                    job,
                    since.map(|since| ("I9", format!("run_now() found it queued, and it was final since {since:.3}"))),
                )
            }
            _ => continue,
        };
        if let Some((invariant, text)) = wrong {
            run.violated(invariant, Some(operation.table), Some(job), text);
        }
    }
}

fn wait(operation: &Operation, told: Told, edges: &[Edge]) -> Option<(&'static str, String)> {
    let became = |state: &str, seq: Option<i32>| {
        edges
            .iter()
            .any(|edge| edge.new == state && seq.is_none_or(|seq| edge.seq == seq) && edge.at <= operation.ended)
    };
    let (known, state) = match told {
        Told::Nothing => return None,
        Told::Completed(seq) => (became("completed", Some(seq)), "completed"),
        Told::Failed => (became("failed", None), "failed"),
        Told::Cancelled => (became("cancelled", None), "cancelled"),
        Told::Gone => (became("gone", None), "gone"),
        Told::TimedOut => {
            let since = final_since(edges, operation.ended)?;
            let late = operation.ended - since.max(operation.begun) > POLL_SECONDS + MARGIN;
            return late.then(|| ("I11", format!("wait() did not notice its end at {since:.3}")));
        }
    };
    (!known).then(|| ("I9", format!("wait() said that it was {state}, and it had not been")))
}

/// Since when it has been final at that time, if it was.
fn final_since(edges: &[Edge], at: Time) -> Option<Time> {
    // Several edges of one transaction have the order of their numbers.
    let last = edges.iter().rfind(|edge| edge.at <= at + MARGIN)?;
    (last.new != "open" && last.at <= at).then_some(last.at)
}
