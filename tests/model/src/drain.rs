//! Nothing is stuck: from every state, when clients and disasters leave off, a fair schedule makes every job final. With
//! handlers that return, and with handlers that fail.

use crate::client::Told;
use crate::dispatcher::{self, Move};
use crate::executor::{self, Failure};
use crate::machine::{Action, Machine};
use crate::state::{Row, State, Step};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Clone, Copy)]
pub enum Mood {
    HandlersReturn,
    HandlersFail,
}

/// States of which it is known that they drain.
#[derive(Default)]
pub struct Memory([Mutex<HashSet<u64>>; 2]);

pub fn drains(machine: &Machine, state: &State, mood: Mood) -> bool {
    let known = &machine.memory.0[mood as usize];
    let mut path = Vec::new();
    let mut state = state.clone();
    loop {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let hash = hasher.finish();
        if is_over(&state) || known.lock().unwrap_or_else(PoisonError::into_inner).contains(&hash) {
            known.lock().unwrap_or_else(PoisonError::into_inner).extend(path);
            return true;
        }
        if path.contains(&hash) || !step(machine, &mut state, mood) {
            return false;
        }
        path.push(hash);
    }
}

fn is_over(state: &State) -> bool {
    state.clients.iter().all(Option::is_none)
        && state.jobs.iter().all(|pair| !pair.row.committed.as_ref().is_some_and(Row::is_unfinished))
}

/// The next step of a fair schedule; false: there is none.
fn step(machine: &Machine, state: &mut State, mood: Mood) -> bool {
    for place in 0..machine.scope.executors {
        if executor::can_step(state, place) {
            let interrupted = executor::can_be_interrupted(state, place);
            match mood {
                Mood::HandlersFail if state.slots[place].step == Step::Handler && !interrupted => {
                    executor::fail(state, place, Failure::Error);
                }
                _ => executor::step(machine, state, place),
            }
            return true;
        }
    }
    if let Some(client) = state.clients.iter().position(Option::is_some) {
        machine.apply(state, Action::Commit { client, told: Told::Dispatcher });
        return true;
    }
    if state.dispatcher.is_none() {
        machine.apply(state, Action::StartDispatcher);
        return true;
    }
    let mut moves = Vec::new();
    dispatcher::moves(machine, state, &mut moves);
    let next = moves.first().copied().or(machine.may_poll(state).then_some(Move::TakeNews { poll: true }));
    if let Some(next) = next {
        dispatcher::make(machine, state, next);
    }
    next.is_some()
}
