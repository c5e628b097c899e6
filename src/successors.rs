//! Keys that pass from a job to its successor. A handler may submit a job under the job_key of its own job, so that it runs again
//! later: its own job, which is about to be finished, does not count as one that has the key.
//!
//! The successor gets the key when its predecessor leaves the queue, in the same transaction: everybody else sees one job with the key
//! at any time. It is not taken from the predecessor any sooner, because its place in the queue would be locked until the handler
//! ends, and whoever cancels the job would wait for that.

use crate::catalog;
use crate::job::{JobId, JobRef};
use crate::pg::clock::Timestamp;
use crate::pg::role::bookkeeping;
use crate::pg::spi;
use crate::running;
use std::cell::RefCell;

/// A job that is to get the key of `of`. Its submission may have been rolled back since.
struct Successor {
    of: JobRef,
    key: String,
    job: JobRef,
    enqueued_at: Timestamp,
}

impl Successor {
    fn is_queued(&self) -> bool {
        catalog::find(self.job).is_some_and(|queued| queued.enqueued_at == self.enqueued_at)
    }
}

thread_local! {
    static SUCCESSORS: RefCell<Vec<Successor>> = const { RefCell::new(Vec::new()) };
}

/// Who has a key.
pub struct Holder {
    /// The unfinished job that keeps others from it.
    pub job: Option<JobId>,
    /// The job that has it until it is finished, if that is the one whose handler runs here.
    pub running: Option<JobRef>,
}

/// To be called as the statements of `catalog` are.
pub fn holder(of: u32, key: &str) -> Holder {
    let found = catalog::find_by_key(of, key);
    let running = running::job().map(|current| current.assignment.job());
    let running = running.filter(|job| job.table == of && found == Some(job.id));
    let Some(predecessor) = running else { return Holder { job: found, running } };
    let job = SUCCESSORS.with_borrow(|noted| {
        let successor =
            |successor: &&Successor| successor.of == predecessor && successor.key == key && successor.is_queued();
        noted.iter().rfind(successor).map(|successor| successor.job.id)
    });
    Holder { job, running }
}

/// The job, which was queued without the key, is to get it when `of` is finished.
pub fn note(of: JobRef, key: String, job: JobRef, enqueued_at: Timestamp) {
    SUCCESSORS.with_borrow_mut(|noted| noted.push(Successor { of, key, job, enqueued_at }));
}

/// The job has left the queue.
pub fn hand_over(of: JobRef) {
    if SUCCESSORS.with_borrow(Vec::is_empty) {
        return;
    }
    SUCCESSORS.with_borrow(|noted| {
        for successor in noted.iter().filter(|successor| successor.of == of) {
            bookkeeping(|| spi::connect(|| catalog::give_key(successor.job, successor.enqueued_at, &successor.key)));
        }
    });
}

/// At the end of a transaction; never fails.
pub fn forget() {
    let _ = SUCCESSORS.try_with(|noted| noted.try_borrow_mut().map(|mut noted| noted.clear()));
}
