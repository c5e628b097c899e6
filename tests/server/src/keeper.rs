//! The directory of this process, and the process that cleans up after it.
//!
//! A panic unwinds and drops its clusters, but statics are never dropped, Ctrl-C and `kill -9` unwind nothing, and none of
//! them may leave a server or a directory behind. So a small shell process waits on a pipe that only we hold open: when it
//! ends, for whatever reason, it stops what still runs below our directory and removes it.

use crate::os;
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

const PREFIX: &str = "bgj-";
const SCRIPT: &str = include_str!("keeper.sh");

struct Keeper {
    root: PathBuf,
    process: Mutex<Option<(Child, ChildStdin)>>,
}

static KEEPER: OnceLock<Keeper> = OnceLock::new();

/// The directory of this process, readable by the server's user; made at the first call.
pub fn root() -> &'static Path {
    let keeper = KEEPER.get_or_init(|| {
        // Processes are told apart by their working directory, and the kernel shows that one without symbolic links.
        let base = base_directory();
        let base = base.canonicalize().unwrap_or(base);
        sweep(&base);
        let root = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .permissions(PermissionsExt::from_mode(0o755))
            .tempdir_in(&base)
            .unwrap_or_else(|e| panic!("no temporary directory in {}: {e}", base.display()))
            .keep();
        let mut child =
            command(&root).stdin(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("the keeper did not start: {e}"));
        let pipe = child.stdin.take().unwrap_or_else(|| panic!("the keeper has no pipe"));
        crate::group::at_exit();
        Keeper { root, process: Mutex::new(Some((child, pipe))) }
    });
    &keeper.root
}

/// Tells the keeper to do its work now and waits for it, so that nothing of ours is left when we return to the shell.
pub(crate) fn finish() {
    let Some(keeper) = KEEPER.get() else { return };
    let process = keeper.process.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((mut child, pipe)) = process {
        drop(pipe);
        let _ = child.wait();
    }
}

fn command(root: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    // A group of its own: Ctrl-C in the terminal is for us, and the keeper has to outlive us.
    command.args(["-c", SCRIPT, "keeper"]).arg(root).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A socket's path is at most 107 bytes long and the server's user has to reach it, so an unusual `TMPDIR` is not used.
fn base_directory() -> PathBuf {
    let base = std::env::temp_dir();
    let reachable = base.ancestors().all(|a| a.metadata().is_ok_and(|m| m.mode() & 0o001 != 0));
    if base.is_absolute() && base.as_os_str().len() <= 48 && reachable { base } else { PathBuf::from("/tmp") }
}

/// Removes what processes left whose keeper died with them (a power failure, a killed container).
fn sweep(base: &Path) {
    let me = nix::unistd::Uid::effective().as_raw();
    for entry in base.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse().ok());
        let Some(owner) = owner.filter(|pid| *pid > 0) else {
            continue;
        };
        let Ok(meta) = entry.metadata() else { continue };
        // A keeper may be at work on it at this moment: it needs well under a minute.
        let recent = meta.modified().ok().and_then(|t| t.elapsed().ok()).is_none_or(|age| age.as_secs() < 60);
        if meta.is_dir() && meta.uid() == me && !recent && !alive(Pid::from_raw(owner)) {
            let _ = command(&entry.path()).status();
        }
    }
}

fn alive(pid: Pid) -> bool {
    match nix::sys::signal::kill(pid, None) {
        Ok(()) => true,
        Err(errno) => errno == nix::errno::Errno::EPERM,
    }
}

/// A new directory below ours, given to the server's user.
pub(crate) fn subdirectory(path: &Path) {
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => panic!("{} exists", path.display()),
        Err(e) => panic!("mkdir {}: {e}", path.display()),
    }
    os::give(path);
}
