//! What the server's log tells: the runs of handlers, and which of them took the server down.

use crate::evidence::{Evidence, Start};
use crate::history::Time;
use crate::kinds::Kind;
use crate::run::{Blow, Event};
use std::collections::HashMap;

impl Evidence {
    pub fn read_log(&mut self, log: &str) {
        let mut running: HashMap<u32, usize> = HashMap::new();
        for (line, text) in log.lines().enumerate() {
            let Some((at, pid, said)) = parse(text) else { continue };
            if said == READY {
                for crash in self.crashes.iter_mut().rev().take_while(|crash| crash.back_after.is_none()) {
                    crash.back_after = Some(at - crash.at);
                }
            } else if let Some(dead) = died(said) {
                let Some(start) = running.get(&dead).map(|index| &mut self.starts[*index]) else { continue };
                if Kind::crashes(&start.kind) && start.ended.is_none() {
                    start.took_down = true;
                    let what = format!("crash by a handler: {}", start.kind);
                    self.crashes.push(Event { at, what, kind: Blow::Crash, pid: dead, back_after: None });
                }
            } else if let Some(said) = said.strip_prefix("ledger ") {
                self.read_line(line, at, pid, said, &mut running);
            }
        }
    }

    /// One of the lines that handlers write.
    fn read_line(&mut self, line: usize, at: Time, pid: u32, said: &str, running: &mut HashMap<u32, usize>) {
        let words: Vec<&str> = said.split_whitespace().collect();
        match words[..] {
            ["start", job, seq, attempt, kind, dirt] => {
                let (Ok(job), Ok(seq), Ok(attempt)) = (job.parse(), seq.parse(), attempt.parse()) else { return };
                let dirt = dirt.trim_matches(['[', ']']).to_owned();
                let index = self.starts.len();
                running.insert(pid, index);
                self.starts_of.entry(job).or_default().push(index);
                let kind = kind.to_owned();
                let (ended, took_down) = (None, false);
                self.starts.push(Start { line, at, pid, job, seq, attempt, kind, dirt, ended, took_down });
            }
            ["end", job, ..] => {
                let begun = running.get(&pid).map(|index| &mut self.starts[*index]);
                if let Some(start) = begun.filter(|start| Ok(start.job) == job.parse()) {
                    start.ended = Some(line);
                }
            }
            _ => {}
        }
    }
}

/// "1700000000.123 [4711] north: LOG:  ledger start ..."
fn parse(line: &str) -> Option<(Time, u32, &str)> {
    let (before, said) = line.split_once(": LOG:  ")?;
    let (at, rest) = before.split_once(" [")?;
    let (pid, _) = rest.split_once(']')?;
    Some((at.parse().ok()?, pid.parse().ok()?, said))
}

/// Whom the postmaster says to have aborted, which is how a panic ends, too.
fn died(said: &str) -> Option<u32> {
    let (before, signal) = said.split_once(") was terminated by signal ")?;
    let (_, pid) = before.split_once("(PID ")?;
    signal.starts_with("6:").then(|| pid.parse().ok())?
}

const READY: &str = "database system is ready to accept connections";

/// Did the last request to stop come while the server recovered from a crash that it outlived?
pub fn is_stopped_in_recovery(log: &str) -> bool {
    let Some((before, _)) = log.rsplit_once(" shutdown request") else { return false };
    let crash = before.rfind("all server processes terminated; reinitializing");
    crash.is_some_and(|crash| !before[crash..].contains(READY))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "00000000-0000-0000-0000-000000000001";

    #[test]
    fn the_log_tells_runs_and_their_ends() {
        let mut evidence = Evidence::default();
        evidence.read_log(&format!(
            "1700000000.123 [4711] north: LOG:  ledger start {JOB} 1 2 quick [lock]\n\
             1700000000.125 [4712] north: LOG:  something else\n\
             1700000000.130 [4711] north: LOG:  ledger end {JOB} 1 2\n"
        ));
        let start = &evidence.starts[0];
        assert_eq!((start.pid, start.attempt, start.dirt.as_str(), start.ended), (4711, 2, "lock", Some(2)));
        assert!(evidence.crashes.is_empty() && !start.took_down);
    }

    #[test]
    fn the_log_tells_of_a_stop_during_a_recovery() {
        let crash = "LOG:  all server processes terminated; reinitializing\n";
        let ready = "LOG:  database system is ready to accept connections\n";
        let stop = "LOG:  received smart shutdown request\nLOG:  redo starts at 0/1\n";
        assert!(is_stopped_in_recovery(&[ready, crash, stop].concat()));
        for other in [[ready, crash, ready, stop].concat(), [ready, stop].concat(), [ready, crash].concat()] {
            assert!(!is_stopped_in_recovery(&other), "{other}");
        }
    }

    #[test]
    fn the_log_tells_who_took_the_server_down_by_itself() {
        for (kind, crashes) in [("panic", 1), ("abort", 1), ("quick", 0)] {
            let mut evidence = Evidence::default();
            evidence.read_log(&format!(
                "1700000000.000 [4711] north: LOG:  ledger start {JOB} 1 1 {kind} []\n\
                 1700000000.250 [4700] : LOG:  background worker \"executor\" (PID 4711) was terminated by signal 6: Aborted\n\
                 1700000000.750 [4700] : LOG:  database system is ready to accept connections\n"
            ));
            assert_eq!(evidence.crashes.len(), crashes, "{kind}");
            assert_eq!(evidence.starts[0].took_down, crashes == 1, "{kind}");
            for crash in &evidence.crashes {
                assert_eq!((crash.at, crash.pid, crash.back_after), (1_700_000_000.25, 4711, Some(0.5)));
            }
        }
    }
}
