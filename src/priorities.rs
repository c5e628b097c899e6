//! The priorities of handlers that this session has submitted to, so that a row need not look its handler's up.

use crate::catalog;
use crate::notes;
use crate::pg::role::bookkeeping;
use crate::pg::{database, shmem as pg_shmem, spi, xact};
use crate::shmem;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// The priorities of handlers that this session has submitted to.
#[derive(Default)]
struct Priorities {
    /// None: good for the current transaction only.
    version: Option<u64>,
    priorities: HashMap<u32, HashMap<String, i16>>,
    count: usize,
}

thread_local! {
    static PRIORITIES: RefCell<Priorities> = RefCell::new(Priorities::default());
}

/// Forgets everything: this session has changed some.
pub fn forget() {
    PRIORITIES.set(Priorities::default());
}

/// At the end of a transaction: forgets what was good for that only.
pub fn forget_passing() {
    let _ = PRIORITIES.try_with(|known| {
        if let Ok(mut known) = known.try_borrow_mut()
            && known.version.is_none()
        {
            *known = Priorities::default();
        }
    });
}

/// The priority of a handler's jobs, looked up once per session and version of the registry; once per transaction if that sees
/// an older one, or while there is no dispatcher whose slot would tell when it changes. None: it cannot be kept, because nobody
/// tells us when a transaction ends, or because this one has changed handlers and may take that back.
pub fn of(table: u32, handler: &str) -> Option<i16> {
    if !pg_shmem::attached() || notes::handlers_changed() {
        return None;
    }
    let slot = shmem::database(database::current().to_u32()).filter(|_| !xact::keeps_snapshot());
    let version = slot.map(|slot| slot.handlers_version.load(Ordering::Acquire));
    PRIORITIES.with_borrow_mut(|known| {
        if known.version != version || known.count > 1000 {
            *known = Priorities { version, ..Priorities::default() };
        }
        if let Some(priority) = known.priorities.get(&table).and_then(|of_table| of_table.get(handler)) {
            return Some(*priority);
        }
        let priority = bookkeeping(|| spi::connect(|| catalog::handler_priority(table, handler))).unwrap_or(0);
        known.priorities.entry(table).or_default().insert(handler.to_string(), priority);
        known.count += 1;
        Some(priority)
    })
}
