//! What the run has left: rows, effects, changes of state, attempts, and the lines that handlers wrote into the server's log.

use crate::history::Time;
use crate::run::Run;
use server_tests::postgres::{Client, Error, Row};
use server_tests::{Uuid, Value};
use std::collections::HashMap;

pub struct Job {
    pub table: usize,
    pub seq: i32,
    pub state: String,
    pub kind: String,
    pub result: Option<Value>,
}

pub struct Effect {
    pub seq: i32,
    pub attempt: i32,
    pub pid: u32,
    pub at: Time,
}

pub struct Edge {
    pub seq: i32,
    pub old: String,
    pub new: String,
    pub progress: f32,
    pub pid: u32,
    pub at: Time,
}

pub struct Attempt {
    pub attempt: i32,
    pub outcome: String,
    pub error: String,
    /// Not known of everyone.
    pub begun: Option<Time>,
    pub finished: Time,
}

/// A run of a handler, from the server's log.
pub struct Start {
    pub line: usize,
    pub at: Time,
    pub pid: u32,
    pub job: Uuid,
    pub seq: i32,
    pub attempt: i32,
    pub kind: String,
    /// What the session should not have had.
    pub dirt: String,
    /// The line that says that it was about to end.
    pub ended: Option<usize>,
}

#[derive(Default)]
pub struct Evidence {
    pub jobs: HashMap<Uuid, Job>,
    pub effects: HashMap<Uuid, Vec<Effect>>,
    /// In the order in which they happened.
    pub edges: HashMap<Uuid, Vec<Edge>>,
    pub attempts: HashMap<Uuid, Vec<Attempt>>,
    pub starts: Vec<Start>,
    pub starts_of: HashMap<Uuid, Vec<usize>>,
}

impl Evidence {
    pub fn gather(run: &Run) -> Result<Evidence, Error> {
        let mut evidence = Evidence::default();
        for (number, table) in run.tables.iter().enumerate() {
            let mut admin = run.cluster.admin(&table.database);
            evidence.read(&mut admin, number, &table.owner)?;
        }
        evidence.read_log(&run.cluster.log());
        Ok(evidence)
    }

    pub fn starts(&self, job: &Uuid) -> impl DoubleEndedIterator<Item = &Start> {
        self.starts_of.get(job).into_iter().flatten().map(|index| &self.starts[*index])
    }

    pub fn attempts(&self, job: &Uuid) -> &[Attempt] {
        self.attempts.get(job).map_or(&[], Vec::as_slice)
    }

    pub fn edges(&self, job: &Uuid) -> &[Edge] {
        self.edges.get(job).map_or(&[], Vec::as_slice)
    }

    pub fn effects(&self, job: &Uuid) -> &[Effect] {
        self.effects.get(job).map_or(&[], Vec::as_slice)
    }

    fn read(&mut self, admin: &mut Client, table: usize, owner: &str) -> Result<(), Error> {
        let pid = |row: &Row, column| row.get::<_, i32>(column).cast_unsigned();
        let query = format!(
            "SELECT id, (payload ->> 'seq')::int, {owner}.job_state(completed, cancelled, result),
                    payload ->> 'handler', result FROM {owner}.background_jobs"
        );
        for row in admin.query(&query, &[])? {
            let (seq, state, kind, result) = (row.get(1), row.get(2), row.get(3), row.get(4));
            self.jobs.insert(row.get(0), Job { table, seq, state, kind, result });
        }
        let query = format!("SELECT job, seq, attempt, pid, extract(epoch FROM at)::float8 FROM {owner}.ledger");
        for row in admin.query(&query, &[])? {
            let effect = Effect { seq: row.get(1), attempt: row.get(2), pid: pid(&row, 3), at: row.get(4) };
            self.effects.entry(row.get(0)).or_default().push(effect);
        }
        let query = format!(
            "SELECT job, COALESCE(seq, 0), old, new, progress, pid, extract(epoch FROM at)::float8
               FROM {owner}.edges ORDER BY n"
        );
        for row in admin.query(&query, &[])? {
            let (seq, old, new) = (row.get(1), row.get(2), row.get(3));
            let edge = Edge { seq, old, new, progress: row.get(4), pid: pid(&row, 5), at: row.get(6) };
            self.edges.entry(row.get(0)).or_default().push(edge);
        }
        let query = "SELECT job_id, attempt, outcome, error::text, extract(epoch FROM started_at)::float8,
                extract(epoch FROM finished_at)::float8
            FROM background_jobs.attempt WHERE job_table = ($1 || '.background_jobs')::regclass ORDER BY finished_at";
        for row in admin.query(query, &[&owner])? {
            let (attempt, outcome, error) = (row.get(1), row.get(2), row.get(3));
            let attempt = Attempt { attempt, outcome, error, begun: row.get(4), finished: row.get(5) };
            self.attempts.entry(row.get(0)).or_default().push(attempt);
        }
        Ok(())
    }

    fn read_log(&mut self, log: &str) {
        let mut running: HashMap<u32, usize> = HashMap::new();
        for (line, text) in log.lines().enumerate() {
            let Some((at, pid, said)) = parse(text) else { continue };
            let words: Vec<&str> = said.split_whitespace().collect();
            match words[..] {
                ["start", job, seq, attempt, kind, dirt] => {
                    let (Ok(job), Ok(seq), Ok(attempt)) = (job.parse(), seq.parse(), attempt.parse()) else { continue };
                    let dirt = dirt.trim_matches(['[', ']']).to_owned();
                    let index = self.starts.len();
                    running.insert(pid, index);
                    self.starts_of.entry(job).or_default().push(index);
                    let kind = kind.to_owned();
                    self.starts.push(Start { line, at, pid, job, seq, attempt, kind, dirt, ended: None });
                }
                ["end", job, ..] => {
                    let begun = running.get(&pid).map(|index| &mut self.starts[*index]);
                    if let Some(start) = begun.filter(|start| Ok(start.job) == job.parse()) {
                        start.ended = Some(line);
                    }
                }
                _ => {}
            }
        }
    }
}

/// "1700000000.123 [4711] north: LOG:  ledger start ..."
fn parse(line: &str) -> Option<(Time, u32, &str)> {
    let (before, said) = line.split_once(": LOG:  ledger ")?;
    let (at, rest) = before.split_once(" [")?;
    let (pid, _) = rest.split_once(']')?;
    Some((at.parse().ok()?, pid.parse().ok()?, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_runs_and_their_ends() {
        let job = "00000000-0000-0000-0000-000000000001";
        let mut evidence = Evidence::default();
        evidence.read_log(&format!(
            "1700000000.123 [4711] north: LOG:  ledger start {job} 1 2 quick [lock]\n\
             1700000000.125 [4712] north: LOG:  something else\n\
             1700000000.130 [4711] north: LOG:  ledger end {job} 1 2\n"
        ));
        let start = &evidence.starts[0];
        assert_eq!((start.pid, start.attempt, start.dirt.as_str(), start.ended), (4711, 2, "lock", Some(2)));
    }
}
