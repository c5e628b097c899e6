//! What befalls the server: one blow after the other, each followed by a wait until the server is back.

mod blows;
pub mod targets;

use crate::history::now;
use crate::rhythm::pause;
use crate::run::{Blow, Event, Run};
use blows::Blows;
use std::time::{Duration, Instant};

/// The server was not back in time; nothing more can be done to it.
pub struct Lost(pub String);

/// Runs until the time is over, or enough is found by the observers; leaves the server up. On a machine that has others to look
/// after, less happens in that time: until the effort is made it goes on, as long again.
pub fn storm(run: &Run, length: Duration, enough: &dyn Fn() -> bool, made: &dyn Fn() -> bool) -> Result<(), Lost> {
    let begun = Instant::now();
    let mut blows = Blows::new(run);
    while (begun.elapsed() < length || begun.elapsed() < 2 * length && !made()) && !enough() {
        // Waits for nothing: jobs are to run between two blows, some longer and some shorter.
        pause(blows.rng.u64(100..700));
        match blows.rng.u32(..100) {
            0..45 => blows.kill()?,
            45..55 => blows.stop()?,
            55..73 => blows.signal(),
            73..91 => blows.freeze(),
            _ => blows.reload(),
        }
    }
    run.event(Event { at: now(), what: "calm".to_owned(), kind: Blow::Other, pid: 0, back_after: None });
    Ok(())
}
