//! What an executor is told about a job.

use crate::job::{JobId, JobRef, LaneKey, MAX_HANDLER_NAME, RowPlace, Tid, Timing, Waiting};
use crate::pg::clock::Timestamp;
pub use crate::protocol::Action;
use std::rc::Rc;

/// A handler's name in a fixed place.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    len: u8,
    bytes: [u8; MAX_HANDLER_NAME],
}

impl Name {
    /// `name` is that of a registered handler, so it fits.
    pub fn new(name: &str) -> Self {
        let len = name.len().min(MAX_HANDLER_NAME);
        let mut bytes = [0; MAX_HANDLER_NAME];
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self { len: len as u8, bytes }
    }

    pub fn to_text(self) -> Rc<str> {
        String::from_utf8_lossy(&self.bytes[..self.len as usize]).into()
    }
}

/// A job that is handed to an executor, and what to do about it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Assignment {
    pub table: u32,
    pub id: JobId,
    pub handler: Name,
    pub priority: i16,
    /// The number of the attempt to make, counted from 1.
    pub attempt: i32,
    /// The job's own limit; 0: it has none.
    pub max_attempts: i32,
    /// Together with table and id the identity of this submission: a job that was deleted and inserted again,
    /// or run again by retry(), has another.
    pub enqueued_at: Timestamp,
    /// Since when it could have run.
    pub due_at: Timestamp,
    /// Of its row in the queue.
    pub tid: Tid,
    /// Of its row in the job table, at the submission.
    pub row: RowPlace,
    /// Was running when the server crashed.
    pub suspect: bool,
    pub action: Action,
}

impl Assignment {
    /// What is to be done about a job of this lane.
    pub fn new(lane: &LaneKey, waiting: &Waiting, attempt: i32, action: Action) -> Self {
        Self {
            table: lane.table,
            id: waiting.id,
            handler: Name::new(&lane.handler),
            priority: lane.priority,
            attempt,
            max_attempts: waiting.max_attempts.unwrap_or(0),
            enqueued_at: waiting.enqueued_at,
            due_at: waiting.run_at,
            tid: waiting.tid,
            row: waiting.row,
            suspect: lane.timing == Timing::Quarantine,
            action,
        }
    }

    pub fn job(&self) -> JobRef {
        JobRef { table: self.table, id: self.id }
    }

    /// Its lane, if it waits for this.
    pub fn lane(&self, timing: Timing) -> LaneKey {
        LaneKey { table: self.table, handler: self.handler.to_text(), priority: self.priority, timing }
    }
}
