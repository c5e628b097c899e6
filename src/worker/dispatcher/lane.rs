//! A lane as the dispatcher sees it: a window of waiting jobs, and the place in the queue up to which it was read.
//!
//! The place is remembered so that the dead index entries of finished jobs are not walked again and again. What
//! arrives behind it (a transaction that took long to commit, a retry) comes with a note; for what does not, what lies behind is looked
//! through at every poll. Either is done in pieces, between which the lane goes on.

use super::rescan::Rescan;
use crate::catalog::Position;
use crate::job::{LaneKey, Timing, Waiting};
use crate::pg::clock::{self, BEGINNING, Timestamp};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Jobs read ahead per lane.
pub(super) const WINDOW: usize = 256;

pub struct Lane {
    pub key: LaneKey,
    pub number: i64,
    pub(super) ready: VecDeque<Waiting>,
    /// Everything up to here was read.
    pub(super) position: Position,
    /// From there to `position` there may be something that was not.
    pub(super) behind: Option<Position>,
    /// There may be jobs behind `position` that are due.
    pub(super) more: bool,
    /// When the first job that is not due yet will be.
    pub(super) next_due: Option<Timestamp>,
    /// Nothing is taken from the lane before that.
    pub blocked_until: Option<Instant>,
    /// Rises with every job taken, so that lanes can take turns.
    pub turn: u64,
    /// How far it is looked through once more.
    pub(super) rescan: Rescan,
    /// What was asked for, and is done when its turn comes (`renew`).
    asked: Option<Renewal>,
}

/// What is to be read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Renewal {
    /// What waits in the window: some of it may have been withdrawn, or submitted anew under the same id.
    Window,
    /// All of it: somebody may not have told of a job.
    Lane,
}

pub(super) fn just_before(run_at: Timestamp) -> Position {
    (run_at.saturating_sub(1), Timestamp::MAX)
}

impl Lane {
    pub fn new(key: LaneKey, number: i64) -> Self {
        Self {
            key,
            number,
            ready: VecDeque::new(),
            position: (BEGINNING, BEGINNING),
            behind: None,
            more: true,
            next_due: None,
            blocked_until: None,
            turn: 0,
            rescan: Rescan::default(),
            asked: None,
        }
    }

    /// A lane that was empty until something came that is due at `run_at`.
    pub fn starting_at(key: LaneKey, number: i64, run_at: Timestamp) -> Self {
        Self { position: just_before(run_at), ..Self::new(key, number) }
    }

    /// A lane that was empty until this job came.
    pub fn of(key: LaneKey, number: i64, job: Waiting) -> Self {
        let mut lane = Self { more: false, ..Self::starting_at(key, number, job.run_at) };
        lane.more = !lane.accept(job);
        lane
    }

    /// Something is there at `run_at` that was not before.
    pub fn note(&mut self, run_at: Timestamp) {
        self.look_behind(just_before(run_at));
        self.more = true;
    }

    /// Something is there behind that place, which is not necessarily behind `position`.
    pub(super) fn look_behind(&mut self, from: Position) {
        if from < self.position {
            self.behind = Some(self.behind.map_or(from, |behind| behind.min(from)));
        }
    }

    /// Takes a job that nobody has to look for. False: it is not the next one behind all that were read, or there are too many.
    pub fn accept(&mut self, job: Waiting) -> bool {
        let reads_ahead = self.more || self.ready.len() >= WINDOW;
        let next = self.key.timing == Timing::Immediate && !reads_ahead && job.place() > self.position;
        if next {
            self.position = job.place();
            self.ready.push_back(job);
        }
        next
    }

    /// Asks for something to be read anew. False: something was asked for already.
    pub fn ask(&mut self, what: Renewal) -> bool {
        let first = self.asked.is_none();
        self.asked = self.asked.max(Some(what));
        first
    }

    /// Has what was asked for read anew by the next `fill`. True: what was read before is to be looked through, piece by piece
    /// (`rescan_on`).
    pub fn renew(&mut self) -> bool {
        if let Some(first) = self.ready.front() {
            // All before it was read, and may be dead by now.
            self.position = (first.run_at, first.enqueued_at.saturating_sub(1));
            self.ready.clear();
            self.more = true;
        }
        let all = self.asked.take() == Some(Renewal::Lane);
        self.more |= all;
        all && self.rescan.ask(self.position)
    }

    pub fn is_rescanned(&self) -> bool {
        self.rescan.left().is_some()
    }

    /// Schedules follow the wall clock. A backoff is a length of time, which a clock that is set back must not stretch.
    pub(super) fn now(&self, monotone_now: Timestamp) -> Timestamp {
        match self.key.timing {
            Timing::Retry | Timing::Quarantine => monotone_now,
            _ => clock::now(),
        }
    }

    pub fn first(&self) -> Option<&Waiting> {
        self.ready.front()
    }

    pub fn take(&mut self) -> Option<Waiting> {
        self.ready.pop_front()
    }

    /// Puts back what could not be handed out after all.
    pub fn untake(&mut self, job: Waiting) {
        self.ready.push_front(job);
    }

    /// Should `fill` be called now?
    pub fn is_low(&self) -> bool {
        self.behind.is_some() || self.more && self.ready.len() < WINDOW / 2
    }

    /// Nothing waits here, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
            && !self.is_low()
            && self.next_due.is_none()
            && !self.is_rescanned()
            && self.asked.is_none()
    }

    pub fn is_blocked(&self) -> bool {
        self.blocked_until.is_some()
    }

    /// Ends the blocking when its time is over.
    pub fn unblock(&mut self) {
        self.blocked_until = self.blocked_until.filter(|until| Instant::now() < *until);
    }

    /// How long until a job becomes due.
    pub fn due_in(&self, monotone_now: Timestamp) -> Option<Duration> {
        let wait = self.next_due?.saturating_sub(self.now(monotone_now)).max(0);
        Some(Duration::from_micros(wait as u64))
    }
}
