//! Executors: from a claim in the mailbox to its end, a transaction, a lock or a word of shared memory at a time.

use crate::history::{Broken, End};
use crate::job::{Setback, Timing};
use crate::machine::{Bug, Machine};
use crate::protocol::{self, Action, ClaimState, Ending, Flags, Queued, Sight};
use crate::retry::Policy;
use crate::state::{Assignment, Cell, Ended, Lane, Life, Place, Row, State, Step, Who, add};
use std::time::Duration;

/// How a handler, or what follows it, may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    Error,
    Conflict,
    /// It cancelled or deleted its own row, which is rolled back with the rest.
    Withdrew,
}

/// Can the executor go on by itself?
pub fn can_step(state: &State, place: Place) -> bool {
    let slot = &state.slots[place];
    let Some(claim) = slot.current() else { return false };
    let pair = &state.jobs[claim.assignment.job];
    let who = Who::Executor(place);
    match slot.step {
        Step::WaitForRow(_) => pair.row.is_free_for(who),
        Step::Fence | Step::Record(..) => pair.queued.is_free_for(who),
        // Its UPDATE waits, for a while.
        Step::Fail => pair.row.is_free_for(who) && pair.queued.is_free_for(who),
        Step::Take(Sight::Finished | Sight::Missing) => pair.queued.is_free_for(who),
        _ => true,
    }
}

/// May the handler, or what follows up to the commit, fail now?
pub fn can_fail(state: &State, place: Place, failure: Failure) -> bool {
    let slot = &state.slots[place];
    match (slot.step, failure) {
        // A deferred constraint; deadlocks do not come that late.
        (Step::Commit, failure) => failure == Failure::Error,
        (Step::WaitForRow(_), failure) => failure == Failure::Conflict,
        (Step::Handler, Failure::Withdrew) => slot.current().is_some_and(|claim| {
            let pair = &state.jobs[claim.assignment.job];
            pair.row.is_free() && pair.row.committed.is_some_and(|row| row.flags.is_open())
        }),
        (Step::Handler, _) => true,
        _ => false,
    }
}

/// Can an interrupt that was asked for strike now?
pub fn can_be_interrupted(state: &State, place: Place) -> bool {
    let slot = &state.slots[place];
    slot.is_in_handler() && slot.step != Step::Commit && slot.current().is_some_and(|claim| claim.interrupt.is_some())
}

/// May it be that a job cannot be run, or its end not be written as it should be?
pub fn can_be_refused(state: &State, place: Place, retreats: bool) -> bool {
    let slot = &state.slots[place];
    slot.current().is_some_and(|claim| match slot.step {
        Step::Load => claim.state == ClaimState::Pending && !retreats,
        Step::Record(..) | Step::Fail => !retreats || state.jobs[claim.assignment.job].queued.is_free(),
        _ => false,
    })
}

pub fn fail(state: &mut State, place: Place, failure: Failure) {
    let conflict = failure == Failure::Conflict;
    undo(state, place, failure == Failure::Withdrew, conflict);
}

pub fn interrupt(state: &mut State, place: Place) {
    undo(state, place, false, false);
}

/// The table cannot be opened; the row stays locked for too long, or what the owner has around it raises errors: `retreat`, and
/// should that fail, too, nothing is known of the run.
pub fn refuse(state: &mut State, place: Place, retreats: bool) {
    let slot = &mut state.slots[place];
    let assignment = slot.mailbox[slot.passed].assignment;
    if slot.step == Step::Load {
        slot.mailbox[slot.passed].state = ClaimState::Running;
        slot.step = Step::Settle(Ended::Refused);
    } else if retreats {
        retreat(state, place, &assignment);
    } else {
        if assignment.action == Action::Run {
            state.history.fate(assignment.stamp).free += 1;
        }
        state.slots[place].step = Step::Settle(Ended::Refused);
    }
}

