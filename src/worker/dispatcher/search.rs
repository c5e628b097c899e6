//! What the dispatcher reads of the lanes: the jobs that come next, the lanes that it does not know yet, and what nobody has told it of.
//!
//! While somebody's old snapshot lasts, the index has a dead entry for each job that has passed, and a look at millions of them takes
//! seconds; and anybody who may INSERT can make as many lanes as there are priorities. So nothing here looks at all of either at once:
//! lanes are looked for in the gaps between those that are known, a lane is looked through in pieces, and what there is to do for many
//! lanes or gaps is done a slice at a time, between which jobs are handed out.

use super::Dispatcher;
use super::lane::{Lane, Renewal};
use super::lanes::OfHandler;
use crate::catalog;
use crate::gaps::{self, Gap, Step};
use crate::job::{JobRef, LaneKey, Waiting, of_lane_number};
use crate::protocol::{self, Reading};
use crate::shmem;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long is worked at a time at what may be much: a slice.
const SLICE: Duration = Duration::from_millis(1);

/// A slice of the search is as long as all else that was done since the last one, but not longer than this.
const LONGEST_SLICE: Duration = Duration::from_millis(20);

/// Gaps that one statement looks into, and lanes that it may find.
const GAPS: usize = 100;

/// What is still to be looked for, without which nothing counts as read.
#[derive(Default)]
pub struct Search {
    /// Lanes of which something is to be read anew.
    lanes: VecDeque<LaneKey>,
    /// Gaps in which a handler may have lanes that are not known.
    gaps: VecDeque<(Gap, Rc<str>)>,
    /// The gaps of all handlers were asked for once more before these were through.
    again: bool,
    /// When the last slice ended, if that was not the end.
    left_at: Option<Instant>,
    /// Lanes in which what was read already is looked through once more, in their turn. That is for what nobody has told of, and
    /// can wait.
    to_rescan: VecDeque<LaneKey>,
    next_rescan: Option<Instant>,
}

impl Search {
    /// How long the slice is that begins now.
    fn slice(&self) -> Duration {
        self.left_at.map_or(Duration::ZERO, |left| left.elapsed()).clamp(SLICE, LONGEST_SLICE)
    }

    pub fn is_over(&self) -> bool {
        self.lanes.is_empty() && self.knows_all_lanes()
    }

    /// Was a lane that is not known empty, as far as anybody has told?
    pub fn knows_all_lanes(&self) -> bool {
        self.gaps.is_empty()
    }

    /// How long until the next piece of what was read already.
    pub fn rescan_due_in(&self) -> Option<Duration> {
        let wait = || self.next_rescan.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()));
        (!self.to_rescan.is_empty()).then(wait)
    }
}

impl Dispatcher {
    /// Goes on with the search, fills the lanes' windows, and looks on through what was read already where that is to be done.
    pub fn read_lanes(&mut self) {
        let (begun, slice) = (Instant::now(), self.search.slice());
        // Half of it, or lanes that are known might never be read.
        self.search_gaps(begun + slice / 2);
        let monotone_now = shmem::monotone_now();
        let (claims, uncharged, debts, skipped) = (&self.claims, &self.uncharged, &self.debts, &mut self.skipped);
        let mut claimed = |key: &LaneKey, waiting: &Waiting| {
            let job = &JobRef { table: key.table, id: waiting.id };
            let claimed = claims.get(job).map(|claimed| claimed.enqueued_at);
            let reading = protocol::on_reading(claimed, waiting.enqueued_at);
            // Under the id of a debt may be another submission, which is to be read again when that is settled.
            if reading == Reading::Remember || debts.hold(job) {
                skipped.insert(*job, (key.clone(), waiting.run_at));
            }
            reading != Reading::Keep || uncharged.contains(job) || debts.hold(job)
        };
        while let Some(key) = self.search.lanes.front()
            && begun.elapsed() < slice
        {
            if let Some(lane) = self.lanes.get_mut(key) {
                let is_asked = lane.renew();
                if lane.fill(monotone_now, &mut claimed) || is_asked {
                    self.search.to_rescan.push_back(key.clone());
                }
            }
            self.search.lanes.pop_front();
        }
        self.search.left_at = (!self.search.is_over()).then(Instant::now);
        let begun = Instant::now();
        if self.search.rescan_due_in().is_some_and(|wait| wait.is_zero()) {
            // A lane leaves the front when it is done, and not before: a statement that fails must not lose it.
            while begun.elapsed() < SLICE
                && let Some(key) = self.search.to_rescan.front()
            {
                let mut lane = self.lanes.get_mut(key);
                if let Some(lane) = &mut lane
                    && lane.rescan_on(&mut claimed)
                {
                    continue;
                }
                let once_more = lane.is_some_and(|lane| lane.is_rescanned());
                if let Some(key) = self.search.to_rescan.pop_front().filter(|_| once_more) {
                    self.search.to_rescan.push_back(key);
                }
            }
            self.search.next_rescan = Some(Instant::now() + 3 * begun.elapsed());
        }
        for lane in self.lanes.values_mut() {
            if lane.fill(monotone_now, &mut claimed) {
                self.search.to_rescan.push_back(lane.key.clone());
            }
        }
    }

