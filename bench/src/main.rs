//! The figures of this machine, and the targets that they are held against.
//!
//! Nothing here passes or fails: a figure is the median of several rounds, with the lowest and the highest beside it, and a
//! ratio is taken within a round, from things measured right after one another. Every run leaves its sections in a JSON file,
//! where a later run of the same section takes its place; `--report` writes the table and the picture from that file.
//!
//! * [`scene`] a server, a job table, handlers; the queue filled and drained. [`meter`] CPU time, WAL and memory.
//! * [`drain`], [`latency`] (with [`bare`] to compare), [`enqueue`], [`executors`], [`shapes`] what `make bench` measures; [`size`],
//!   [`snapshot`] the long runs.
//! * [`book`] sections of figures, kept as JSON; [`targets`] what they are held against; [`stats`] medians.
//! * [`peers`] the run beside other job systems; [`report`], [`picture`] the results for people.

mod bare;
mod book;
mod drain;
mod enqueue;
mod executors;
mod latency;
mod machine;
mod meter;
mod options;
mod peers;
mod picture;
mod report;
mod scene;
mod shapes;
mod size;
mod snapshot;
mod stats;
mod targets;

use book::{Book, Section};
use options::{Mode, Options, USAGE};
use std::process::ExitCode;

type Measure = fn(&Options, &mut Section);

/// By name, and whether it takes minutes only: those are measured when none is named.
const SECTIONS: &[(&str, bool, Measure)] = &[
    ("drain", true, drain::run),
    ("latency", true, latency::run),
    ("enqueue", true, enqueue::run),
    ("executors", true, executors::run),
    ("shapes", true, shapes::run),
    ("size", false, size::run),
    ("old-snapshot", false, snapshot::run),
];

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match &options.mode {
        Mode::Measure => measure(&options),
        Mode::Report => report::write(&options),
        Mode::Peers(directory, arguments) => return peers::run(directory, arguments),
    }
    ExitCode::SUCCESS
}

fn measure(options: &Options) {
    let mut book = Book::read(&options.json);
    let mut measured = Book::default();
    for (name, usual, run) in SECTIONS {
        let wanted = if options.only.is_empty() { *usual } else { options.only.iter().any(|only| only == name) };
        if !wanted {
            continue;
        }
        println!("\n== {name}");
        let mut section = Section::begin(options);
        run(options, &mut section);
        book.sections.insert((*name).to_owned(), section.clone());
        measured.sections.insert((*name).to_owned(), section);
        // After each, so that what was measured is kept when a later section fails.
        book.write(&options.json);
    }
    println!("\n== targets");
    for verdict in targets::verdicts(&measured).iter().filter(|verdict| verdict.measured.is_some()) {
        println!("  {verdict}");
    }
    println!("\nkept in {}", options.json.display());
}
