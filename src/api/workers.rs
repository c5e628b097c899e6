//! What the views are made of: the extension's processes.

use super::{or_raise, require_preload};
use crate::pg::fmgr::{Args, float4_datum, text_datum, uuid_datum};
use crate::pg::{database, lwlock, privilege, spi};
use crate::progress;
use crate::shmem;
use pgrx::pg_sys::{Datum, Oid};
use std::sync::atomic::Ordering;

/// worker_state(): the extension's processes. Jobs are shown to whoever may SELECT from their table.
pub fn worker_state(args: &Args) -> Datum {
    or_raise(require_preload());
    let mut rows = Vec::new();
    let mut push = |pid: i32, role: &str, database: u32, owner: u32, state: &str| {
        let oid = |value: u32| (value != 0).then(|| Datum::from(Oid::from(value)));
        let mut row = vec![Some(Datum::from(pid)), text_datum(role), oid(database), oid(owner), text_datum(state)];
        row.resize(11, None);
        rows.push(row);
        rows.len() - 1
    };
    let launcher = shmem::header().launcher.pid();
    if launcher != 0 {
        push(launcher, "launcher", 0, 0, "running");
    }
    for slot in shmem::databases().iter().filter(|slot| slot.dispatcher.pid() != 0) {
        // Why no job of the database runs, if none does.
        let state = match (slot.paused.load(Ordering::Acquire), slot.restoring.load(Ordering::Acquire)) {
            (true, _) => "paused",
            (false, true) => "restoring",
            _ => "running",
        };
        push(slot.dispatcher.pid(), "dispatcher", slot.database.load(Ordering::Acquire), 0, state);
    }
    for slot in shmem::writers().iter().filter(|slot| slot.process.pid() != 0) {
        let (database, owner) = (slot.database.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
        push(slot.process.pid(), "progress writer", database, owner, "running");
    }
    let mut jobs = Vec::new();
    for slot in shmem::executors().iter().filter(|slot| slot.process.pid() != 0) {
        let (database, owner) = (slot.database.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
        let running = lwlock::with(false, || slot.running().map(|number| slot.claim(number).assignment()));
        let state = if running.is_some() { "running" } else { "idle" };
        let row = push(slot.process.pid(), "executor", database, owner, state);
        if let Some(assignment) = running {
            jobs.push((row, slot, assignment));
        }
    }
    for (row, slot, assignment) in jobs {
        let here = slot.database.load(Ordering::Acquire) == database::current().to_u32();
        if !here || !privilege::may_select(Oid::from(assignment.table)) {
            continue;
        }
        rows[row].truncate(5);
        rows[row].extend([
            spi::oid(Oid::from(assignment.table)),
            uuid_datum(&assignment.id),
            text_datum(&assignment.handler.to_text()),
            Some(Datum::from(assignment.attempt)),
            spi::timestamp(slot.started_at.load(Ordering::Acquire)),
            float4_datum(progress::reported(slot)),
        ]);
    }
    args.finish_rows(&rows).unwrap_or_else(|| args.finish(None))
}
