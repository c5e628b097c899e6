//! Commands that need a database for themselves: our workers leave it, and stay away until the command is done.

use crate::notes;
use crate::pg::error::PgError;
use crate::pg::utility::Callbacks;
use crate::pg::{database, latch, shmem as pg_shmem};
use crate::prepared;
use crate::running;
use crate::shmem;
use pgrx::PgSqlErrorCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// As long as the server itself would wait for them.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn callbacks() -> Callbacks {
    Callbacks {
        before_exclusive,
        after_create: notes::note_databases,
        after_drop: notes::note_dropped,
        before_constraints: running::require_own_transaction,
        after_commit_prepared: prepared::after_commit,
    }
}

fn before_exclusive(name: &str) {
    // A caller without the privilege gets the server's own error, and no worker is disturbed.
    let Some(oid) = database::owned_by_current_user(name) else { return };
    if !pg_shmem::attached() || oid == database::current() {
        return;
    }
    let oid = oid.to_u32();
    if let Some(slot) = shmem::database(oid) {
        notes::note_blocked();
        slot.block();
        if slot.database.load(Ordering::SeqCst) == oid {
            slot.evicted.store(true, Ordering::Release);
        } else {
            // The launcher has just given it to another one.
            slot.unblock();
        }
    }
    // A dispatcher that had to leave has left those executors there that were busy.
    send_away(oid);
    let deadline = Instant::now() + PATIENCE;
    while anybody_left(oid) && Instant::now() < deadline {
        latch::wait(Some(Duration::from_millis(5)));
        send_away(oid);
    }
    if anybody_left(oid) {
        PgError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("background_jobs workers in database \"{name}\" did not stop in time"),
        )
        .warn();
    }
}

fn send_away(database: u32) {
    for slot in shmem::executors().iter().filter(|slot| slot.in_database(database)) {
        slot.evicted.store(true, Ordering::Release);
        slot.process.signal(libc::SIGTERM);
    }
    for slot in shmem::writers() {
        if slot.database.load(Ordering::Acquire) == database {
            slot.process.signal(libc::SIGTERM);
        }
    }
    if let Some(slot) = shmem::database(database) {
        slot.dispatcher.signal(libc::SIGTERM);
    }
}

fn anybody_left(database: u32) -> bool {
    shmem::executors().iter().any(|slot| slot.in_database(database) && slot.process.pid() != 0)
        || shmem::writers()
            .iter()
            .any(|slot| slot.database.load(Ordering::Acquire) == database && slot.process.pid() != 0)
        || shmem::database(database).is_some_and(|slot| slot.dispatcher.pid() != 0)
}
