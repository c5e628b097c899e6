//! What the dispatcher learns: notes of what was committed, and what it reads of the queue because of them, or at a poll.

use super::lane::{Lane, Renewal};
use super::{Dispatcher, HOUSEKEEPING, Table};
use crate::catalog::{self, Handler};
use crate::gucs;
use crate::handler;
use crate::job::{JobRef, LaneKey, Timing};
use crate::owner;
use crate::pg::{clock, database, relation};
use crate::shmem::{self, Note};
use pgrx::pg_sys::Oid;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Lanes beyond which the empty ones are forgotten.
const LANES: usize = 1000;

/// Clients that commit one prepared transaction after another, or cancel one job after another, must not make us read the queue all the
/// time.
const PACE: Duration = Duration::from_millis(50);

/// What others have told, taken before the snapshot in which it is looked for.
pub struct News {
    pub poll: bool,
    handlers_version: u64,
    withdrawn: bool,
    /// None: more than could be kept.
    notes: Option<Vec<Note>>,
}

impl Dispatcher {
    pub fn must_look(&self) -> bool {
        self.must_poll()
            || self.handlers_version != Some(self.slot.handlers_version.load(Ordering::Acquire))
            || self.slot.withdrawn.load(Ordering::Acquire)
            || self.slot.has_notes()
            || self.lanes_want_a_look()
    }

    fn must_poll(&self) -> bool {
        Instant::now() >= self.next_poll || self.slot.must_poll() && self.last_poll.elapsed() >= PACE
    }

    /// Somebody has asked for a poll a moment after the last one.
    pub fn poll_due_in(&self) -> Option<Duration> {
        self.slot.must_poll().then(|| PACE.saturating_sub(self.last_poll.elapsed()))
    }

    /// How long until the windows are read anew, if something was withdrawn since they were read.
    pub fn renewal_due_in(&self) -> Option<Duration> {
        self.windows_are_stale.then(|| PACE.saturating_sub(self.last_renewal.elapsed()))
    }

    /// Is there a lane to be read on, or one where something has become due?
    fn lanes_want_a_look(&self) -> bool {
        let now = shmem::monotone_now();
        !self.search.is_over()
            || self.search.rescan_due_in().is_some_and(|wait| wait.is_zero())
            || self.renewal_due_in().is_some_and(|wait| wait.is_zero())
            || self.lanes.values().any(|lane| lane.is_low() || lane.due_in(now).is_some_and(|wait| wait.is_zero()))
    }

    pub fn news(&mut self) -> News {
        let poll = self.must_poll();
        if poll {
            self.last_poll = Instant::now();
            self.slot.begin_poll();
        }
        News {
            poll,
            handlers_version: self.slot.handlers_version.load(Ordering::Acquire),
            withdrawn: self.slot.withdrawn.swap(false, Ordering::AcqRel),
            notes: self.slot.take(),
        }
    }

    /// Takes jobs that came with their notes, if that is all there is to it: an idle server need not look into the queue for the
    /// one job that somebody has just submitted. None: nothing is left to look at.
    pub fn take_over(&mut self, mut news: News) -> Option<News> {
        if news.poll || news.withdrawn || self.handlers_version != Some(news.handlers_version) {
            return Some(news);
        }
        let Some(notes) = &mut news.notes else { return Some(news) };
        notes.retain(|note| !self.accept(note));
        (!notes.is_empty() || self.lanes_want_a_look()).then_some(news)
    }

    fn accept(&mut self, note: &Note) -> bool {
        let Some(job) = note.only() else { return false };
        let key = note.lane();
        let Some(handler) = self.handlers.get(&(key.table, key.handler.clone())) else { return false };
        let other = JobRef { table: key.table, id: job.id };
        if self.claims.contains_key(&other) || self.uncharged.contains(&other) || self.debts.hold(&other) {
            return false;
        }
        match self.lanes.get_mut(&key) {
            Some(lane) => lane.accept(job),
            // It may have jobs that were there before.
            None if !self.search.knows_all_lanes() => false,
            None => {
                let number = handler.lane(&key);
                self.lanes.insert(Lane::of(key, number, job));
                true
            }
        }
    }

