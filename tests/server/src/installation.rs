//! A private copy of a PostgreSQL installation with the packaged extension in it.
//!
//! A PostgreSQL program finds its library and share directories relative to where it lies itself, so a tree with the same
//! layout is a whole installation: the programs are real copies (a symbolic link would lead them back to the system's
//! tree), everything else is linked, and the extension lies in the copy only.

use crate::{keeper, os};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Programs that tests and tools start; some systems keep them among hundreds of others.
const PROGRAMS: &[&str] = &[
    "initdb",
    "postgres",
    "pg_ctl",
    "psql",
    "pg_dump",
    "pg_dumpall",
    "pg_restore",
    "pg_config",
    "pg_controldata",
    "pg_basebackup",
    "pg_amcheck",
    "pg_upgrade",
    "pg_resetwal",
    "pgbench",
    "pg_isready",
    "vacuumdb",
];

/// Where the packaged extension lies, if not where `cargo pgrx package` puts it.
const PACKAGE_VARIABLE: &str = "BACKGROUND_JOBS_PACKAGE";

pub struct Installation {
    bin: PathBuf,
    pgxs: PathBuf,
    /// A data directory fresh from initdb, copied for every cluster.
    template: OnceLock<PathBuf>,
    /// The major version.
    pub major: u32,
    pub has_extension: bool,
}

impl Installation {
    /// The copy of this process, shared by its clusters.
    pub fn get() -> &'static Installation {
        static INSTALLATION: OnceLock<Installation> = OnceLock::new();
        INSTALLATION.get_or_init(|| Installation::copy(&pg_config_program(), &keeper::root().join("install")))
    }

    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// PGXS's directory of build helpers, where `pg_regress` lies.
    #[must_use]
    pub fn pgxs(&self) -> &Path {
        &self.pgxs
    }

    fn copy(pg_config: &Path, prefix: &Path) -> Installation {
        let ask = |what: &str| PathBuf::from(os::run(Command::new(pg_config).arg(what)));
        let (bin, lib, share) = (ask("--bindir"), ask("--pkglibdir"), ask("--sharedir"));
        let there = |original: &Path| prefix.join(original.strip_prefix("/").unwrap_or(original));

        for directory in [&bin, &lib, &share, &share.join("extension")] {
            make(&there(directory));
        }
        for name in PROGRAMS {
            if bin.join(name).exists() {
                copy_file(&bin.join(name), &there(&bin).join(name));
            }
        }
        for directory in [&lib, &share, &share.join("extension")] {
            link_entries(directory, &there(directory));
        }

        let major = major_version(&os::run(Command::new(pg_config).arg("--version")));
        let package = package_directory(major);
        let has_extension = package.is_dir();
        if has_extension {
            overlay(&package, prefix);
        }
        Installation { bin: there(&bin), pgxs: lib.join("pgxs"), template: OnceLock::new(), major, has_extension }
    }

    /// A new data directory at `path`, owned by the server's user. Superuser `postgres`, UTF-8, locale C, trust.
    pub(crate) fn data_directory(&self, path: &Path) {
        let template = self.template.get_or_init(|| {
            let home = keeper::root().join("initdb");
            keeper::subdirectory(&home);
            let data = home.join("template");
            let mut initdb = os::server_command(self.program("initdb"), &home);
            initdb.args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]);
            initdb.process_group(0);
            os::run(initdb.arg("-D").arg(&data));
            data
        });
        os::run(Command::new("cp").arg("-a").arg(template).arg(path));
    }
}

/// `PG_CONFIG`, or the first one that is an installation with a server's programs.
fn pg_config_program() -> PathBuf {
    let candidates = match std::env::var_os("PG_CONFIG") {
        Some(named) => vec![PathBuf::from(named)],
        None => vec![PathBuf::from("pg_config"), PathBuf::from("/usr/lib/postgresql/15/bin/pg_config")],
    };
    for candidate in &candidates {
        if let Ok(output) = Command::new(candidate).arg("--bindir").output()
            && Path::new(String::from_utf8_lossy(&output.stdout).trim_end()).join("initdb").exists()
        {
            return candidate.clone();
        }
    }
    panic!("no PostgreSQL server found through {candidates:?}: set PG_CONFIG");
}

/// Of "PostgreSQL 15.20 (Debian ...)".
fn major_version(version: &str) -> u32 {
    let digits: String = version.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|e| panic!("{version}: {e}"))
}

/// Where the headers of the server lie. The copy has none, and its own pg_config would look for them there.
pub(crate) fn include_directory() -> String {
    os::run(Command::new(pg_config_program()).arg("--includedir-server"))
}

fn package_directory(major: u32) -> PathBuf {
    if let Some(named) = std::env::var_os(PACKAGE_VARIABLE) {
        return PathBuf::from(named);
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    target.join(format!("release/background_jobs-pg{major}"))
}

fn make(directory: &Path) {
    fs::create_dir_all(directory).unwrap_or_else(|e| panic!("mkdir {}: {e}", directory.display()));
}

fn copy_file(from: &Path, to: &Path) {
    // A link to the system's own file would be written through.
    let _ = fs::remove_file(to);
    fs::copy(from, to).unwrap_or_else(|e| panic!("copy {} to {}: {e}", from.display(), to.display()));
}

fn link_entries(from: &Path, to: &Path) {
    for entry in entries(from) {
        let target = to.join(entry.file_name());
        if !target.exists() {
            symlink(entry.path(), &target).unwrap_or_else(|e| panic!("link {}: {e}", target.display()));
        }
    }
}

/// Copies the tree of a package, which holds the absolute paths of the installation, over the copy of that installation.
fn overlay(from: &Path, to: &Path) {
    make(to);
    for entry in entries(from) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            overlay(&entry.path(), &target);
        } else {
            copy_file(&entry.path(), &target);
        }
    }
}

fn entries(directory: &Path) -> Vec<fs::DirEntry> {
    directory.read_dir().unwrap_or_else(|e| panic!("read {}: {e}", directory.display())).flatten().collect()
}
