//! Whose turn it is: for each owner its lanes that have a due job, and the mailboxes that one may go to.
//!
//! It is a view of one moment. What changes while it is used (an executor gets done with something, a job arrives) counts at the
//! next one, which whoever changed it asks for by waking the dispatcher.

use super::lane::Lane;
use super::lanes::Lanes;
use super::pace::{BUSY, busy_for};
use super::{Claimed, Dispatcher};
use crate::job::{JobRef, LaneKey};
use crate::protocol;
use crate::shmem::{self, ExecutorSlot, SlotState};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::iter::Peekable;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// What is the same for all jobs of a lane.
#[derive(Clone, Copy)]
pub struct Terms {
    /// Behind how many others a job may wait in a mailbox.
    pub depth: usize,
    /// Jobs of the handler at once.
    pub concurrency: Option<i32>,
    /// Of a job that has no limit of its own.
    pub max_attempts: i32,
}

pub struct Turn<'a> {
    pub lane: &'a mut Lane,
    /// Looked up when the turn comes.
    pub terms: Option<Terms>,
    /// Its place in `Turns::handlers`.
    handler: usize,
}

/// That of an executor of the owner's.
pub struct Mailbox {
    pub executor: usize,
    pub slot: &'static ExecutorSlot,
    /// Everything in it belongs to handlers that are known to be short.
    pub is_shortly_free: bool,
}

/// Those of one owner's executors.
pub struct Mailboxes {
    all: Vec<Mailbox>,
    /// The executors that hold jobs of the handlers that have a limit, of those that were asked for. An executor runs one job at a time,
    /// so a handler runs as often at once as there are executors that hold its jobs, however many they hold.
    holders: HashMap<(u32, Rc<str>), HashSet<usize>>,
}

/// Where the next job of a lane may go.
pub enum Room<'a> {
    Mailbox(&'a mut Mailbox),
    /// No executor has room for it.
    None,
    /// Nor would another one be of use: the handler is at its limit.
    AtLimit,
}

impl Mailboxes {
    /// For the next job of the lane; `holders` tells which executors hold jobs of its handler.
    pub fn room(&mut self, key: &LaneKey, terms: &Terms, holders: impl FnOnce() -> HashSet<usize>) -> Room<'_> {
        let Some(limit) = terms.concurrency else { return self.free(terms.depth).map_or(Room::None, Room::Mailbox) };
        let holders = self.holders.entry((key.table, key.handler.clone())).or_insert_with(holders);
        let at_limit = holders.len() as i64 >= i64::from(limit);
        match most_room(&mut self.all, terms.depth, |executor| !at_limit || holders.contains(&executor)) {
            Some(mailbox) => Room::Mailbox(mailbox),
            None if at_limit => Room::AtLimit,
            None => Room::None,
        }
    }

    /// For a job of a handler without a limit, which may wait behind `depth` others.
    pub fn free(&mut self, depth: usize) -> Option<&mut Mailbox> {
        most_room(&mut self.all, depth, |_| true)
    }

    /// That executor was handed a job of the lane.
    pub fn hold(&mut self, key: &LaneKey, executor: usize) {
        if let Some(holders) = self.holders.get_mut(&(key.table, key.handler.clone())) {
            holders.insert(executor);
        }
    }
}

/// The one of these executors' that has most room for one more job, which may wait behind `depth` others.
fn most_room(mailboxes: &mut [Mailbox], depth: usize, of: impl Fn(usize) -> bool) -> Option<&mut Mailbox> {
    mailboxes
        .iter_mut()
        .filter(|mailbox| of(mailbox.executor) && mailbox.slot.room() > 0)
        .map(|mailbox| (mailbox.slot.outstanding(), mailbox))
        .filter(|(waiting, mailbox)| *waiting == 0 || (*waiting < depth && mailbox.is_shortly_free))
        .min_by_key(|(waiting, _)| *waiting)
        .map(|(_, mailbox)| mailbox)
}

/// The lanes of a handler that may have their turn after those that have it now.
struct Rest<'a> {
    lanes: Peekable<Startable<'a>>,
    /// How many have their turn now; all are of one priority.
    present: usize,
}

/// Lanes of a handler that have a job which may start, lowest priority first.
type Startable<'a> = Box<dyn Iterator<Item = &'a mut Lane> + 'a>;

