//! I1 to I4: every job has the end that its clients were told of, and its effects with it.

use crate::evidence::{Evidence, Job};
use crate::history::{Outcome, Submission, Time, What};
use crate::kinds::{CRASHED, Kind, NEMESIS_ERRORS};
use crate::run::Run;
use server_tests::{Uuid, Value};
use std::collections::HashMap;

/// What the operations on one id allow.
#[derive(Default)]
struct Fate {
    table: usize,
    /// With the outcome of the insert, and whether that submission was certainly taken back again.
    submissions: Vec<(Submission, Outcome, bool)>,
    cancelled: bool,
    maybe_cancelled: bool,
    deleted: bool,
    maybe_deleted: bool,
    /// retry() may have opened it again.
    maybe_retried: bool,
    /// Ends of the operations that found it final already.
    missed: Vec<Time>,
}

pub fn check(run: &Run, evidence: &Evidence) {
    let fates = fates(run);
    for (job, fate) in &fates {
        let told = |invariant, text: String| run.violated(invariant, Some(fate.table), Some(*job), text);
        existence(fate, evidence.jobs.get(job), &told);
        effects(*job, fate, evidence, &told);
        for missed in &fate.missed {
            let known =
                evidence.edges(job).iter().any(|edge| edge.old == "open" && edge.new != "open" && edge.at <= *missed);
            if !known {
                told("I4", "a cancel found it final, but it was not".to_owned());
            }
        }
    }
    children(run, evidence, &fates);
}

fn fates(run: &Run) -> HashMap<Uuid, Fate> {
    let mut fates: HashMap<Uuid, Fate> = HashMap::new();
    let operations = run.history.operations();
    // Inserts first: what was done to a job may be written down before its insert is.
    for operation in &operations {
        let inserted: &[Submission] = match &operation.what {
            What::Insert(some) => some,
            What::Replace { new, hit: true, .. } => std::slice::from_ref(new),
            _ => continue,
        };
        for one in inserted {
            let fate = fates.entry(one.job).or_default();
            fate.table = operation.table;
            fate.submissions.push((*one, operation.outcome, false));
        }
    }
    for operation in &operations {
        let (certain, possible) = match operation.outcome {
            Outcome::Acknowledged => (true, true),
            Outcome::Unknown => (false, true),
            Outcome::Failed => continue,
        };
        let (job, hit) = match operation.what {
            What::Retry { job, hit } => {
                if let Some(fate) = fates.get_mut(&job) {
                    fate.maybe_retried |= hit && possible;
                }
                continue;
            }
            What::Insert(_) | What::RunNow { .. } | What::Wait { .. } | What::Register => continue,
            What::Cancel { job, hit } | What::Delete { job, hit } => (job, hit),
            What::Replace { new, hit, .. } => (new.job, hit),
        };
        let Some(fate) = fates.get_mut(&job) else { continue };
        match operation.what {
            _ if !hit => fate.missed.extend(certain.then_some(operation.ended)),
            What::Cancel { .. } => {
                fate.cancelled |= certain;
                fate.maybe_cancelled |= possible;
            }
            What::Delete { .. } => {
                fate.deleted |= certain;
                fate.maybe_deleted |= possible;
            }
            What::Replace { old, .. } if certain => {
                fate.submissions.iter_mut().filter(|(one, ..)| one.seq == old).for_each(|(.., gone)| *gone = true);
            }
            _ => {}
        }
    }
    fates
}

