//! One temporary server: built, started, connected to, stopped, crashed, and gone when dropped.

use crate::installation::Installation;
use crate::{keeper, log, os, process, wait};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How `pg_ctl stop -m` calls the ways to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Smart,
    Fast,
    Immediate,
}

pub struct Cluster {
    directory: PathBuf,
    allowed: Vec<String>,
    environment: Vec<(String, String)>,
    postmaster: Mutex<Option<Child>>,
}

impl Cluster {
    /// A place for a server, without one in it.
    pub(crate) fn new(allowed: Vec<String>, environment: Vec<(String, String)>) -> Cluster {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = keeper::root().join(format!("c{number}"));
        keeper::subdirectory(&directory);
        Cluster { directory, allowed, environment, postmaster: Mutex::new(None) }
    }

    /// Starts a stopped server and waits until it takes connections.
    pub fn start(&self) {
        let mut postmaster = self.lock();
        assert!(postmaster.is_none(), "the server runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.unwrap_or_else(|e| panic!("{}: {e}", self.log_file().display()));
        let error_log = log.try_clone().unwrap_or_else(|e| panic!("the log: {e}"));
        let program = Installation::get().program("postgres");
        let mut command = os::server_command(program, &self.directory);
        command.envs(self.environment.iter().cloned());
        command.arg("-D").arg(self.data()).stdin(Stdio::null()).stdout(log).stderr(error_log);
        // A group of its own: Ctrl-C in a terminal is for the test, which then stops the server.
        command.process_group(0);
        let child = command.spawn().unwrap_or_else(|e| panic!("postgres: {e}"));
        let child = postmaster.insert(child);
        let status_file = self.data().join("postmaster.pid");
        let up = wait::attempt(Duration::from_secs(60), "the server to start", || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Err(format!("the server ended at once: {status}")));
            }
            let file = fs::read_to_string(&status_file).unwrap_or_default();
            let ours = file.lines().next() == Some(&child.id().to_string());
            let status = file.lines().nth(7).unwrap_or("no status yet").trim();
            if ours && status == "ready" { Ok(Ok(())) } else { Err(status.to_owned()) }
        });
        if let Err(report) = up.and_then(|up| up) {
            panic!("{report}\n{}", self.log_tail());
        }
    }

    /// Stops the server and returns how long that took. Panics when it takes more than a minute.
    pub fn stop(&self, how: Stop) -> Duration {
        let begin = Instant::now();
        self.try_stop(how, Duration::from_secs(60)).unwrap_or_else(|report| panic!("{report}\n{}", self.log_tail()));
        begin.elapsed()
    }

    pub fn restart(&self, how: Stop) {
        self.stop(how);
        self.start();
    }

    /// Kills the postmaster, as the kernel would for want of memory, waits until its children are gone, and starts again.
    pub fn crash(&self) {
        self.kill(self.postmaster_pid(), Signal::SIGKILL);
        let child = self.lock().take();
        child.map(|mut child| child.wait());
        // Looked for after its death, or one would be missed that it has made since.
        let left = || -> Vec<u32> { process::all().filter(|pid| process::works_in(*pid, &self.data())).collect() };
        let gone = wait::attempt(Duration::from_secs(2), "the children to see it", || {
            let left = left();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        if gone.is_err() {
            // A loop that never waits does not notice the death of the postmaster.
            left().iter().for_each(|pid| self.kill(*pid, Signal::SIGKILL));
            wait::wait_until("the killed children to be gone", || wait::yes(left().is_empty()));
        }
        self.start();
    }

    /// Sends a signal to a process of this server.
    pub fn kill(&self, pid: u32, signal: Signal) {
        assert!(process::works_in(pid, &self.data()), "process {pid} is not one of this server");
        nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), signal)
            .unwrap_or_else(|e| panic!("kill -{signal} {pid}: {e}"));
    }

    /// What a process of this server calls itself; none for one that is somebody else's. It is asked of the kernel: a server that
    /// is going down answers no query.
    #[must_use]
    pub fn title(&self, pid: u32) -> Option<String> {
        process::title(pid, &self.data())
    }

    /// The processes of this server below the postmaster, with their titles.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mut all: Vec<_> = process::all().filter_map(|pid| Some((pid, self.title(pid)?))).collect();
        all.sort_unstable();
        all
    }

    #[must_use]
    pub fn postmaster_pid(&self) -> u32 {
        self.lock().as_ref().map_or_else(|| panic!("the server does not run"), Child::id)
    }

    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory of the socket, the `host` of a client.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Everything the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    #[must_use]
    pub fn log_tail(&self) -> String {
        format!("--- the end of the server's log:\n{}\n---", log::tail(&self.log(), 40))
    }

    /// Lines in the log that no server may write (I17).
    #[must_use]
    pub fn offences(&self) -> Vec<String> {
        log::offences(&self.log(), &self.allowed)
    }

    /// [`wait::wait_until`], with the end of the log in the report.
    pub fn wait_until<T>(&self, what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
        self.wait_within(wait::DEADLINE, what, probe)
    }

    pub fn wait_within<T>(&self, deadline: Duration, what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
        wait::attempt(deadline, what, probe).unwrap_or_else(|report| panic!("{report}\n{}", self.log_tail()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Cluster::stop`]; a server that has not stopped by the deadline is the error, and goes on stopping.
    pub fn try_stop(&self, how: Stop, deadline: Duration) -> Result<(), String> {
        let mut postmaster = self.lock();
        let Some(child) = postmaster.as_mut() else {
            return Ok(());
        };
        let signal = match how {
            Stop::Smart => Signal::SIGTERM,
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        let _ = nix::sys::signal::kill(Pid::from_raw(child.id().cast_signed()), signal);
        wait::attempt(deadline, &format!("the server to stop ({how:?})"), || match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            _ => Err("it still runs".to_owned()),
        })?;
        *postmaster = None;
        Ok(())
    }

    /// Stops the server for good; what went wrong, its log included, is the error.
    pub(crate) fn finish(&self) -> Result<(), String> {
        let mut trouble = String::new();
        if let Err(report) = self.try_stop(Stop::Fast, Duration::from_secs(20)) {
            trouble = format!("{report}\n{}", self.log_tail());
            let _ = self.try_stop(Stop::Immediate, Duration::from_secs(20));
        }
        let offences = self.offences();
        if let Some(first) = offences.first() {
            let (count, around) = (offences.len(), log::around(&self.log(), first));
            let _ = write!(trouble, "\n{count} lines that no log may hold; around the first: {first}\n{around}");
        }
        let _ = fs::remove_dir_all(&self.directory);
        if trouble.is_empty() { Ok(()) } else { Err(trouble) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let outcome = self.finish();
        if let Err(trouble) = outcome {
            // A second panic would abort the process and hide the first.
            if std::thread::panicking() {
                eprintln!("{trouble}");
            } else {
                panic!("{trouble}");
            }
        }
    }
}
