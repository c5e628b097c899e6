//! `bench/RESULTS.md` and the picture, from what the runs have left.

use crate::book::{Book, number};
use crate::options::Options;
use crate::{peers, picture, stats, targets};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;

const HEAD: &str = "\
# Results

Written by `make bench-report` from the last runs of `make bench` and `make bench-peers`; not edited by hand. A figure is
the median of the rounds, with the lowest and the highest; a ratio is taken within a round.
";

pub fn write(options: &Options) {
    let mut book = Book::read(&options.json);
    let results = peers::read(&options.peers_json);
    if let Some(results) = &results {
        peers::add_ratios(&mut book, results);
    }
    fs::create_dir_all(&options.out).unwrap_or_else(|e| panic!("mkdir {}: {e}", options.out.display()));
    let picture = options.out.join("drain.svg");
    let drawn = picture::draw(&book, &picture).unwrap_or_else(|e| panic!("{}: {e}", picture.display()));

    let mut text = HEAD.to_owned();
    if book.sections.is_empty() {
        text += "\nNothing has been measured yet.\n";
    }
    add_targets(&mut text, &book);
    if drawn {
        text += "\n![Drain rate against the size of the table and the age of the oldest snapshot](drain.svg)\n";
    }
    if let Some(results) = &results {
        add_peers(&mut text, results);
    }
    add_sections(&mut text, &book);
    let path = options.out.join("RESULTS.md");
    fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    println!("{} is written{}", path.display(), if drawn { ", and the picture" } else { "; nothing to draw" });
}

fn add_targets(text: &mut String, book: &Book) {
    text.push_str("\n## Targets\n\n| what | measured | spread | target | |\n|---|---|---|---|---|\n");
    for verdict in targets::verdicts(book) {
        let (target, value, spread) = (verdict.target, verdict.value(), &verdict.spread);
        let _ = writeln!(text, "| {target} | {value} | {spread} | {} | {} |", verdict.bound, verdict.word());
    }
}

fn add_peers(text: &mut String, results: &Value) {
    let machine = &results["machine"];
    let said = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
    let _ = writeln!(
        text,
        "\n## Beside the peers\n\nOne run, {} processors ({}), PostgreSQL {}, load before {}; date {}, commit {}.\n",
        machine["cpus"],
        said("cpu"),
        said("postgres"),
        machine["load_before"][0],
        said("date"),
        said("commit"),
    );
    let of = |workload: &str, path: &[&str]| peers::table(results, workload, path);
    let columns = [
        ("no-op, jobs/s", of("drain", &["jobs_per_s"])),
        ("INSERT, jobs/s", of("db", &["jobs_per_s"])),
        ("CPU s per 1000", peers::cpu(results)),
        ("WAL B per job", peers::wal(results)),
        ("enqueue 1, jobs/s", of("enqueue", &["single"])),
        ("enqueue bulk, jobs/s", of("enqueue", &["bulk"])),
        ("start p50, ms", of("latency", &["start", "p50_ms"])),
        ("start p99, ms", of("latency", &["start", "p99_ms"])),
        ("completed p50, ms", of("latency", &["completed", "p50_ms"])),
        ("1M waiting, jobs/s", of("pending_1m", &["jobs_per_s"])),
        ("1M finished, jobs/s", of("finished_1m", &["jobs_per_s"])),
    ];
    let columns: Vec<_> = columns.into_iter().filter(|(_, table)| !table.is_empty()).collect();
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let _ = writeln!(text, "| | {} |\n|---|{}", titles.join(" | "), "---|".repeat(columns.len()));
    let all = results["peers"].as_object();
    for name in all.into_iter().flatten().map(|(name, _)| name) {
        let cell =
            |table: &peers::Table| table.get(name).map_or("-".to_owned(), |rounds| number(stats::median(rounds)));
        let cells: Vec<String> = columns.iter().map(|(_, table)| cell(table)).collect();
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text.push_str("\nVersions and settings:\n\n");
    for (name, peer) in all.into_iter().flatten() {
        let _ = writeln!(text, "- {name}: {}", peer["about"].as_str().unwrap_or_default());
    }
    if let Some(limits) = results["limits"].as_object() {
        text.push_str("\nWhat the machine and the server can do, in the same run:\n\n| | a second |\n|---|---|\n");
        for (name, rounds) in limits {
            let rounds: Vec<f64> = rounds.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
            if !rounds.is_empty() {
                let _ = writeln!(text, "| {name} | {} |", number(stats::median(&rounds)));
            }
        }
    }
}

fn add_sections(text: &mut String, book: &Book) {
    for (name, section) in book.sections.iter().filter(|(_, section)| !section.date.is_empty()) {
        let _ = writeln!(
            text,
            "\n## {name}\n\n{}, commit {}; {}; {}; {}; {}. {}.\n\n| | median | | lowest | highest |\n|---|---|---|---|---|",
            section.date,
            section.commit,
            section.machine,
            section.server,
            section.extension,
            section.settings,
            section.scale
        );
        for figure in &section.figures {
            let (median, low, high) = figure.spread();
            let _ = writeln!(text, "| {} | {median} | {} | {low} | {high} |", figure.label, figure.unit);
        }
    }
}
