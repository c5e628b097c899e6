//! A wall clock of the test's own for one server: stepped forwards and back at will, seen by every process of that server and by
//! nobody else.
//!
//! A library of a few lines is preloaded into the server. libfaketime would not do: the postmaster of PostgreSQL 15 forks its
//! workers in a signal handler that interrupts a `select()`, during which that library does not fake, so they never see a step.

use crate::Builder;
use crate::preload::{Number, compile};
use postgres::Client;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

pub struct WallClock(Number);

impl WallClock {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a file")]
    pub fn new() -> WallClock {
        WallClock(Number::new(0))
    }

    /// The server will look at this clock.
    #[must_use]
    pub fn drive(&self, builder: Builder) -> Builder {
        static LIBRARY: OnceLock<String> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| compile("wall_clock", include_str!("wall_clock.c")));
        self.0.preload(builder, library, "WALL_CLOCK_FILE")
    }

    /// Sets the clock so many seconds ahead of the real one; `client`, a session of that server, has to see it.
    pub fn set(&self, client: &mut Client, offset: i64) {
        self.0.set(offset);
        let real = UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64());
        let query = "SELECT extract(epoch FROM clock_timestamp())::float8";
        let seen: f64 = client.query_one(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0);
        let ahead = seen - real;
        assert!((ahead - offset as f64).abs() < 5.0, "the server is {ahead} s ahead, and should be {offset} s");
    }
}