pub fn step(machine: &Machine, state: &mut State, place: Place) {
    let who = Who::Executor(place);
    let slot = &state.slots[place];
    let (passed, step) = (slot.passed, slot.step);
    let claim = slot.mailbox[passed].clone();
    let assignment = claim.assignment;
    let job = assignment.job;
    let next = match step {
        Step::Load if claim.state != ClaimState::Pending => Step::Settle(Ended::Revoked),
        Step::Load => {
            let row = state.row(job, who);
            Step::Take(protocol::on_load(row.map(|row| !row.flags.is_open()), || state.is_queued(&assignment)))
        }
        Step::Take(_) if claim.state != ClaimState::Pending => Step::Settle(Ended::Revoked),
        Step::Take(sight) => {
            state.slots[place].mailbox[passed].state = ClaimState::Running;
            match sight {
                Sight::Open => Step::Begin,
                Sight::Finished => {
                    finish(machine, state, &assignment, |cell| &mut cell.committed);
                    Step::Settle(Ended::Done)
                }
                Sight::Missing => put_back_free(state, &assignment),
            }
        }
        Step::Begin => match assignment.action {
            Action::Run => {
                begin(state, place, &assignment);
                Step::Handler
            }
            Action::Fail => Step::Fail,
            Action::Restart => Step::Settle(Ended::Done),
        },
        // The interrupt was swallowed; it is raised again.
        Step::Handler if claim.interrupt.is_some() => return interrupt(state, place),
        Step::Handler => Step::Update,
        Step::Update if !state.jobs[job].row.is_free_for(who) && state.jobs[job].row.committed.is_some() => {
            let born = state.jobs[job].row.committed.map_or(0, |row| row.born);
            Step::WaitForRow(born)
        }
        Step::Update => write_completion(machine, state, who, job, None),
        Step::WaitForRow(born) => write_completion(machine, state, who, job, Some(born)),
        Step::Look => {
            let open = state.row(job, who).is_some_and(|row| row.flags.is_open());
            return end(machine, state, place, protocol::complete(false, || open, || false));
        }
        Step::Fence => {
            let fenced = finish(machine, state, &assignment, |cell| {
                let seen = cell.seen_by(who);
                &mut cell.pending.insert((who, seen)).1
            });
            return end(machine, state, place, protocol::complete(true, || false, || fenced));
        }
        Step::Commit => {
            commit(state, place, &assignment);
            Step::Settle(Ended::Done)
        }
        Step::Record(withdrawn, setback) => record(machine, state, place, &assignment, withdrawn, setback),
        Step::Fail => fail_for_good(machine, state, place, &assignment),
        Step::Settle(ended) => return settle(state, place, ended),
    };
    state.slots[place].step = next;
}

fn begin(state: &mut State, place: Place, assignment: &Assignment) {
    let slot = &mut state.slots[place];
    slot.journal = Some(*assignment);
    slot.running = true;
    let fate = state.history.fate(assignment.stamp);
    fate.starts += 1;
    if !fate.committed {
        state.history.breaks(Broken::Phantom);
    }
}

/// The guarded UPDATE. `waited_for`: it had to wait, and reads that row again if it is still there.
fn write_completion(machine: &Machine, state: &mut State, who: Who, job: usize, waited_for: Option<i64>) -> Step {
    let row = state.row(job, who).filter(|row| waited_for.is_none_or(|born| born == row.born));
    match row.filter(|row| machine.heeded(row.flags).is_open()) {
        Some(row) => {
            let flags = Flags { completed: true, ..row.flags };
            state.jobs[job].row.set(who, Some(Row { flags, ..row }));
            Step::Fence
        }
        None => Step::Look,
    }
}

/// The fence: `catalog::finish`, in the cell that `place` gives.
fn finish(
    machine: &Machine,
    state: &mut State,
    assignment: &Assignment,
    place: impl FnOnce(&mut Cell<Queued>) -> &mut Option<Queued>,
) -> bool {
    let queued = place(&mut state.jobs[assignment.job].queued);
    let passes = queued.is_some_and(|queued| queued.is(assignment.identity()));
    if passes {
        *queued = None;
    }
    passes || machine.has(Bug::NoFence)
}

/// What writing the completion came to.
fn end(machine: &Machine, state: &mut State, place: Place, ending: Ending) {
    match ending {
        Ending::Written => state.slots[place].step = Step::Commit,
        Ending::Withdrawn | Ending::Fenced => {
            state.history.seen.fenced |= ending == Ending::Fenced;
            if machine.has(Bug::EffectsApart) {
                state.slots[place].step = Step::Commit;
            } else {
                undo(state, place, true, false);
            }
        }
        Ending::Unreached => {
            state.history.seen.unreached = true;
            undo(state, place, false, false);
        }
    }
}

/// Rolls back what the run has done.
fn undo(state: &mut State, place: Place, withdrawn: bool, conflict: bool) {
    state.roll_back(Who::Executor(place));
    let slot = &mut state.slots[place];
    let interrupt = slot.mailbox[slot.passed].interrupt;
    slot.step = Step::Record(protocol::looks_withdrawn(withdrawn, interrupt), protocol::setback(interrupt, conflict));
}

