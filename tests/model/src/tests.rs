//! The runs: what each bound allows, what must be reached within it, and what planted bugs break.

use crate::machine::{Action, Bug, Machine, Scope};
use crate::state::{Budget, State};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};
use std::time::Instant;

const THREADS: usize = 2;

const NOTHING: Budget = Budget { statements: 0, failures: 0, kills: 0, dispatchers: 0, crashes: 0, stops: 0, lost: 0 };

const ONE: Scope = Scope { jobs: 1, executors: 1, clients: 1, max_attempts: 2, budget: NOTHING };
const TWO: Scope = Scope { jobs: 2, executors: 2, ..ONE };

/// What is reached in every run of an unbroken machine.
const ALWAYS_REACHED: [&str; 1] = ["a job completes"];

/// Tries every order of events within the scope. Everything that must hold does, and what is named in `reached` happens.
fn holds(name: &str, scope: Scope, reached: &[&str]) {
    let begun = Instant::now();
    let checker = Machine::new(scope, None).checker().threads(THREADS).spawn_bfs().join();
    println!(
        "{name}: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    );
    let discoveries = checker.discoveries();
    for property in checker.model().properties() {
        let found = discoveries.get(property.name);
        match property.expectation {
            Expectation::Always => assert!(found.is_none(), "{}\n{}", property.name, told(found)),
            _ => println!("  {}: {}", property.name, if found.is_some() { "reached" } else { "not reached" }),
        }
    }
    for name in ALWAYS_REACHED.iter().chain(reached) {
        assert!(discoveries.contains_key(name), "not reached: {name}");
    }
}

fn told(path: Option<&Path<State, Action>>) -> String {
    let Some(path) = path else { return String::new() };
    let last = format!("{:?}", path.last_state());
    let steps: Vec<String> = path.clone().into_actions().iter().map(|action| format!("  {action:?}")).collect();
    format!("{}\n{last}", steps.join("\n"))
}

const CLIENTS: Scope = Scope { budget: Budget { statements: 3, failures: 1, ..NOTHING }, ..ONE };
const LOST: Scope = Scope { executors: 2, budget: Budget { statements: 3, lost: 1, ..NOTHING }, ..ONE };
const RIVALS: Scope = Scope { clients: 2, budget: Budget { statements: 4, ..NOTHING }, ..ONE };
const DISASTERS: Scope = Scope {
    executors: 2,
    budget: Budget { statements: 1, failures: 1, kills: 1, dispatchers: 1, crashes: 1, stops: 1, lost: 0 },
    ..ONE
};
const DISPATCHERS: Scope =
    Scope { executors: 2, budget: Budget { statements: 2, kills: 1, dispatchers: 2, ..NOTHING }, ..ONE };
const CRASHES: Scope = Scope { budget: Budget { statements: 2, crashes: 3, ..NOTHING }, ..ONE };
const MAILBOX: Scope = Scope { executors: 1, budget: Budget { statements: 3, ..NOTHING }, ..TWO };
const SUSPECTS: Scope = Scope { budget: Budget { statements: 2, crashes: 1, ..NOTHING }, ..TWO };
const RETRIES: Scope = Scope { max_attempts: 3, budget: Budget { statements: 2, failures: 3, ..NOTHING }, ..ONE };

#[test]
fn clients_do_what_they_like_with_a_job_that_runs_and_fails() {
    let reached = [
        "a running job is cancelled",
        "a job runs again by retry()",
        "the fence stops an attempt",
        "a completion finds another row than it waited for",
        "a completion waits for a client",
        "a cancel comes too late",
        "a claim is taken back",
        "a client hands a job to an executor",
    ];
    holds("one job and its client", CLIENTS, &reached);
}

#[test]
fn wake_ups_are_lost() {
    holds("one job, wake-ups lost", LOST, &["the fence stops an attempt", "a client hands a job to an executor"]);
}

#[test]
fn two_clients_are_rivals_for_a_job() {
    holds("one job, two clients", RIVALS, &["a completion waits for a client", "a cancel comes too late"]);
}

#[test]
fn processes_die_and_the_server_crashes_and_stops() {
    let reached = [
        "a job fails",
        "a crash is charged",
        "a suspect runs",
        "a job in quarantine waits",
        "a used-up job is failed by an executor that did not run it",
    ];
    holds("one job, disasters", DISASTERS, &reached);
}

#[test]
fn dispatchers_come_and_go_while_executors_run() {
    holds("one job, three dispatchers", DISPATCHERS, &["a running job is cancelled"]);
}

#[test]
fn a_job_takes_the_server_down_again_and_again() {
    let reached = ["a suspect runs", "a used-up job is failed by an executor that did not run it"];
    holds("one job, three crashes", CRASHES, &reached);
}

#[test]
fn two_jobs_wait_in_one_mailbox_and_change_ids() {
    holds("two jobs, one executor", MAILBOX, &["a claim is taken back", "the fence stops an attempt"]);
}

#[test]
fn two_jobs_ran_when_the_server_crashed() {
    holds("two jobs, two executors", SUSPECTS, &["a crash is charged", "a suspect runs"]);
}

/// Wider, for minutes: make soak.
#[test]
#[ignore = "takes minutes"]
fn wide_one_job_and_everything() {
    let budget = Budget { statements: 3, failures: 1, kills: 1, dispatchers: 1, crashes: 1, ..NOTHING };
    holds("one job, everything", Scope { budget, ..ONE }, &["a suspect runs", "the fence stops an attempt"]);
}

#[test]
#[ignore = "takes minutes"]
fn wide_two_jobs_and_two_crashes() {
    let budget = Budget { statements: 2, crashes: 2, ..NOTHING };
    holds("two jobs, two crashes", Scope { budget, ..TWO }, &["a suspect runs"]);
}

#[test]
#[ignore = "takes minutes"]
fn wide_two_jobs_a_crash_and_a_kill() {
    let budget = Budget { kills: 1, ..SUSPECTS.budget };
    holds("two jobs, a crash and a kill", Scope { budget, ..TWO }, &["a suspect runs"]);
}

#[test]
#[ignore = "takes minutes"]
fn wide_two_jobs_and_their_client() {
    let budget = Budget { statements: 3, ..NOTHING };
    holds("two jobs and a client", Scope { budget, ..TWO }, &["the fence stops an attempt"]);
}

/// The bug is found, by the property that is about it.
fn bites(bug: Bug, scope: Scope, property: &'static str) {
    let begun = Instant::now();
    let machine = Machine::new(scope, Some(bug)).checker().threads(THREADS);
    let checker = machine.finish_when(HasDiscoveries::AnyOf([property].into())).spawn_bfs().join();
    let found = checker.discovery(property);
    println!(
        "{bug:?}: {} steps to break \"{property}\", found after {} states, {:.1} s",
        found.as_ref().map_or(0, |path| path.clone().into_actions().len()),
        checker.unique_state_count(),
        begun.elapsed().as_secs_f64()
    );
    assert!(found.is_some(), "{bug:?} breaks \"{property}\", and nobody notices");
}

#[test]
fn effects_apart_from_the_completion_are_noticed() {
    bites(Bug::EffectsApart, CLIENTS, "I4 an acknowledged cancel is final");
}

#[test]
fn a_missing_fence_is_noticed() {
    bites(Bug::NoFence, CLIENTS, "I3 effects exactly once");
}

#[test]
fn a_missing_guard_against_cancelled_rows_is_noticed() {
    bites(Bug::NoCancelGuard, CLIENTS, "I4 an acknowledged cancel is final");
}

#[test]
fn a_missing_guard_against_rows_that_others_completed_is_noticed() {
    bites(Bug::NoSettledGuard, CLIENTS, "I9 a finished row stays finished");
}

#[test]
fn triggers_that_fire_on_finished_rows_are_noticed() {
    bites(Bug::FiresOnFinished, MAILBOX, "I9 a finished row stays finished");
}

#[test]
fn wake_ups_without_a_poll_are_noticed() {
    bites(Bug::NoPoll, LOST, "I1 no job is stuck, if its handler returns");
}

#[test]
fn crashes_that_nobody_charges_are_noticed() {
    bites(Bug::NoCrashCharge, CRASHES, "I5 attempts are bounded");
}

#[test]
fn a_dispatcher_that_adopts_nothing_is_noticed() {
    bites(Bug::NoAdoption, DISPATCHERS, "I6 no two attempts of a job overlap");
}

#[test]
fn jobs_handed_over_while_the_dispatcher_looks_are_noticed() {
    bites(Bug::NeverQuiet, LOST, "I6 no two attempts of a job overlap");
}

#[test]
fn a_run_now_that_leaves_the_job_in_two_lanes_is_noticed() {
    bites(Bug::QuietRunNow, RETRIES, "I5 attempts are bounded");
}
