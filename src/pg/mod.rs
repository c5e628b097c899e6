//! The fence between safe Rust and the server.
//!
//! Every `unsafe` block of the project lives below this module, each with the reason why it is sound.
//! Nothing here knows what a job is: these are the server's own notions (transactions, statements, latches,
//! shared memory, roles, signals), given types and ownership. Differences between major versions stay here too.

pub mod bgworker;
pub mod call;
pub mod clock;
pub mod database;
pub mod encoding;
pub mod error;
pub mod fmgr;
pub mod function;
pub mod guc;
pub mod heap;
pub mod index;
pub mod insert;
pub mod invoke;
pub mod latch;
pub mod lwlock;
pub mod mapped_file;
pub mod memory;
pub mod partition;
pub mod place;
pub mod planner;
pub mod privilege;
pub mod raised;
pub mod relation;
pub mod role;
pub mod session;
pub mod shmem;
pub mod signal;
pub mod spi;
pub mod statement;
pub mod timer;
pub mod trigger;
pub mod utility;
pub mod walk;
pub mod xact;
