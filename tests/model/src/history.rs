//! What the properties have to remember. Nothing here decides what happens.

use crate::state::{JOBS, Job, Row};

/// Submissions in one run at most; a submission's stamp is its number, from 1.
pub const SUBMISSIONS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum End {
    #[default]
    None,
    /// By its handler.
    Completed,
    /// By its last attempt.
    Failed,
    /// By a client whose UPDATE said so, and was committed.
    Cancelled,
    /// By a client: completed, deleted, or moved to another id.
    Withdrawn,
}

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fate {
    pub committed: bool,
    pub starts: u8,
    /// Of these, uncharged by right.
    pub free: u8,
    pub effects: u8,
    pub end: End,
}

/// A rule that was broken at a certain moment, not by a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// An executor changed a row that was finished (I9).
    FinishedRow,
    /// A run was begun of what was never committed (I2).
    Phantom,
    /// Effects were committed by an attempt after which another was handed out (I7).
    OldAttempt,
    /// A finished job was queued by something else than retry() (I9).
    Revived,
}

/// That something worth a test was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seen {
    pub fenced: bool,
    pub unreached: bool,
    pub charged: bool,
    pub late_cancel: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct History {
    pub submissions: u8,
    pub fates: [Fate; SUBMISSIONS + 1],
    /// The latest submission and attempt of each id that was handed out.
    pub handed: [(i64, i32); JOBS],
    pub broken: Option<Broken>,
    pub seen: Seen,
}

impl History {
    pub fn submit(&mut self) -> i64 {
        self.submissions += 1;
        i64::from(self.submissions)
    }

    pub fn is_full(&self) -> bool {
        usize::from(self.submissions) >= SUBMISSIONS
    }

    pub fn fate(&mut self, stamp: i64) -> &mut Fate {
        &mut self.fates[stamp as usize]
    }

    pub fn breaks(&mut self, rule: Broken) {
        self.broken.get_or_insert(rule);
    }

    /// A client has committed this change of a row.
    pub fn committed(&mut self, before: Option<Row>, after: Option<Row>, queued: Option<i64>) {
        if let Some(stamp) = queued {
            self.fate(stamp).committed = true;
        }
        let Some(before) = before.filter(Row::is_unfinished) else {
            return;
        };
        let end = match after {
            Some(after) if after.stamp != before.stamp => End::Withdrawn,
            Some(after) if after.flags.completed => End::Withdrawn,
            Some(after) if after.flags.cancelled => End::Cancelled,
            // Cancelled and set back within the transaction.
            Some(after) if after.set_back => End::Withdrawn,
            Some(_) => return,
            None => End::Withdrawn,
        };
        self.fate(before.stamp).end = end;
    }

    pub fn handed(&mut self, job: Job, stamp: i64, attempt: i32) {
        self.handed[job] = self.handed[job].max((stamp, attempt));
    }
}
