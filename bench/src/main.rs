//! The figures of this machine: how soon a job starts and ends on an idle server, and how many a second a queue gives up.
//!
//! Nothing here passes or fails. A figure is the median of several rounds, with the lowest and the highest beside it.

mod latency;
mod machine;
mod stats;
mod throughput;

use server_tests::{App, Cluster};
use std::process::ExitCode;

/// What is measured with, printed with the figures; everything else is PostgreSQL's default and ours.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "512MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
];

const USAGE: &str = "usage: bench [--rounds N] [--sequential N] [--queued N]   (defaults: 5, 500, 20000)";

struct Options {
    rounds: usize,
    sequential: usize,
    queued: i64,
}

fn options() -> Option<Options> {
    let mut options = Options { rounds: 5, sequential: 500, queued: 20_000 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value: u32 = arguments.next()?.parse().ok().filter(|n| *n > 0)?;
        match name.as_str() {
            "--rounds" => options.rounds = value as usize,
            "--sequential" => options.sequential = value as usize,
            "--queued" => options.queued = i64::from(value),
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let builder = SETTINGS.iter().fold(Cluster::builder(), |builder, (name, value)| builder.conf(name, value));
    let cluster = builder.start();
    let mut app = App::with_table(&cluster, "bench");
    println!("{}", machine::describe(&mut app));
    let settings: Vec<String> = SETTINGS.iter().map(|(name, value)| format!("{name}={value}")).collect();
    println!("settings   {}", settings.join(" "));
    latency::run(&mut app, &options);
    throughput::run(&mut app, &options);
    ExitCode::SUCCESS
}
