//! Which jobs this process finishes just now: its own UPDATE of their rows is not a client's, so the triggers leave those alone.

use crate::job::JobRef;
use std::cell::RefCell;

thread_local! {
    static FINISHING: RefCell<Vec<JobRef>> = const { RefCell::new(Vec::new()) };
}

/// Ends it, after an error, too.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        FINISHING.take();
    }
}

/// Runs `f`, which finishes these jobs.
pub fn run<T>(jobs: Vec<JobRef>, f: impl FnOnce() -> T) -> T {
    FINISHING.set(jobs);
    let _end = End;
    f()
}

pub fn includes(job: JobRef) -> bool {
    FINISHING.with_borrow(|jobs| jobs.contains(&job))
}
