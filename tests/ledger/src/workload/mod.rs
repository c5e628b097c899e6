//! The clients: they submit, cancel, delete, replace, retry and await jobs, and write down what they were told.
//!
//! They sleep for a while of random length between two operations, which is to wait for nothing: it spreads what they do over
//! the time, so that it meets the engine anywhere, and leaves it room to work.

mod canceller;
mod enqueuer;
mod observer;
mod owner;

pub use canceller::{Take, Way};
pub use enqueuer::{new_id, payload};
pub use observer::look;

use crate::history::{Operation, Outcome, What, now};
use crate::run::Run;
use std::thread::Scope;

/// Starts the clients; they end when the run is stopped, the observers when it is done.
pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, run: &'scope Run) {
    for number in 0..run.tables.len() {
        scope.spawn(move || enqueuer::Enqueuer::new(run, number).work());
        scope.spawn(move || owner::work(run, number));
        scope.spawn(move || owner::wait(run, number));
    }
    let mut databases: Vec<&str> = run.tables.iter().map(|table| table.database.as_str()).collect();
    databases.dedup();
    for (number, database) in databases.into_iter().enumerate() {
        scope.spawn(move || observer::work(run, database));
        scope.spawn(move || canceller::work(run, database, number as u64));
    }
}

/// An operation on `table` that begins now.
pub fn begin(table: usize, how: &'static str, what: What) -> Operation {
    Operation { table, what, outcome: Outcome::Failed, how, gid: None, begun: now(), ended: 0.0 }
}

pub fn end(run: &Run, mut operation: Operation, outcome: Outcome) {
    operation.outcome = outcome;
    operation.ended = now();
    run.history.record(operation);
}
