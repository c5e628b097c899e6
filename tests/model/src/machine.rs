//! The machine: what may happen next, within the scope of a run.

use crate::client::{self, Statement, Told};
use crate::dispatcher::{self, Move};
use crate::drain::Memory;
use crate::executor::{self, Failure};
use crate::faults::{self, Crash};
use crate::history::History;
use crate::properties;
use crate::protocol::Flags;
use crate::state::{At, Budget, Job, Pair, Place, Slot, State};
use stateright::{Model, Property};

/// How much of the world is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    pub jobs: usize,
    pub executors: usize,
    pub clients: usize,
    pub max_attempts: i32,
    pub budget: Budget,
}

/// Bugs on purpose: those of src/planted.rs that concern the protocol, and others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The handler's effects are committed although the job was withdrawn meanwhile.
    EffectsApart,
    /// The fence lets every attempt pass.
    NoFence,
    /// Neither the completion nor the queue heeds a cancel.
    NoCancelGuard,
    /// No poll makes up for wake-ups that are lost.
    NoPoll,
    /// What was running at a crash is not charged.
    NoCrashCharge,
    /// Neither the completion nor the queue heeds that somebody else has completed the row.
    NoSettledGuard,
    /// The triggers fire on rows that were finished before.
    FiresOnFinished,
    /// run_now() does not say that the job has left its lane.
    QuietRunNow,
    /// A dispatcher does not ask what the one before it had handed out.
    NoAdoption,
    /// Clients hand jobs over while the dispatcher is about to read the queue.
    NeverQuiet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Client(usize, Job, Statement),
    Commit {
        client: usize,
        told: Told,
    },
    RollBack(usize),
    Executor(Place),
    Fail(Place, Failure),
    /// The interrupt that was asked for strikes.
    Interrupt(Place),
    Refuse {
        place: Place,
        retreats: bool,
    },
    Dispatcher(Move),
    StartDispatcher,
    TimeOut(Place),
    KillExecutor(Place),
    KillDispatcher,
    Crash(Crash),
}

pub struct Machine {
    pub scope: Scope,
    pub bug: Option<Bug>,
    pub memory: Memory,
}

impl Machine {
    pub fn new(scope: Scope, bug: Option<Bug>) -> Self {
        Self { scope, bug, memory: Memory::default() }
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The flags of a row as far as the guards heed them.
    pub fn heeded(&self, flags: Flags) -> Flags {
        Flags {
            completed: flags.completed && !self.has(Bug::NoSettledGuard),
            cancelled: flags.cancelled && !self.has(Bug::NoCancelGuard),
        }
    }

    /// Is it time to look at everything? Whenever the dispatcher has nothing in hand.
    pub fn may_poll(&self, state: &State) -> bool {
        let accuses = !state.accused.is_empty() && !self.has(Bug::NoCrashCharge);
        !self.has(Bug::NoPoll) && state.dispatcher.as_ref().is_some_and(|own| own.at == At::Ready && !accuses)
    }

    fn client_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for client in 0..self.scope.clients {
            if state.budget.statements > 0 {
                let found = client::statements(self, state, client);
                actions.extend(found.into_iter().map(|(job, statement)| Action::Client(client, job, statement)));
            }
            if state.clients[client].is_some() {
                actions.push(Action::Commit { client, told: Told::Dispatcher });
                actions.push(Action::RollBack(client));
                if let Some((job, _)) = client::lone(state, client)
                    && let Some(place) = dispatcher::idle_place(self, state, job)
                {
                    actions.push(Action::Commit { client, told: Told::Executor(place) });
                }
                if state.budget.lost > 0 {
                    actions.push(Action::Commit { client, told: Told::Nobody });
                }
            }
        }
    }

    fn executor_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for place in 0..self.scope.executors {
            if executor::can_step(state, place) {
                actions.push(Action::Executor(place));
            }
            if executor::can_be_interrupted(state, place) {
                actions.push(Action::Interrupt(place));
            }
            if state.budget.failures == 0 {
                continue;
            }
            for failure in [Failure::Error, Failure::Conflict, Failure::Withdrew] {
                if executor::can_fail(state, place, failure) {
                    actions.push(Action::Fail(place, failure));
                }
            }
            for retreats in [false, true] {
                if executor::can_be_refused(state, place, retreats) {
                    actions.push(Action::Refuse { place, retreats });
                }
            }
            if dispatcher::can_time_out(state, place) {
                actions.push(Action::TimeOut(place));
            }
        }
    }

    fn disasters(&self, state: &State, actions: &mut Vec<Action>) {
        let budget = &state.budget;
        for place in 0..self.scope.executors {
            if budget.kills > 0 && state.slots[place].current().is_some() {
                actions.push(Action::KillExecutor(place));
            }
        }
        if budget.dispatchers > 0 && state.dispatcher.is_some() {
            actions.push(Action::KillDispatcher);
        }
        if budget.crashes > 0 {
            let ran = |place: &Place| state.slots[*place].journal.is_some();
            let of_executors = (0..self.scope.executors).filter(ran).map(Crash::Of);
            actions.extend([Crash::Other, Crash::Postmaster].into_iter().chain(of_executors).map(Action::Crash));
        }
        if budget.stops > 0 {
            actions.push(Action::Crash(Crash::Stop));
        }
    }

    pub fn apply(&self, state: &mut State, action: Action) {
        let budget = &mut state.budget;
        match action {
            Action::Client(..) => budget.statements -= 1,
            Action::Commit { told: Told::Nobody, .. } => budget.lost -= 1,
            Action::Fail(..) | Action::Refuse { .. } | Action::TimeOut(_) => budget.failures -= 1,
            Action::KillExecutor(_) => budget.kills -= 1,
            Action::KillDispatcher => budget.dispatchers -= 1,
            Action::Crash(Crash::Stop) => budget.stops -= 1,
            Action::Crash(_) => budget.crashes -= 1,
            _ => {}
        }
        match action {
            Action::Client(client, job, statement) => client::run(self, state, client, job, statement),
            Action::Commit { client, told } => client::commit(state, client, told),
            Action::RollBack(client) => client::roll_back(state, client),
            Action::Executor(place) => executor::step(self, state, place),
            Action::Fail(place, failure) => executor::fail(state, place, failure),
            Action::Interrupt(place) => executor::interrupt(state, place),
            Action::Refuse { place, retreats } => executor::refuse(state, place, retreats),
            Action::Dispatcher(what) => dispatcher::make(self, state, what),
            Action::StartDispatcher => dispatcher::start(self, state),
            Action::TimeOut(place) => dispatcher::time_out(state, place),
            Action::KillExecutor(place) => executor::terminate(state, place),
            Action::KillDispatcher => state.dispatcher = None,
            Action::Crash(how) => faults::crash(state, how),
        }
    }
}

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            jobs: [Pair::default(); 2],
            clients: Default::default(),
            slots: [Slot::new(), Slot::new()],
            notes: Vec::new(),
            withdrawn: false,
            suspect: None,
            dispatcher: None,
            accused: Vec::new(),
            budget: self.scope.budget,
            history: History::default(),
        };
        dispatcher::start(self, &mut state);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.client_actions(state, actions);
        self.executor_actions(state, actions);
        let mut moves = Vec::new();
        dispatcher::moves(self, state, &mut moves);
        actions.extend(moves.into_iter().map(Action::Dispatcher));
        if self.may_poll(state) {
            actions.push(Action::Dispatcher(Move::TakeNews { poll: true }));
        }
        if state.dispatcher.is_none() {
            actions.push(Action::StartDispatcher);
        }
        self.disasters(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.apply(&mut next, action);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
