//! Takes jobs back: by UPDATE, by cancel(), by DELETE, and by replacing the row with another of the same id. Some of them keep
//! the row locked for a while, which is where a completion meets them.

use super::enqueuer::payload;
use super::{begin, end};
use crate::history::{Outcome, Submission, What};
use crate::kinds::Kind;
use crate::rhythm::pause;
use crate::run::{Run, Session};
use crate::scene::CLIENT;
use server_tests::postgres::{Client, Error};

pub fn work(run: &Run, database: &str, number: u64) {
    let mut rng = run.rng(200 + number);
    let mut session = Session::new(run, database, CLIENT);
    let mut replaced = 0;
    while !run.stopped() {
        pause(rng.u64(2..25));
        if session.get().is_none() {
            continue;
        }
        let long = rng.u32(..3) > 0;
        let suits = |table: usize, one: &Submission| {
            run.tables[table].database == database && !Kind::is_poison(one.kind) && (!long || Kind::is_long(one.kind))
        };
        let Some((table, one)) = run.history.pick(&mut rng, suits) else { continue };
        let hold = if rng.u32(..3) == 0 { f64::from(rng.u32(1..40)) / 1000.0 } else { 0.0 };
        let Some(client) = session.get() else { continue };
        let take = Take { run, table, one, hold, client };
        take.by(match rng.u32(..10) {
            0..2 => Way::Update,
            2..4 => Way::Function,
            4 => Way::Delete,
            // A row that submits others would have to take them along.
            _ if one.kind != "child" && one.kind != "deadlock" => {
                replaced += 1;
                // No two cancellers use the same number.
                Way::Replace(1 + replaced * 10 + number as i32)
            }
            _ => Way::Update,
        });
    }
}

#[derive(Clone, Copy)]
pub enum Way {
    Update,
    Function,
    Delete,
    /// By a submission of that number.
    Replace(i32),
}

pub struct Take<'a> {
    pub run: &'a Run,
    pub table: usize,
    pub one: Submission,
    /// For how long the row stays locked before the COMMIT, in seconds.
    pub hold: f64,
    pub client: &'a mut Client,
}

impl Take<'_> {
    pub fn by(self, way: Way) {
        match way {
            Way::Update => self.update(),
            Way::Function => self.function(),
            Way::Delete => self.delete(),
            Way::Replace(seq) => self.replace(seq),
        }
    }

    fn name(&self) -> String {
        self.run.tables[self.table].name()
    }

    fn update(self) {
        let statement = format!(
            "UPDATE {} SET cancelled = true WHERE id = $1 AND NOT completed AND NOT cancelled RETURNING 1",
            self.name()
        );
        let job = self.one.job;
        self.held("UPDATE", &statement, |hit| What::Cancel { job, hit });
    }

    fn function(self) {
        let call = format!("SELECT 1 WHERE background_jobs.cancel($1, '{}')", self.name());
        let job = self.one.job;
        self.held("cancel()", &call, |hit| What::Cancel { job, hit });
    }

    fn delete(self) {
        let statement =
            format!("DELETE FROM {} WHERE id = $1 AND NOT completed AND NOT cancelled RETURNING 1", self.name());
        let job = self.one.job;
        self.held("DELETE", &statement, |hit| What::Delete { job, hit });
    }

    /// One statement that either hits an unfinished row or does not.
    fn held(self, how: &'static str, statement: &str, what: impl Fn(bool) -> What) {
        let mut operation = begin(self.table, how, what(false));
        let mut body = || -> Result<bool, Error> {
            self.client.batch_execute("BEGIN")?;
            let hit = !self.client.query(statement, &[&self.one.job])?.is_empty();
            if self.hold > 0.0 {
                self.client.batch_execute(&format!("SELECT pg_sleep({})", self.hold))?;
            }
            Ok(hit)
        };
        let outcome = match body() {
            Ok(hit) => {
                operation.what = what(hit);
                Outcome::of(&self.client.batch_execute("COMMIT"))
            }
            Err(_) => {
                let _ = self.client.batch_execute("ROLLBACK");
                Outcome::Failed
            }
        };
        end(self.run, operation, outcome);
    }

    fn replace(self, seq: i32) {
        let name = self.name();
        let delete = format!(
            "DELETE FROM {name} WHERE id = $1 AND NOT completed AND NOT cancelled RETURNING (payload ->> 'seq')::int"
        );
        let insert = format!(
            "INSERT INTO {name} (id, timestamp, payload, completed, cancelled, progress)
             VALUES ($1, now(), $2, false, false, 0)"
        );
        let new = Submission { seq, ..self.one };
        let mut operation = begin(self.table, "replace", What::Replace { old: 0, new, hit: false });
        let mut body = || -> Result<Option<i32>, Error> {
            self.client.batch_execute("BEGIN")?;
            let old = self.client.query(&delete, &[&new.job])?.first().map(|row| row.get(0));
            if old.is_some() {
                self.client.execute(&insert, &[&new.job, &payload(&new)])?;
                self.client.batch_execute(&format!("SELECT pg_sleep({})", self.hold))?;
            }
            Ok(old)
        };
        let outcome = match body() {
            Ok(old) => {
                operation.what = What::Replace { old: old.unwrap_or(0), new, hit: old.is_some() };
                Outcome::of(&self.client.batch_execute("COMMIT"))
            }
            Err(_) => {
                let _ = self.client.batch_execute("ROLLBACK");
                Outcome::Failed
            }
        };
        end(self.run, operation, outcome);
    }
}
