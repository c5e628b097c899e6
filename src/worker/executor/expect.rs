//! Getting ready for a job that a session is about to commit (`shmem::alert`), while its commit is on the way to the disk.

use super::batch::{Found, places};
use super::{Executor, PATIENCE};
use crate::catalog;
use crate::owner;
use crate::pg::error::forget_cancel;
use crate::pg::relation::Lock;
use crate::pg::{clock, spi, timer, xact};
use crate::shmem::{Assignment, ExecutorSlot};
use std::time::{Duration, Instant};

/// How long what a rehearsal has brought into the processor's caches stays there, beside what a commit needs.
const FRESH: Duration = Duration::from_micros(50);

/// How long the processor is kept at a time. The session may want this very one; but who gives it away all the time is the last to get
/// it back when others want it.
const STRETCH: Duration = Duration::from_micros(10);

/// Stays awake for the job until it comes, or for as long as that is worth it, and knows its way then.
pub fn expect(executor: &mut Executor) {
    let slot = executor.slot;
    let expects = |slot: &ExecutorSlot| slot.is_idle() && slot.expectation.is_current(clock::monotonic_ns());
    while expects(slot) {
        rehearse(executor, slot.expectation.assignment());
        let rehearsed = Instant::now();
        while expects(slot) && rehearsed.elapsed() < FRESH {
            std::thread::yield_now();
            let yielded = Instant::now();
            while expects(slot) && yielded.elapsed() < STRETCH {
                std::hint::spin_loop();
            }
        }
    }
}

/// Goes the way to the job's row and its function, as `batch::load` and a call do, and does nothing there. No code of the owner's runs.
fn rehearse(executor: &mut Executor, assignment: Assignment) {
    if !executor.clean {
        return;
    }
    executor.refresh_handlers();
    timer::arm(PATIENCE);
    // What fails here fails again when it matters.
    let _ = xact::transaction(|| {
        if !owner::may_run_here() || executor.tables.open(assignment.table, Lock::ReadIfFree).is_none() {
            return;
        }
        let Some(handler) = executor.handlers.resolve(assignment.table, &assignment.handler.to_text()) else { return };
        let job = [(0, assignment)];
        let reached = executor.tables.reach(assignment.table, places(&job), Lock::ReadIfFree);
        xact::with_latest_snapshot(|| {
            spi::connect(|| {
                Found::where_they_were(assignment.table, &reached, &job);
                let _ = catalog::Queue::open().map(|queue| queue.has(&assignment));
            });
        });
        let _ = xact::subtransaction("rehearsing a job", &executor.errors, || handler.function());
    });
    timer::disarm();
    forget_cancel();
    executor.errors.reset();
}
