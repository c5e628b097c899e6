//! Watching over what was handed out: how it ended, what must be interrupted, what a dead executor left behind.

use super::lane::Renewal;
use super::pace::{BUSY, busy_for};
use super::{Claimed, Dispatcher};
use crate::catalog;
use crate::gucs;
use crate::job::{LaneKey, format_id};
use crate::pg::clock::Timestamp;
use crate::pg::error::PgError;
use crate::pg::{lwlock, signal};
use crate::progress;
use crate::protocol::{self, Rescue};
use crate::shmem::{
    self, Action, Assignment, ClaimState, ExecutorSlot, HELD, Interrupt, REFUSED, SlotState, WaiterSlot, monotone_now,
};
use pgrx::PgSqlErrorCode;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// For so long an executor's end may be part of a server shutdown.
const FAREWELL: Duration = Duration::from_millis(200);

/// How long a lane is left alone whose job was refused, at first.
const FIRST_DELAY: Duration = Duration::from_millis(20);

/// And at last, where only a partition was locked: the lane's jobs of others are behind it.
const LONGEST_FOR_PARTITION: Duration = Duration::from_millis(100);

/// Interrupts that were sent, by executor and claim.
#[derive(Default)]
pub struct Interrupts(HashMap<(usize, u64), Sent>);

struct Sent {
    since: Instant,
    /// Of the executor's slot: its next owner's claims have the same numbers.
    generation: u32,
    terminated: bool,
}

impl Dispatcher {
    /// Is it time to settle what a dead executor left? At a stop of the server its workers are told one after the other: who
    /// sees an executor end before it is told itself must not take that for the executor's own end.
    fn is_gone_for_good(&mut self, index: usize, slot: &ExecutorSlot) -> bool {
        let since = *self.gone.entry(index).or_insert_with(Instant::now);
        let ours = slot.running().is_none_or(|number| self.interrupts.0.contains_key(&(index, number)));
        let settled = ours || slot.evicted.load(Ordering::Acquire) || since.elapsed() >= FAREWELL;
        if settled {
            self.gone.remove(&index);
        }
        settled
    }

    /// Sees which claims have ended.
    pub fn drain(&mut self) {
        for (index, slot) in shmem::executors().iter().enumerate() {
            if !slot.in_database(self.database) {
                continue;
            }
            let passed = slot.passed.load(Ordering::Acquire);
            for number in slot.drained.load(Ordering::Acquire)..passed {
                let claim = slot.claim(number);
                if claim.state() == ClaimState::Done {
                    self.ended(&claim.assignment(), index, number, claim.run_us.load(Ordering::Acquire));
                }
            }
            slot.drained.store(passed, Ordering::Release);
            if slot.state() == SlotState::Gone && self.is_gone_for_good(index, slot) {
                self.rescue(index, slot);
            }
        }
    }

    fn ended(&mut self, assignment: &Assignment, executor: usize, number: u64, run_us: u64) {
        let ours = |claimed: &Claimed| claimed.executor == executor && claimed.number == number;
        if !self.claims.get(&assignment.job()).is_some_and(ours) {
            return;
        }
        let Some(claimed) = self.forget(assignment, executor) else { return };
        if assignment.action == Action::Restart {
            // Its lane may have passed by the job meanwhile.
            let (table, handler) = (claimed.lane.table, &claimed.lane.handler);
            self.renew(Renewal::Lane, |lane| lane.key.table == table && lane.key.handler == *handler);
        }
        if run_us == REFUSED || run_us == HELD {
            return self.refused(claimed.lane, assignment.due_at, run_us == HELD);
        }
        if !self.refusals.is_empty()
            && self.refusals.remove(&claimed.lane).is_some()
            && let Some(lane) = self.lanes.get_mut(&claimed.lane)
        {
            lane.blocked_until = None;
        }
        if assignment.action == Action::Run {
            self.roster.pace.note(&claimed.lane, run_us);
        }
    }

    /// Gives a job back that could not be run, and leaves its table alone; or, if only the partition of its row is `held`, its lane. For a
    /// moment only at first: whoever has it locked may be about to let go of it.
    fn refused(&mut self, lane: LaneKey, due_at: Timestamp, held: bool) {
        let longest = if held { LONGEST_FOR_PARTITION } else { gucs::poll_interval() };
        let concerned = |key: &LaneKey| if held { *key == lane } else { key.table == lane.table };
        // Those that were refused together count once.
        for other in self.lanes.values_mut().filter(|other| concerned(&other.key) && !other.is_blocked()) {
            let delay = self.refusals.entry(other.key.clone()).or_default();
            *delay = (*delay * 2).max(FIRST_DELAY).min(longest);
            other.blocked_until = Some(Instant::now() + *delay);
        }
        self.note(lane, due_at);
    }

