//! What the dispatcher reads of the lanes: the jobs that come next, the lanes that it does not know yet, and what nobody has told it of.
//!
//! While somebody's old snapshot lasts, the index has a dead entry for each job that has passed, and a look at millions of them takes
//! seconds. So nothing here looks at all of them at once: lanes are looked for in the gaps between those that are known, and a lane
//! is looked through in pieces.

use super::Dispatcher;
use super::lane::Lane;
use crate::catalog::{self, NO_LIMIT};
use crate::gaps::{self, Gap, Step};
use crate::job::{JobRef, LaneKey, Waiting, of_lane_number};
use crate::protocol::{self, Reading};
use crate::shmem;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long what was read already is looked through at a time; then that waits for three times as long as it took.
const RESCAN: Duration = Duration::from_millis(1);

impl Dispatcher {
    /// Fills the lanes' windows, and looks on through what was read already where that is to be done.
    pub fn read_lanes(&mut self) {
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
        let begun = Instant::now();
        if begun >= self.next_rescan {
            // A lane leaves the front when it is done, and not before: a statement that fails must not lose it.
            while begun.elapsed() < RESCAN
                && let Some(key) = self.to_rescan.front()
            {
                let mut lane = self.lanes.get_mut(key);
                if let Some(lane) = &mut lane
                    && lane.rescan_on(&mut claimed)
                {
                    continue;
                }
                let once_more = lane.is_some_and(|lane| lane.is_rescanned());
                if let Some(key) = self.to_rescan.pop_front().filter(|_| once_more) {
                    self.to_rescan.push_back(key);
                }
            }
            self.next_rescan = Instant::now() + 3 * begun.elapsed();
        }
        for lane in self.lanes.values_mut() {
            if lane.fill(monotone_now, &mut claimed) {
                self.to_rescan.push_back(lane.key.clone());
            }
        }
    }

    /// Has these lanes looked through once more, besides what comes next in them.
    pub fn rescan(&mut self, concerned: impl Fn(&LaneKey) -> bool) {
        for lane in self.lanes.values_mut().filter(|lane| concerned(&lane.key)) {
            if lane.rescan() {
                self.to_rescan.push_back(lane.key.clone());
            }
        }
    }

    /// How long until the next piece of that.
    pub fn rescan_due_in(&self) -> Option<Duration> {
        (!self.to_rescan.is_empty()).then(|| self.next_rescan.saturating_duration_since(Instant::now()))
    }

    /// Looks for lanes of all handlers, or of these.
    pub fn discover(&mut self, only: Option<&[(u32, Rc<str>)]>) {
        let mut known: HashMap<_, Vec<_>> = HashMap::new();
        for lane in self.lanes.values() {
            let of_handler = (lane.key.table, lane.key.handler.clone());
            known.entry(of_handler).or_default().push(lane.number..=lane.number);
        }
        let (mut gaps, mut owners) = (Vec::new(), Vec::new());
        let names: Vec<_> = only.map_or_else(|| self.handlers.keys().cloned().collect(), <[_]>::to_vec);
        for name in names {
            let Some(handler) = self.handlers.get(&name) else { continue };
            let known = known.remove(&name).unwrap_or_default();
            let between = gaps::between(gaps::of_handler(handler.lanes), known).into_iter();
            gaps.extend(between.map(|lanes| Gap { table: handler.table, lanes }));
            owners.resize(gaps.len(), name);
        }
        for found in catalog::in_gaps(&gaps, Step::Lane, NO_LIMIT) {
            let Some((table, handler)) = owners.get(found.gap).cloned() else { continue };
            let (priority, timing) = of_lane_number(found.lane);
            let key = LaneKey { table, handler, priority, timing };
            self.lanes.entry(key).or_insert_with_key(|key| Lane::new(key.clone(), found.lane));
        }
    }
}
