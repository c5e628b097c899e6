//! Transactions and locks: what a session sees, what it has to wait for, what its end does.

use crate::protocol::{Identity, Queued, is_queued};
use crate::state::{Assignment, Cell, Job, Row, State, Who};

impl<T: Copy> Cell<T> {
    /// As a new statement of this transaction sees it.
    pub fn seen_by(&self, who: Who) -> Option<T> {
        match self.pending {
            Some((owner, value)) if owner == who => value,
            _ => self.committed,
        }
    }

    /// May this transaction change it now, or must it wait for another?
    pub fn is_free_for(&self, who: Who) -> bool {
        self.pending.is_none_or(|(owner, _)| owner == who)
    }

    pub fn is_free(&self) -> bool {
        self.pending.is_none()
    }

    pub fn set(&mut self, who: Who, value: Option<T>) {
        self.pending = Some((who, value));
    }

    fn end(&mut self, who: Who, commit: bool) {
        if let Some((owner, value)) = self.pending
            && owner == who
        {
            self.pending = None;
            if commit {
                self.committed = value;
            }
        }
    }
}

impl Assignment {
    pub fn identity(&self) -> Identity {
        Identity::of(self.stamp, self.attempt, self.action)
    }
}

impl State {
    pub fn row(&self, job: Job, who: Who) -> Option<Row> {
        self.jobs[job].row.seen_by(who)
    }

    pub fn queued(&self, job: Job, who: Who) -> Option<Queued> {
        self.jobs[job].queued.seen_by(who)
    }

    pub fn commit(&mut self, who: Who) {
        for pair in &mut self.jobs {
            pair.row.end(who, true);
            pair.queued.end(who, true);
        }
    }

    pub fn roll_back(&mut self, who: Who) {
        for pair in &mut self.jobs {
            pair.row.end(who, false);
            pair.queued.end(who, false);
        }
    }

    /// Is what was handed out still in the queue, for a session without changes of its own?
    pub fn is_queued(&self, assignment: &Assignment) -> bool {
        let queued = self.jobs[assignment.job].queued.committed;
        is_queued(queued.map(|queued| queued.enqueued_at), assignment.stamp)
    }

    /// A transaction of a single UPDATE of the queue's row, which nobody has locked. False: it was not there.
    pub fn change_queued(&mut self, job: Job, change: impl FnOnce(Queued) -> Option<Queued>) -> bool {
        let cell = &mut self.jobs[job].queued;
        let changed = cell.committed.and_then(change);
        cell.committed = changed.or(cell.committed);
        changed.is_some()
    }
}
