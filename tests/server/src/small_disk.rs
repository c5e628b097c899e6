//! A directory that holds no more than a test says, for one server: what would make a file in it longer beyond that fails as on a
//! full disk. No file system has to be mounted, so that any user can run such a test.

use crate::keeper;
use crate::preload::{Number, compile};
use crate::{Builder, give};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub struct SmallDisk {
    directory: PathBuf,
    room: Number,
}

impl SmallDisk {
    /// An empty directory of the server's user.
    #[must_use]
    pub fn new(name: &str, megabytes: i64) -> SmallDisk {
        let directory = keeper::root().join(name);
        std::fs::create_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        give(&directory);
        SmallDisk { directory, room: Number::new(megabytes << 20) }
    }

    /// The server will find this disk that small.
    #[must_use]
    pub fn limit(&self, builder: Builder) -> Builder {
        static LIBRARY: OnceLock<String> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| compile("small_disk", include_str!("small_disk.c")));
        let builder = self.room.preload(builder, library, "SMALL_DISK_ROOM");
        builder.env("SMALL_DISK", &self.directory.to_string_lossy())
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn grow(&self, megabytes: i64) {
        self.room.set(megabytes << 20);
    }
}
