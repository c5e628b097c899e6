//! The crash ledger: clients that submit, cancel, delete and replace jobs, against a server that is killed, stopped, signalled
//! and reconfigured all the while; and afterwards a judge that compares what the clients were told with what there is.
//!
//! * [`scene`] the server: databases, owners, job tables, [`kinds`] of handlers, among them [`poison`].
//! * [`workload`] the clients; what they were told goes into the [`history`].
//! * [`nemesis`] what befalls the server; [`rhythm`] when.
//! * [`calm`] the end of the storm: everything is let finish; [`brink`] what the storm may have missed by chance.
//! * [`evidence`] what is there: rows, effects, changes, attempts, and from the [`log`] starts and crashes.
//! * [`checker`] the judge.
//! * [`report`] figures, and [`findings`] each violation with the history of its job.
//! * [`plants`] what bugs on purpose break.
//!
//! All choices derive from the seed. What the threads meet does not, so a seed brings back the same storm and not always the
//! same moment.

mod brink;
mod calm;
mod checker;
mod evidence;
mod findings;
mod history;
mod kinds;
mod log;
mod nemesis;
mod options;
mod plants;
mod poison;
mod report;
mod rhythm;
mod run;
mod scene;
mod workload;

use evidence::Evidence;
use options::{Options, Plant};
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
    let begun = Instant::now();
    // What is left of a run before stays for nobody to take for this one's.
    let _ = std::fs::remove_file(&options.violations);
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
        Some(Plant { name, breaks }) => {
            let (took, limit) = (begun.elapsed(), plants::LIMIT);
            let (took_s, limit_s, breaks) = (took.as_secs(), limit.as_secs(), breaks.join(" and "));
            let text = format!("planted {name}: {found} violations of {breaks} after {took_s} of {limit_s} s");
            verdict(found > 0 && took <= limit, &text)
        }
    }
}

/// In the words of cargo's own test programs, which the summary of all tests is made from.
fn verdict(good: bool, text: &str) -> ExitCode {
    println!("test crash ledger, {text} ... {}", if good { "ok" } else { "FAILED" });
    let (word, passed, failed) = if good { ("ok", 1, 0) } else { ("FAILED", 0, 1) };
    println!("test result: {word}. {passed} passed; {failed} failed");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A storm of that many seconds on a server of its own, or up to twice as many on a busy machine. Returns the number of
/// violations; where a bug is planted, of those that it is to be found by.
fn round(options: &Options, seed: u64, seconds: u64) -> Result<usize, String> {
    println!("ledger: {seconds} s with seed {seed}; again: ledger --seconds {seconds} --seed {seed}");
    let (cluster, tables) = scene::start(options.plant.as_ref().map(|plant| plant.name.as_str()))?;
    let run = Run::new(cluster, tables, seed, options.plant.is_none());
    let begun = Instant::now();
    let mut figures = Figures { drained: 0.0, longest_probe: 0.0 };
    let plant = options.plant.as_ref();
    let patience = if plant.is_some() { calm::IMPATIENCE } else { calm::PATIENCE };
    let found = || plant.map_or(0, |plant| run.broken(plant.breaks));
    let lost = std::thread::scope(|scope| {
        workload::start(scope, &run);
        let made = || plant.is_some() || checker::effort::is_made(&run, seconds);
        let storm = nemesis::storm(&run, Duration::from_secs(seconds), &|| found() > 0, &made);
        run.stop.store(true, Ordering::Relaxed);
        if storm.is_ok() {
            figures.drained = calm::drain(&run, patience).as_secs_f64();
            // A planted bug that was found is found: no need to wait for what it breaks besides.
            if plant.is_none() || found() == 0 && judge(&run).is_ok() && found() == 0 {
                brink::try_all(&run);
                calm::drain(&run, patience);
                figures.longest_probe = calm::probe(&run);
            }
        }
        run.done.store(true, Ordering::Relaxed);
        storm
    });
    if let Err(nemesis::Lost(text)) = lost {
        run.violated("up", None, None, format!("the server did not come back: {text}"));
        findings::tell(&run, &Evidence::default(), &options.violations);
        return Ok(if plant.is_some() { 0 } else { run.violations().len() });
    }
    if found() == 0 {
        checker::at_rest(&run).map_err(|error| format!("{error:?}\n{}", run.cluster.log_tail()))?;
    }
    let evidence = judge(&run)?;
    if plant.is_none() {
        checker::effort::check(&run, &evidence, seconds);
    }
    report::print(&run, &evidence, &figures);
    findings::tell(&run, &evidence, &options.violations);
    let all = run.violations().len();
    println!("{all} violations; {:.0} s in all", begun.elapsed().as_secs_f64());
    let counted = if plant.is_some() { found() } else { all };
    // The log was judged above, offences included; dropping the server would panic about them a second time.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(run)));
    Ok(counted)
}

fn judge(run: &Run) -> Result<Evidence, String> {
    let evidence = Evidence::gather(run).map_err(|error| format!("{error:?}\n{}", run.cluster.log_tail()))?;
    checker::check(run, &evidence);
    Ok(evidence)
}
