//! How long handlers' runs take, and what follows from it for the mailboxes.

use crate::job::LaneKey;
use crate::pg::clock;
use crate::shmem::{BATCH, ExecutorSlot};
use crate::worker::SHORT;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Jobs in a mailbox at most: a batch that runs, and one behind it.
const DEPTH: usize = 2 * BATCH;

/// How long a short job waits in a mailbox, if all before it are like it.
const WAIT: Duration = Duration::from_millis(20);

/// An executor that has been at one job for so long is given no more behind it.
pub const BUSY: Duration = Duration::from_millis(10);

/// How long a handler's runs take, in microseconds: a moving average that decides what may wait in a mailbox.
#[derive(Default)]
pub struct Pace(HashMap<(u32, Rc<str>), u64>);

impl Pace {
    pub fn note(&mut self, lane: &LaneKey, run_us: u64) {
        let mean = self.0.entry((lane.table, lane.handler.clone())).or_insert(run_us);
        *mean = (*mean * 7 + run_us) / 8;
    }

    /// Behind how many others a job may wait in a mailbox. 0: the handler is not known to be short.
    pub fn depth(&self, lane: &LaneKey) -> usize {
        match self.0.get(&(lane.table, lane.handler.clone())) {
            Some(mean) if u128::from(*mean) < SHORT.as_micros() => {
                DEPTH.min((WAIT.as_micros() / u128::from(*mean).max(1)) as usize)
            }
            _ => 0,
        }
    }
}

/// How long the executor has been at its present job.
pub fn busy_for(slot: &ExecutorSlot) -> Duration {
    match slot.running() {
        Some(_) => {
            let started = slot.started_ns.load(Ordering::Acquire);
            Duration::from_nanos(clock::monotonic_ns().saturating_sub(started))
        }
        None => Duration::ZERO,
    }
}
