//! I5 the other way round: nobody is charged for a crash that it did not run at, and nobody for a stop in good order.

use crate::evidence::{Attempt, Evidence, Start};
use crate::history::Time;
use crate::run::{Blow, Event, Run};

/// A run that was noted down but killed before its handler's first line began no longer than that before the crash.
const UNSEEN: f64 = 1.0;

/// The least time that a server is given to die, in seconds.
const DYING: f64 = 0.3;

/// An end of the server.
#[derive(Clone, Copy)]
struct End {
    at: Time,
    /// Nothing that begins later ran at it: the server was back, or had time to die.
    over: Time,
    crash: bool,
}

impl End {
    fn of(event: &Event) -> Option<End> {
        let crash = match event.kind {
            Blow::Crash => true,
            Blow::Stop => false,
            Blow::Signal | Blow::Other => return None,
        };
        Some(End { at: event.at, over: event.at + event.back_after.unwrap_or(0.0).max(DYING), crash })
    }
}

/// A stop that a crash came into was none in good order.
fn ends(mut ends: Vec<End>) -> Vec<End> {
    let crashes: Vec<Time> = ends.iter().filter(|end| end.crash).map(|end| end.at).collect();
    for end in &mut ends {
        end.crash |= crashes.iter().any(|at| (end.at..end.over).contains(at));
    }
    ends
}

pub fn check(run: &Run, evidence: &Evidence) {
    let ends = ends(run.events().iter().filter_map(End::of).collect());
    for (job, attempts) in &evidence.attempts {
        let starts: Vec<&Start> = evidence.starts(job).collect();
        for attempt in
            attempts.iter().filter(|attempt| attempt.outcome == "crashed" && !is_founded(attempt, &starts, &ends))
        {
            let table = evidence.jobs.get(job).map(|job| job.table);
            let text = format!(
                "attempt {} was charged for a crash, and ran at none before {:.3}",
                attempt.attempt, attempt.finished
            );
            run.violated("I5", table, Some(*job), text);
        }
    }
}

/// Did the attempt run when the server crashed, before it was charged for that? What began before an earlier end of the server
/// ran no more at that crash.
fn is_founded(attempt: &Attempt, starts: &[&Start], ends: &[End]) -> bool {
    ends.iter().enumerate().filter(|(_, end)| end.crash && end.at < attempt.finished).any(|(number, crash)| {
        let up = number.checked_sub(1).map_or(0.0, |before| ends[before].at);
        let mut seen = starts.iter().filter(|start| start.attempt == attempt.attempt);
        let unseen = attempt.begun.is_some_and(|begun| begun > up && begun > crash.at - UNSEEN && begun < crash.over);
        seen.any(|start| start.at > up && start.at < crash.over) || unseen
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_tests::Uuid;

    fn started(at: Time) -> Start {
        let (kind, dirt, job) = ("quick".to_owned(), String::new(), Uuid::from_u128(1));
        Start { line: 1, at, pid: 1, job, seq: 1, attempt: 2, kind, dirt, ended: None, took_down: false }
    }

    fn charged(begun: Time, finished: Time) -> Attempt {
        let (outcome, error) = ("crashed".to_owned(), String::new());
        Attempt { attempt: 2, outcome, error, begun: Some(begun), finished }
    }

    fn end(at: Time, crash: bool) -> End {
        End { at, over: at + DYING, crash }
    }

    #[test]
    fn who_ran_at_a_crash_may_be_charged_even_later_than_the_next_stop() {
        let start = started(10.0);
        assert!(is_founded(&charged(10.0, 21.0), &[&start], &[end(20.0, true)]));
        assert!(is_founded(&charged(10.0, 31.0), &[&start], &[end(20.0, true), end(30.0, false)]));
    }

    #[test]
    fn who_was_killed_before_its_first_line_may_be_charged() {
        assert!(is_founded(&charged(19.9, 21.0), &[], &[end(20.0, true)]));
        assert!(!is_founded(&charged(10.0, 21.0), &[], &[end(20.0, true)]));
    }

    #[test]
    fn nobody_is_charged_without_a_crash_or_for_a_stop() {
        let start = started(10.0);
        assert!(!is_founded(&charged(10.0, 21.0), &[&start], &[]));
        assert!(!is_founded(&charged(10.0, 21.0), &[&start], &[end(20.0, false)]));
        assert!(!is_founded(&charged(10.0, 21.0), &[&start], &[end(5.0, true), end(30.0, true)]));
        // A handler crashed the server while it was being stopped.
        let stop = End { at: 20.0, over: 20.4, crash: false };
        assert!(is_founded(&charged(10.0, 31.0), &[&start], &ends(vec![stop, end(20.1, true)])));
        // A stop ended that run; the crash after it was another's.
        assert!(!is_founded(&charged(10.0, 31.0), &[&start], &[end(20.0, false), end(30.0, true)]));
    }
}