/// The lanes of one owner that have a job which is due.
#[derive(Default)]
pub struct Turns<'a> {
    /// Lowest priority and oldest turn first; the last is the place in `lanes`. Of each handler those of its lowest priority.
    order: BinaryHeap<Reverse<(i16, u64, usize)>>,
    lanes: Vec<Turn<'a>>,
    handlers: Vec<Rest<'a>>,
}

impl<'a> Turns<'a> {
    fn add(&mut self, lanes: Peekable<Startable<'a>>) {
        self.handlers.push(Rest { lanes, present: 0 });
        self.fill(self.handlers.len() - 1);
    }

    /// It is the turn of the handler's next lanes.
    fn fill(&mut self, handler: usize) {
        let Some(Rest { lanes, present }) = self.handlers.get_mut(handler) else { return };
        let Some(priority) = lanes.peek().map(|lane| lane.key.priority) else { return };
        while let Some(lane) = lanes.next_if(|lane| lane.key.priority == priority) {
            self.order.push(Reverse((priority, lane.turn, self.lanes.len())));
            self.lanes.push(Turn { lane, terms: None, handler });
            *present += 1;
        }
    }

    /// Whose turn it is.
    pub fn next(&mut self) -> Option<&mut Turn<'a>> {
        let Reverse((_, _, index)) = self.order.peek()?;
        self.lanes.get_mut(*index)
    }

    /// That lane has had its turn, or has no more of them for now.
    pub fn pass(&mut self, stays: bool) {
        let Some(Reverse((priority, _, index))) = self.order.pop() else { return };
        let Turn { lane, handler, .. } = &self.lanes[index];
        if stays && lane.first().is_some() {
            return self.order.push(Reverse((priority, lane.turn, index)));
        }
        let handler = *handler;
        self.handlers[handler].present -= 1;
        if self.handlers[handler].present == 0 {
            self.fill(handler);
        }
    }

    /// Nor has any other lane of its handler.
    pub fn pass_handler(&mut self) {
        if let Some(handler) = self.next().map(|turn| turn.handler) {
            self.order.retain(|Reverse((_, _, index))| self.lanes[*index].handler != handler);
        }
    }
}

/// An owner who has something to hand out.
pub struct Owner<'a> {
    pub mailboxes: Mailboxes,
    pub turns: Turns<'a>,
}

impl Dispatcher {
    /// The owners of `lanes` that have something to hand out.
    pub fn owners<'a>(&self, lanes: &'a mut Lanes) -> BTreeMap<u32, Owner<'a>> {
        let no_suspect_runs = shmem::header().no_suspect_runs();
        let may_start = move |lane: &Lane| {
            lane.first().is_some() && !lane.is_blocked() && protocol::may_start(lane.key.timing, no_suspect_runs)
        };
        let mut owners = BTreeMap::new();
        for (table, lanes) in lanes.of_tables_mut() {
            let Some(table) = self.tables.get(&table).filter(|table| table.runnable) else { continue };
            let lanes: Startable = Box::new(lanes.values_mut().filter(move |lane| may_start(lane)));
            let mut lanes = lanes.peekable();
            if lanes.peek().is_some() {
                let new = || Owner { mailboxes: self.mailboxes(table.owner), turns: Turns::default() };
                owners.entry(table.owner).or_insert_with(new).turns.add(lanes);
            }
        }
        owners
    }

    pub fn mailboxes(&self, owner: u32) -> Mailboxes {
        let all = shmem::executors()
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.state() == SlotState::Ready && slot.belongs_to(self.database, owner))
            .map(|(executor, slot)| Mailbox { executor, slot, is_shortly_free: self.is_shortly_free(slot) })
            .collect();
        Mailboxes { all, holders: HashMap::new() }
    }

    /// The first one tells: a job that is not short has had the mailbox for itself.
    fn is_shortly_free(&self, slot: &ExecutorSlot) -> bool {
        let first = slot.passed.load(Ordering::Acquire);
        let job: JobRef = slot.claim(first).assignment().job();
        let is_short = |claimed: &Claimed| self.roster.pace.depth(&claimed.lane) > 0;
        busy_for(slot) < BUSY && self.claims.get(&job).is_some_and(is_short)
    }
}
