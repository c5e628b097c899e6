//! All there is. Small and flat: hundreds of thousands of these are compared.

use crate::history::History;
use crate::job::{Setback, Timing};
use crate::protocol::{Action, ClaimState, Flags, Interrupt, Queued, Sight};

pub const JOBS: usize = 2;
pub const SLOTS: usize = 2;

/// The index of an id; of an executor's slot.
pub type Job = usize;
pub type Place = usize;

/// Whose transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    Client(usize),
    Executor(Place),
}

/// A row that may be there, and what an open transaction has made of it, which also locks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cell<T> {
    pub committed: Option<T>,
    pub pending: Option<(Who, Option<T>)>,
}

impl<T> Default for Cell<T> {
    fn default() -> Self {
        Self { committed: None, pending: None }
    }
}

/// The application's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row {
    pub flags: Flags,
    /// `result` holds an error.
    pub failed: bool,
    /// Tells a row from one that was deleted before, under the same id.
    pub born: i64,
    /// The submission that the row stands for.
    pub stamp: i64,
    /// A client has set its flags back, which submits nothing: nobody runs it.
    pub set_back: bool,
}

impl Row {
    /// Waits for its end.
    pub fn is_unfinished(&self) -> bool {
        self.flags.is_open() && !self.set_back
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Pair {
    pub row: Cell<Row>,
    pub queued: Cell<Queued>,
}

/// What a client's open transaction will tell when it commits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Transaction {
    pub notes: Vec<Note>,
    pub withdrawn: bool,
    /// Submissions, and whatever else was done to the queue but for withdrawals.
    pub changes: u8,
    /// The first of them, if that was an INSERT.
    pub first: Option<(Job, i64)>,
}

/// There is something to read in the lane: the job may be there.
pub type Note = (Job, Lane);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    Immediate,
    Retry,
    Quarantine,
}

impl Lane {
    pub fn of(timing: Timing) -> Self {
        match timing {
            Timing::Immediate | Timing::Scheduled => Self::Immediate,
            Timing::Retry => Self::Retry,
            Timing::Quarantine => Self::Quarantine,
        }
    }

    pub fn timing(self) -> Timing {
        match self {
            Self::Immediate => Timing::Immediate,
            Self::Retry => Timing::Retry,
            Self::Quarantine => Timing::Quarantine,
        }
    }
}

/// What an executor is told about a job: `shmem::Assignment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assignment {
    pub job: Job,
    pub stamp: i64,
    pub attempt: i32,
    pub action: Action,
    pub suspect: bool,
}

/// A place in a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    pub assignment: Assignment,
    pub state: ClaimState,
    /// The dispatcher knows of it.
    pub booked: bool,
    /// Ended without having been run, as far as anybody knows.
    pub refused: bool,
    pub interrupt: Option<Interrupt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    Free,
    Ready,
    Gone,
}

/// How a run ends: `outcome::Ended`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    Done,
    Retry,
    Refused,
    Revoked,
}

/// What the executor does next with the first claim of its mailbox that it has not passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    Load,
    Take(Sight),
    Begin,
    /// The handler runs, and after it what stands between its end and the commit.
    Handler,
    Update,
    /// The row was locked when the UPDATE came to it; `born` of the row that it waits for.
    WaitForRow(i64),
    /// The UPDATE found nothing: is the row open?
    Look,
    Fence,
    Commit,
    /// Everything is rolled back; the end is written down next.
    Record(bool, Setback),
    /// The attempts were used up before.
    Fail,
    Settle(Ended),
}

/// An executor, its slot in shared memory and its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slot {
    pub life: Life,
    /// Claims whose end the dispatcher has not seen yet.
    pub mailbox: Vec<Claim>,
    /// So many of them the executor is through with.
    pub passed: usize,
    /// The next one is marked as running.
    pub running: bool,
    pub step: Step,
    pub journal: Option<Assignment>,
}

impl Slot {
    pub fn new() -> Self {
        Self { life: Life::Free, mailbox: Vec::new(), passed: 0, running: false, step: Step::Load, journal: None }
    }

    pub fn current(&self) -> Option<&Claim> {
        (self.life == Life::Ready).then(|| self.mailbox.get(self.passed)).flatten()
    }

    /// Is the handler's transaction open?
    pub fn is_in_handler(&self) -> bool {
        self.life == Life::Ready
            && matches!(
                self.step,
                Step::Handler | Step::Update | Step::WaitForRow(_) | Step::Look | Step::Fence | Step::Commit
            )
    }
}

/// `dispatcher::Claimed`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claimed {
    pub place: Place,
    pub index: usize,
    pub lane: Lane,
    pub stamp: i64,
}

/// `job::Waiting`, in the window of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Waiting {
    pub job: Job,
    pub lane: Lane,
    pub stamp: i64,
    pub attempts: i32,
}

/// Where the dispatcher is in its loop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum At {
    Ready,
    /// The news are taken and the claims that have ended are drained; the snapshot comes next.
    Reading {
        poll: bool,
        withdrawn: bool,
        notes: Vec<Note>,
    },
    /// The suspects are charged, but not acquitted yet.
    Charged,
    /// What the dead executor of this slot ran is charged.
    Rescuing(Place),
}

/// What the dispatcher knows; gone with its process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dispatcher {
    pub at: At,
    /// Has not looked yet.
    pub fresh: bool,
    pub claims: [Option<Claimed>; JOBS],
    pub skipped: [Option<Lane>; JOBS],
    pub window: Vec<Waiting>,
    pub unread: Vec<Note>,
    pub restarts: Vec<Assignment>,
}

/// How much may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// Statements of clients.
    pub statements: u8,
    /// Handlers that fail, conflict, time out, or cannot be recorded.
    pub failures: u8,
    /// Executors terminated.
    pub kills: u8,
    /// Dispatchers terminated.
    pub dispatchers: u8,
    pub crashes: u8,
    pub stops: u8,
    /// Commits that nobody is told of.
    pub lost: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub jobs: [Pair; JOBS],
    pub clients: [Option<Transaction>; 2],
    pub slots: [Slot; SLOTS],
    /// Of the database's slot in shared memory.
    pub notes: Vec<Note>,
    pub withdrawn: bool,
    /// The executor that runs a suspect.
    pub suspect: Option<Place>,
    pub dispatcher: Option<Dispatcher>,
    /// In the journal, not charged yet.
    pub accused: Vec<Assignment>,
    pub budget: Budget,
    pub history: History,
}

/// Adds to a list that is kept as a set, in order.
pub fn add<T: Ord>(list: &mut Vec<T>, item: T) {
    if let Err(place) = list.binary_search(&item) {
        list.insert(place, item);
    }
}