    /// Takes a claim out of the books. Should the same id have been submitted again meanwhile, its lane has passed it by.
    fn forget(&mut self, assignment: &Assignment, executor: usize) -> Option<Claimed> {
        if let Some((lane, run_at)) = self.skipped.remove(&assignment.job()) {
            self.note(lane, run_at);
        }
        let claimed = self.claims.remove(&assignment.job())?;
        if assignment.suspect {
            shmem::header().release_suspect(executor, claimed.number);
        }
        Some(claimed)
    }

    /// Gives a job back to its lane.
    fn give_back(&mut self, assignment: &Assignment) {
        let executor = self.claims.get(&assignment.job()).map(|claimed| claimed.executor);
        if let Some(claimed) = executor.and_then(|executor| self.forget(assignment, executor)) {
            self.note(claimed.lane, assignment.due_at);
        }
    }

    /// Settles what an executor left that ended in the middle of its work. What it ran is charged, unless the process was
    /// sent away for somebody else's sake; what it had not begun is handed out again.
    fn rescue(&mut self, index: usize, slot: &ExecutorSlot) {
        if signal::termination_pending() {
            // The server is shutting down: nothing that ran is to blame. The next dispatcher hands it out again.
            return;
        }
        let evicted = slot.evicted.load(Ordering::Acquire);
        let began = slot.running();
        for number in slot.drained.load(Ordering::Acquire)..slot.handed() {
            let claim = slot.claim(number);
            let assignment = claim.assignment();
            match protocol::on_rescue(claim.state(), began == Some(number), evicted) {
                Rescue::Nothing => {}
                Rescue::Ended => self.ended(&assignment, index, number, claim.run_us.load(Ordering::Acquire)),
                Rescue::Charge => {
                    self.charge(&assignment, slot, number);
                    self.give_back(&assignment);
                }
                Rescue::GiveBack => self.give_back(&assignment),
            }
        }
        self.interrupts.0.retain(|(executor, _), _| *executor != index);
        lwlock::with(true, || slot.set_state(SlotState::Free));
        WaiterSlot::wake_all(self.database);
    }

    /// Finds claims whose jobs are no longer in the queue: cancelled, deleted, finished by somebody else.
    pub fn verify_claims(&mut self) {
        let mut withdrawn = Vec::new();
        let queue = catalog::Queue::open();
        for claimed in self.claims.values() {
            let slot = &shmem::executors()[claimed.executor];
            if !slot.in_database(self.database) {
                continue;
            }
            let assignment = slot.claim(claimed.number).assignment();
            let is_queued = queue.as_ref().is_some_and(|queue| queue.has(&assignment))
                || catalog::is_queued(assignment.job(), assignment.enqueued_at);
            if !is_queued {
                withdrawn.push((claimed.executor, claimed.number, assignment));
            }
        }
        for (executor, number, assignment) in withdrawn {
            let slot = &shmem::executors()[executor];
            if slot.claim(number).take(ClaimState::Revoked) {
                self.forget(&assignment, executor);
            } else {
                self.interrupt(executor, number, Interrupt::Cancelled);
            }
        }
    }

    fn interrupt(&mut self, executor: usize, number: u64, why: Interrupt) {
        let slot = &shmem::executors()[executor];
        let generation = slot.generation.load(Ordering::Acquire);
        let first = || Sent { since: Instant::now(), generation, terminated: false };
        self.interrupts.0.entry((executor, number)).or_insert_with(first);
        slot.request_interrupt(number, why);
        slot.process.signal(libc::SIGUSR2);
    }

    /// Everything that does not need the database.
    pub fn supervise(&mut self) {
        self.roster.reap(self.database);
        for (index, slot) in shmem::executors().iter().enumerate() {
            if !slot.in_database(self.database) || slot.state() == SlotState::Gone {
                continue;
            }
            self.enforce_timeout(index, slot);
            if busy_for(slot) >= BUSY {
                self.take_back_pending(slot);
            }
            if progress::is_dirty(slot) {
                let owner = slot.owner.load(Ordering::Acquire);
                self.roster.want_writer(self.database, &self.name, owner);
            }
        }
        self.escalate();
    }

