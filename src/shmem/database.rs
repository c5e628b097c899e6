//! One slot per database that has, or may have, a dispatcher.

use crate::job::{LaneKey, MAX_HANDLER_NAME, RowPlace, Timing, Waiting};
use crate::pg::clock;
use crate::pg::latch::{Process, own_pid};
use crate::pg::lwlock;
use crate::pg::shmem::{Cell, shared};
use crate::planted::{self, Bug};
use crate::shmem::Name;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

/// Lanes that are noted one by one; beyond that the dispatcher looks everywhere.
pub const NOTES: usize = 128;

/// "Something in this lane is due at `run_at`", from a committing session to the dispatcher.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Note {
    table: u32,
    priority: i16,
    timing: i16,
    handler: Name,
    pub run_at: i64,
    /// The job itself, if the note is about no other and it is in the queue as it was submitted: then nobody has to look for it.
    only: Waiting,
    has_only: bool,
}

impl Note {
    /// None for a handler whose name cannot be registered, so that nobody need know.
    pub fn new(lane: &LaneKey, run_at: i64, only: Option<Waiting>) -> Option<Self> {
        (lane.handler.len() <= MAX_HANDLER_NAME).then(|| Self {
            table: lane.table,
            priority: lane.priority,
            timing: lane.timing as i16,
            handler: Name::new(&lane.handler),
            run_at,
            only: only.unwrap_or(Waiting {
                id: [0; 16],
                run_at,
                enqueued_at: 0,
                attempts: 0,
                max_attempts: None,
                tid: 0,
                row: RowPlace::default(),
            }),
            has_only: only.is_some(),
        })
    }

    pub fn only(&self) -> Option<Waiting> {
        self.has_only.then_some(self.only)
    }

    pub fn lane(&self) -> LaneKey {
        LaneKey {
            table: self.table,
            handler: self.handler.to_text(),
            priority: self.priority,
            timing: Timing::from_i16(self.timing),
        }
    }

    fn same_lane(&self, other: &Self) -> bool {
        (self.table, self.priority, self.timing) == (other.table, other.priority, other.timing)
            && self.handler == other.handler
    }
}

/// Why a dispatcher left; tells the launcher whether to start it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Exit {
    /// It did not say: it failed, or was terminated. Start it again, after a while.
    Unknown = 0,
    /// The database does not have the extension.
    NoExtension = 1,
    /// A setting forbids it.
    NotAllowed = 2,
}

#[repr(C)]
pub struct DatabaseSlot {
    /// The database's OID; 0: the slot is free. Written by the launcher.
    pub database: AtomicU32,
    /// Written by the dispatcher when it leaves.
    pub exit: AtomicU32,
    /// The dispatcher. Written by itself.
    pub dispatcher: Process,
    /// The session that needs the database for itself, or 0. Written by that session.
    blocked_by: AtomicI32,
    /// Set by that session: the dispatcher's end was nobody's failure.
    pub evicted: AtomicBool,
    /// Set by anybody whose commit took jobs out of the queue that may be running.
    pub withdrawn: AtomicBool,
    /// Set by anybody who knows that something has changed, and not what.
    poll: AtomicBool,
    /// Counts the commits that changed handlers or attached tables.
    pub handlers_version: AtomicU64,
    /// Owners with due jobs and no executor. Written by the dispatcher.
    pub starving: AtomicU32,
    /// Nothing is handed out, so notes can wait for the next poll or reload. Written by the dispatcher.
    pub paused: AtomicBool,
    /// Nothing is handed out because pg_restore is at work, which the view shows. Written by the dispatcher.
    pub restoring: AtomicBool,
    /// See `shmem::direct`. Written by the dispatcher under the lock.
    quiet: AtomicBool,
    /// Are there notes? Written under the lock.
    noted: AtomicBool,
    /// Notes not yet read: written and read under the lock.
    len: Cell<u32>,
    overflow: Cell<bool>,
    notes: [Cell<Note>; NOTES],
}

// Atomics, and cells that are used under the lock only; all zeroes is a free slot without notes.
shared!(DatabaseSlot);

