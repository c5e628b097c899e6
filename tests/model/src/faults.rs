//! Disasters: processes that end, the server that crashes or is stopped.

use crate::protocol;
use crate::state::{Life, Slot, State};

/// The whole server goes down, and comes up again: shared memory and what was not committed are gone. The journal stays
/// (`journal::start`); after a stop in good order it is empty.
pub fn crash(state: &mut State, in_good_order: bool) {
    let again = state.slots.iter().filter_map(|slot| slot.journal).any(|entry| entry.suspect);
    for slot in std::mem::replace(&mut state.slots, [Slot::new(), Slot::new()]) {
        let entry = slot.journal.filter(|entry| !in_good_order && protocol::is_accused(entry.suspect, again));
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
