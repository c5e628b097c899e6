//! Disasters: processes that end, the server that crashes or is stopped.

use crate::protocol::{self, Witness};
use crate::state::{Life, Place, Slot, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// This executor has crashed, and the others are told to quit.
    Of(Place),
    /// Some other process has.
    Other,
    /// The postmaster has, and nobody tells anybody.
    Postmaster,
    /// In good order: not a crash.
    Stop,
}

/// The whole server goes down, and comes up again: shared memory and what was not committed are gone. The journal stays
/// (`journal::start`); after a stop in good order it is empty.
pub fn crash(state: &mut State, how: Crash) {
    let told = |place| how == Crash::Other || matches!(how, Crash::Of(culprit) if culprit != place);
    let witness =
        |place: Place, slot: &Slot| slot.journal.map(|entry| Witness { suspect: entry.suspect, told: told(place) });
    let all: Vec<Witness> = state.slots.iter().enumerate().filter_map(|(place, slot)| witness(place, slot)).collect();
    let accused = |place: Place, slot: &Slot| {
        witness(place, slot).is_some_and(|witness| protocol::is_accused(witness, all.iter().copied()))
    };
    for (place, slot) in std::mem::replace(&mut state.slots, [Slot::new(), Slot::new()]).into_iter().enumerate() {
        let entry = slot.journal.filter(|_| how != Crash::Stop && accused(place, &slot));
        match (entry, slot.mailbox.get(slot.passed)) {
            (Some(entry), _) => state.accused.push(entry),
            // Innocent; or its executor was terminated, and the crash came before that was charged.
            (None, Some(claim)) if slot.running && slot.life != Life::Free => {
                state.history.fate(claim.assignment.stamp).free += 1;
            }
            _ => {}
        }
    }
    for pair in &mut state.jobs {
        pair.row.pending = None;
        pair.queued.pending = None;
    }
    state.clients = Default::default();
    state.notes.clear();
    state.withdrawn = false;
    state.suspect = None;
    state.dispatcher = None;
}
