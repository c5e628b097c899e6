//! A wall clock of the test's own for one server: stepped forwards and back at will, seen by every process of that server and by
//! nobody else.
//!
//! A library of a few lines is preloaded into the server. libfaketime would not do: the postmaster of PostgreSQL 15 forks its
//! workers in a signal handler that interrupts a `select()`, during which that library does not fake, so they never see a step.

use crate::{Builder, keeper, run};
use postgres::Client;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

pub struct WallClock {
    path: PathBuf,
    file: File,
}

impl WallClock {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a file")]
    pub fn new() -> WallClock {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let path = keeper::root().join(format!("clock{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let file = OpenOptions::new().create_new(true).write(true).open(&path);
        let clock = WallClock { file: file.unwrap_or_else(|e| panic!("{}: {e}", path.display())), path };
        clock.write(0);
        clock
    }

    /// The server will look at this clock.
    #[must_use]
    pub fn drive(&self, builder: Builder) -> Builder {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        builder.env("LD_PRELOAD", &text(library())).env("WALL_CLOCK_FILE", &text(&self.path))
    }

    fn write(&self, offset: i64) {
        self.file.write_all_at(&offset.to_ne_bytes(), 0).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
    }

    /// Sets the clock so many seconds ahead of the real one; `client`, a session of that server, has to see it.
    pub fn set(&self, client: &mut Client, offset: i64) {
        self.write(offset);
        let real = UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64());
        let query = "SELECT extract(epoch FROM clock_timestamp())::float8";
        let seen: f64 = client.query_one(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0);
        let ahead = seen - real;
        assert!((ahead - offset as f64).abs() < 5.0, "the server is {ahead} s ahead, and should be {offset} s");
    }
}

fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = keeper::root().join("wall_clock.c");
        let library = keeper::root().join("wall_clock.so");
        std::fs::write(&source, include_str!("wall_clock.c")).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        run(Command::new("cc").args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(&library).arg(&source));
        library
    })
}