fn existence(fate: &Fate, row: Option<&Job>, told: &impl Fn(&'static str, String)) {
    let acknowledged = fate.submissions.iter().any(|(_, outcome, _)| *outcome == Outcome::Acknowledged);
    let Some(row) = row else {
        if acknowledged && !fate.maybe_deleted {
            told("I1", "its insert was acknowledged, and the row is not there".to_owned());
        }
        return;
    };
    if fate.deleted {
        told("I4", "its DELETE was acknowledged, and the row is there".to_owned());
    }
    match fate.submissions.iter().find(|(one, ..)| one.seq == row.seq) {
        None => told("I2", format!("nobody submitted number {} of this id", row.seq)),
        Some((_, Outcome::Failed, _)) => told("I2", "its insert was rolled back, and the row is there".to_owned()),
        Some((.., true)) => told("I4", format!("number {} was replaced, and the row is there", row.seq)),
        Some(_) => {}
    }
    if fate.cancelled && !fate.maybe_retried && row.state != "cancelled" {
        told("I4", format!("its cancel was acknowledged, and it is {}", row.state));
    }
    if row.state == "cancelled" && !fate.maybe_cancelled {
        told("I9", "it is cancelled, and nobody cancelled it".to_owned());
    }
    ending(row, told);
}

/// Did it end as its handler does?
fn ending(row: &Job, told: &impl Fn(&'static str, String)) {
    let kind = Kind::named(&row.kind);
    match (row.state.as_str(), &row.result) {
        ("completed", result) => {
            if kind.fails {
                told("I3", "it is completed, and its handler always fails".to_owned());
            }
            if result.as_ref().and_then(|result| result.get("seq")) != Some(&Value::from(row.seq)) {
                told("I3", format!("its result is another's: {result:?}"));
            }
        }
        ("failed", Some(result)) => {
            let error = |name| result["error"][name].clone();
            let (sqlstate, attempts) = (error("sqlstate"), error("attempts"));
            let sqlstate = sqlstate.as_str().unwrap_or("");
            if sqlstate != kind.error && !NEMESIS_ERRORS.contains(&sqlstate) {
                told("I3", format!("it failed with what neither its handler nor the nemesis does: {result}"));
            }
            if sqlstate == CRASHED && !error("message").as_str().is_some_and(|text| text.contains("server crashed")) {
                told("I5", format!("its error does not say what happened: {result}"));
            }
            if attempts != kind.max_attempts {
                told("I5", format!("it failed for good after {attempts} of {} attempts", kind.max_attempts));
            }
        }
        _ => {}
    }
}

fn effects(job: Uuid, fate: &Fate, evidence: &Evidence, told: &impl Fn(&'static str, String)) {
    let row = evidence.jobs.get(&job);
    for (one, outcome, gone) in &fate.submissions {
        let done = evidence.effects(&job).iter().filter(|effect| effect.seq == one.seq).count();
        let completed = row.is_some_and(|row| row.seq == one.seq && row.state == "completed");
        if done != usize::from(completed) {
            let state = row.map_or("gone", |row| &row.state);
            let why = if *gone { "replaced" } else { "current" };
            told("I3", format!("number {} ({why}, row {state}) has {done} effects", one.seq));
            if fate.cancelled || fate.deleted {
                told("I4", "its cancel was acknowledged, and it has effects".to_owned());
            }
        }
        if *outcome == Outcome::Failed && evidence.starts(&job).any(|start| start.seq == one.seq) {
            told("I2", "its insert was rolled back, and it was started".to_owned());
        }
    }
    // Effects, not what comes of them: the run that wrote them has to be the last one that was begun.
    for effect in evidence.effects(&job) {
        let runs = evidence.starts(&job).filter(|start| start.seq == effect.seq);
        match runs.max_by_key(|start| start.line) {
            None => told("I7", "it has effects, and was never started".to_owned()),
            Some(last) if (last.attempt, last.pid) != (effect.attempt, effect.pid) => {
                told("I7", format!("attempt {} committed after attempt {} had begun", effect.attempt, last.attempt))
            }
            Some(_) => {}
        }
    }
}

/// What a handler submits is there if and only if the job was completed; and whatever else is there, somebody submitted.
fn children(run: &Run, evidence: &Evidence, fates: &HashMap<Uuid, Fate>) {
    let mut known: HashMap<Uuid, Uuid> = HashMap::new();
    for (job, fate) in fates {
        let Some(child) = fate.submissions.iter().find_map(|(one, ..)| one.child) else { continue };
        known.insert(child, *job);
        let completed = evidence.jobs.get(job).is_some_and(|row| row.state == "completed");
        if completed != evidence.jobs.contains_key(&child) {
            let text = format!("completed: {completed}, but not so the job that it submits, {child}");
            run.violated("I3", Some(fate.table), Some(*job), text);
        }
    }
    for (job, row) in &evidence.jobs {
        if !fates.contains_key(job) && !known.contains_key(job) {
            run.violated("I2", Some(row.table), Some(*job), "nobody submitted it".to_owned());
        }
        let done = evidence.effects(job).len();
        if known.contains_key(job) && done != usize::from(row.state == "completed") {
            run.violated("I3", Some(row.table), Some(*job), format!("a {} child with {done} effects", row.state));
        }
    }
}
