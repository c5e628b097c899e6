//! The lanes that the dispatcher knows: by handler, and those of a handler in the order of their priorities. Anybody who may INSERT can make
//! tens of thousands of a handler, so whoever wants the next one must not have to look at all.

use super::lane::Lane;
use crate::job::{LaneKey, Timing};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Its table, and its name.
type Handler = (u32, Rc<str>);

pub type OfHandler = BTreeMap<(i16, Timing), Lane>;

#[derive(Default)]
pub struct Lanes(HashMap<Handler, OfHandler>);

fn handler(key: &LaneKey) -> Handler {
    (key.table, key.handler.clone())
}

impl Lanes {
    pub fn get_mut(&mut self, key: &LaneKey) -> Option<&mut Lane> {
        self.0.get_mut(&handler(key))?.get_mut(&(key.priority, key.timing))
    }

    /// One that is not known yet.
    pub fn insert(&mut self, lane: Lane) {
        let key = &lane.key;
        self.0.entry(handler(key)).or_default().insert((key.priority, key.timing), lane);
    }

    pub fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    pub fn values(&self) -> impl Iterator<Item = &Lane> {
        self.0.values().flat_map(BTreeMap::values)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.0.values_mut().flat_map(BTreeMap::values_mut)
    }

    pub fn of_handlers(&self) -> impl Iterator<Item = (&Handler, &OfHandler)> {
        self.0.iter()
    }

    pub fn of_tables_mut(&mut self) -> impl Iterator<Item = (u32, &mut OfHandler)> {
        self.0.iter_mut().map(|((table, _), lanes)| (*table, lanes))
    }

    pub fn retain_handlers(&mut self, stays: impl Fn(&Handler) -> bool) {
        self.0.retain(|handler, _| stays(handler));
    }

    pub fn retain(&mut self, stays: impl Fn(&Lane) -> bool) {
        self.0.retain(|_, lanes| {
            lanes.retain(|_, lane| stays(lane));
            !lanes.is_empty()
        });
    }
}
