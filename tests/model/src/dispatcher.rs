//! The dispatcher: reading, handing out, taking back, rescuing, accusing.

use crate::job::Timing;
use crate::machine::{Bug, Machine};
use crate::protocol::{self, Action, ClaimState, Interrupt, Reading, Rescue};
use crate::state::{
    Assignment, At, Claim, Claimed, Dispatcher, JOBS, Job, Lane, Life, Note, Place, SLOTS, Slot, State, Waiting, add,
};

/// Claims in a mailbox at most.
const DEPTH: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// Takes the news and drains; `poll`: it is time to look at everything.
    TakeNews {
        poll: bool,
    },
    /// The snapshot, and what follows from it.
    Read,
    Drain,
    /// Charges what a dead executor ran.
    Rescue(Place),
    FreeSlot,
    /// Charges what ran when the server crashed.
    Accuse,
    Acquit,
    StartExecutor(Place),
    Assign(Waiting, Place),
    /// Comes to a job in a window that is handed out already.
    Skip(Waiting),
    Restart(Assignment, Place),
    /// Takes back what waits behind a job that turned out long.
    TakeBack(Place),
}

/// A new process: `roster.adopt`.
pub fn start(machine: &Machine, state: &mut State) {
    let mut claims = [None; JOBS];
    let slots = state.slots.iter().enumerate().filter(|(_, slot)| slot.life != Life::Free);
    for (place, slot) in slots.filter(|_| !machine.has(Bug::NoAdoption)) {
        for (index, claim) in slot.mailbox.iter().enumerate().filter(|(_, claim)| protocol::is_adopted(claim.state)) {
            claims[claim.assignment.job] = Some(claimed(place, index, claim));
        }
    }
    state.slots.iter_mut().flat_map(|slot| &mut slot.mailbox).for_each(|claim| claim.booked = true);
    // The launcher has emptied the slot, because everything is looked at.
    state.notes.clear();
    state.withdrawn = false;
    state.dispatcher = Some(Dispatcher {
        at: At::Ready,
        fresh: true,
        claims,
        skipped: [None; JOBS],
        window: Vec::new(),
        unread: Vec::new(),
        restarts: Vec::new(),
    });
}

fn claimed(place: Place, index: usize, claim: &Claim) -> Claimed {
    let Assignment { stamp, attempt, .. } = claim.assignment;
    let lane = if attempt > 1 { Lane::Retry } else { Lane::Immediate };
    Claimed { place, index, lane, stamp }
}

/// The executor that a client may hand this job to: only while the dispatcher is quiet.
pub fn idle_place(machine: &Machine, state: &State, job: Job) -> Option<Place> {
    let own = state.dispatcher.as_ref()?;
    let rests = own.window.is_empty() && own.restarts.is_empty() && state.accused.is_empty() && !own.fresh;
    let asleep = own.at == At::Ready || machine.has(Bug::NeverQuiet);
    let same = state.slots.iter().flat_map(|slot| &slot.mailbox).any(|claim| claim.assignment.job == job);
    let idle = |slot: &Slot| slot.life == Life::Ready && slot.mailbox.len() == slot.passed;
    (rests && asleep && !same).then(|| state.slots.iter().position(idle)).flatten()
}

/// `direct::hand_over`
pub fn hand_over(state: &mut State, job: Job, stamp: i64, place: Place) {
    let assignment = Assignment { job, stamp, attempt: 1, action: Action::Run, suspect: false };
    let claim = Claim { assignment, state: ClaimState::Pending, booked: false, refused: false, interrupt: None };
    state.slots[place].mailbox.push(claim);
    state.history.handed(job, stamp, 1);
}

