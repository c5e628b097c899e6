//! The executor: any number per database and owner, one per slot. Its session is the job table's owner's; it takes jobs
//! from its mailbox, runs their handlers and finishes them.
//!
//! A batch is what is in the mailbox. First it is loaded in a transaction of its own, so that a handler that
//! runs for an hour holds no lock on the job table (`batch`). Then it is run (`run`): jobs of handlers that are known to be
//! short share a commit, a subtransaction each; anything else has a commit of its own (`group`). Between two jobs the session
//! is made as clean as a new one (`attempt`). What they write into their rows is in `row`, `together` and `outcome`, how they go
//! back into the queue in `put_back`, what others are told after the commit in `settle`. While a session is about to commit a job, an
//! idle executor gets ready for it (`expect`).

mod attempt;
mod batch;
mod expect;
mod group;
mod outcome;
mod pace;
mod put_back;
mod row;
mod run;
mod settle;
mod tables;
mod together;

use crate::catalog::{self, Counts};
use crate::gucs;
use crate::handler::Handlers;
use crate::journal;
use crate::pg::memory::{self, Context};
use crate::pg::role::bookkeeping;
use crate::pg::{bgworker, clock, guc, lwlock, signal, spi, timer, xact};
use crate::running;
use crate::shmem::{self, DatabaseSlot, ExecutorSlot, SlotState};
use crate::worker::{EXECUTOR, Next, executor_of, run as run_worker};
use pgrx::pg_sys::Oid;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long an owner keeps an executor that another owner waits for.
const TENURE: Duration = Duration::from_millis(500);
/// How long code of the owner may take that is no handler: triggers, policies and constraints around its rows.
const PATIENCE: Duration = Duration::from_secs(5);
const STATS_INTERVAL: Duration = Duration::from_secs(1);

pub struct Executor {
    slot: &'static ExecutorSlot,
    /// Of the slot, and of the executor's place in the journal.
    index: usize,
    database: u32,
    handlers: Handlers,
    tables: tables::Tables,
    /// How long each handler took lately; decides what may share a commit.
    pace: pace::Pace,
    /// Payloads, results and errors of the batch.
    memory: Context,
    errors: Context,
    /// Nothing was run in the session since it was reset.
    clean: bool,
    stats: BTreeMap<(u32, String), Counts>,
    stats_written: Instant,
    idle_since: Instant,
}

