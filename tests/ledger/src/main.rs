//! The crash ledger: clients that submit, cancel, delete and replace jobs, against a server that is killed, stopped, signalled
//! and reconfigured all the while; and afterwards a judge that compares what the clients were told with what there is.
//!
//! * [`scene`] the server: databases, owners, job tables, [`kinds`] of handlers.
//! * [`workload`] the clients; what they were told goes into the [`history`].
//! * [`nemesis`] what befalls the server.
//! * [`calm`] the end of the storm: everything is let finish; [`brink`] what the storm may have missed by chance.
//! * [`evidence`] what is there: rows, effects, changes, attempts, starts.
//! * [`checker`] the judge.
//! * [`report`] figures, and each violation with the history of its job.
//!
//! All choices derive from the seed. What the threads meet does not, so a seed brings back the same storm and not always the
//! same moment.

mod brink;
mod calm;
mod checker;
mod evidence;
mod history;
mod kinds;
mod nemesis;
mod options;
mod report;
mod run;
mod scene;
mod workload;

use evidence::Evidence;
use options::Options;
use report::Figures;
use run::Run;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A round is not longer than this, so that the judge's work stays small.
const ROUND: u64 = 90;

fn main() -> ExitCode {
    let Some(options) = options::parse() else {
        eprintln!("{}", options::USAGE);
        return ExitCode::from(2);
    };
    let (mut left, mut number, mut found) = (options.seconds, 0, 0);
    while left > 0 {
        let length = left.min(ROUND);
        match round(&options, options.seed + number, length) {
            Ok(violations) => found += violations,
            Err(problem) => {
                eprintln!("{problem}");
                return ExitCode::from(2);
            }
        }
        number += 1;
        left -= length;
    }
    match &options.plant {
        None => verdict(found == 0, &format!("{found} violations in {number} rounds")),
        Some(plant) => verdict(found > 0, &format!("planted {plant}: {found} violations")),
    }
}

/// In the words of cargo's own test programs, which the summary of all tests is made from.
fn verdict(good: bool, text: &str) -> ExitCode {
    println!("test crash ledger, {text} ... {}", if good { "ok" } else { "FAILED" });
    let (word, passed, failed) = if good { ("ok", 1, 0) } else { ("FAILED", 0, 1) };
    println!("test result: {word}. {passed} passed; {failed} failed");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A storm of that many seconds on a server of its own; returns the number of violations.
fn round(options: &Options, seed: u64, seconds: u64) -> Result<usize, String> {
    println!("ledger: {seconds} s with seed {seed}; again: ledger --seconds {seconds} --seed {seed}");
    let (cluster, tables) = scene::start(options.plant.as_deref())?;
    let run = Run::new(cluster, tables, seed);
    let begun = Instant::now();
    let mut figures = Figures { drained: 0.0, longest_probe: 0.0 };
    let patience = if options.plant.is_some() { calm::IMPATIENCE } else { calm::PATIENCE };
    let lost = std::thread::scope(|scope| {
        workload::start(scope, &run);
        let storm = nemesis::storm(&run, Duration::from_secs(seconds), options.plant.is_some());
        run.stop.store(true, Ordering::Relaxed);
        if storm.is_ok() {
            figures.drained = calm::drain(&run, patience).as_secs_f64();
            // A planted bug that was found is found: no need to wait for what it breaks besides.
            if options.plant.is_none() || run.violations().is_empty() {
                brink::try_all(&run);
                calm::drain(&run, patience);
                figures.longest_probe = calm::probe(&run);
            }
        }
        run.done.store(true, Ordering::Relaxed);
        storm
    });
    if let Err(nemesis::Lost(text)) = lost {
        run.violated("I1", None, None, format!("the server did not come back: {text}"));
        report::violations(&run, &Evidence::default());
        return Ok(run.violations().len());
    }
    checker::at_rest(&run).map_err(|error| format!("{error:?}\n{}", run.cluster.log_tail()))?;
    let evidence = Evidence::gather(&run).map_err(|error| format!("{error:?}\n{}", run.cluster.log_tail()))?;
    checker::check(&run, &evidence);
    if options.plant.is_none() {
        checker::effort(&run, &evidence, seconds);
    }
    report::print(&run, &evidence, &figures);
    report::violations(&run, &evidence);
    println!("{} violations; {:.0} s in all", run.violations().len(), begun.elapsed().as_secs_f64());
    let found = run.violations().len();
    // The log was judged above, offences included; dropping the server would panic about them a second time.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(run)));
    Ok(found)
}
