//! The launcher: one per server, sees the shared catalogs only. Keeps a dispatcher running in every database that has the
//! extension and may run jobs.
//!
//! Which databases those are, it learns in two ways: once, by starting a dispatcher in each and having it look; from then
//! on from the sessions that commit a CREATE EXTENSION, a CREATE DATABASE, or a prepared transaction that could have been one
//! of these. A dispatcher that finds no extension says so and leaves.

use crate::gucs;
use crate::pg::bgworker::{self, Handle, Registration, Status};
use crate::pg::error::PgError;
use crate::pg::{database, signal, xact};
use crate::shmem::{self, DatabaseSlot, Exit};
use crate::worker::{DISPATCHER, LAUNCHER, Next, run};
use pgrx::PgSqlErrorCode;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Dispatchers on their way at the same time: starting in a database costs a process.
const PROBES: usize = 2;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);

/// A database as the launcher knows it.
struct Known {
    name: String,
    /// May have the extension.
    wanted: bool,
    /// The extension was created since the running dispatcher was started, which may have looked before.
    announced: bool,
    running: Option<Running>,
    not_before: Option<Instant>,
    backoff: Duration,
}

/// A dispatcher that was started.
struct Running {
    slot: &'static DatabaseSlot,
    /// None: by a launcher before this one.
    handle: Option<Handle>,
}

impl Running {
    fn has_ended(&self) -> bool {
        match &self.handle {
            Some(handle) => handle.status() == Status::Stopped && self.slot.dispatcher.pid() == 0,
            None => self.slot.dispatcher.pid() == 0,
        }
    }
}

#[derive(Default)]
struct Launcher {
    databases: HashMap<u32, Known>,
    last_look: Option<Instant>,
    out_of_slots: bool,
}

pub fn main(_argument: u64) {
    signal::install(None);
    bgworker::connect_shared();
    bgworker::at_exit(|| shmem::header().launcher.clear());
    shmem::header().launcher.announce();
    shmem::header().rescan.store(true, Ordering::Release);
    bgworker::report_application_name(LAUNCHER);
    bgworker::report_activity(None);
    let mut launcher = Launcher::default();
    run(|| launcher.tick());
}

impl Launcher {
    fn tick(&mut self) -> Next {
        let look = Duration::from_secs(60);
        if shmem::header().rescan.swap(false, Ordering::AcqRel)
            || self.last_look.is_none_or(|last| last.elapsed() >= look)
        {
            self.look();
        }
        for cell in &shmem::header().created {
            let oid = cell.swap(0, Ordering::AcqRel);
            if oid != 0 {
                if !self.databases.contains_key(&oid) {
                    self.look();
                }
                if let Some(known) = self.databases.get_mut(&oid) {
                    known.wanted = true;
                    known.announced = known.running.is_some();
                    known.not_before = None;
                }
            }
        }
        self.reap();
        let next = self.start();
        Next::Sleep(Some(next.unwrap_or(look)))
    }

    /// Reads pg_database: forgets what is gone, wants to know about what is new.
    fn look(&mut self) {
        self.last_look = Some(Instant::now());
        let Ok(all) = xact::transaction(database::all) else { return };
        let usable: HashMap<u32, String> =
            all.into_iter().filter(|d| d.usable).map(|d| (d.oid.to_u32(), d.name)).collect();
        self.databases.retain(|oid, known| known.running.is_some() || usable.contains_key(oid));
        for (oid, known) in &mut self.databases {
            known.wanted &= usable.contains_key(oid);
        }
        for (oid, name) in usable {
            let fresh = || Known {
                name: String::new(),
                wanted: true,
                announced: false,
                running: shmem::database(oid).map(|slot| Running { slot, handle: None }),
                not_before: None,
                backoff: FIRST_BACKOFF,
            };
            self.databases.entry(oid).or_insert_with(fresh).name = name;
        }
    }

    /// Notices dispatchers that have ended.
    fn reap(&mut self) {
        for known in self.databases.values_mut() {
            let Some(running) = &known.running else { continue };
            let slot = running.slot;
            if !running.has_ended() {
                if slot.dispatcher.pid() != 0 {
                    known.backoff = FIRST_BACKOFF;
                }
                continue;
            }
            if slot.is_blocked() {
                // Kept, so that no other dispatcher is started, until that session wakes us.
                continue;
            }
            match slot.exit_reason() {
                Exit::NoExtension => known.wanted = std::mem::take(&mut known.announced),
                Exit::NotAllowed => {}
                Exit::Unknown if slot.evicted.load(Ordering::Acquire) => known.not_before = None,
                Exit::Unknown => {
                    known.not_before = Some(Instant::now() + known.backoff);
                    known.backoff = (known.backoff * 2).min(LAST_BACKOFF);
                }
            }
            slot.database.store(0, Ordering::Release);
            known.running = None;
        }
    }

    /// Starts what is wanted and not running. Returns when to look again, if that is known.
    fn start(&mut self) -> Option<Duration> {
        if !gucs::ENABLED.get() {
            return None;
        }
        let now = Instant::now();
        let mut next: Option<Duration> = None;
        let mut soon = |wait: Duration| next = Some(next.map_or(wait, |known| known.min(wait)));
        let mut probing = self
            .databases
            .values()
            .filter_map(|known| known.running.as_ref())
            // One that was sent away for a session that keeps the database is not on its way.
            .filter(|running| running.slot.dispatcher.pid() == 0 && !running.slot.is_blocked())
            .count();
        let mut shortage = None;
        for (oid, known) in &mut self.databases {
            if !known.wanted || known.running.is_some() || !gucs::database_allowed(&known.name) {
                continue;
            }
            if let Some(wait) = known.not_before.and_then(|time| time.checked_duration_since(now)) {
                soon(wait);
                continue;
            }
            if probing >= PROBES {
                soon(Duration::from_millis(100));
                continue;
            }
            let Some((index, slot)) = free_slot() else {
                shortage = Some(known.name.clone());
                break;
            };
            slot.prepare(*oid);
            let started = bgworker::start(&Registration {
                name: format!("{DISPATCHER} for database {}", known.name),
                kind: DISPATCHER,
                function: "background_jobs_dispatcher_main",
                argument: index as u64,
            });
            match started {
                Some(handle) => {
                    known.running = Some(Running { slot, handle: Some(handle) });
                    probing += 1;
                }
                None => {
                    slot.database.store(0, Ordering::Release);
                    shortage = Some(known.name.clone());
                    break;
                }
            }
        }
        if shortage.is_some() {
            soon(Duration::from_secs(5));
        }
        let said = std::mem::replace(&mut self.out_of_slots, shortage.is_some());
        if let Some(name) = shortage.filter(|_| !said) {
            PgError::new(
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!("no background worker slot is free for the background_jobs dispatcher of database \"{name}\""),
            )
            .detail("Its jobs, and those of any further database, wait until there is one.")
            .hint("Raise max_worker_processes.")
            .log();
        }
        next
    }
}

fn free_slot() -> Option<(usize, &'static DatabaseSlot)> {
    let free = |slot: &DatabaseSlot| {
        slot.database.load(Ordering::Acquire) == 0 && !slot.is_blocked() && slot.dispatcher.pid() == 0
    };
    shmem::databases().iter().enumerate().find(|(_, slot)| free(slot))
}
