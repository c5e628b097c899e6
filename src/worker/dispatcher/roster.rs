//! The executors and progress writers of this database: reserving slots, starting them, noticing their end, sending them away.

use super::Claimed;
use super::pace::Pace;
use crate::job::{JobRef, Timing};
use crate::pg::bgworker::{self, Handle, Registration, Status};
use crate::pg::error::PgError;
use crate::pg::{clock, lwlock};
use crate::protocol;
use crate::shmem::{self, ExecutorSlot, SlotState, WriterSlot};
use crate::worker::{EXECUTOR, PROGRESS_WRITER, executor_argument};
use pgrx::PgSqlErrorCode;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);

/// A slot whose worker has not shown up for so long, and that nobody waits for, is given up.
const LOST: Duration = Duration::from_secs(60);
/// An executor gives way to an owner that has others only after being idle for so long: less may be a pause between two jobs.
const UNUSED: Duration = Duration::from_millis(500);

/// An owner whose executors could not be started.
struct Trouble {
    not_before: Instant,
    backoff: Duration,
}

#[derive(Default)]
pub struct Roster {
    pub pace: Pace,
    /// Workers on their way: by slot, with the generation that they were started for.
    started: HashMap<usize, (u32, Handle)>,
    trouble: HashMap<u32, Trouble>,
    /// When each owner last got a slot, counted in slots: more owners than slots take turns.
    served: HashMap<u32, u64>,
    slots_given: u64,
    /// A shortage of each kind was said, and has not ended.
    lacks_executor: bool,
    lacks_writer: bool,
    /// When a progress writer was last started for an owner: not more often than once a second.
    writers_started: HashMap<u32, Instant>,
}

impl Roster {
    /// Takes over what a dispatcher before this one has handed out.
    pub fn adopt(&mut self, database: u32, claims: &mut HashMap<JobRef, Claimed>) {
        for slot in shmem::executors().iter().filter(|slot| slot.in_database(database)) {
            slot.booked.store(slot.drained.load(Ordering::Acquire), Ordering::Release);
        }
        self.book(database, claims);
    }

    /// Books what sessions have handed over (`shmem::direct`).
    pub fn book(&mut self, database: u32, claims: &mut HashMap<JobRef, Claimed>) {
        let ours = |(_, slot): &(usize, &ExecutorSlot)| slot.in_database(database);
        let unbooked: Vec<_> = lwlock::with(true, || {
            let ours = shmem::executors().iter().enumerate().filter(ours);
            ours.map(|(executor, slot)| (executor, slot, slot.take_unbooked())).collect()
        });
        for (executor, slot, numbers) in unbooked {
            for number in numbers {
                let claim = slot.claim(number);
                if !protocol::is_adopted(claim.state()) {
                    continue;
                }
                let assignment = claim.assignment();
                let lane = assignment.lane(if assignment.attempt > 1 { Timing::Retry } else { Timing::Immediate });
                claims
                    .insert(assignment.job(), Claimed { executor, number, lane, enqueued_at: assignment.enqueued_at });
            }
        }
    }

    pub fn has_executor(&self, database: u32, owner: u32) -> bool {
        shmem::executors().iter().any(|slot| {
            matches!(slot.state(), SlotState::Starting | SlotState::Ready) && slot.belongs_to(database, owner)
        })
    }

    /// Sees to one more executor for this owner: a free slot that nobody needs more, or a slot whose idle executor gives way: at
    /// once for the `first` one.
    pub fn want(&mut self, database: u32, database_name: &str, owner: u32, first: bool) {
        if self.is_in_trouble(owner) {
            return;
        }
        let coming = |slot: &ExecutorSlot| slot.state() == SlotState::Starting && slot.belongs_to(database, owner);
        if shmem::executors().iter().any(coming) {
            return;
        }
        let Some((index, generation)) = reserve(database, owner, first) else {
            send_idle_away(database, owner, if first { Duration::ZERO } else { UNUSED });
            return;
        };
        self.slots_given += 1;
        self.served.insert(owner, self.slots_given);
        let handle = bgworker::start(&Registration {
            name: format!("{EXECUTOR} for database {database_name}"),
            kind: EXECUTOR,
            function: "background_jobs_executor_main",
            argument: executor_argument(index, generation),
        });
        match handle {
            Some(handle) => {
                self.lacks_executor = false;
                self.started.insert(index, (generation, handle));
            }
            None => {
                lwlock::with(true, || shmem::executors()[index].set_state(SlotState::Free));
                self.failed(owner);
                if !std::mem::replace(&mut self.lacks_executor, true) {
                    complain_shortage("executor", "It is tried again; until then jobs wait.");
                }
            }
        }
    }

    /// The lower, the longer ago the owner got a slot.
    pub fn last_served(&self, owner: u32) -> u64 {
        self.served.get(&owner).copied().unwrap_or(0)
    }

    /// Could no executor be started for this owner a moment ago?
    pub fn is_in_trouble(&self, owner: u32) -> bool {
        self.trouble.get(&owner).is_some_and(|trouble| Instant::now() < trouble.not_before)
    }

    fn failed(&mut self, owner: u32) {
        let now = Instant::now();
        let trouble = self.trouble.entry(owner).or_insert(Trouble { not_before: now, backoff: FIRST_BACKOFF / 2 });
        trouble.backoff = (trouble.backoff * 2).min(LAST_BACKOFF);
        trouble.not_before = now + trouble.backoff;
    }