    /// Reads what has changed; inside a transaction that was begun after the news. False: the extension is gone.
    pub fn look(&mut self, news: News) -> bool {
        // DROP EXTENSION locks the extension before its tables; so do we, or each would wait for the other. If it is locked already, our
        // statements end by their lock_timeout.
        let Some(extension) = database::lock_extension() else { return false };
        // Another one: the executors' sessions know the functions of the former.
        if *self.extension.get_or_insert(extension) != extension {
            return false;
        }
        let (poll, version) = (news.poll, news.handlers_version);
        let handlers_changed = self.handlers_version != Some(version);
        let mut new = Vec::new();
        if poll || handlers_changed {
            self.restoring = database::is_being_restored();
            new = self.read_handlers(version);
            self.lanes.values_mut().for_each(|lane| lane.blocked_until = None);
            self.read_tables();
        }
        let notes = news.notes;
        if poll || notes.is_none() {
            self.renew(Renewal::Lane, |_| true);
            self.discover(None);
        } else if !new.is_empty() {
            self.discover(Some(&new));
        }
        for note in notes.unwrap_or_default() {
            self.note(note.lane(), note.run_at);
        }
        // Tables that nobody has registered a handler for, or that are gone: of a drop, handlers are told.
        let mut others = Vec::new();
        if poll || handlers_changed {
            let known = self.tables.keys().copied().filter(|table| relation::owner(Oid::from(*table)).is_some());
            others = catalog::tables_but(known);
            if catalog::purge_dropped_tables(&others) > 0 {
                self.lanes.retain_handlers(|(table, _)| relation::owner(Oid::from(*table)).is_some());
            }
        }
        if poll || news.withdrawn {
            self.verify_claims();
        }
        // That can wait: what was withdrawn from a window is found out before it is run. A poll has read all anew.
        self.windows_are_stale = !poll && (self.windows_are_stale || news.withdrawn);
        if self.renewal_due_in().is_some_and(|wait| wait.is_zero()) {
            (self.windows_are_stale, self.last_renewal) = (false, Instant::now());
            self.renew(Renewal::Window, |lane| lane.first().is_some());
        }
        if poll {
            let soon = Duration::from_millis(if self.undecided { 100 } else { u64::MAX });
            self.next_poll = Instant::now() + gucs::poll_interval().min(soon);
            self.complain_about_unhandled(&others);
        }
        if Instant::now() >= self.next_housekeeping {
            self.next_housekeeping = Instant::now() + HOUSEKEEPING;
            self.prune_next = true;
        }
        self.read_lanes();
        // Empty ones are kept for the place that they remember, unless there are very many.
        if self.lanes.len() > LANES {
            self.lanes.retain(|lane| !lane.is_empty());
        }
        for (table, name) in std::mem::take(&mut self.unhandled) {
            self.complain_unhandled(table, &name);
        }
        true
    }

    /// Returns the handlers that were not there before.
    ///
    /// Whoever commits a change of the handlers tells everybody; a prepared transaction does so when it is prepared, and is committed by
    /// somebody who knows nothing of it. So that others look again who have done so between the two, a difference is told once more.
    fn read_handlers(&mut self, version: u64) -> Vec<(u32, Rc<str>)> {
        let known = |handler: Handler| ((handler.table, handler.name.as_str().into()), handler);
        let handlers: HashMap<_, _> = catalog::handlers(None).into_iter().map(known).collect();
        let told = handlers != self.handlers && self.slot.retell_handlers(version);
        self.handlers_version = Some(if told { version + 1 } else { version });
        self.lanes.retain_handlers(|handler| handlers.contains_key(handler));
        self.refusals.retain(|key, _| handlers.contains_key(&(key.table, key.handler.clone())));
        let before = std::mem::replace(&mut self.handlers, handlers);
        let is_new = |handler: &&(u32, Rc<str>)| !before.contains_key(*handler);
        let new: Vec<_> = self.handlers.keys().filter(is_new).cloned().collect();
        new.iter().for_each(|(table, name)| self.forget_unhandled(*table, name));
        new
    }

    /// Something in this lane is due at `run_at`.
    pub fn note(&mut self, key: LaneKey, run_at: clock::Timestamp) {
        if self.handlers_version.is_none() {
            // Nothing was read yet; the first look is at everything.
            return;
        }
        let Some(handler) = self.handlers.get(&(key.table, key.handler.clone())) else {
            // Not registered yet: the registration has the whole queue looked through.
            return self.unhandled.push((key.table, key.handler));
        };
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.note(run_at);
        } else {
            let number = handler.lane(&key);
            self.lanes.insert(match self.search.knows_all_lanes() {
                true => Lane::starting_at(key, number, run_at),
                false => Lane::new(key, number),
            });
        }
    }

    /// A delay that was written down while the clock was ahead is as long as it was meant to be only as long as the server knows of
    /// that, which ends when it does. In a lane that was found, of which nobody has told, no delay is longer than the longest there is.
    pub fn forget_clock(&self, lane: &LaneKey) {
        let longest = match lane.timing {
            Timing::Immediate | Timing::Scheduled => return,
            Timing::Quarantine => gucs::crash_quarantine(),
            Timing::Retry => {
                let own = self.handlers.get(&(lane.table, lane.handler.clone()));
                let own = own.map_or(Duration::ZERO, |definition| handler::policy(definition, None).max_delay);
                own.max(gucs::retry_policy().max_delay)
            }
        };
        let longest = longest.as_micros().min(i64::MAX as u128 / 4) as i64;
        catalog::bring_forward(lane, shmem::monotone_now().saturating_add(longest));
    }

    /// Reads whose the tables are, and says once why a table's jobs do not run.
    fn read_tables(&mut self) {
        let tables: HashSet<u32> = self.handlers.keys().map(|(table, _)| *table).collect();
        self.tables.clear();
        for table in tables {
            let Some(owner) = relation::owner(Oid::from(table)) else { continue };
            let problem = owner::check(owner).err();
            self.complain_of_owner(owner.to_u32(), problem.as_ref());
            self.tables.insert(table, Table { owner: owner.to_u32(), runnable: problem.is_none() });
        }
    }
}