/// What the dispatcher may do now, but for polls and what only time brings.
pub fn moves(machine: &Machine, state: &State, found: &mut Vec<Move>) {
    let Some(own) = &state.dispatcher else { return };
    match &own.at {
        At::Reading { .. } => found.push(Move::Read),
        At::Charged => found.push(Move::Acquit),
        At::Rescuing(_) => found.push(Move::FreeSlot),
        At::Ready => {}
    }
    if own.at != At::Ready {
        return;
    }
    let accuses = !state.accused.is_empty() && !machine.has(Bug::NoCrashCharge);
    if accuses && state.accused.iter().all(|accused| state.jobs[accused.job].queued.is_free()) {
        found.push(Move::Accuse);
    }
    // It looks at nothing before it has charged what it has to.
    let news = own.fresh || !state.notes.is_empty() || state.withdrawn || !own.unread.is_empty();
    if news && !accuses {
        found.push(Move::TakeNews { poll: false });
    }
    for place in 0..machine.scope.executors {
        let slot = &state.slots[place];
        if slot.passed > 0 {
            found.push(Move::Drain);
        } else if slot.life == Life::Gone && slot.mailbox.iter().all(|c| state.jobs[c.assignment.job].queued.is_free())
        {
            found.push(Move::Rescue(place));
        }
        // All are alike, so the first free one will do.
        let first = state.slots[..place].iter().all(|slot| slot.life != Life::Free);
        if slot.life == Life::Free && first && !(own.window.is_empty() && own.restarts.is_empty()) {
            found.push(Move::StartExecutor(place));
        }
        if slot.running && slot.mailbox[slot.passed..].iter().any(|claim| claim.state == ClaimState::Pending) {
            found.push(Move::TakeBack(place));
        }
        if slot.life != Life::Ready || slot.mailbox.len() >= DEPTH {
            continue;
        }
        let idle = slot.mailbox.len() == slot.passed;
        for restart in own.restarts.iter().filter(|restart| idle && own.claims[restart.job].is_none()) {
            found.push(Move::Restart(*restart, place));
        }
        for waiting in &own.window {
            let may = protocol::may_start(waiting.lane.timing(), state.suspect.is_none());
            let alone = waiting.lane == Lane::Quarantine;
            if may && (idle || !alone) && own.claims[waiting.job].is_none() {
                found.push(Move::Assign(*waiting, place));
            }
        }
    }
    for waiting in own.window.iter().filter(|waiting| own.claims[waiting.job].is_some()) {
        found.push(Move::Skip(*waiting));
    }
}

pub fn make(machine: &Machine, state: &mut State, what: Move) {
    let Some(mut own) = state.dispatcher.take() else { return };
    let mut acting = Acting { machine, state, own: &mut own };
    // Once in a tick, which may hand out what it has just read.
    if acting.own.at == At::Ready && !matches!(what, Move::Assign(..) | Move::Skip(_)) {
        acting.book();
    }
    match what {
        Move::TakeNews { poll } => acting.take_news(poll),
        Move::Read => acting.read(),
        Move::Drain => acting.drain(),
        Move::Rescue(place) => acting.rescue(place),
        Move::FreeSlot => acting.free_slot(),
        Move::Accuse => acting.accuse(),
        Move::Acquit => acting.acquit(),
        Move::StartExecutor(place) => acting.state.slots[place].life = Life::Ready,
        Move::Assign(waiting, place) => acting.assign(waiting, place),
        Move::Skip(waiting) => {
            acting.own.window.retain(|kept| *kept != waiting);
            acting.own.skipped[waiting.job] = Some(waiting.lane);
        }
        Move::Restart(assignment, place) => {
            acting.own.restarts.retain(|kept| *kept != assignment);
            acting.hand(assignment, Lane::Retry, place);
        }
        Move::TakeBack(place) => acting.take_back(place),
    }
    if own.at == At::Ready {
        // Whose job is handed out by now is dropped.
        let claims = own.claims;
        own.restarts.retain(|restart| claims[restart.job].is_none());
    }
    state.dispatcher = Some(own);
}

struct Acting<'a> {
    machine: &'a Machine,
    state: &'a mut State,
    own: &'a mut Dispatcher,
}