    fn timeout_of(&self, assignment: &Assignment) -> Option<Duration> {
        let definition = self.handlers.get(&(assignment.table, assignment.handler.to_text()));
        let own = definition.and_then(|definition| definition.timeout);
        own.filter(|timeout| !timeout.is_zero()).or_else(|| match own {
            Some(_) => None,
            None => gucs::handler_timeout(),
        })
    }

    fn enforce_timeout(&mut self, index: usize, slot: &ExecutorSlot) {
        let Some(number) = slot.running() else { return };
        let timeout = self.timeout_of(&slot.claim(number).assignment());
        let over = timeout.is_some_and(|timeout| busy_for(slot) >= timeout) && slot.running() == Some(number);
        if over && !self.interrupts.0.contains_key(&(index, number)) {
            self.interrupt(index, number, Interrupt::Timeout);
        }
    }

    /// Takes back what waits behind a job that turned out long.
    fn take_back_pending(&mut self, slot: &ExecutorSlot) {
        for number in slot.passed.load(Ordering::Acquire)..slot.handed() {
            let claim = slot.claim(number);
            if claim.take(ClaimState::Revoked) {
                self.give_back(&claim.assignment());
            }
        }
    }

    /// Terminates executors whose handlers have gone on for `cancel_grace` after they were interrupted.
    fn escalate(&mut self) {
        let grace = gucs::cancel_grace();
        self.interrupts.0.retain(|(executor, number), sent| {
            let slot = &shmem::executors()[*executor];
            if slot.running() != Some(*number) || slot.generation.load(Ordering::Acquire) != sent.generation {
                return false;
            }
            if sent.since.elapsed() >= grace && !sent.terminated {
                sent.terminated = true;
                let assignment = slot.claim(*number).assignment();
                let (id, handler) = (format_id(&assignment.id), assignment.handler.to_text());
                PgError::new(
                    PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
                    format!(
                        "background job {id} ({handler}) did not react to its interrupt within {} ms; its executor is terminated",
                        grace.as_millis()
                    ),
                )
                .hint("The handler may catch query_canceled; background_jobs.cancel_grace says how long it is waited for.")
                .log();
                slot.process.signal(libc::SIGTERM);
            }
            true
        });
    }

    /// How long nothing will have to be done unless somebody wakes us.
    pub fn sleep(&self) -> Duration {
        let monotone_now = monotone_now();
        let mut sleep = self.next_poll.saturating_duration_since(Instant::now());
        let mut soon = |wait: Duration| sleep = sleep.min(wait.max(Duration::from_millis(1)));
        self.lanes.values().filter_map(|lane| lane.due_in(monotone_now)).for_each(&mut soon);
        self.search.rescan_due_in().into_iter().for_each(&mut soon);
        self.renewal_due_in().into_iter().for_each(&mut soon);
        self.roster.next_attempt().into_iter().for_each(&mut soon);
        self.poll_due_in().into_iter().for_each(&mut soon);
        self.debts.due_in().into_iter().for_each(&mut soon);
        if !self.gone.is_empty() {
            soon(FAREWELL);
        }
        if self.roster.is_starting() || self.slot.starving.load(Ordering::Acquire) > 0 {
            soon(Duration::from_millis(100));
        }
        let grace = gucs::cancel_grace();
        for sent in self.interrupts.0.values().filter(|sent| !sent.terminated) {
            soon(grace.saturating_sub(sent.since.elapsed()));
        }
        for slot in shmem::executors().iter().filter(|slot| slot.in_database(self.database)) {
            let Some(number) = slot.running() else {
                if slot.outstanding() > 0 {
                    soon(BUSY);
                }
                continue;
            };
            if slot.outstanding() > 1 {
                soon(BUSY);
            }
            if let Some(timeout) = self.timeout_of(&slot.claim(number).assignment()) {
                soon(timeout.saturating_sub(busy_for(slot)));
            }
        }
        if !self.refusals.is_empty() {
            let until = self.lanes.values().filter_map(|lane| lane.blocked_until);
            until.map(|until| until.saturating_duration_since(Instant::now())).for_each(&mut soon);
        }
        sleep
    }
}
