//! The owner of a job table at work while its jobs run: has ended jobs run again, drops delays, registers handlers anew. And
//! somebody who waits for jobs.

use super::{begin, end};
use crate::history::{Outcome, Submission, Told, What};
use crate::kinds::{KINDS, Kind};
use crate::rhythm::pause;
use crate::run::{Run, Session};
use crate::scene::CLIENT;
use fastrand::Rng;
use server_tests::Value;
use server_tests::postgres::{Client, Error};

/// How long wait() is given.
const WAIT_SECONDS: f64 = 4.0;

pub fn work(run: &Run, number: usize) {
    let table = &run.tables[number];
    let mut rng = run.rng(300 + number as u64);
    let mut session = Session::new(run, &table.database, &table.owner);
    while !run.stopped() {
        pause(rng.u64(30..150));
        let Some(client) = session.get() else { continue };
        match rng.u32(..100) {
            0..55 => retry(run, number, client, &mut rng),
            55..80 => run_now(run, number, client, &mut rng),
            _ => register(run, number, client, &mut rng),
        }
    }
}

/// A job that has failed or was cancelled. One that was completed would have its effects once more, which is right, but not told
/// from what is wrong.
fn retry(run: &Run, number: usize, client: &mut Client, rng: &mut Rng) {
    let name = run.tables[number].name();
    let ended = format!(
        "SELECT 1 FROM {name} WHERE id = $1 AND (cancelled OR completed AND COALESCE(result ? 'error', false)) FOR UPDATE"
    );
    let call = format!("SELECT 1 WHERE background_jobs.retry($1, '{name}')");
    // What crashes the server has done so as often as it is to.
    let suits = |table: usize, one: &Submission| table == number && !Kind::crashes(one.kind);
    let Some((_, one)) = run.history.pick(rng, suits) else { return };
    let mut operation = begin(number, "retry()", What::Retry { job: one.job, hit: false });
    let mut body = || -> Result<bool, Error> {
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED")?;
        Ok(!client.query(&ended, &[&one.job])?.is_empty() && !client.query(&call, &[&one.job])?.is_empty())
    };
    let outcome = match body() {
        Ok(hit) => {
            operation.what = What::Retry { job: one.job, hit };
            Outcome::of(&client.batch_execute("COMMIT"))
        }
        Err(_) => {
            let _ = client.batch_execute("ROLLBACK");
            Outcome::Failed
        }
    };
    end(run, operation, outcome);
}

fn run_now(run: &Run, number: usize, client: &mut Client, rng: &mut Rng) {
    let call = format!("SELECT background_jobs.run_now($1, '{}')", run.tables[number].name());
    let Some((_, one)) = run.history.pick(rng, |table, _| table == number) else { return };
    let mut operation = begin(number, "run_now()", What::RunNow { job: one.job, hit: false });
    let result = client.query_one(&call, &[&one.job]);
    let hit = result.as_ref().is_ok_and(|row| row.get(0));
    operation.what = What::RunNow { job: one.job, hit };
    end(run, operation, Outcome::of(&result));
}

/// What the handlers do stays the same: jobs must not notice.
fn register(run: &Run, number: usize, client: &mut Client, rng: &mut Rng) {
    let owner = &run.tables[number].owner;
    let kind = &KINDS[rng.usize(..KINDS.len())];
    let Kind { name, .. } = kind;
    let statements = match rng.u32(..4) {
        0 => kind.function(owner),
        1 => format!("BEGIN; SELECT background_jobs.unregister_handler('{name}'); {} COMMIT", kind.registration()),
        2 => format!("BEGIN; {} {} ROLLBACK", kind.function(owner), kind.registration()),
        _ => kind.registration(),
    };
    let operation = begin(number, "registration", What::Register);
    let result = client.batch_execute(&statements);
    if result.is_err() {
        let _ = client.batch_execute("ROLLBACK");
    }
    end(run, operation, Outcome::of(&result));
}

/// Waits for one job after the other.
pub fn wait(run: &Run, number: usize) {
    let table = &run.tables[number];
    let mut rng = run.rng(400 + number as u64);
    let mut session = Session::new(run, &table.database, CLIENT);
    let call = format!("SELECT background_jobs.wait($1, '{WAIT_SECONDS} s', '{}')", table.name());
    while !run.stopped() {
        pause(rng.u64(1..60));
        let Some(client) = session.get() else { continue };
        let Some((_, one)) = run.history.pick(&mut rng, |of, _| of == number) else { continue };
        let mut operation = begin(number, "wait()", What::Wait { job: one.job, told: Told::Nothing });
        let result = client.query_one(&call, &[&one.job]);
        let told = match &result {
            Ok(row) => match row.get::<_, Option<Value>>(0).and_then(|result| result.get("seq")?.as_i64()) {
                Some(seq) => Told::Completed(seq as i32),
                None => Told::Completed(0),
            },
            Err(error) => error.as_db_error().map_or(Told::Nothing, |told| match told.message() {
                message if message.contains("did not finish within") => Told::TimedOut,
                message if message.ends_with("was cancelled") && message.starts_with("job ") => Told::Cancelled,
                _ if told.severity() != "ERROR" => Told::Nothing,
                _ if told.code().code() == "P0002" => Told::Gone,
                // Interrupted by the nemesis: not the job's own words.
                message if message.starts_with("canceling statement due to user request") => Told::Nothing,
                _ => Told::Failed,
            }),
        };
        operation.what = What::Wait { job: one.job, told };
        end(run, operation, Outcome::of(&result));
    }
}
