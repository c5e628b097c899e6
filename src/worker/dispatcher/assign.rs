//! Handing out: which job goes to which executor.
//!
//! Owners take turns; within an owner the lower priority goes first, and lanes of the same priority take turns. A job of a
//! handler that is known to be short may wait behind others in an executor's mailbox, any other job needs an executor that is
//! idle.

use super::turns::{Mailbox, Owner, Room, Terms};
use super::{Claimed, Dispatcher};
use crate::handler;
use crate::job::{JobRef, LaneKey, Timing, Waiting};
use crate::protocol;
use crate::shmem::{self, Assignment};
use std::collections::HashSet;
use std::sync::atomic::Ordering;

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

impl Dispatcher {
    /// Hands out what there is room for. True: there may be room for more.
    pub fn assign(&mut self) -> bool {
        let mut hungry = self.hand_restarts();
        let mut lanes = std::mem::take(&mut self.lanes);
        let mut owners = self.owners(&mut lanes);
        let mut left = ROUND;
        while !owners.is_empty() && left > 0 {
            owners.retain(|oid, owner| {
                let handed = self.hand_next(owner);
                match handed {
                    // A lane without a job that may run, or its handler, leaves the round: it gets to the end of them.
                    Some(Handed::Job) => left = left.saturating_sub(1),
                    Some(Handed::NoRoom) => hungry.push(*oid),
                    _ => {}
                }
                matches!(handed, Some(Handed::Job | Handed::Nothing))
            });
        }
        let more = !owners.is_empty();
        drop(owners);
        self.lanes = lanes;
        self.want_executors(hungry);
        more
    }

    /// Sees to executors for owners whose jobs found no room.
    fn want_executors(&mut self, mut hungry: Vec<u32>) {
        hungry.sort_unstable_by_key(|owner| (self.roster.last_served(*owner), *owner));
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
            let lane = assignment.lane(Timing::Retry);
            let handed = self.mailboxes(owner).free(0).is_some_and(|mailbox| self.put(mailbox, &assignment, &lane));
            if !handed {
                hungry.push(owner);
                self.restarts.push(assignment);
            }
        }
        hungry
    }

    /// Hands out a job of the lane whose turn it is. None: the owner has no lane left.
    fn hand_next(&mut self, owner: &mut Owner) -> Option<Handed> {
        let turn = owner.turns.next()?;
        let key = &turn.lane.key;
        let terms = turn.terms.or_else(|| self.terms(key));
        turn.terms = terms;
        let room = terms.map(|terms| (terms, owner.mailboxes.room(key, &terms, || self.holders(key))));
        let (terms, mailbox) = match room {
            Some((terms, Room::Mailbox(mailbox))) => (terms, mailbox),
            Some((_, Room::None)) => return Some(Handed::NoRoom),
            // A suspect wants an executor for itself, where others of its handler may be content with less.
            Some((_, Room::AtLimit)) if key.timing == Timing::Quarantine => {
                owner.turns.pass(false);
                return Some(Handed::Nothing);
            }
            None | Some((_, Room::AtLimit)) => {
                owner.turns.pass_handler();
                return Some(Handed::Nothing);
            }
        };
        let suspect = key.timing == Timing::Quarantine;
        let number = mailbox.slot.handed();
        if suspect && !shmem::header().reserve_suspect(mailbox.executor, number) {
            owner.turns.pass(false);
            return Some(Handed::Nothing);
        }
        let waiting = turn.lane.take()?;
        self.turns += 1;
        turn.lane.turn = self.turns;
        let (executor, handed) = (mailbox.executor, self.hand(&turn.lane.key, &waiting, &terms, mailbox));
        if suspect && handed != Handed::Job {
            shmem::header().release_suspect(executor, number);
        }
        match handed {
            Handed::Job => owner.mailboxes.hold(&turn.lane.key, executor),
            Handed::NoRoom => turn.lane.untake(waiting),
            Handed::Nothing => {}
        }
        owner.turns.pass(true);
        Some(handed)
    }

    fn hand(&mut self, key: &LaneKey, waiting: &Waiting, terms: &Terms, mailbox: &mut Mailbox) -> Handed {
        let job = JobRef { table: key.table, id: waiting.id };
        if self.claims.contains_key(&job) || self.debts.hold(&job) {
            // It was in the windows of two lanes (run_now() or a retry has moved it), or was submitted again.
            self.skipped.insert(job, (key.clone(), waiting.run_at));
            return Handed::Nothing;
        }
        let limit = waiting.max_attempts.unwrap_or(terms.max_attempts);
        let (attempt, action) = protocol::next_attempt(waiting.attempts, limit);
        if !self.put(mailbox, &Assignment::new(key, waiting, attempt, action), key) {
            return Handed::NoRoom;
        }
        mailbox.is_shortly_free = terms.depth > 0;
        Handed::Job
    }

    /// Puts a claim into the mailbox; false: its executor was asked to leave in the meantime.
    fn put(&mut self, mailbox: &Mailbox, assignment: &Assignment, lane: &LaneKey) -> bool {
        let Some(number) = mailbox.slot.hand(assignment) else { return false };
        mailbox.slot.process.wake();
        let (executor, lane) = (mailbox.executor, lane.clone());
        let claimed = Claimed { executor, number, lane, enqueued_at: assignment.enqueued_at };
        self.claims.insert(assignment.job(), claimed);
        true
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

    /// The executors that hold jobs of the lane's handler.
    fn holders(&self, key: &LaneKey) -> HashSet<usize> {
        let ours = |claimed: &&Claimed| claimed.lane.table == key.table && claimed.lane.handler == key.handler;
        self.claims.values().filter(ours).map(|claimed| claimed.executor).collect()
    }
}
