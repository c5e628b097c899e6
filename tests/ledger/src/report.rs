//! What the run tells: figures, and each violation with the history of its job.

use crate::evidence::Evidence;
use crate::history::{Outcome, Time, Told, What};
use crate::run::{Run, Violation};
use server_tests::Uuid;
use std::collections::BTreeMap;

/// Violations of one invariant that are told, and how many of them in full.
const TOLD: usize = 12;
const IN_FULL: usize = 4;

pub struct Figures {
    pub drained: f64,
    /// From commit to completion on the idle server at the end, at most.
    pub longest_probe: f64,
}

pub fn print(run: &Run, evidence: &Evidence, figures: &Figures) {
    let operations = run.history.operations();
    let mut told: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for operation in &operations {
        let counts = told.entry(operation.how).or_default();
        counts[match operation.outcome {
            Outcome::Acknowledged => 0,
            Outcome::Failed => 1,
            Outcome::Unknown => 2,
        }] += 1;
    }
    println!("operations            acknowledged  failed  unknown");
    for (how, [acknowledged, failed, unknown]) in told {
        println!("  {how:<22} {acknowledged:>9} {failed:>7} {unknown:>8}");
    }
    let mut hits: BTreeMap<String, usize> = BTreeMap::new();
    for operation in &operations {
        let hit = match operation.what {
            What::Cancel { hit: true, .. } => "cancelled".to_owned(),
            What::Delete { hit: true, .. } => "deleted".to_owned(),
            What::Replace { hit: true, .. } => "replaced".to_owned(),
            What::Retry { hit: true, .. } => "retried".to_owned(),
            What::RunNow { hit: true, .. } => "run now".to_owned(),
            What::Wait { told: Told::Completed(_), .. } => "waited for: completed".to_owned(),
            What::Wait { told, .. } => format!("waited for: {told:?}").to_lowercase(),
            _ => continue,
        };
        *hits.entry(hit).or_default() += 1;
    }
    println!("hits: {hits:?}");
    blows(run);
    let mut states: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for job in evidence.jobs.values() {
        *states.entry((&job.state, "")).or_default() += 1;
        *states.entry((&job.state, &job.kind)).or_default() += 1;
    }
    println!("jobs: {} rows, {} starts of handlers", evidence.jobs.len(), evidence.starts.len());
    for state in ["completed", "failed", "cancelled", "open", "completed and cancelled"] {
        let Some(all) = states.get(&(state, "")) else { continue };
        let kinds = states.iter().filter(|((of, kind), _)| *of == state && !kind.is_empty());
        let kinds: Vec<String> = kinds.map(|((_, kind), count)| format!("{kind} {count}")).collect();
        println!("  {state:<10} {all:>6}   {}", kinds.join(", "));
    }
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for attempt in evidence.attempts.values().flatten() {
        *outcomes.entry(&attempt.outcome).or_default() += 1;
    }
    println!("attempts without success: {outcomes:?}");
    println!(
        "drained {:.1} s after the storm; the idle server completed every probe within {:.0} ms",
        figures.drained,
        figures.longest_probe * 1000.0
    );
}

fn blows(run: &Run) {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut back: Vec<Time> = Vec::new();
    let mut kills = 0;
    for event in run.events() {
        kills += usize::from(event.is_kill());
        *kinds.entry(event.what).or_default() += 1;
        back.extend(event.back_after);
    }
    let list: Vec<String> = kinds.iter().map(|(what, count)| format!("{what} {count}")).collect();
    println!("{kills} kills; all blows: {}", list.join(", "));
    back.sort_by(f64::total_cmp);
    if !back.is_empty() {
        let (half, most) = (back[back.len() / 2], back[back.len() - 1]);
        println!("{} recoveries, seconds until connected: median {half:.2}, longest {most:.2}", back.len());
    }
}

pub fn violations(run: &Run, evidence: &Evidence) {
    let all = run.violations();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (violation, text) in &all {
        let Violation { invariant, table, job } = violation;
        let number = counts.entry(invariant).or_default();
        *number += 1;
        if *number > TOLD {
            continue;
        }
        let place = table.map_or_else(String::new, |table| {
            let table = &run.tables[table];
            format!(" {} in {}", table.name(), table.database)
        });
        let job_text = job.map_or_else(String::new, |job| format!(" job {job}"));
        println!("VIOLATION {invariant}{place}{job_text}: {text}");
        if let (Some(job), true) = (job, *number <= IN_FULL) {
            history(run, evidence, *job);
        }
    }
    println!("violations by invariant: {counts:?}");
}

/// Everything that is known of one job, in the order of time.
fn history(run: &Run, evidence: &Evidence, job: Uuid) {
    let mut lines: Vec<(Time, String)> = Vec::new();
    for operation in run.history.operations().iter().filter(|operation| operation.concerns(job)) {
        let took = (operation.ended - operation.begun) * 1000.0;
        let mut what = format!("{:?}", operation.what);
        what.truncate(300);
        let text = format!("client {}: {what} {:?} after {took:.0} ms", operation.how, operation.outcome);
        lines.push((operation.begun, text));
    }
    for start in evidence.starts(&job) {
        let ended = if start.ended.is_some() { ", which came to its end" } else { "" };
        let text =
            format!("start of {} attempt {} number {} in {}{ended}", start.kind, start.attempt, start.seq, start.pid);
        lines.push((start.at, text));
    }
    for edge in evidence.edges(&job) {
        let text =
            format!("row {} -> {} number {} progress {} by {}", edge.old, edge.new, edge.seq, edge.progress, edge.pid);
        lines.push((edge.at, text));
    }
    for attempt in evidence.attempts(&job) {
        lines.push((attempt.finished, format!("attempt {} {}: {}", attempt.attempt, attempt.outcome, attempt.error)));
    }
    for effect in evidence.effects(&job) {
        let text = format!("effect of number {} attempt {} in {}", effect.seq, effect.attempt, effect.pid);
        lines.push((effect.at, text));
    }
    let span = |pick: fn(f64, f64) -> f64, start| lines.iter().map(|(at, _)| *at).fold(start, pick);
    let (first, last) = (span(f64::min, f64::MAX), span(f64::max, 0.0));
    for event in run.events().into_iter().filter(|event| event.at > first - 0.5 && event.at < last + 1.0) {
        lines.push((event.at, format!("    nemesis: {} {}", event.what, event.pid)));
    }
    lines.sort_by(|one, other| one.0.total_cmp(&other.0));
    for (at, text) in lines {
        println!("    {:.3} {text}", at - first);
    }
    if let Some(row) = evidence.jobs.get(&job) {
        println!("    at the end: {} number {} {:?}", row.state, row.seq, row.result);
    }
}
