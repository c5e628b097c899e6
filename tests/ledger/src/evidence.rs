//! What the run has left: rows, effects, changes of state, attempts, and the lines that handlers wrote into the server's log.

use crate::history::{Outcome, Time};
use crate::run::{Event, Run};
use server_tests::postgres::{Client, Error, Row};
use server_tests::wait::attempt;
use server_tests::{Uuid, Value};
use std::collections::HashMap;
use std::time::Duration;

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
    /// Its process ended by a signal in it, and the server with that, as its handler wanted it.
    pub took_down: bool,
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
    /// Those that handlers have caused.
    pub crashes: Vec<Event>,
}

/// How long the server may be down at most when it is looked at.
const PATIENCE: Duration = Duration::from_secs(20);

impl Evidence {
    /// Also notes the crashes that handlers have caused among the other events of the run.
    pub fn gather(run: &Run) -> Result<Evidence, Error> {
        // With some planted bugs poison takes the server down again and again; between two times there is enough time to read.
        let read = || match Evidence::read_all(run) {
            Err(error) if Outcome::of_error(&error) == Outcome::Unknown => Err(error.to_string()),
            other => Ok(other),
        };
        let mut evidence =
            attempt(PATIENCE, "a server to read from", read).unwrap_or_else(|_| Evidence::read_all(run))?;
        evidence.read_log(&run.cluster.log());
        run.crashed(&evidence.crashes);
        Ok(evidence)
    }

    fn read_all(run: &Run) -> Result<Evidence, Error> {
        let mut evidence = Evidence::default();
        for (number, table) in run.tables.iter().enumerate() {
            let mut admin = run.cluster.try_connect(&table.database, "postgres")?;
            evidence.read(&mut admin, number, &table.owner)?;
        }
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
}