pub fn main(argument: u64) {
    signal::install(Some(|| running::slot().is_some_and(|(_, slot)| slot.interrupt().is_some())));
    let (index, generation) = executor_of(argument);
    let slot = &shmem::executors()[index];
    let ours = lwlock::with(true, || {
        let ours = slot.state() == SlotState::Starting && slot.generation.load(Ordering::Acquire) == generation;
        if ours {
            slot.process.announce();
        }
        ours
    });
    if !ours {
        return;
    }
    running::set_slot(Some((index, slot)));
    bgworker::at_exit(leave);
    signal::at_quit(|| {
        if let Some((index, _)) = running::slot() {
            journal::told_to_quit(index);
        }
    });
    let (database, owner) = (slot.database.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
    if shmem::is_blocked(database) {
        return;
    }
    bgworker::connect(Oid::from(database), Oid::from(owner));
    guc::notice_deadlocks_first();
    memory::keep_freed();
    timer::register_reminder(|| {
        if let Some((_, slot)) = running::slot()
            && let Some(database) = shmem::database(slot.database.load(Ordering::Acquire))
        {
            database.dispatcher.wake();
        }
    });
    bgworker::report_application_name(EXECUTOR);
    bgworker::report_activity(None);
    let now = Instant::now();
    let mut executor = Executor {
        slot,
        index,
        database,
        handlers: Handlers::default(),
        tables: tables::Tables::default(),
        pace: pace::Pace::default(),
        memory: Context::new(c"background_jobs batch"),
        errors: Context::new(c"background_jobs errors"),
        clean: false,
        stats: BTreeMap::new(),
        stats_written: now,
        idle_since: now,
    };
    lwlock::with(true, || slot.set_state(SlotState::Ready));
    executor.wake_dispatcher();
    run_worker(|| executor.tick());
}

/// The exit callback: what was not finished goes back to the dispatcher, and the slot to whoever waits for one.
fn leave() {
    let Some((index, slot)) = running::slot() else { return };
    running::set_slot(None);
    // A worker that leaves because the postmaster is gone is part of a crash.
    if bgworker::postmaster_is_alive() {
        journal::end(index);
    }
    let generation = slot.generation.load(Ordering::Acquire);
    lwlock::with(true, || {
        let passed = slot.passed.load(Ordering::Acquire);
        let unfinished = slot.handed() != slot.drained.load(Ordering::Acquire) || slot.handed() != passed;
        let refused = slot.state() == SlotState::Starting && !signal::termination_pending();
        slot.set_state(match (refused, unfinished) {
            (true, _) => SlotState::Failed,
            (_, true) => SlotState::Gone,
            _ => SlotState::Free,
        });
        slot.process.clear();
    });
    // Only now: it cannot get another claim. But the slot may have another owner already.
    shmem::header().release_suspect_of(index, generation);
    for slot in shmem::databases() {
        slot.dispatcher.wake();
    }
}

impl Executor {
    /// The slot of the dispatcher as of now: a new dispatcher may have another one.
    fn dispatcher(&self) -> Option<&'static DatabaseSlot> {
        shmem::database(self.database)
    }

    fn wake_dispatcher(&self) {
        if let Some(slot) = self.dispatcher() {
            slot.dispatcher.wake();
        }
    }

    fn tick(&mut self) -> Next {
        let passed = self.slot.passed.load(Ordering::Acquire);
        if passed == self.slot.handed() {
            expect::expect(self);
        }
        let handed = self.slot.handed();
        if passed == handed {
            return self.idle();
        }
        self.refresh_handlers();
        let stale = !batch::process(self, passed..handed);
        self.memory.reset();
        self.errors.reset();
        if self.stats_written.elapsed() >= STATS_INTERVAL {
            self.write_stats();
        }
        self.idle_since = Instant::now();
        if stale {
            lwlock::with(true, || self.slot.set_state(SlotState::Leaving));
            // Before it starts another one, the dispatcher looks who may run jobs.
            if let Some(dispatcher) = self.dispatcher() {
                dispatcher.change_handlers();
            }
        }
        if stale || self.must_give_way() {
            // What is still in the mailbox goes back to the dispatcher, which the exit callback tells.
            self.write_stats();
            return Next::Leave;
        }
        Next::Again
    }

    /// Without a dispatcher there is nobody to say that the handlers have changed.
    fn refresh_handlers(&mut self) {
        self.handlers.refresh(self.dispatcher().map(|slot| slot.handlers_version.load(Ordering::Acquire)));
    }

    fn idle(&mut self) -> Next {
        if self.slot.state() == SlotState::Leaving {
            self.write_stats();
            return Next::Leave;
        }
        let quiet = self.idle_since.elapsed();
        if !self.stats.is_empty() && quiet >= STATS_INTERVAL {
            self.write_stats();
        }
        bgworker::report_activity(None);
        if let Some(timeout) = gucs::executor_idle_timeout() {
            if quiet >= timeout && self.slot.leave_if_idle() {
                self.write_stats();
                return Next::Leave;
            }
            let wait = timeout.saturating_sub(quiet);
            return Next::Sleep(Some(if self.stats.is_empty() { wait } else { wait.min(STATS_INTERVAL) }));
        }
        Next::Sleep((!self.stats.is_empty()).then_some(STATS_INTERVAL))
    }

    /// Do owners wait that have no executor at all, more than slots are on their way to them, and has this one been here for
    /// its time? Then it makes room.
    fn must_give_way(&self) -> bool {
        let tenure = clock::monotonic_ns() - self.slot.since_ns.load(Ordering::Acquire);
        if shmem::starving() == 0 || tenure < TENURE.as_nanos() as u64 {
            return false;
        }
        lwlock::with(true, || {
            let gives_way = shmem::starving() > shmem::slots_on_their_way();
            if gives_way {
                self.slot.set_state(SlotState::Leaving);
            }
            gives_way
        })
    }

    /// Adds what was counted to the table; lost with a crash, which counters may be.
    fn write_stats(&mut self) {
        self.stats_written = Instant::now();
        let stats = std::mem::take(&mut self.stats);
        if stats.is_empty() {
            return;
        }
        let written = xact::transaction(|| {
            guc::set_local(c"synchronous_commit", "off");
            bookkeeping(|| {
                spi::connect(|| {
                    for ((table, handler), counts) in &stats {
                        catalog::count(*table, handler, counts);
                    }
                });
            });
        });
        if let Err(error) = written {
            error.log();
        }
        bgworker::report_statistics();
        memory::give_back();
    }

    fn count(&mut self, table: u32, handler: &str, add: impl FnOnce(&mut Counts)) {
        add(self.stats.entry((table, handler.to_string())).or_default());
    }
}
