//! The processes of the server as the kernel shows them: a server that is going down answers no query.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use server_tests::Cluster;
use std::fs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Executor,
    Dispatcher,
    Launcher,
    ProgressWriter,
    Client,
    Committing,
    Checkpointer,
    WalWriter,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Target::Executor => "executor",
            Target::Dispatcher => "dispatcher",
            Target::Launcher => "launcher",
            Target::ProgressWriter => "progress writer",
            Target::Client => "client backend",
            Target::Committing => "client in COMMIT",
            Target::Checkpointer => "checkpointer",
            Target::WalWriter => "walwriter",
        }
    }

    fn fits(self, title: &str) -> bool {
        match self {
            Target::Executor => title.starts_with("background_jobs executor"),
            Target::Dispatcher => title.starts_with("background_jobs dispatcher"),
            Target::Launcher => title.starts_with("background_jobs launcher"),
            Target::ProgressWriter => title.starts_with("background_jobs progress writer"),
            Target::Client => title.starts_with("client ") && title.contains("[local]"),
            Target::Committing => title.starts_with("client ") && title.ends_with("COMMIT"),
            Target::Checkpointer => title.starts_with("checkpointer"),
            Target::WalWriter => title.starts_with("walwriter"),
        }
    }
}

/// The processes that are such a target.
pub fn find(cluster: &Cluster, target: Target) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let mut found: Vec<u32> =
        pids.filter(|pid| title(cluster, *pid).is_some_and(|title| target.fits(&title))).collect();
    found.sort_unstable();
    found
}

/// What a process of this server calls itself: none for a process that is somebody else's.
fn title(cluster: &Cluster, pid: u32) -> Option<String> {
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    if directory != cluster.data() {
        return None;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    Some(line.strip_prefix("postgres: ")?.trim().to_owned())
}

/// False: there is no such process of this server any more.
pub fn send(cluster: &Cluster, pid: u32, signal: Signal) -> bool {
    title(cluster, pid).is_some() && kill(Pid::from_raw(pid.cast_signed()), signal).is_ok()
}