    /// Notices executors that did not come up, and forgets the trouble with owners whose executors did.
    pub fn reap(&mut self, database: u32) {
        self.started.retain(|index, (generation, handle)| {
            let slot = &shmem::executors()[*index];
            let coming =
                || slot.state() == SlotState::Starting && slot.generation.load(Ordering::Acquire) == *generation;
            // A worker that ended before it had even looked at its slot.
            if coming() && handle.status() == Status::Stopped {
                lwlock::with(true, || {
                    if coming() {
                        slot.set_state(SlotState::Failed);
                    }
                });
            }
            coming()
        });
        for slot in shmem::executors().iter().filter(|slot| slot.in_database(database)) {
            let owner = slot.owner.load(Ordering::Acquire);
            match slot.state() {
                SlotState::Ready => drop(self.trouble.remove(&owner)),
                SlotState::Failed => {
                    self.failed(owner);
                    lwlock::with(true, || slot.set_state(SlotState::Free));
                }
                SlotState::Starting if slot.process.pid() == 0 && is_older(&slot.since_ns, LOST) => {
                    lwlock::with(true, || slot.set_state(SlotState::Free));
                }
                _ => {}
            }
        }
    }

    /// When an owner in trouble may be tried again.
    pub fn next_attempt(&self) -> Option<Duration> {
        let now = Instant::now();
        self.trouble.values().filter_map(|trouble| trouble.not_before.checked_duration_since(now)).min()
    }

    pub fn is_starting(&self) -> bool {
        !self.started.is_empty()
    }

    /// Starts a progress writer for this owner unless there is one.
    pub fn want_writer(&mut self, database: u32, database_name: &str, owner: u32) {
        let early = |last: &Instant| last.elapsed() < FIRST_BACKOFF;
        if self.writers_started.get(&owner).is_some_and(early) {
            return;
        }
        let reserved = lwlock::with(true, || {
            let slots = shmem::writers();
            if slots.iter().any(|slot| slot.belongs_to(database, owner) && !is_lost(slot)) {
                return None;
            }
            let free = |slot: &WriterSlot| slot.database.load(Ordering::Acquire) == 0 || is_lost(slot);
            let (index, slot) = slots.iter().enumerate().find(|(_, slot)| free(slot))?;
            slot.owner.store(owner, Ordering::Release);
            slot.since_ns.store(clock::monotonic_ns(), Ordering::Release);
            slot.database.store(database, Ordering::Release);
            Some((index, slot))
        });
        let Some((index, slot)) = reserved else { return };
        self.writers_started.insert(owner, Instant::now());
        let started = bgworker::start(&Registration {
            name: format!("{PROGRESS_WRITER} for database {database_name}"),
            kind: PROGRESS_WRITER,
            function: "background_jobs_progress_writer_main",
            argument: index as u64,
        });
        if started.is_some() {
            self.lacks_writer = false;
            return;
        }
        // The slot is left as it is: it counts as lost after a while, and is tried again then.
        slot.since_ns.store(clock::monotonic_ns(), Ordering::Release);
        if !std::mem::replace(&mut self.lacks_writer, true) {
            complain_shortage("progress writer", "Jobs run on; their progress is not written until there is one.");
        }
    }

    /// Sends the executors away: the idle ones at once, all of them when there is nothing left that they could write.
    pub fn dismiss(&mut self, database: u32, all: bool) {
        for slot in shmem::executors().iter().filter(|slot| slot.in_database(database)) {
            if all {
                slot.evicted.store(true, Ordering::Release);
                slot.process.signal(libc::SIGTERM);
            } else if slot.leave_if_idle() {
                slot.process.wake();
            }
        }
    }
}

fn complain_shortage(what: &str, meanwhile: &str) {
    PgError::new(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("no background worker slot is free for a background_jobs {what}"),
    )
    .detail(meanwhile)
    .hint("Raise max_worker_processes, or lower background_jobs.max_executors.")
    .log();
}

fn is_older(since_ns: &std::sync::atomic::AtomicU64, age: Duration) -> bool {
    clock::monotonic_ns().saturating_sub(since_ns.load(Ordering::Acquire)) > age.as_nanos() as u64
}

fn is_lost(slot: &WriterSlot) -> bool {
    slot.process.pid() == 0 && is_older(&slot.since_ns, Duration::from_secs(5))
}

/// Takes a slot that is free, or whose dead executor's database has nobody who could settle that.
fn reserve(database: u32, owner: u32, first: bool) -> Option<(usize, u32)> {
    lwlock::with(true, || {
        if !first && shmem::starving() >= shmem::slots_on_their_way() && shmem::starving() > 0 {
            return None;
        }
        let usable = |slot: &ExecutorSlot| match slot.state() {
            SlotState::Free => true,
            SlotState::Gone | SlotState::Failed | SlotState::Starting => {
                let lost =
                    slot.state() != SlotState::Starting || (slot.process.pid() == 0 && is_older(&slot.since_ns, LOST));
                let of = slot.database.load(Ordering::Acquire);
                lost && of != database && shmem::database(of).is_none_or(|other| other.dispatcher.pid() == 0)
            }
            _ => false,
        };
        let (index, slot) = shmem::executors().iter().enumerate().find(|(_, slot)| usable(slot))?;
        Some((index, slot.reset(database, owner, clock::monotonic_ns())))
    })
}

/// Has an executor of another owner or database leave that has been idle for so long; its slot is then free for whoever is
/// quickest.
fn send_idle_away(database: u32, owner: u32, unused: Duration) {
    let is_unused = |slot: &ExecutorSlot| is_older(&slot.since_ns, unused) && is_older(&slot.started_ns, unused);
    let gives_way = |slot: &&ExecutorSlot| !slot.belongs_to(database, owner) && is_unused(slot) && slot.leave_if_idle();
    let idle = shmem::executors().iter().find(gives_way);
    if let Some(slot) = idle {
        slot.process.wake();
    }
}
