//! The run beside other job systems: their benchmark, with a PostgreSQL that has our extension, and the ratios in its JSON.

use crate::book::{Book, Figure, Section};
use crate::stats;
use serde_json::Value;
use server_tests::installation::Installation;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What they call us, and the recipe in its two forms with a Node listener.
const US: &str = "background_jobs";
const RECIPE: &str = "seed-node";
const ONE_UPDATE: [&str; 2] = ["seed-node-1upd", "seed-rust-1upd"];

/// Runs `run` in that directory. The private copy of PostgreSQL lives as long as this process.
pub fn run(directory: &Path, arguments: &[String]) -> ExitCode {
    let installation = Installation::get();
    assert!(installation.has_extension, "the extension is not packaged: make bench-peers builds it");
    let pg_config = installation.program("pg_config");
    assert!(pg_config.exists(), "{} is missing: install PostgreSQL's development package", pg_config.display());
    let mut command = Command::new("python3");
    command.arg(directory.join("run")).args(arguments).env("PG_CONFIG", pg_config);
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("the peers' benchmark ended: {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("python3: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One workload's figure of every system: name, one value a round; rounds that failed are not in it.
pub type Table = BTreeMap<String, Vec<f64>>;

/// What their JSON file says about a workload, such as `drain` and `["jobs_per_s"]`.
pub fn table(results: &Value, workload: &str, path: &[&str]) -> Table {
    let peers = results["peers"].as_object().into_iter().flatten();
    let rounds = |peer: &Value| -> Vec<f64> {
        let rounds = peer[workload].as_array().into_iter().flatten();
        rounds.filter_map(|round| path.iter().fold(round, |value, key| &value[*key]).as_f64()).collect()
    };
    peers.map(|(name, peer)| (name.clone(), rounds(peer))).filter(|(_, rounds)| !rounds.is_empty()).collect()
}

/// Sums of several tables, for the systems that are in all of them.
pub fn sum(tables: &[Table]) -> Table {
    let Some((first, others)) = tables.split_first() else {
        return Table::new();
    };
    let mut sums = first.clone();
    for table in others {
        sums.retain(|name, rounds| {
            let Some(more) = table.get(name) else { return false };
            rounds.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            true
        });
    }
    sums
}

pub fn wal(results: &Value) -> Table {
    let of = |key| table(results, "drain", &[key]);
    sum(&[of("wal_bytes_per_job"), of("enqueue_wal_bytes_per_job")])
}

pub fn cpu(results: &Value) -> Table {
    let of = |key| table(results, "drain", &[key]);
    sum(&[of("pg_cpu_s_per_1000"), of("worker_cpu_s_per_1000")])
}

/// Adds the ratios that targets are about.
pub fn add_ratios(book: &mut Book, results: &Value) {
    let mut figures = Vec::new();
    let mut ratio = |key: &str, table: &Table, other: Option<&String>| {
        if let (Some(ours), Some(theirs)) = (table.get(US), other.and_then(|other| table.get(other))) {
            let label = format!("background_jobs / {}", other.map_or("", String::as_str));
            let rounds = stats::ratios(ours, theirs);
            figures.push(Figure { key: key.to_owned(), label, unit: "x".to_owned(), rounds });
        }
    };
    let recipe = RECIPE.to_owned();
    for workload in ["drain", "db"] {
        let rates = table(results, workload, &["jobs_per_s"]);
        let fastest = others(&rates, &[]).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name);
        ratio(&format!("peers.{workload}.fastest"), &rates, fastest);
        ratio(&format!("peers.{workload}.recipe"), &rates, Some(&recipe));
    }
    let (cpu, wal) = (cpu(results), wal(results));
    let lowest = |table, but| others(table, but).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(name, _)| name);
    ratio("peers.cpu.lowest", &cpu, lowest(&cpu, &[]));
    ratio("peers.wal.lowest", &wal, lowest(&wal, &ONE_UPDATE));
    let one_update = ONE_UPDATE.iter().map(|name| (*name).to_owned()).find(|name| wal.contains_key(name));
    ratio("peers.wal.recipe", &wal, one_update.as_ref());
    book.sections.insert("peers".to_owned(), Section { figures, ..Section::default() });
}

/// The other systems with their medians.
fn others<'t>(table: &'t Table, but: &'t [&str]) -> impl Iterator<Item = (&'t String, f64)> {
    let others = table.iter().filter(move |(name, _)| name.as_str() != US && !but.contains(&name.as_str()));
    others.map(|(name, rounds)| (name, stats::median(rounds)))
}

/// Nothing when there was no such run.
pub fn read(path: &PathBuf) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}
