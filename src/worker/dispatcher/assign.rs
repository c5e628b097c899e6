//! Handing out: which job goes to which executor.
//!
//! Owners take turns; within an owner the lower priority goes first, and lanes of the same priority take turns. A job of a
//! handler that is known to be short may wait behind others in an executor's mailbox, any other job needs an executor that is
//! idle.

use super::{Claimed, Dispatcher};
use crate::gucs;
use crate::handler;
use crate::job::{JobRef, LaneKey, Timing, Waiting};
use crate::pg::clock;
use crate::protocol;
use crate::shmem::{self, Assignment, BATCH, ExecutorSlot, SlotState};
use crate::worker::SHORT;
use std::collections::{BTreeMap, HashMap};
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

    fn is_short(&self, lane: &LaneKey) -> bool {
        self.depth(lane) > 0
    }

    /// Behind how many others a job may wait in a mailbox.
    fn depth(&self, lane: &LaneKey) -> usize {
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

impl Dispatcher {
    pub fn assign(&mut self) {
        let mut owners: BTreeMap<u32, bool> = BTreeMap::new();
        for (key, lane) in &self.lanes {
            if lane.first().is_some()
                && let Some(table) = self.tables.get(&key.table)
                && table.runnable
            {
                owners.insert(table.owner, true);
            }
        }
        self.hand_restarts();
        while !owners.is_empty() {
            owners.retain(|owner, _| self.assign_one(*owner));
        }
        // Who has none comes first, and everybody else sees that before they take what is free.
        let (some, none): (Vec<u32>, Vec<u32>) =
            self.owners_left().into_iter().partition(|owner| self.roster.has_executor(self.database, *owner));
        let starving = none.iter().filter(|owner| !self.roster.is_in_trouble(**owner)).count();
        self.slot.starving.store(starving as u32, Ordering::Release);
        for owner in none {
            self.roster.want(self.database, &self.name, owner, true);
        }
        for owner in some {
            self.roster.want(self.database, &self.name, owner, false);
        }
    }

    /// Has the rows of attempts that nobody could end brought back to zero progress.
    fn hand_restarts(&mut self) {
        for assignment in std::mem::take(&mut self.restarts) {
            let owner = self.tables.get(&assignment.table).filter(|table| table.runnable).map(|table| table.owner);
            let Some(owner) = owner.filter(|_| !self.claims.contains_key(&assignment.job())) else { continue };
            let handed = self.room(owner, 0).and_then(|executor| {
                let slot = &shmem::executors()[executor];
                slot.hand(&assignment).map(|number| (executor, number, slot))
            });
            match handed {
                Some((executor, number, slot)) => {
                    slot.process.wake();
                    let lane = LaneKey {
                        table: assignment.table,
                        handler: assignment.handler.to_text(),
                        priority: assignment.priority,
                        timing: Timing::Retry,
                    };
                    self.claims.insert(
                        assignment.job(),
                        Claimed { executor, number, lane, enqueued_at: assignment.enqueued_at },
                    );
                }
                None => self.restarts.push(assignment),
            }
        }
    }

    /// Owners whose due jobs found no room.
    fn owners_left(&self) -> Vec<u32> {
        let mut owners: Vec<u32> = self
            .lanes
            .values()
            .filter(|lane| lane.first().is_some() && self.may_run(&lane.key) && !lane.is_blocked())
            .filter(|lane| protocol::may_start(lane.key.timing, shmem::header().no_suspect_runs()))
            .filter_map(|lane| self.tables.get(&lane.key.table))
            .filter(|table| table.runnable)
            .map(|table| table.owner)
            .chain(self.restarts.iter().filter_map(|a| self.tables.get(&a.table)).map(|table| table.owner))
            .collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// Is the handler below its own limit of concurrent jobs?
    fn may_run(&self, key: &LaneKey) -> bool {
        let handler = self.handlers.get(&(key.table, key.handler.clone()));
        match handler.and_then(|handler| handler.concurrency) {
            None => handler.is_some(),
            Some(limit) => {
                let running = self
                    .claims
                    .values()
                    .filter(|claimed| claimed.lane.table == key.table && claimed.lane.handler == key.handler)
                    .count();
                (running as i64) < i64::from(limit)
            }
        }
    }

    /// Hands out one job of this owner; false if there is none, or no room for it.
    fn assign_one(&mut self, owner: u32) -> bool {
        let candidate = self
            .lanes
            .values()
            .filter(|lane| lane.first().is_some() && !lane.is_blocked())
            .filter(|lane| self.tables.get(&lane.key.table).is_some_and(|table| table.owner == owner && table.runnable))
            .filter(|lane| self.may_run(&lane.key))
            .filter(|lane| protocol::may_start(lane.key.timing, shmem::header().no_suspect_runs()))
            .min_by_key(|lane| (lane.key.priority, lane.turn))
            .map(|lane| lane.key.clone());
        let Some(key) = candidate else { return false };
        // A suspect has an executor to itself.
        let suspect = key.timing == Timing::Quarantine;
        let depth = if suspect { 0 } else { self.roster.pace.depth(&key) };
        let Some(executor) = self.room(owner, depth) else { return false };
        let number = shmem::executors()[executor].handed();
        if suspect && !shmem::header().reserve_suspect(executor, number) {
            return false;
        }
        self.turns += 1;
        let turn = self.turns;
        let Some(lane) = self.lanes.get_mut(&key) else { return false };
        lane.turn = turn;
        let Some(waiting) = lane.take() else { return false };
        let job = JobRef { table: key.table, id: waiting.id };
        if self.claims.contains_key(&job) || self.debts.hold(&job) {
            // It was in the windows of two lanes (run_now() or a retry has moved it), or was submitted again.
            self.skipped.insert(job, (key, waiting.run_at));
            if suspect {
                shmem::header().release_suspect(executor, number);
            }
            return true;
        }
        let assignment = self.assignment(&key, &waiting);
        let slot = &shmem::executors()[executor];
        match slot.hand(&assignment) {
            Some(number) => {
                slot.process.wake();
                self.claims.insert(
                    assignment.job(),
                    Claimed { executor, number, lane: key, enqueued_at: waiting.enqueued_at },
                );
                true
            }
            None => {
                // It was asked to leave in the meantime.
                shmem::header().release_suspect(executor, number);
                if let Some(lane) = self.lanes.get_mut(&key) {
                    lane.untake(waiting);
                }
                false
            }
        }
    }

    /// The executor of this owner that has most room for one more job, which may wait behind `depth` others.
    fn room(&self, owner: u32, depth: usize) -> Option<usize> {
        shmem::executors()
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.state() == SlotState::Ready && slot.belongs_to(self.database, owner))
            .filter(|(_, slot)| slot.room() > 0)
            .map(|(index, slot)| (slot.outstanding(), index, slot))
            .filter(|(waiting, _, slot)| {
                *waiting == 0 || (*waiting < depth && busy_for(slot) < BUSY && self.is_shortly_free(slot))
            })
            .min_by_key(|(waiting, ..)| *waiting)
            .map(|(_, index, _)| index)
    }

    /// Does everything in the mailbox belong to handlers that are known to be short?
    fn is_shortly_free(&self, slot: &ExecutorSlot) -> bool {
        let first = slot.passed.load(Ordering::Acquire);
        let job: JobRef = slot.claim(first).assignment().job();
        self.claims.get(&job).is_some_and(|claimed| self.roster.pace.is_short(&claimed.lane))
    }

    fn assignment(&self, key: &LaneKey, waiting: &Waiting) -> Assignment {
        let limit = match self.handlers.get(&(key.table, key.handler.clone())) {
            Some(definition) => handler::policy(definition, waiting.max_attempts).max_attempts,
            None => gucs::retry_policy().max_attempts,
        };
        let (attempt, action) = protocol::next_attempt(waiting.attempts, limit);
        Assignment::new(key, waiting, attempt, action)
    }
}
