//! The processes. One loop for all of them: each worker supplies `tick`, which does what there is to do and says how long
//! to sleep. Workers never call one another; they meet in shared memory.

pub mod dispatcher;
pub mod executor;
pub mod launcher;
pub mod progress_writer;

use crate::pg::bgworker::{self, Registration};
use crate::pg::{latch, signal};
use std::time::Duration;

pub const LAUNCHER: &str = "background_jobs launcher";
pub const DISPATCHER: &str = "background_jobs dispatcher";
pub const EXECUTOR: &str = "background_jobs executor";
pub const PROGRESS_WRITER: &str = "background_jobs progress writer";

/// A handler whose runs take less than this on average is short: its jobs may wait behind others, and share a commit.
pub const SHORT: Duration = Duration::from_millis(1);

/// What a worker wants after a tick.
pub enum Next {
    /// Sleep until woken, or for that long.
    Sleep(Option<Duration>),
    /// Call again at once.
    Again,
    /// End the process in an orderly way.
    Leave,
}

/// Runs the worker until it leaves or is asked to end. The latch is cleared before `tick` looks around, so that a wake-up
/// that comes meanwhile is not lost.
pub fn run(mut tick: impl FnMut() -> Next) {
    loop {
        bgworker::leave_if_asked(1);
        signal::reload_if_asked();
        match tick() {
            Next::Sleep(timeout) => latch::wait_quietly(timeout),
            Next::Again => {
                pgrx::check_for_interrupts!();
            }
            Next::Leave => return,
        }
    }
}

/// What an executor is registered with: its slot's number in the lower half, the slot's generation in the upper.
pub fn executor_argument(index: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | index as u64
}

fn executor_of(argument: u64) -> (usize, u32) {
    ((argument & 0xffff_ffff) as usize, (argument >> 32) as u32)
}

/// Registers the launcher, which the postmaster starts when recovery is over and restarts when it fails.
pub fn register_launcher() {
    let launcher = Registration {
        name: LAUNCHER.to_string(),
        kind: LAUNCHER,
        function: "background_jobs_launcher_main",
        argument: 0,
    };
    bgworker::register_static(&launcher, 1);
}