    /// Has something of these lanes read anew.
    pub fn renew(&mut self, what: Renewal, concerned: impl Fn(&Lane) -> bool) {
        for lane in self.lanes.values_mut().filter(|lane| concerned(lane)) {
            if lane.ask(what) {
                self.search.lanes.push_back(lane.key.clone());
            }
        }
    }

    /// Has lanes of all handlers looked for, or of these.
    pub fn discover(&mut self, only: Option<&[(u32, Rc<str>)]>) {
        if only.is_none() && !self.search.gaps.is_empty() {
            // What is under way is not thrown back, or it might never come to its end.
            self.search.again = true;
            return;
        }
        let numbers = |lanes: &OfHandler| lanes.values().map(|lane| lane.number..=lane.number).collect();
        let mut known: HashMap<_, Vec<_>> =
            self.lanes.of_handlers().map(|(handler, lanes)| (handler, numbers(lanes))).collect();
        let names: Vec<_> = only.map_or_else(|| self.handlers.keys().cloned().collect(), <[_]>::to_vec);
        for name in names {
            let Some(handler) = self.handlers.get(&name) else { continue };
            let known = known.remove(&name).unwrap_or_default();
            let gaps = gaps::between(gaps::of_handler(handler.lanes), known);
            let gaps = gaps.into_iter().map(|lanes| (Gap { table: handler.table, lanes }, name.1.clone()));
            self.search.gaps.extend(gaps);
        }
    }

    /// Looks into the gaps.
    fn search_gaps(&mut self, end: Instant) {
        while !self.search.gaps.is_empty() && Instant::now() < end {
            let part: Vec<Gap> = self.search.gaps.iter().take(GAPS).map(|(gap, _)| gap.clone()).collect();
            let found = catalog::in_gaps(&part, Step::Lane, GAPS);
            let last = found.last().filter(|_| found.len() == GAPS).map(|last| (last.gap, last.lane));
            for found in found {
                self.add_lane(part[found.gap].table, self.search.gaps[found.gap].1.clone(), found.lane);
            }
            self.search.gaps.drain(..last.map_or(part.len(), |(gap, _)| gap));
            // There may be more in the gap of the last one.
            if let Some((_, lane)) = last
                && let Some((gap, _)) = self.search.gaps.front_mut()
            {
                gap.lanes = lane.saturating_add(1)..=*gap.lanes.end();
            }
        }
        if self.search.gaps.is_empty() && std::mem::take(&mut self.search.again) {
            self.discover(None);
        }
    }

    fn add_lane(&mut self, table: u32, handler: Rc<str>, number: i64) {
        if !self.handlers.contains_key(&(table, handler.clone())) {
            return;
        }
        let (priority, timing) = of_lane_number(number);
        let key = LaneKey { table, handler, priority, timing };
        if self.lanes.get_mut(&key).is_none() {
            self.forget_clock(&key);
            self.lanes.insert(Lane::new(key, number));
        }
    }
}
