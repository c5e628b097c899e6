//! What a transaction has to tell when it commits. A trigger takes a note in this process; the callback after the commit hands the notes to
//! the dispatcher and wakes it: one wake-up for a transaction, however many rows it wrote. A wake-up that is lost (a prepared
//! transaction that replication commits; for others see `prepared`) costs at most poll_interval.

use crate::destinations;
use crate::job::{LaneKey, Timing, Waiting};
use crate::pg::clock::Timestamp;
use crate::pg::xact::{self, End};
use crate::pg::{database, shmem as pg_shmem};
use crate::shmem::{self, Action, Assignment, DatabaseSlot, NOTES, Note, WaiterSlot, alert, direct};
use crate::successors;
use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;

/// A job that is in the queue as it was submitted.
#[derive(Clone, Copy)]
pub struct Submitted {
    pub waiting: Waiting,
    /// See `catalog::Destination`.
    pub owner: Option<u32>,
}

/// What the current transaction will have to tell when it commits.
#[derive(Default)]
struct Pending {
    lanes: Vec<(LaneKey, Timestamp)>,
    /// What was done to the queue but for withdrawals, counted.
    changes: usize,
    /// The job of the first change, if that was its submission.
    first: Option<Submitted>,
    withdrawn: bool,
    handlers: bool,
    dropped: bool,
    extension: bool,
    databases: bool,
    blocks: bool,
}

impl Pending {
    /// The job, if there is nothing to tell but that it was submitted.
    fn only(&self) -> Option<Submitted> {
        self.first.filter(|_| self.changes == 1 && !self.withdrawn && !self.handlers && !self.dropped)
    }

    /// What an executor of which owner is told of it, if that need not come from the dispatcher.
    fn direct(&self) -> Option<(u32, Assignment)> {
        let (only, (lane, _)) = self.only().zip(self.lanes.first())?;
        let owner = only.owner.filter(|_| lane.timing == Timing::Immediate)?;
        Some((owner, Assignment::new(lane, &only.waiting, 1, Action::Run)))
    }
}

thread_local! {
    static PENDING: RefCell<Pending> = RefCell::new(Pending::default());
    static SOMETHING_PENDING: Cell<bool> = const { Cell::new(false) };
}

fn pending(f: impl FnOnce(&mut Pending)) {
    SOMETHING_PENDING.set(true);
    PENDING.with_borrow_mut(f);
}

/// After the commit, the lane is to be looked at for `run_at`.
pub fn note_job(lane: LaneKey, run_at: Timestamp) {
    note_change(lane, run_at, None);
}

/// The same of a submission, or of whatever else was done to the queue.
pub fn note_change(lane: LaneKey, run_at: Timestamp, submitted: Option<Submitted>) {
    pending(|p| {
        if p.changes == 0 {
            p.first = submitted;
        }
        p.changes += 1;
        let full = p.lanes.len() > NOTES;
        match p.lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, earliest)) => *earliest = run_at.min(*earliest),
            // More than the dispatcher is told one by one: it will look everywhere.
            None if full => {}
            None => p.lanes.push((lane, run_at)),
        }
    });
}

/// Jobs that may be running were taken out of the queue.
pub fn note_withdrawn() {
    pending(|p| p.withdrawn = true);
}

/// Handlers, or which tables are attached, have changed.
pub fn note_handlers() {
    destinations::forget();
    pending(|p| p.handlers = true);
}

/// Something was dropped that may be a job table, or hold one, or be the extension.
pub fn note_dropped() {
    destinations::forget();
    pending(|p| p.dropped = true);
}

/// The extension was installed in this database.
pub fn note_extension() {
    pending(|p| p.extension = true);
}

/// A database was created.
pub fn note_databases() {
    pending(|p| p.databases = true);
}

/// This session waits for a job.
pub fn note_waiting() {
    pending(|_| ());
}

/// This session keeps a database, or several, to itself until the transaction ends.
pub fn note_blocked() {
    pending(|p| p.blocks = true);
}

/// The callback before a commit: has whoever will get the job woken meanwhile.
pub fn before_commit() {
    if !SOMETHING_PENDING.get() || !pg_shmem::attached() {
        return;
    }
    let Some(slot) = shmem::database(database::current().to_u32()) else { return };
    if let Some((owner, assignment)) = PENDING.with_borrow(Pending::direct) {
        alert::raise(slot, owner, &assignment);
    }
}

/// The callback after a commit: atomics and latches only, an error here would take the server down.
pub fn after_end(end: End) {
    tell(end);
    alert::lift(end == End::Commit);
}

fn tell(end: End) {
    destinations::forget_passing();
    if !SOMETHING_PENDING.replace(false) || !pg_shmem::attached() {
        return;
    }
    let Ok(told) = PENDING.try_with(|p| p.try_borrow_mut().map(|mut p| std::mem::take(&mut *p))) else {
        return;
    };
    let Ok(told) = told else { return };
    successors::forget();
    if told.blocks {
        shmem::databases().iter().for_each(DatabaseSlot::unblock);
        shmem::rescan();
    }
    WaiterSlot::release_own();
    if end == End::Abort {
        return;
    }
    let database = database::current().to_u32();
    if told.extension {
        shmem::announce_extension(database);
    }
    if told.databases {
        shmem::rescan();
    }
    // DROP ... IF EXISTS may have found nothing; nobody need look for what is gone then.
    let dropped = told.dropped && xact::has_written();
    if let Some(slot) = shmem::database(database) {
        if told.handlers || dropped {
            slot.change_handlers();
        }
        if told.withdrawn || dropped {
            slot.withdraw();
            WaiterSlot::wake_all(database);
        }
        let (only, direct) = if end == End::Commit { (told.only(), told.direct()) } else { (None, None) };
        // Its handler may have got a limit since it was looked up.
        let direct = direct.filter(|_| destinations::are_of(slot.handlers_version.load(Ordering::Acquire)));
        if direct.is_some_and(|(owner, assignment)| direct::hand_over(slot, owner, &assignment)) {
            return;
        }
        let only = only.map(|only| only.waiting);
        if !told.lanes.is_empty() {
            slot.leave(told.lanes.iter().filter_map(|(lane, run_at)| Note::new(lane, *run_at, only)));
        }
    }
}
