//! The handlers that this session has submitted to, so that a row need not look its handler up.

use crate::catalog::{self, Destination};
use crate::pg::role::bookkeeping;
use crate::pg::{database, shmem as pg_shmem, spi, xact};
use crate::shmem;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::Ordering;

#[derive(Default)]
struct Destinations {
    /// Of the registry. None: good for the current transaction only.
    version: Option<u64>,
    handlers: HashMap<u32, HashMap<String, Destination>>,
    count: usize,
}

thread_local! {
    static KNOWN: RefCell<Destinations> = RefCell::new(Destinations::default());
    /// Is what is known good for the current transaction only?
    static PASSING: Cell<bool> = const { Cell::new(false) };
    /// Has this transaction changed handlers?
    static CHANGING: Cell<bool> = const { Cell::new(false) };
}

/// Forgets everything: this session has changed some, and may take that back until the transaction ends.
pub fn forget() {
    KNOWN.set(Destinations::default());
    CHANGING.set(true);
}

/// At the end of a transaction: forgets what was good for that only.
pub fn forget_passing() {
    CHANGING.set(false);
    if PASSING.replace(false) {
        let _ = KNOWN.try_with(|known| known.try_borrow_mut().map(|mut known| *known = Destinations::default()));
    }
}

/// Are the latest look-ups of this version of the registry? For a commit callback: never fails.
pub fn are_of(version: u64) -> bool {
    let known = |known: &RefCell<Destinations>| known.try_borrow().is_ok_and(|known| known.version == Some(version));
    KNOWN.try_with(known).unwrap_or(false)
}

/// Where the jobs of a handler go, looked up once per session and version of the registry; once per transaction if that sees
/// an older one, or while there is no dispatcher whose slot would tell when it changes. None: it cannot be kept, because nobody
/// tells us when a transaction ends, or because this one has changed handlers and may take that back.
pub fn of(table: u32, handler: &str) -> Option<Destination> {
    if !pg_shmem::attached() || CHANGING.get() {
        return None;
    }
    let slot = shmem::database(database::current().to_u32()).filter(|_| !xact::keeps_snapshot());
    let version = slot.map(|slot| slot.handlers_version.load(Ordering::Acquire));
    if version.is_none() {
        PASSING.set(true);
    }
    KNOWN.with_borrow_mut(|known| {
        if known.version != version || known.count > 1000 {
            *known = Destinations { version, ..Destinations::default() };
        }
        if let Some(destination) = known.handlers.get(&table).and_then(|of_table| of_table.get(handler)) {
            return Some(*destination);
        }
        let destination = bookkeeping(|| spi::connect(|| catalog::destination(table, handler)));
        known.handlers.entry(table).or_default().insert(handler.to_string(), destination);
        known.count += 1;
        Some(destination)
    })
}
