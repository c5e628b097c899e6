//! What was running when the server crashed.
//!
//! Every executor notes the job that it is about to run, and strikes it out afterwards; a stop in good order strikes it
//! out, too. So what stands there when the server comes up ran when a crash took it down. The postmaster then moves
//! it to the suspects, each of which the dispatcher of its database charges an attempt, durably, before it strikes it out. A job
//! that takes the server down ends that way after its last attempt.
//!
//! Where a suspect of an earlier crash was among them, not everybody is accused: an executor that is told to quit because of
//! another process's crash says so in its place, and those that have not said so were the crash; if that tells nobody from the
//! others, it is the suspect, of which only one runs at a time. The others are bystanders: they are charged if it turns out
//! that the accused cannot be, because somebody had cancelled or finished it.
//!
//! The file lies beside the statistics files, which a base backup leaves out: a copy of the server accuses nobody.
//! If it is lost with the machine, nobody is charged.

use crate::pg::clock::Timestamp;
use crate::pg::error::PgError;
use crate::pg::mapped_file::MappedFile;
use crate::pg::shmem::{Cell, shared};
use crate::protocol::{self, Witness};
use crate::shmem::Assignment;
use pgrx::PgSqlErrorCode;
use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering};

const PATH: &CStr = c"pg_stat_tmp/background_jobs.journal";
const EXECUTORS: usize = crate::gucs::MAX_MAX_EXECUTORS;
const SUSPECTS: usize = 1024;
const SOLVED: usize = 64;

const EMPTY: u32 = 0;
const RUNNING: u32 = 1;
/// The same, and its process was told to quit because another one had crashed.
const TOLD: u32 = 2;

/// A job that was running.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    pub database: u32,
    /// It was running when the server crashed before.
    pub suspect: bool,
    pub assignment: Assignment,
    pub started_at: Timestamp,
    /// Which crash it ran at, counted from 1; 0 while it runs.
    pub crash: u32,
    pub bystander: bool,
}

/// One place. `entry` is written by the place's owner while `state` is EMPTY: an executor for its own place, the postmaster for
/// all while nobody else is there. The executor's signal handler makes TOLD of RUNNING.
#[repr(C)]
struct Place {
    state: AtomicU32,
    entry: Cell<Entry>,
}

#[repr(C)]
struct Journal {
    /// Tells a file of another layout.
    layout: AtomicU32,
    /// Crashes with anything running, counted.
    crashes: AtomicU32,
    /// Crashes that somebody was charged for; the place of one is its number modulo the length.
    solved: [AtomicU32; SOLVED],
    executors: [Place; EXECUTORS],
    suspects: [Place; SUSPECTS],
}

// Atomics and cells that follow the rule stated at `Place`; all zeroes is an empty journal.
shared!(Journal);

static FILE: MappedFile<Journal> = MappedFile::new();

impl Place {
    fn set(&self, entry: Entry) {
        self.state.store(EMPTY, Ordering::SeqCst);
        self.entry.set(entry);
        self.state.store(RUNNING, Ordering::SeqCst);
    }

    fn clear(&self) {
        self.state.store(EMPTY, Ordering::SeqCst);
    }

    fn get(&self) -> Option<Entry> {
        (self.state.load(Ordering::SeqCst) != EMPTY).then(|| self.entry.get())
    }

    fn witness(&self) -> Option<Witness> {
        let told = self.state.load(Ordering::SeqCst) == TOLD;
        self.get().map(|entry| Witness { suspect: entry.suspect, told })
    }
}

/// Opens the journal, and moves what stands in it to the suspects. By the postmaster, at the start of the server and
/// after every crash, while no other process of ours exists.
pub fn start() {
    let journal = match FILE.open(PATH) {
        Ok(journal) => journal,
        Err(error) => {
            PgError::new(
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not open file \"{}\": {error}", PATH.to_string_lossy()),
            )
            .detail("Jobs that are running when the server crashes will not be charged an attempt.")
            .log();
            return;
        }
    };
    let layout = (size_of::<Journal>() as u32).rotate_left(7) ^ size_of::<Assignment>() as u32;
    if journal.layout.swap(layout, Ordering::SeqCst) != layout {
        journal.executors.iter().chain(&journal.suspects).for_each(Place::clear);
    }
    let ran: Vec<(Entry, Witness)> =
        journal.executors.iter().filter_map(|place| Some((place.get()?, place.witness()?))).collect();
    let all = ran.iter().map(|(_, witness)| *witness);
    let crash = journal.crashes.fetch_add(u32::from(!ran.is_empty()), Ordering::SeqCst).wrapping_add(1);
    for (entry, witness) in &ran {
        if let Some(free) = journal.suspects.iter().find(|place| place.get().is_none()) {
            free.set(Entry { crash, bystander: !protocol::is_accused(*witness, all.clone()), ..*entry });
        }
    }
    journal.executors.iter().for_each(Place::clear);
}

/// Notes what executor number `index` is about to run.
pub fn begin(index: usize, entry: Entry) {
    if let Some(journal) = FILE.get() {
        journal.executors[index].set(entry);
    }
}

/// Executor number `index` is told to quit because another process has crashed. Safe in a signal handler.
pub fn told_to_quit(index: usize) {
    if let Some(journal) = FILE.get() {
        let state = &journal.executors[index].state;
        let _ = state.compare_exchange(RUNNING, TOLD, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// Strikes it out.
pub fn end(index: usize) {
    if let Some(journal) = FILE.get() {
        journal.executors[index].clear();
    }
}

/// The suspects of a database, with their places.
pub fn suspects(database: u32) -> Vec<(usize, Entry)> {
    let Some(journal) = FILE.get() else { return Vec::new() };
    let entries = journal.suspects.iter().enumerate();
    entries
        .filter_map(|(index, place)| Some((index, place.get()?)))
        .filter(|(_, entry)| entry.database == database)
        .collect()
}

/// What is to be done about somebody who ran at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Charge,
    /// Another was charged.
    Acquit,
    /// An accused of another database is not charged yet.
    Wait,
}

pub fn verdict(entry: &Entry) -> Verdict {
    let Some(journal) = FILE.get() else { return Verdict::Acquit };
    let accused = |other: Entry| other.crash == entry.crash && !other.bystander;
    if !entry.bystander {
        Verdict::Charge
    } else if journal.solved[entry.crash as usize % SOLVED].load(Ordering::SeqCst) == entry.crash {
        Verdict::Acquit
    } else if journal.suspects.iter().filter_map(Place::get).any(accused) {
        Verdict::Wait
    } else {
        Verdict::Charge
    }
}

/// Strikes a suspect out; `charged`: it was there to be charged.
pub fn close(place: usize, charged: bool) {
    let Some(journal) = FILE.get() else { return };
    if let Some(entry) = journal.suspects[place].get().filter(|_| charged) {
        journal.solved[entry.crash as usize % SOLVED].store(entry.crash, Ordering::SeqCst);
    }
    journal.suspects[place].clear();
}