fn commit(state: &mut State, place: Place, assignment: &Assignment) {
    let who = Who::Executor(place);
    let cell = state.jobs[assignment.job].row;
    let changes = !cell.is_free() && cell.is_free_for(who);
    if changes && !cell.committed.is_some_and(|row| row.flags.is_open()) {
        state.history.breaks(Broken::FinishedRow);
    }
    if (assignment.stamp, assignment.attempt) < state.history.handed[assignment.job] {
        state.history.breaks(Broken::OldAttempt);
    }
    let fate = state.history.fate(assignment.stamp);
    fate.effects += 1;
    if fate.end == End::None && changes {
        fate.end = End::Completed;
    }
    state.commit(who);
}

/// Writes down how a run ended that was rolled back: `outcome::withdrawn` and `outcome::record`.
fn record(
    machine: &Machine,
    state: &mut State,
    place: Place,
    assignment: &Assignment,
    withdrawn: bool,
    setback: Setback,
) -> Step {
    if withdrawn && !state.is_queued(assignment) {
        return Step::Settle(Ended::Done);
    }
    // Withdrawn by itself: that is an error like another.
    let setback = if withdrawn { Setback::Error } else { setback };
    let conflicts = state.jobs[assignment.job].queued.committed.map_or(0, |queued| queued.conflicts);
    if setback == Setback::Conflict && protocol::is_free(conflicts) {
        return put_back_free(state, assignment);
    }
    let policy = Policy { max_attempts: machine.scope.max_attempts, delay: Duration::ZERO, max_delay: Duration::ZERO };
    match policy.delay_after(assignment.attempt, 0.0) {
        Some(_) => {
            retreat(state, place, assignment);
            state.slots[place].step
        }
        None => Step::Fail,
    }
}

fn put_back_free(state: &mut State, assignment: &Assignment) -> Step {
    let identity = assignment.identity();
    if state.change_queued(assignment.job, |queued| queued.put_back_free(identity)) {
        if assignment.action == Action::Run {
            state.history.fate(assignment.stamp).free += 1;
        }
        Step::Settle(Ended::Retry)
    } else {
        Step::Settle(Ended::Done)
    }
}

/// Puts the job back, charged, to be tried again.
fn retreat(state: &mut State, place: Place, assignment: &Assignment) {
    let identity = assignment.identity();
    let back = state.change_queued(assignment.job, |queued| queued.put_back(identity, Timing::Retry));
    state.slots[place].step = Step::Settle(if back { Ended::Retry } else { Ended::Done });
}

/// The last attempt has failed: guarded UPDATE and fence in one transaction, whose locks nobody holds.
fn fail_for_good(machine: &Machine, state: &mut State, place: Place, assignment: &Assignment) -> Step {
    let job = assignment.job;
    let row = state.jobs[job].row.committed;
    let updated = row.filter(|row| machine.heeded(row.flags).is_open());
    let open = row.is_some_and(|row| row.flags.is_open());
    let before = state.jobs[job].queued;
    let ending =
        protocol::fail(updated.is_some(), || open, || finish(machine, state, assignment, |cell| &mut cell.committed));
    match (ending, updated) {
        (Ending::Written, Some(row)) => {
            if !open {
                state.history.breaks(Broken::FinishedRow);
            }
            let flags = Flags { completed: true, ..row.flags };
            state.jobs[job].row.committed = Some(Row { flags, failed: true, ..row });
            let fate = state.history.fate(assignment.stamp);
            if fate.end == End::None {
                fate.end = End::Failed;
            }
            Step::Settle(Ended::Done)
        }
        (Ending::Withdrawn, _) => Step::Settle(Ended::Done),
        _ => {
            state.jobs[job].queued = before;
            retreat(state, place, assignment);
            state.slots[place].step
        }
    }
}

/// Tells the dispatcher; everything is committed.
fn settle(state: &mut State, place: Place, ended: Ended) {
    let slot = &mut state.slots[place];
    slot.running = false;
    slot.journal = None;
    let claim = &mut slot.mailbox[slot.passed];
    if ended != Ended::Revoked {
        claim.state = ClaimState::Done;
    }
    claim.refused = ended == Ended::Refused;
    if ended == Ended::Retry {
        let note = (claim.assignment.job, Lane::Retry);
        add(&mut state.notes, note);
    }
    slot.passed += 1;
    slot.step = Step::Load;
}

/// The process ends before its time: `executor::leave`.
pub fn terminate(state: &mut State, place: Place) {
    state.roll_back(Who::Executor(place));
    let slot = &mut state.slots[place];
    slot.journal = None;
    slot.step = Step::Load;
    slot.life = if slot.mailbox.is_empty() { Life::Free } else { Life::Gone };
    if slot.mailbox.is_empty() {
        slot.passed = 0;
        slot.running = false;
    }
}
