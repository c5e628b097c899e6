//! Handing out: which job goes to which executor.
//!
//! Owners take turns; within an owner the lower priority goes first, and lanes of the same priority take turns. A job of a
//! handler that is known to be short may wait behind others in an executor's mailbox, any other job needs an executor that is
//! idle.

use super::turns::{Contender, Seat, Terms};
use super::{Claimed, Dispatcher};
use crate::handler;
use crate::job::{JobRef, LaneKey, Timing, Waiting};
use crate::pg::clock;
use crate::protocol;
use crate::shmem::{self, Assignment, BATCH, ExecutorSlot};
use crate::worker::SHORT;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
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

/// Jobs that are handed out before the dispatcher looks around again. Executors may be as quick as it is, and then it would never come
/// to an end as long as a job is left.
const ROUND: usize = 1000;

/// What came of a turn.
#[derive(PartialEq, Eq)]
enum Handed {
    Job,
    /// The lane has none that may run now.
    Nothing,
    /// No executor has room for it.
    NoRoom,
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
    /// Hands out what there is room for. True: there may be room for more.
    pub fn assign(&mut self) -> bool {
        let mut hungry = self.hand_restarts();
        let mut lanes = std::mem::take(&mut self.lanes);
        let mut contenders = self.contenders(&mut lanes);
        let mut left = ROUND;
        while !contenders.is_empty() && left > 0 {
            contenders.retain(|owner, contender| {
                left = left.saturating_sub(1);
                let handed = self.hand_next(contender);
                if handed == Some(Handed::NoRoom) {
                    hungry.push(*owner);
                }
                matches!(handed, Some(Handed::Job | Handed::Nothing))
            });
        }
        let more = !contenders.is_empty();
        drop(contenders);
        self.lanes = lanes;
        self.want_executors(hungry);
        more
    }

    /// Sees to executors for owners whose jobs found no room.
    fn want_executors(&mut self, mut hungry: Vec<u32>) {
        hungry.sort_unstable();
        hungry.dedup();
        // Who has none comes first, and everybody else sees that before they take what is free.
        let (some, none): (Vec<u32>, Vec<u32>) =
            hungry.into_iter().partition(|owner| self.roster.has_executor(self.database, *owner));
        let starving = none.iter().filter(|owner| !self.roster.is_in_trouble(**owner)).count();
        self.slot.starving.store(starving as u32, Ordering::Release);
        for owner in none {
            self.roster.want(self.database, &self.name, owner, true);
        }
        for owner in some {
            self.roster.want(self.database, &self.name, owner, false);
        }
    }

    /// Has the rows of attempts that nobody could end brought back to zero progress. Returns the owners for whose
    /// there is no room.
    fn hand_restarts(&mut self) -> Vec<u32> {
        let mut hungry = Vec::new();
        for assignment in std::mem::take(&mut self.restarts) {
            let owner = self.tables.get(&assignment.table).filter(|table| table.runnable).map(|table| table.owner);
            let Some(owner) = owner.filter(|_| !self.claims.contains_key(&assignment.job())) else { continue };
            let handed = self.seats(owner).free(0).and_then(|seat| {
                let number = seat.slot.hand(&assignment)?;
                Some((seat.executor, number, seat.slot))
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
                None => {
                    hungry.push(owner);
                    self.restarts.push(assignment);
                }
            }
        }
        hungry
    }

    /// Hands out a job of the lane whose turn it is. None: the owner has no lane left.
    fn hand_next(&mut self, contender: &mut Contender) -> Option<Handed> {
        let turn = contender.turns.next()?;
        let key = &turn.lane.key;
        let terms = turn.terms.or_else(|| self.terms(key));
        turn.terms = terms;
        let Some(terms) = terms.filter(|terms| self.may_run(key, terms)) else {
            contender.turns.pass(false);
            return Some(Handed::Nothing);
        };
        let Some(seat) = contender.seats.free(terms.depth) else { return Some(Handed::NoRoom) };
        let suspect = key.timing == Timing::Quarantine;
        let number = seat.slot.handed();
        if suspect && !shmem::header().reserve_suspect(seat.executor, number) {
            contender.turns.pass(false);
            return Some(Handed::Nothing);
        }
        let waiting = turn.lane.take()?;
        self.turns += 1;
        turn.lane.turn = self.turns;
        let handed = self.hand(&turn.lane.key, &waiting, &terms, seat);
        if suspect && handed != Handed::Job {
            shmem::header().release_suspect(seat.executor, number);
        }
        if handed == Handed::NoRoom {
            turn.lane.untake(waiting);
        }
        contender.turns.pass(true);
        Some(handed)
    }

    fn hand(&mut self, key: &LaneKey, waiting: &Waiting, terms: &Terms, seat: &mut Seat) -> Handed {
        let job = JobRef { table: key.table, id: waiting.id };
        let is_owed = self.debts.hold(&job);
        let place = match self.claims.entry(job) {
            Entry::Vacant(place) if !is_owed => place,
            _ => {
                // It was in the windows of two lanes (run_now() or a retry has moved it), or was submitted again.
                self.skipped.insert(job, (key.clone(), waiting.run_at));
                return Handed::Nothing;
            }
        };
        let (attempt, action) =
            protocol::next_attempt(waiting.attempts, waiting.max_attempts.unwrap_or(terms.max_attempts));
        let Some(number) = seat.slot.hand(&Assignment::new(key, waiting, attempt, action)) else {
            // It was asked to leave in the meantime.
            return Handed::NoRoom;
        };
        seat.slot.process.wake();
        seat.is_shortly_free = terms.depth > 0;
        let claimed = Claimed { executor: seat.executor, number, lane: key.clone(), enqueued_at: waiting.enqueued_at };
        place.insert(claimed);
        Handed::Job
    }

    /// None: no such handler is registered.
    fn terms(&self, key: &LaneKey) -> Option<Terms> {
        let definition = self.handlers.get(&(key.table, key.handler.clone()))?;
        // A suspect has an executor to itself.
        let suspect = key.timing == Timing::Quarantine;
        Some(Terms {
            depth: if suspect { 0 } else { self.roster.pace.depth(key) },
            concurrency: definition.concurrency,
            max_attempts: handler::policy(definition, None).max_attempts,
        })
    }

    /// Is the handler below its own limit of concurrent jobs?
    fn may_run(&self, key: &LaneKey, terms: &Terms) -> bool {
        let ours = |claimed: &&Claimed| claimed.lane.table == key.table && claimed.lane.handler == key.handler;
        let running = || self.claims.values().filter(ours).count();
        terms.concurrency.is_none_or(|limit| (running() as i64) < i64::from(limit))
    }
}
