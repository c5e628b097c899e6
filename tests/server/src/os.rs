//! Who runs the servers: PostgreSQL refuses to run as root, so root hands them to an ordinary user.

use nix::unistd::{Gid, Uid, User};
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The user PostgreSQL runs as when we are root; the Debian packages create `postgres`.
const USER_VARIABLE: &str = "BACKGROUND_JOBS_TEST_USER";

fn server_user() -> Option<(Uid, Gid)> {
    static USER: OnceLock<Option<(Uid, Gid)>> = OnceLock::new();
    *USER.get_or_init(|| {
        if !Uid::effective().is_root() {
            return None;
        }
        let name = std::env::var(USER_VARIABLE).unwrap_or_else(|_| "postgres".to_owned());
        match User::from_name(&name) {
            Ok(Some(user)) if !user.uid.is_root() => Some((user.uid, user.gid)),
            _ => panic!("PostgreSQL does not run as root and there is no ordinary user {name:?}: set {USER_VARIABLE}"),
        }
    })
}

/// Gives a file or directory to the server's user.
pub fn give(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw()))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }
}

/// A command that runs as the server's user, in `directory`, with nothing of our environment but the search path: the
/// caller's `PG*` variables, language and `RUST_BACKTRACE` change what a server does or says.
///
/// The command is our own child (not one of `runuser`), so its process number is the one that we started.
pub fn server_command(program: impl AsRef<OsStr>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").env("HOME", directory).current_dir(directory);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    if let Some((uid, gid)) = server_user() {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command
}

/// Runs the command to its end and panics with what it said when it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
