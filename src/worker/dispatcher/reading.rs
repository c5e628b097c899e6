//! How a lane is read: what comes next, what has arrived behind that, and what nobody has told of. Each of them a piece at a time, for the
//! queue's index may have millions of dead entries, and other lanes wait for their turn.

use super::lane::{Lane, WINDOW, just_before};
use crate::catalog::{self, Position, Walked};
use crate::job::{LaneKey, Timing, Waiting};
use crate::pg::clock::Timestamp;
use std::collections::VecDeque;

/// Entries of the index that are looked at in one go: a part of a millisecond.
const PIECE: usize = 2000;

/// Behind all jobs.
const END: Position = (Timestamp::MAX, Timestamp::MAX);

impl Lane {
    /// Looks through a piece of what was read already; `claimed` as for `fill`. False: that was the last one.
    pub fn rescan_on(&mut self, mut claimed: impl FnMut(&LaneKey, &Waiting) -> bool) -> bool {
        let Some(left) = self.rescan.left() else { return false };
        let mut missed = None;
        let walked = catalog::walk_lane(&self.key, self.number, left, PIECE, |job| {
            if !self.has(&job) && !claimed(&self.key, &job) {
                missed = Some((job.run_at, job.enqueued_at.saturating_sub(1)));
            }
            missed.is_none()
        });
        if let Walked::To(place) = walked {
            self.rescan.done_to(place);
            return true;
        }
        self.rescan.done();
        // Resumes there: starting over at everything due then, it might never get this far.
        if let Some(place) = missed {
            self.look_behind(place);
        }
        false
    }

    fn has(&self, job: &Waiting) -> bool {
        self.ready.binary_search_by_key(&job.place(), Waiting::place).is_ok()
    }

    /// Reads what is new behind, and on if the window has run low; a piece at a time, for others wait for their turn. `claimed` tells jobs
    /// that are handed out already, which are passed by; `monotone_now` is a clock that was never set back. True: some of what was read is to
    /// be looked through (`rescan_on`).
    pub fn fill(&mut self, monotone_now: Timestamp, mut claimed: impl FnMut(&LaneKey, &Waiting) -> bool) -> bool {
        // Most lanes have nothing to read, and need no look at the clock.
        if self.next_due.is_none() && !self.is_low() {
            return false;
        }
        let now = self.now(monotone_now);
        if self.next_due.is_some_and(|due| due <= now) {
            self.next_due = None;
            self.more = true;
        }
        let from = self.behind.filter(|from| *from < self.position);
        let asks = from.is_some_and(|from| self.read_behind(from, now, &mut claimed));
        // Not before: if that fails, it is still to be done.
        self.behind = None;
        if self.is_low() {
            self.read_on(now, claimed);
        }
        asks
    }

    /// Reads behind `from`, up to where everything was read. True: as for `fill`.
    fn read_behind(
        &mut self,
        from: Position,
        now: Timestamp,
        mut claimed: impl FnMut(&LaneKey, &Waiting) -> bool,
    ) -> bool {
        let (mut found, mut cut) = (VecDeque::new(), None);
        let walked = catalog::walk_lane(&self.key, self.number, (from, self.position), PIECE, |job| {
            if self.is_early(&job, now) {
                cut = Some(just_before(job.run_at));
            } else if !self.has(&job) && !claimed(&self.key, &job) {
                found.push_back(job);
                cut = (found.len() == WINDOW).then_some(job.place());
            }
            cut.is_none()
        });
        self.ready.append(&mut found);
        self.ready.make_contiguous().sort_unstable_by_key(Waiting::place);
        // There is more than the window holds, or something that must wait: from there on everything is read anew, in order.
        let last_kept = (self.ready.len() > 2 * WINDOW).then(|| self.ready[WINDOW].place());
        if let Some(cut) = cut.into_iter().chain(last_kept).min() {
            self.ready.retain(|job| job.place() <= cut);
            self.position = cut;
            self.more = true;
        }
        match walked {
            Walked::To(place) if place < self.position => self.rescan.ask_for((place, self.position)),
            _ => false,
        }
    }

    fn read_on(&mut self, now: Timestamp, mut claimed: impl FnMut(&LaneKey, &Waiting) -> bool) {
        let (mut position, mut next_due, mut read) = (self.position, None, Vec::new());
        let walked = catalog::walk_lane(&self.key, self.number, (self.position, END), PIECE, |job| {
            if self.is_early(&job, now) {
                next_due = Some(job.run_at);
                return false;
            }
            position = job.place();
            read.push(job);
            read.len() < WINDOW
        });
        if let Walked::To(place) = walked {
            position = place;
        }
        (self.position, self.next_due) = (position, next_due);
        self.more = !matches!(walked, Walked::End) && next_due.is_none();
        read.retain(|job| !claimed(&self.key, job));
        self.ready.extend(read);
    }

    /// Must the job wait yet?
    fn is_early(&self, job: &Waiting, now: Timestamp) -> bool {
        self.key.timing != Timing::Immediate && job.run_at > now
    }
}
