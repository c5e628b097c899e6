//! Submits jobs in every way there is: alone, in bulk, in a transaction with a long COMMIT, in one that is rolled back, behind
//! a savepoint, through enqueue(), delayed, in a prepared transaction.

use super::{begin, end};
use crate::history::{Outcome, Submission, What};
use crate::kinds::Kind;
use crate::rhythm::pause;
use crate::run::{Run, Session};
use crate::scene::CLIENT;
use fastrand::Rng;
use server_tests::postgres::{Client, Error};
use server_tests::{Uuid, Value, json};

pub struct Enqueuer<'a> {
    run: &'a Run,
    number: usize,
    table: String,
    rng: Rng,
    session: Session<'a>,
    prepared: u32,
}

/// An identifier out of the run's choices.
pub fn new_id(rng: &mut Rng) -> Uuid {
    Uuid::from_u128(rng.u128(..))
}

pub fn payload(one: &Submission) -> Value {
    let mut payload = json!({ "handler": one.kind, "seq": one.seq, "canary": "never in a log" });
    if let Some(child) = one.child {
        payload["child"] = json!(child.to_string());
    }
    payload
}

impl<'a> Enqueuer<'a> {
    pub fn new(run: &'a Run, number: usize) -> Self {
        let table = &run.tables[number];
        let session = Session::new(run, &table.database, CLIENT);
        Self { run, number, table: table.name(), rng: run.rng(100 + number as u64), session, prepared: 0 }
    }

    pub fn work(&mut self) {
        while !self.run.stopped() {
            pause(self.rng.u64(10..80));
            if self.session.get().is_none() || self.run.tables[self.number].is_flooded() {
                continue;
            }
            match self.rng.u32(..100) {
                0..45 => self.alone(),
                45..60 => self.bulk(),
                60..70 => self.transaction(true),
                70..76 => self.transaction(false),
                76..81 => self.savepoint(),
                81..91 => self.function(),
                91..95 => self.two_phases(),
                _ => self.pair(),
            }
        }
    }

    fn one(&mut self) -> Submission {
        let mut kind = Kind::choose(&mut self.rng);
        while kind.name == "deadlock" || !self.run.crashers && Kind::crashes(kind.name) {
            kind = Kind::choose(&mut self.rng);
        }
        self.of_kind(kind)
    }

    fn of_kind(&mut self, kind: &'static Kind) -> Submission {
        let child = (kind.name == "child").then(|| new_id(&mut self.rng));
        Submission { job: new_id(&mut self.rng), seq: 1, kind: kind.name, child }
    }

    fn some(&mut self, most: usize) -> Vec<Submission> {
        (0..self.rng.usize(1..=most)).map(|_| self.one()).collect()
    }

    fn insert(&self) -> String {
        format!(
            "INSERT INTO {} (id, timestamp, payload, completed, cancelled, progress)
             SELECT id, now(), payload, false, false, 0 FROM unnest($1::uuid[], $2::jsonb[]) AS new (id, payload)",
            self.table
        )
    }

    fn alone(&mut self) {
        let some = self.some(1);
        self.autocommit("alone", some);
    }

    fn bulk(&mut self) {
        let some = self.some(45);
        self.autocommit("bulk", some);
    }

    fn autocommit(&mut self, how: &'static str, some: Vec<Submission>) {
        let insert = self.insert();
        let Some(client) = self.session.get() else { return };
        let operation = begin(self.number, how, What::Insert(some.clone()));
        let outcome = Outcome::of(&send(client, &insert, &some));
        end(self.run, operation, outcome);
    }

    /// Several statements and a COMMIT that takes a while, or a ROLLBACK.
    fn transaction(&mut self, commit: bool) {
        let (insert, owner) = (self.insert(), self.run.tables[self.number].owner.clone());
        let (first, second) = (self.some(2), self.some(2));
        let Some(client) = self.session.get() else { return };
        let all = first.iter().chain(&second).copied().collect();
        let operation = begin(self.number, if commit { "transaction" } else { "rolled back" }, What::Insert(all));
        let mut body = || -> Result<(), Error> {
            client.batch_execute("BEGIN")?;
            send(client, &insert, &first)?;
            client.batch_execute(&format!("INSERT INTO {owner}.dawdle VALUES (1)"))?;
            send(client, &insert, &second)
        };
        let sound = body().is_ok();
        let outcome = if sound && commit {
            Outcome::of(&client.batch_execute("COMMIT"))
        } else {
            let _ = client.batch_execute("ROLLBACK");
            Outcome::Failed
        };
        end(self.run, operation, outcome);
    }

