//! The row protocol as a state machine, checked exhaustively: every order of what clients, executors, the dispatcher and
//! disasters can do with one or two jobs, up to the bounds of a [`machine::Scope`].
//!
//! The decisions are the extension's own: its modules `protocol`, `retry` and `job`, compiled without PostgreSQL. What the model adds is
//! what surrounds them: who may do what when, at the granularity of transactions, row locks and words of shared memory.
//! Guards that the server evaluates are held to the same functions by tests/server/tests/agreement.rs.
//!
//! * [`state`] all there is: rows, locks, the queue, mailboxes, the dispatcher's memory, the journal
//! * [`rows`] transactions and locks; [`client`], [`executor`], [`dispatcher`], [`faults`] who acts
//! * [`history`] what the properties have to remember; [`properties`] what must hold; [`drain`] nothing is stuck
//!
//! Not in it: jobs that share a commit, progress, priorities, clocks (every delay may be over at once, and no stamp is given twice),
//! transactions above READ COMMITTED, a second database, and commits that a crash takes back (synchronous_commit = off).

#![cfg(test)]

use unit_tests::{job, protocol, retry};

mod client;
mod dispatcher;
mod drain;
mod executor;
mod faults;
mod history;
mod machine;
mod properties;
mod rows;
mod state;
mod tests;
