//! The short way of a job: a session that has committed it puts it into the mailbox of an idle executor itself, which saves waking
//! one process between two others.
//!
//! That is allowed while the dispatcher is *quiet*: asleep, and nothing that it knows of could be handed out. It says so under the
//! lock before it sleeps, takes it back under the lock before it looks at anything, and then books what was handed
//! over meanwhile (`Roster::book`). So a job is in its books, or in no mailbox, when it meets the job in the queue.

use crate::pg::{database, lwlock};
use crate::shmem::{Assignment, DatabaseSlot, ExecutorSlot, executors};
use std::sync::atomic::Ordering;

/// Hands a job to an idle executor of `owner`. False: the dispatcher has to be told of it. Never blocks for long and never fails: it
/// is called after a commit.
pub fn hand_over(slot: &DatabaseSlot, owner: u32, assignment: &Assignment) -> bool {
    if !slot.is_quiet() {
        return false;
    }
    let oid = database::current().to_u32();
    let executor = lwlock::with(true, || {
        // An earlier submission under the same id may still run.
        let same = |claimed: Assignment| claimed.job() == assignment.job();
        let claimed = |slot: &ExecutorSlot| slot.in_database(oid) && slot.undrained().any(same);
        // Since it was looked for, the slot may have become another database's.
        let ours = slot.database.load(Ordering::Acquire) == oid;
        if !ours || !slot.is_quiet() || executors().iter().any(claimed) {
            return None;
        }
        let mut idle = executors().iter().filter(|slot| slot.belongs_to(oid, owner) && slot.is_idle());
        idle.find(|slot| slot.put(assignment).is_some())
    });
    if let Some(executor) = executor {
        executor.process.wake();
    }
    executor.is_some()
}