    /// Part of the transaction is rolled back, the rest is committed.
    fn savepoint(&mut self) {
        let insert = self.insert();
        let (kept, lost) = (self.some(2), self.some(2));
        let Some(client) = self.session.get() else { return };
        let keeps = begin(self.number, "around a savepoint", What::Insert(kept.clone()));
        let loses = begin(self.number, "behind a savepoint", What::Insert(lost.clone()));
        let mut body = || -> Result<(), Error> {
            client.batch_execute("BEGIN; SAVEPOINT here")?;
            send(client, &insert, &lost)?;
            client.batch_execute("ROLLBACK TO here")?;
            send(client, &insert, &kept)
        };
        let outcome = match body() {
            Ok(()) => Outcome::of(&client.batch_execute("COMMIT")),
            Err(_) => {
                let _ = client.batch_execute("ROLLBACK");
                Outcome::Failed
            }
        };
        end(self.run, keeps, outcome);
        end(self.run, loses, Outcome::Failed);
    }

    /// Through enqueue(), with a priority, now or a little later.
    fn function(&mut self) {
        let one = self.one();
        let (delay, priority) = (if self.rng.bool() { 0.0 } else { self.rng.f64() }, self.rng.i32(-3..3));
        let call = format!(
            "SELECT background_jobs.enqueue($1, $2, run_at => now() + make_interval(secs => $3), priority => $4,
                 id => $5, job_table => '{}')",
            self.table
        );
        let Some(client) = self.session.get() else { return };
        let operation = begin(self.number, "enqueue()", What::Insert(vec![one]));
        let result = client.execute(&call, &[&one.kind, &payload(&one), &delay, &priority, &one.job]);
        end(self.run, operation, Outcome::of(&result));
    }

    /// PREPARE TRANSACTION and, from the same session, the decision. What a crash leaves undecided is rolled back later.
    fn two_phases(&mut self) {
        let insert = self.insert();
        let (some, commit) = (self.some(3), self.rng.u32(..4) > 0);
        self.prepared += 1;
        let gid = format!("ledger {} {}", self.number, self.prepared);
        let Some(client) = self.session.get() else { return };
        let mut operation = begin(self.number, "prepared transaction", What::Insert(some.clone()));
        operation.gid = Some(gid.clone());
        let mut body = || -> Result<(), Error> {
            client.batch_execute("BEGIN")?;
            send(client, &insert, &some)
        };
        if body().is_err() {
            return end(self.run, operation, Outcome::Failed);
        }
        let outcome = match Outcome::of(&client.batch_execute(&format!("PREPARE TRANSACTION '{gid}'"))) {
            // If it was prepared after all, it is found and rolled back when the storm is over.
            Outcome::Failed | Outcome::Unknown => Outcome::Failed,
            Outcome::Acknowledged if commit => Outcome::of(&client.batch_execute(&format!("COMMIT PREPARED '{gid}'"))),
            Outcome::Acknowledged => {
                let _ = client.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"));
                Outcome::Failed
            }
        };
        end(self.run, operation, outcome);
    }

    /// Two jobs that lock the same rows in opposite order.
    fn pair(&mut self) {
        let kind = Kind::named("deadlock");
        let some = vec![self.of_kind(kind), self.of_kind(kind)];
        let a = self.rng.i32(1..=6);
        let b = a % 6 + 1;
        let insert = self.insert();
        let Some(client) = self.session.get() else { return };
        let operation = begin(self.number, "pair", What::Insert(some.clone()));
        let with = |one: &Submission, first: i32, second: i32| {
            let mut payload = payload(one);
            payload["first"] = json!(first);
            payload["second"] = json!(second);
            payload
        };
        let payloads = vec![with(&some[0], a, b), with(&some[1], b, a)];
        let ids = vec![some[0].job, some[1].job];
        let outcome = Outcome::of(&client.execute(&insert, &[&ids, &payloads]));
        end(self.run, operation, outcome);
    }
}

fn send(client: &mut Client, insert: &str, some: &[Submission]) -> Result<(), Error> {
    let ids: Vec<Uuid> = some.iter().map(|one| one.job).collect();
    let payloads: Vec<Value> = some.iter().map(payload).collect();
    client.execute(insert, &[&ids, &payloads]).map(drop)
}
