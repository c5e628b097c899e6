//! What takes a server long: jobs without end, signals without end, statements without sense.
//!
//! * [`memory`] a million jobs, a tenth of them failing: nobody's memory grows.
//! * [`signals`] every process of ours is signalled all the while: nothing is lost, nothing is done twice.
//! * [`sqlsmith`] random statements, from a client and inside handlers: the server stays up.
//!
//! Each runs on a server of its own and returns what was wrong.

mod memory;
mod options;
mod signals;
mod sqlsmith;

use options::{Options, Part};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let Some(options) = options::parse() else {
        eprintln!("{}", options::USAGE);
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let Options { part, jobs, seconds, seed } = options;
    let wrong = match part {
        Part::Memory => memory::run(jobs, memory::WARM_UP),
        Part::Signals => signals::run(seconds, seed),
        Part::Sqlsmith => sqlsmith::run(seconds, seed),
    };
    verdict(part, begun, &wrong)
}

/// In the words of cargo's own test programs, which the summary of all tests is made from.
fn verdict(part: Part, begun: Instant, wrong: &[String]) -> ExitCode {
    wrong.iter().for_each(|what| println!("VIOLATION {what}"));
    let (word, passed) = if wrong.is_empty() { ("ok", 1) } else { ("FAILED", 0) };
    println!("test storm, {}, {:.0} s ... {word}", part.name(), begun.elapsed().as_secs_f64());
    println!("test result: {word}. {passed} passed; {} failed", 1 - passed);
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Short versions, for every test run.
#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Vec<String> = Vec::new();

    #[test]
    fn twenty_thousand_jobs_have_the_end_that_their_handlers_give_them() {
        assert_eq!(memory::run(20_000, 2_000), NOTHING);
    }

    #[test]
    fn a_storm_of_signals_loses_nothing_and_repeats_nothing() {
        assert_eq!(signals::run(6, 1), NOTHING);
    }
}