impl Acting<'_> {
    /// `Roster::book`
    fn book(&mut self) {
        for (place, slot) in self.state.slots.iter_mut().enumerate() {
            for (index, claim) in slot.mailbox.iter_mut().enumerate().filter(|(_, claim)| !claim.booked) {
                claim.booked = true;
                self.own.claims[claim.assignment.job] = Some(claimed(place, index, claim));
            }
        }
    }

    fn take_news(&mut self, poll: bool) {
        let withdrawn = std::mem::take(&mut self.state.withdrawn);
        let notes = std::mem::take(&mut self.state.notes);
        self.drain();
        self.own.at = At::Reading { poll, withdrawn, notes };
    }

    /// `Dispatcher::look`
    fn read(&mut self) {
        let At::Reading { poll, withdrawn, notes } = std::mem::replace(&mut self.own.at, At::Ready) else { return };
        let everything = poll || std::mem::take(&mut self.own.fresh);
        notes.into_iter().for_each(|note| self.note(note));
        if withdrawn || everything {
            self.verify_claims();
            // The lanes' windows are read again.
            for waiting in std::mem::take(&mut self.own.window) {
                self.note((waiting.job, waiting.lane));
            }
        }
        let unread = std::mem::take(&mut self.own.unread);
        for job in 0..self.machine.scope.jobs {
            let Some(queued) = self.state.jobs[job].queued.committed else { continue };
            let lane = Lane::of(queued.timing);
            if !everything && !unread.contains(&(job, lane)) {
                continue;
            }
            match protocol::on_reading(self.own.claims[job].map(|claimed| claimed.stamp), queued.enqueued_at) {
                Reading::Keep => {
                    let (stamp, attempts) = (queued.enqueued_at, queued.attempts);
                    add(&mut self.own.window, Waiting { job, lane, stamp, attempts });
                }
                Reading::PassBy => {}
                Reading::Remember => self.own.skipped[job] = Some(lane),
            }
        }
    }

    fn note(&mut self, note: Note) {
        add(&mut self.own.unread, note);
    }

    /// Finds claims whose jobs are no longer in the queue.
    fn verify_claims(&mut self) {
        for job in 0..JOBS {
            let Some(claimed) = self.own.claims[job] else { continue };
            let claim = &mut self.state.slots[claimed.place].mailbox[claimed.index];
            let queued = self.state.jobs[job].queued.committed.map(|queued| queued.enqueued_at);
            if protocol::is_queued(queued, claim.assignment.stamp) {
                continue;
            }
            if claim.state == ClaimState::Pending {
                claim.state = ClaimState::Revoked;
                let assignment = claim.assignment;
                self.forget(&assignment, claimed.place);
            } else {
                claim.interrupt = Some(Interrupt::Cancelled);
            }
        }
    }

    fn drain(&mut self) {
        for place in 0..SLOTS {
            let passed = self.state.slots[place].passed;
            for index in 0..passed {
                if self.state.slots[place].mailbox[index].state == ClaimState::Done {
                    self.ended(place, index);
                }
            }
            self.state.slots[place].mailbox.drain(..passed);
            self.state.slots[place].passed = 0;
            for claimed in self.own.claims.iter_mut().flatten().filter(|claimed| claimed.place == place) {
                claimed.index -= passed;
            }
        }
    }

    fn ended(&mut self, place: Place, index: usize) {
        let Claim { assignment, refused, .. } = self.state.slots[place].mailbox[index].clone();
        let ours =
            self.own.claims[assignment.job].is_some_and(|claimed| (claimed.place, claimed.index) == (place, index));
        if ours
            && let Some(claimed) = self.forget(&assignment, place)
            && refused
        {
            self.note((assignment.job, claimed.lane));
        }
    }

    fn forget(&mut self, assignment: &Assignment, place: Place) -> Option<Claimed> {
        if assignment.suspect {
            self.release_suspect(place);
        }
        if let Some(lane) = self.own.skipped[assignment.job].take() {
            self.note((assignment.job, lane));
        }
        self.own.claims[assignment.job].take()
    }

    fn give_back(&mut self, assignment: &Assignment) {
        let place = self.own.claims[assignment.job].map(|claimed| claimed.place);
        if let Some(claimed) = place.and_then(|place| self.forget(assignment, place)) {
            self.note((assignment.job, claimed.lane));
        }
    }

    fn release_suspect(&mut self, place: Place) {
        if self.state.suspect == Some(place) {
            self.state.suspect = None;
        }
    }

    /// The charge, a transaction of its own, comes first; the rest is memory.
    fn rescue(&mut self, place: Place) {
        let slot = &self.state.slots[place];
        let began = slot.running.then_some(slot.passed);
        for (index, claim) in slot.mailbox.clone().iter().enumerate() {
            if protocol::on_rescue(claim.state, began == Some(index), false) == Rescue::Charge {
                let assignment = claim.assignment;
                let identity = assignment.identity();
                self.state.change_queued(assignment.job, |queued| queued.put_back(identity, Timing::Retry));
                self.own.restarts.push(Assignment { action: Action::Restart, suspect: false, ..assignment });
                self.note((assignment.job, Lane::Retry));
            }
        }
        self.own.at = At::Rescuing(place);
    }

    fn free_slot(&mut self) {
        let At::Rescuing(place) = std::mem::replace(&mut self.own.at, At::Ready) else { return };
        let began = self.state.slots[place].running.then_some(self.state.slots[place].passed);
        for (index, claim) in self.state.slots[place].mailbox.clone().iter().enumerate() {
            match protocol::on_rescue(claim.state, began == Some(index), false) {
                Rescue::Nothing => {}
                Rescue::Ended => self.ended(place, index),
                Rescue::Charge | Rescue::GiveBack => self.give_back(&claim.assignment),
            }
        }
        self.release_suspect(place);
        self.state.slots[place] = Slot::new();
    }

    fn accuse(&mut self) {
        for accused in self.state.accused.clone() {
            let identity = accused.identity();
            let charged = self.state.change_queued(accused.job, |queued| queued.put_back(identity, Timing::Quarantine));
            self.state.history.seen.charged |= charged;
        }
        self.own.at = At::Charged;
    }

    fn acquit(&mut self) {
        for accused in std::mem::take(&mut self.state.accused) {
            self.own.restarts.push(Assignment { action: Action::Restart, suspect: false, ..accused });
        }
        self.own.at = At::Ready;
    }

    fn assign(&mut self, waiting: Waiting, place: Place) {
        let suspect = waiting.lane == Lane::Quarantine;
        if suspect {
            self.state.suspect = Some(place);
        }
        self.own.window.retain(|kept| *kept != waiting);
        let (attempt, action) = protocol::next_attempt(waiting.attempts, self.machine.scope.max_attempts);
        let assignment = Assignment { job: waiting.job, stamp: waiting.stamp, attempt, action, suspect };
        self.hand(assignment, waiting.lane, place);
    }

    fn hand(&mut self, assignment: Assignment, lane: Lane, place: Place) {
        let slot = &mut self.state.slots[place];
        let (index, stamp) = (slot.mailbox.len(), assignment.stamp);
        slot.mailbox.push(Claim {
            assignment,
            state: ClaimState::Pending,
            booked: true,
            refused: false,
            interrupt: None,
        });
        self.own.claims[assignment.job] = Some(Claimed { place, index, lane, stamp });
        if assignment.action == Action::Run {
            self.state.history.handed(assignment.job, stamp, assignment.attempt);
        }
    }

    fn take_back(&mut self, place: Place) {
        for index in self.state.slots[place].passed..self.state.slots[place].mailbox.len() {
            let claim = &mut self.state.slots[place].mailbox[index];
            if claim.state == ClaimState::Pending {
                claim.state = ClaimState::Revoked;
                let assignment = claim.assignment;
                self.give_back(&assignment);
            }
        }
    }
}

/// Is the job of this claim taking too long?
pub fn can_time_out(state: &State, place: Place) -> bool {
    let slot = &state.slots[place];
    state.dispatcher.is_some() && slot.running && slot.current().is_some_and(|claim| claim.interrupt.is_none())
}

pub fn time_out(state: &mut State, place: Place) {
    let slot = &mut state.slots[place];
    slot.mailbox[slot.passed].interrupt = Some(Interrupt::Timeout);
}
