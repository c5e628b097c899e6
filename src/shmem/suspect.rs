//! The one suspect of a crash that may run, in the whole server. The reservation belongs to a claim: whoever ends the claim
//! releases it, its executor, or the dispatcher that takes it back; and the end of the executor does, because nobody else may
//! be there any more.

use super::{Header, databases, executors};
use std::sync::atomic::Ordering;

const NUMBER: u32 = 32;
const GENERATION: u32 = 16;

/// An executor of one generation: its number + 1 and as much of the generation as tells it from the one before.
fn bearer(executor: usize, generation: u32) -> u64 {
    (executor as u64 + 1) << GENERATION | u64::from(generation as u16)
}

fn reservation(executor: usize, number: u64) -> u64 {
    let generation = executors()[executor].generation.load(Ordering::Acquire);
    bearer(executor, generation) << NUMBER | u64::from(number as u32)
}

impl Header {
    /// Makes the claim that `executor` is to get next, with this number, the one that runs a suspect of a crash, if there is none.
    pub fn reserve_suspect(&self, executor: usize, number: u64) -> bool {
        self.suspect.compare_exchange(0, reservation(executor, number), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn release_suspect(&self, executor: usize, number: u64) {
        self.release(reservation(executor, number));
    }

    /// Releases whatever claim of an executor that has ended.
    pub fn release_suspect_of(&self, executor: usize, generation: u32) {
        let reserved = self.suspect.load(Ordering::Acquire);
        if reserved >> NUMBER == bearer(executor, generation) {
            self.release(reserved);
        }
    }

    fn release(&self, reservation: u64) {
        let released = self.suspect.compare_exchange(reservation, 0, Ordering::AcqRel, Ordering::Acquire);
        if released.is_ok() {
            databases().iter().for_each(|slot| slot.dispatcher.wake());
        }
    }

    pub fn no_suspect_runs(&self) -> bool {
        self.suspect.load(Ordering::Acquire) == 0
    }
}
