//! What the run tells: figures.

use crate::evidence::Evidence;
use crate::history::{Outcome, Time, Told, What};
use crate::run::Run;
use std::collections::BTreeMap;

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
    let submitted = run.history.submitted();
    println!("jobs: {submitted} submitted, {} rows, {} starts of handlers", evidence.jobs.len(), evidence.starts.len());
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
