//! Each violation with the history of its job: all of them in a file, and the first of each invariant on the terminal.

use crate::evidence::Evidence;
use crate::history::{Operation, Time};
use crate::run::{Event, Run, Violation};
use server_tests::Uuid;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// Violations of one invariant that the terminal shows, and how many of them with their history.
const TOLD: usize = 5;
const IN_FULL: usize = 1;

/// Adds the round's violations to the file, which those of earlier rounds may stand in.
pub fn tell(run: &Run, evidence: &Evidence, file: &Path) {
    let all = run.violations();
    let known = Known { evidence, operations: run.history.operations(), events: run.events() };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut text = format!("round with seed {}\n", run.seed);
    for (violation, why) in &all {
        let Violation { invariant, table, job } = violation;
        let number = counts.entry(invariant).or_default();
        *number += 1;
        let place = table.map_or_else(String::new, |table| {
            let table = &run.tables[table];
            format!(" {} in {}", table.name(), table.database)
        });
        let job_text = job.map_or_else(String::new, |job| format!(" job {job}"));
        let line = format!("VIOLATION {invariant}{place}{job_text}: {why}\n");
        let history = job.map_or_else(String::new, |job| known.of(job));
        if *number <= TOLD {
            print!("{line}");
        }
        if *number <= IN_FULL {
            print!("{history}");
        }
        text.extend([line, history]);
    }
    println!("violations by invariant: {counts:?}");
    if all.is_empty() {
        return;
    }
    match append(file, &text) {
        Ok(()) => println!("all of them, with their histories: {}", file.display()),
        Err(error) => println!("could not write all of them to {}: {error}", file.display()),
    }
}

fn append(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(file)?.write_all(text.as_bytes())
}

struct Known<'a> {
    evidence: &'a Evidence,
    operations: Vec<Operation>,
    events: Vec<Event>,
}

impl Known<'_> {
    /// Everything that is known of one job, in the order of time.
    fn of(&self, job: Uuid) -> String {
        let mut lines = self.operations_on(job);
        lines.extend(self.traces_of(job));
        let span = |pick: fn(f64, f64) -> f64, start| lines.iter().map(|(at, _)| *at).fold(start, pick);
        let (first, last) = (span(f64::min, f64::MAX), span(f64::max, 0.0));
        let about = self.events.iter().filter(|event| event.at > first - 0.5 && event.at < last + 1.0);
        let blows: Vec<_> =
            about.map(|event| (event.at, format!("    nemesis: {} {}", event.what, event.pid))).collect();
        lines.extend(blows);
        lines.sort_by(|one, other| one.0.total_cmp(&other.0));
        let mut history: String = lines.iter().map(|(at, text)| format!("    {:.3} {text}\n", at - first)).collect();
        if let Some(row) = self.evidence.jobs.get(&job) {
            history += &format!("    at the end: {} number {} {:?}\n", row.state, row.seq, row.result);
        }
        history
    }

    fn operations_on(&self, job: Uuid) -> Vec<(Time, String)> {
        let tell = |operation: &Operation| {
            let took = (operation.ended - operation.begun) * 1000.0;
            let what: String = format!("{:?}", operation.what).chars().take(300).collect();
            let text = format!("client {}: {what} {:?} after {took:.0} ms", operation.how, operation.outcome);
            (operation.begun, text)
        };
        self.operations.iter().filter(|operation| operation.concerns(job)).map(tell).collect()
    }

    fn traces_of(&self, job: Uuid) -> Vec<(Time, String)> {
        let mut lines = Vec::new();
        for start in self.evidence.starts(&job) {
            let ended = if start.ended.is_some() { ", which came to its end" } else { "" };
            let text = format!(
                "start of {} attempt {} number {} in {}{ended}",
                start.kind, start.attempt, start.seq, start.pid
            );
            lines.push((start.at, text));
        }
        for edge in self.evidence.edges(&job) {
            let text = format!(
                "row {} -> {} number {} progress {} by {}",
                edge.old, edge.new, edge.seq, edge.progress, edge.pid
            );
            lines.push((edge.at, text));
        }
        for attempt in self.evidence.attempts(&job) {
            let text = format!("attempt {} {}: {}", attempt.attempt, attempt.outcome, attempt.error);
            lines.push((attempt.finished, text));
        }
        for effect in self.evidence.effects(&job) {
            let text = format!("effect of number {} attempt {} in {}", effect.seq, effect.attempt, effect.pid);
            lines.push((effect.at, text));
        }
        lines
    }
}