impl DatabaseSlot {
    /// Leaves notes for the dispatcher, if there are any, and wakes it. Never blocks for long and never fails: it is called after a commit.
    pub fn leave(&self, notes: impl Iterator<Item = Note>) {
        let mut notes = notes.peekable();
        if notes.peek().is_none() {
            return self.dispatcher.wake();
        }
        if planted::is(Bug::NoPoll) && clock::now() % 8 == 0 {
            return;
        }
        lwlock::with(true, || {
            let mut len = self.len.get() as usize;
            for note in notes {
                let same = self.notes[..len].iter().find(|kept| kept.look(|kept| kept.same_lane(&note)));
                if let Some(same) = same {
                    let (run_at, has_only) = same.look(|same| (same.run_at, same.has_only));
                    if has_only || note.run_at < run_at {
                        same.set(Note { run_at: run_at.min(note.run_at), has_only: false, ..note });
                    }
                } else if len < NOTES {
                    self.notes[len].set(note);
                    len += 1;
                } else {
                    self.overflow.set(true);
                }
            }
            self.len.set(len as u32);
            self.noted.store(true, Ordering::Release);
        });
        if !self.paused.load(Ordering::Acquire) {
            self.dispatcher.wake();
        }
    }

    /// Takes all notes. None: there were more than fit, so look everywhere.
    pub fn take(&self) -> Option<Vec<Note>> {
        lwlock::with(true, || {
            let overflow = self.overflow.get();
            let taken = self.notes[..self.len.get() as usize].iter().map(Cell::get).collect();
            self.overflow.set(false);
            self.len.set(0);
            self.noted.store(false, Ordering::Release);
            (!overflow).then_some(taken)
        })
    }

    pub fn has_notes(&self) -> bool {
        self.noted.load(Ordering::Acquire)
    }

    /// Marks that running jobs may have been withdrawn, and wakes the dispatcher to find out which.
    pub fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Release);
        self.dispatcher.wake();
    }

    /// Has the dispatcher look at everything.
    pub fn ask_to_poll(&self) {
        self.poll.store(true, Ordering::Release);
        self.dispatcher.wake();
    }

    pub fn must_poll(&self) -> bool {
        self.poll.load(Ordering::Acquire)
    }

    /// To be called before the look.
    pub fn begin_poll(&self) {
        self.poll.swap(false, Ordering::AcqRel);
    }

    /// From here on sessions may hand jobs over themselves, or may not any more.
    pub fn set_quiet(&self, quiet: bool) {
        if quiet != self.is_quiet() {
            lwlock::with(true, || self.quiet.store(quiet, Ordering::Release));
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    /// Keeps the database for this session, until it lets go.
    pub fn block(&self) {
        self.blocked_by.store(own_pid(), Ordering::SeqCst);
    }

    /// Lets go of the database, if this session keeps it. Atomics only.
    pub fn unblock(&self) {
        let _ = self.blocked_by.compare_exchange(own_pid(), 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub fn is_blocked(&self) -> bool {
        self.blocked_by.load(Ordering::SeqCst) != 0
    }

    pub fn change_handlers(&self) {
        self.handlers_version.fetch_add(1, Ordering::AcqRel);
        self.dispatcher.wake();
    }

    /// Counts up once more what is known as `version`. False: there was another change meanwhile, which everybody looks for anyway.
    pub fn retell_handlers(&self, version: u64) -> bool {
        self.handlers_version.compare_exchange(version, version + 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn exit_reason(&self) -> Exit {
        match self.exit.load(Ordering::Acquire) {
            1 => Exit::NoExtension,
            2 => Exit::NotAllowed,
            _ => Exit::Unknown,
        }
    }

    /// Makes the slot ready for a new dispatcher of `database`. By the launcher, while no dispatcher is there.
    pub fn prepare(&self, database: u32) {
        lwlock::with(true, || {
            self.len.set(0);
            self.overflow.set(false);
        });
        self.exit.store(Exit::Unknown as u32, Ordering::Release);
        self.withdrawn.store(false, Ordering::Release);
        self.poll.store(false, Ordering::Release);
        self.evicted.store(false, Ordering::Release);
        self.starving.store(0, Ordering::Release);
        self.paused.store(false, Ordering::Release);
        self.restoring.store(false, Ordering::Release);
        self.set_quiet(false);
        // What was committed while nobody had the slot was counted nowhere.
        self.handlers_version.fetch_add(1, Ordering::AcqRel);
        self.database.store(database, Ordering::Release);
    }
}
