//! Which row an INSERT of ours has inserted, as the row trigger sees it: a trigger of the owner's may have given it another
//! id, and RETURNING would require SELECT.

use crate::job::{JobId, JobRef};
use crate::pg::call::trigger_depth;
use std::cell::Cell;

/// An INSERT that is watched.
#[derive(Clone, Copy)]
struct Watch {
    table: u32,
    /// How deep in triggers the statement's own triggers are: what those insert themselves is deeper.
    depth: i32,
    inserted: Option<JobId>,
}

thread_local! {
    static WATCH: Cell<Option<Watch>> = const { Cell::new(None) };
}

/// Puts back what was watched before, after an error, too.
struct Before(Option<Watch>);

impl Drop for Before {
    fn drop(&mut self) {
        WATCH.set(self.0);
    }
}

/// Runs `f`, an INSERT of one row into the job table; tells the job that it submitted, if it did.
pub fn watch<T>(table: u32, f: impl FnOnce() -> T) -> (T, Option<JobId>) {
    let watch = Watch { table, depth: trigger_depth() + 1, inserted: None };
    let _before = Before(WATCH.replace(Some(watch)));
    let value = f();
    (value, WATCH.get().and_then(|watch| watch.inserted))
}

/// A row was inserted that submits this job; in its trigger.
pub fn note(job: JobRef) {
    if let Some(watch) = WATCH.get()
        && watch.table == job.table
        && watch.inserted.is_none()
        && watch.depth == trigger_depth()
    {
        WATCH.set(Some(Watch { inserted: Some(job.id), ..watch }));
    }
}
