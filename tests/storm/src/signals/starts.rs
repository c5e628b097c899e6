//! The runs of handlers, from the server's log: an attempt is begun again only for a reason.

use super::Blow;
use server_tests::Uuid;
use std::collections::BTreeMap;

/// Starts of one attempt that need no reason: a batch in which it overran its company, one that another one spoilt.
const FREE: usize = 4;

pub struct Start {
    at: f64,
    pid: u32,
    job: Uuid,
    pub attempt: i32,
}

pub fn read(log: &str) -> Vec<Start> {
    log.lines().filter_map(parse).collect()
}

/// "1700000000.123 [4711] background worker: LOG:  storm start 0000-... 1 quick"
fn parse(line: &str) -> Option<Start> {
    let (before, said) = line.split_once(": LOG:  storm start ")?;
    let (at, rest) = before.split_once(" [")?;
    let (pid, _) = rest.split_once(']')?;
    let mut words = said.split(' ');
    let (job, attempt) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Start { at: at.parse().ok()?, pid: pid.parse().ok()?, job, attempt })
}

/// Attempts that were started again too often without a signal to the process that ran them before.
pub fn repeated(starts: &[Start], blows: &[Blow]) -> Vec<String> {
    let mut attempts: BTreeMap<(Uuid, i32), Vec<&Start>> = BTreeMap::new();
    for start in starts {
        attempts.entry((start.job, start.attempt)).or_default().push(start);
    }
    let repeats: usize = attempts.values().map(|starts| starts.len() - 1).sum();
    let most = attempts.values().map(Vec::len).max().unwrap_or(0);
    println!("{} starts of {} attempts; {repeats} repeated, one of them {most} times", starts.len(), attempts.len());
    let without_reason = |pair: &&[&Start]| {
        let (before, after) = (pair[0], pair[1]);
        !blows.iter().any(|blow| blow.pid == before.pid && blow.at > before.at - 0.1 && blow.at < after.at)
    };
    attempts
        .iter()
        .filter(|(_, starts)| starts.windows(2).filter(without_reason).count() > FREE)
        .map(|((job, attempt), starts)| format!("attempt {attempt} of {job} was started {} times (I5)", starts.len()))
        .take(5)
        .collect()
}
