//! Whether a round was worth its name: one in which little happened proves nothing, however few violations it has.

use crate::ROUND;
use crate::evidence::Evidence;
use crate::kinds::KINDS;
use crate::run::Run;

/// Jobs that clients submit in a full round, and were told so; in a shorter one, as many as its part of it.
const JOBS: u64 = 10_000;

/// Kills in a full round. They come by chance, and a shorter one may have few.
const KILLS: usize = 30;

pub fn check(run: &Run, evidence: &Evidence, seconds: u64) {
    let started = |kind: &str| evidence.starts.iter().any(|start| start.kind == kind);
    let missing: Vec<&str> = KINDS.iter().map(|kind| kind.name).filter(|kind| !started(kind)).collect();
    for text in lacks(seconds, jobs(run), kills(run), &missing) {
        run.violated("effort", None, None, text);
    }
}

/// Has there been enough of both for a storm of that length?
pub fn is_made(run: &Run, seconds: u64) -> bool {
    lacks(seconds, jobs(run), kills(run), &[]).is_empty()
}

fn jobs(run: &Run) -> u64 {
    run.history.submitted()
}

fn kills(run: &Run) -> usize {
    run.events().iter().filter(|event| event.is_kill()).count()
}

/// What a storm of that length lacks.
fn lacks(seconds: u64, jobs: u64, kills: usize, missing: &[&str]) -> Vec<String> {
    let mut lacks = Vec::new();
    let least = JOBS * seconds / ROUND;
    if jobs < least {
        lacks.push(format!(
            "{jobs} jobs in {seconds} s, and at least {least} are due: the machine is busy, or the server slow"
        ));
    }
    if seconds < ROUND {
        return lacks;
    }
    if kills < KILLS {
        lacks.push(format!("{kills} kills in {seconds} s, and at least {KILLS} are due"));
    }
    if !missing.is_empty() {
        lacks.push(format!("no handler was started of the kinds {}", missing.join(", ")));
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_round_has_its_jobs_its_kills_and_every_kind() {
        assert_eq!(lacks(ROUND, JOBS, KILLS, &[]), Vec::<String>::new());
        for lack in [
            lacks(ROUND, JOBS - 1, KILLS, &[]),
            lacks(ROUND, JOBS, KILLS - 1, &[]),
            lacks(ROUND, JOBS, KILLS, &["nan"]),
        ] {
            assert_eq!(lack.len(), 1, "{lack:?}");
        }
    }

    #[test]
    fn a_shorter_round_has_its_part_of_the_jobs() {
        assert_eq!(lacks(ROUND / 3, JOBS / 3, 0, &["nan"]), Vec::<String>::new());
        assert_eq!(lacks(ROUND / 3, JOBS / 3 - 1, 0, &[]).len(), 1);
    }
}
