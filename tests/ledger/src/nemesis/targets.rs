//! The processes of the server as the kernel shows them: a server that is going down answers no query.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use server_tests::Cluster;

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
    cluster.processes().into_iter().filter(|(_, title)| target.fits(title)).map(|(pid, _)| pid).collect()
}

/// False: there is no such process of this server any more.
pub fn send(cluster: &Cluster, pid: u32, signal: Signal) -> bool {
    cluster.title(pid).is_some() && kill(Pid::from_raw(pid.cast_signed()), signal).is_ok()
}
