//! I5 across crashes: when the server went down under a job that ran for certain, or by a job's own doing, somebody is charged for it.
//! It is that job, or one that ran as a suspect of an earlier crash. So a job that takes the server down every time has as many
//! attempts as others, and not more crashes; that it fails in the end is asked for where jobs end.

use crate::evidence::{Attempt, Evidence, Start};
use crate::history::Time;
use crate::kinds::POISON_SECONDS;
use crate::run::{Blow, Run};

/// How much earlier and later than a crash a run must certainly have begun and have had to end, in seconds.
const MARGIN: f64 = 0.3;

pub fn check(run: &Run, evidence: &Evidence) {
    let events = run.events();
    let ends: Vec<Time> =
        events.iter().filter(|event| matches!(event.kind, Blow::Crash | Blow::Stop)).map(|event| event.at).collect();
    for (number, crash) in ends.iter().enumerate() {
        if !events.iter().any(|event| event.kind == Blow::Crash && event.at == *crash) {
            continue;
        }
        let before = number.checked_sub(1).map_or(0.0, |earlier| ends[earlier]);
        let ran: Vec<&Start> = evidence
            .starts
            .iter()
            .filter(|start| start.at > before && start.at < *crash + MARGIN)
            .filter(|start| is_last_before(evidence, start, *crash))
            .collect();
        // A server takes a moment to die: what begins in it may have run at the crash before.
        let victims: Vec<&&Start> =
            ran.iter().filter(|start| start.at > before + MARGIN && certainly_ran(evidence, start, *crash)).collect();
        let Some(victim) = victims.first() else { continue };
        let charged =
            |start: &&Start| evidence.attempts(&start.job).iter().any(|attempt| is_charge(attempt, start, *crash));
        if !ran.iter().any(charged) {
            let table = evidence.jobs.get(&victim.job).map(|job| job.table);
            let text = format!(
                "it ran when the server crashed at {crash:.3}, and nobody was charged an attempt; charged within five seconds: {}",
                charged_after(evidence, *crash)
            );
            run.violated("I5", table, Some(victim.job), text);
        }
    }
}

/// For whoever looks into it: who was charged soon after that, whichever crash it was for.
fn charged_after(evidence: &Evidence, crash: Time) -> String {
    let mut some = Vec::new();
    for (job, attempts) in &evidence.attempts {
        let soon = |attempt: &&Attempt| attempt.finished > crash && attempt.finished < crash + 5.0;
        for attempt in attempts.iter().filter(|attempt| attempt.outcome == "crashed").filter(soon) {
            let begun = attempt.begun.map_or("never".to_owned(), |begun| format!("{:+.3}", begun - crash));
            some.push(format!(
                "{job} attempt {} begun {begun} ended {:+.3}",
                attempt.attempt,
                attempt.finished - crash
            ));
        }
    }
    if some.is_empty() { "nobody".to_owned() } else { some.join(", ") }
}

fn is_last_before(evidence: &Evidence, start: &Start, crash: Time) -> bool {
    let later = |other: &Start| other.line > start.line && other.at < crash + MARGIN;
    !evidence.starts(&start.job).any(later)
}

fn is_charge(attempt: &Attempt, start: &Start, crash: Time) -> bool {
    attempt.outcome == "crashed" && attempt.attempt == start.attempt && attempt.finished > crash
}

/// A job that crashed the server, or one that takes long, begun well before and not ended by anything else; nobody cancels jobs
/// of those kinds.
fn certainly_ran(evidence: &Evidence, start: &Start, crash: Time) -> bool {
    start.took_down && start.at < crash
        || start.kind == "poison"
            && start.at < crash - MARGIN
            && start.at + POISON_SECONDS > crash + MARGIN
            && start.ended.is_none()
            && !evidence.attempts(&start.job).iter().any(|attempt| {
                attempt.attempt == start.attempt && attempt.outcome != "crashed" && attempt.finished < crash + MARGIN
            })
}
