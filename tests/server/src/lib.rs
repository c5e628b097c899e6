//! Temporary PostgreSQL clusters with the packaged extension, driven from outside.
//!
//! `#[pg_test]` rolls back and knows one database, so a worker never sees what it wrote. What this project promises is about
//! commits, crashes and restarts; it is therefore tested against servers of its own.
//!
//! * [`installation`] a private copy of a PostgreSQL installation tree with the extension in it: the system is never touched.
//! * [`keeper`] the directory of this process, and the small process that stops and removes everything once we are gone,
//!   however we went: statics are not dropped, and a killed test process drops nothing at all.
//! * [`cluster`] one server: build, start, stop, crash; its sessions and settings.
//! * [`group`] one server shared by the tests of a program, checked when the process ends.
//! * [`wait`] nothing here sleeps for a fixed time: a state is awaited with a deadline, and what was seen last is reported.
//! * [`wall_clock`] a clock for a server that a test can set; [`small_disk`] a directory that is soon full.
//! * [`log`] what no server log may hold (invariant I17).
//! * [`app`] an application as a user would write it: a role, its job table, its handlers, its jobs; and [`handlers`], how
//!   tests and handlers meet.
//! * [`workers`] the extension's processes in its database, and [`witness`], in whose name code of a role is run.
//! * [`tenant`] further roles in that application's database, with job tables of their own or with nothing.
//! * [`pair`] two servers that exchange jobs by logical replication.
//! * [`rest`] what an idle server looks like (invariant I13).
//! * [`regress`] PGXS's `pg_regress` against such a server.

pub mod app;
mod builder;
pub mod cluster;
pub mod group;
pub mod handlers;
pub mod installation;
pub mod job;
pub mod keeper;
pub mod log;
mod os;
pub mod pair;
mod preload;
mod process;
pub mod regress;
pub mod rest;
mod session;
pub mod small_disk;
pub mod tenant;
pub mod wait;
pub mod wall_clock;
pub mod witness;
pub mod workers;

pub use app::App;
pub use builder::Builder;
pub use cluster::{Cluster, Stop};
pub use group::Group;
pub use job::Job;
pub use nix::sys::signal::Signal;
pub use os::{give, run};
pub use pair::Pair;
pub use postgres;
pub use preload::compile_functions;
pub use serde_json::{Value, json};
pub use small_disk::SmallDisk;
pub use uuid::Uuid;
pub use wait::{wait_until, wait_within};
pub use wall_clock::WallClock;
pub use workers::{Still, naps};

/// So many rounds or cases, or as often as many in the long run (`make soak`), which sets BACKGROUND_JOBS_TEST_TIMES.
#[must_use]
pub fn times(rounds: u32) -> u32 {
    let times = std::env::var("BACKGROUND_JOBS_TEST_TIMES").map_or(1, |times| {
        times.parse().ok().filter(|times| *times > 0).unwrap_or_else(|| panic!("BACKGROUND_JOBS_TEST_TIMES={times}"))
    });
    rounds * times
}

/// The major version of PostgreSQL that is tested with, for what is different there.
#[must_use]
pub fn major() -> u32 {
    installation::Installation::get().major
}

/// A value as an SQL literal, for the statements that take no parameters.
#[must_use]
pub fn lit(value: &str) -> String {
    postgres_protocol::escape::escape_literal(value)
}

/// A name as an SQL identifier.
#[must_use]
pub fn ident(name: &str) -> String {
    postgres_protocol::escape::escape_identifier(name)
}

/// The SQLSTATE of an error from the server; panics when the error came from somewhere else, with that error's text.
#[must_use]
pub fn sqlstate(error: &postgres::Error) -> String {
    match error.code() {
        Some(code) => code.code().to_owned(),
        None => panic!("no error of the server: {error}"),
    }
}
