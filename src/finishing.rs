//! Which jobs this process finishes just now, or makes unfinished again: its own UPDATE of their rows is not a client's, so the triggers
//! leave those alone.

use crate::job::JobRef;
use std::cell::RefCell;

thread_local! {
    static FINISHING: RefCell<Vec<JobRef>> = const { RefCell::new(Vec::new()) };
}

/// Puts back what was there before, after an error, too: a trigger of the owner's on the one row may retry() another job.
struct Before(Vec<JobRef>);

impl Drop for Before {
    fn drop(&mut self) {
        FINISHING.set(std::mem::take(&mut self.0));
    }
}

/// Runs `f`, which writes the rows of these jobs.
pub fn run<T>(jobs: Vec<JobRef>, f: impl FnOnce() -> T) -> T {
    let _before = Before(FINISHING.replace(jobs));
    f()
}

pub fn includes(job: JobRef) -> bool {
    FINISHING.with_borrow(|jobs| jobs.contains(&job))
}
