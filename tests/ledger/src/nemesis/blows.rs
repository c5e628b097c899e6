//! The blows: kills, stops, signals, pauses, changed settings.

use super::Lost;
use super::targets::{self, Target};
use crate::history::{Time, now};
use crate::log;
use crate::rhythm::pause;
use crate::run::{Blow, Event, Run};
use fastrand::Rng;
use nix::sys::signal::Signal;
use server_tests::Stop;
use server_tests::wait::{attempt, yes};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub struct Blows<'a> {
    run: &'a Run,
    pub rng: Rng,
}

const VICTIMS: [Target; 8] = [
    Target::Executor,
    Target::Dispatcher,
    Target::Launcher,
    Target::ProgressWriter,
    Target::Client,
    Target::Committing,
    Target::Checkpointer,
    Target::WalWriter,
];

/// Settings with the values to choose from; the last one is what the server was started with.
const RELOADS: [(&str, &[&str]); 8] = [
    ("background_jobs.poll_interval", &["50ms", "1s"]),
    ("background_jobs.executor_idle_timeout", &["0", "50ms", "5s"]),
    ("background_jobs.progress_flush_interval", &["10ms", "500ms", "20ms"]),
    ("background_jobs.cancel_grace", &["0", "1s", "300ms"]),
    ("background_jobs.crash_quarantine", &["0", "1s", "300ms"]),
    ("background_jobs.handler_timeout", &["0", "20s"]),
    ("background_jobs.enabled", &["off", "on"]),
    ("background_jobs.databases", &["north, south", "*"]),
];

impl<'a> Blows<'a> {
    pub fn new(run: &'a Run) -> Self {
        Self { run, rng: run.rng(1) }
    }

    fn note(&self, at: Time, what: String, kind: Blow, pid: u32, back_after: Option<Time>) {
        self.run.event(Event { at, what, kind, pid, back_after });
    }

    fn choose(&mut self, target: Target) -> Option<u32> {
        let found = targets::find(&self.run.cluster, target);
        (!found.is_empty()).then(|| found[self.rng.usize(..found.len())])
    }

    /// The executor that runs a poison job, if there is one.
    fn poisoned(&mut self) -> Option<u32> {
        let mut admin = self.run.cluster.try_connect("postgres", "postgres").ok()?;
        let query = "SELECT pid FROM pg_stat_activity
            WHERE backend_type = 'background_jobs executor' AND application_name = 'poison'
              AND query_start < clock_timestamp() - interval '0.3 s' ORDER BY pid";
        let pids: Vec<i32> = admin.query(query, &[]).ok()?.iter().map(|row| row.get(0)).collect();
        (!pids.is_empty()).then(|| pids[self.rng.usize(..pids.len())].cast_unsigned())
    }

    /// Kills a process outright; the server takes all others down and recovers. Or the postmaster itself.
    pub fn kill(&mut self) -> Result<(), Lost> {
        let choice = self.rng.u32(..100);
        if choice < 12 {
            let at = now();
            let begun = Instant::now();
            let pid = self.run.cluster.postmaster_pid();
            self.or_lost("the start after a kill of the postmaster", |run| run.cluster.crash())?;
            self.note(at, "kill postmaster".to_owned(), Blow::Crash, pid, Some(begun.elapsed().as_secs_f64()));
            return Ok(());
        }
        let signal = match self.rng.u32(..10) {
            0 => Signal::SIGSEGV,
            1 => Signal::SIGABRT,
            _ => Signal::SIGKILL,
        };
        if choice < 60
            && let Some(pid) = self.poisoned()
        {
            return self.strike("executor of a poison job", pid, signal);
        }
        let mut target = VICTIMS[self.rng.usize(..VICTIMS.len())];
        if target == Target::Committing {
            // Its COMMIT takes some fifty milliseconds.
            let some = || yes(!targets::find(&self.run.cluster, target).is_empty());
            let _ = attempt(Duration::from_millis(400), "a client in its COMMIT", some);
        }
        let mut pid = self.choose(target);
        if pid.is_none() {
            target = Target::Executor;
            pid = self.choose(target);
        }
        match pid {
            Some(pid) => self.strike(target.name(), pid, signal),
            None => Ok(()),
        }
    }

    fn strike(&mut self, name: &str, pid: u32, signal: Signal) -> Result<(), Lost> {
        let checkpointer = targets::find(&self.run.cluster, Target::Checkpointer);
        let (at, begun) = (now(), Instant::now());
        if !targets::send(&self.run.cluster, pid, signal) {
            return Ok(());
        }
        // The server has gone through its recovery once there is another checkpointer.
        let is_back = || {
            let others = targets::find(&self.run.cluster, Target::Checkpointer);
            let another = !others.is_empty() && others != checkpointer;
            yes(another && self.run.cluster.try_connect("postgres", "postgres").is_ok())
        };
        let what = format!("the server to take connections after {signal} for the {name}");
        attempt(Duration::from_secs(60), &what, is_back).map_err(Lost)?;
        let verb = match signal {
            Signal::SIGKILL => "kill",
            Signal::SIGSEGV => "segfault",
            _ => "abort",
        };
        self.note(at, format!("{verb} {name}"), Blow::Crash, pid, Some(begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Runs what panics when the server does not come back.
    fn or_lost(&self, what: &str, f: impl FnOnce(&Run)) -> Result<(), Lost> {
        let run = self.run;
        catch_unwind(AssertUnwindSafe(|| f(run))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            Lost(format!("{what}: {text}"))
        })
    }

    /// Stops the server in one of the three ways, and starts it.
    pub fn stop(&mut self) -> Result<(), Lost> {
        let (how, name) = match self.rng.u32(..10) {
            0..5 => (Stop::Immediate, "immediate stop"),
            5..8 => (Stop::Fast, "fast stop"),
            _ => (Stop::Smart, "smart stop"),
        };
        if how == Stop::Smart {
            // It waits for its clients, and they do not wait for it.
            self.run.pause.store(true, Ordering::SeqCst);
            let none = || yes(self.run.connected.load(Ordering::SeqCst) == 0);
            if attempt(Duration::from_secs(10), "the clients to leave", none).is_err() {
                self.run.pause.store(false, Ordering::SeqCst);
                return Ok(());
            }
        }
        let (at, begun) = (now(), Instant::now());
        let outcome = self.or_lost(name, |run| {
            stop(run, how);
            run.cluster.start();
        });
        self.run.pause.store(false, Ordering::SeqCst);
        let kind = if how == Stop::Immediate { Blow::Crash } else { Blow::Stop };
        self.note(at, name.to_owned(), kind, 0, Some(begun.elapsed().as_secs_f64()));
        outcome
    }

    /// Asks one process to end, or to cancel what it does.
    pub fn signal(&mut self) {
        let target = VICTIMS[self.rng.usize(..6)];
        let signal = if self.rng.bool() { Signal::SIGTERM } else { Signal::SIGINT };
        let Some(pid) = self.choose(target) else { return };
        let at = now();
        if targets::send(&self.run.cluster, pid, signal) {
            self.note(at, format!("{signal} {}", target.name()), Blow::Signal, pid, None);
        }
    }

    /// Stops a process for a while, as a machine that swaps would. Best of all a dispatcher: then no interrupt hides from
    /// the completions what was cancelled meanwhile.
    pub fn freeze(&mut self) {
        let any = VICTIMS[self.rng.usize(..VICTIMS.len())];
        let target = if self.rng.bool() { Target::Dispatcher } else { any };
        let Some(pid) = self.choose(target) else { return };
        let length = self.rng.u64(50..900);
        let at = now();
        if targets::send(&self.run.cluster, pid, Signal::SIGSTOP) {
            pause(length);
            targets::send(&self.run.cluster, pid, Signal::SIGCONT);
            self.note(at, format!("SIGSTOP {}", target.name()), Blow::Other, pid, None);
        }
    }

    /// Changes a setting, and sometimes soon changes it back.
    pub fn reload(&mut self) {
        let (name, values) = RELOADS[self.rng.usize(..RELOADS.len())];
        let value = values[self.rng.usize(..values.len())];
        let at = now();
        if !set(self.run, name, value) {
            return;
        }
        self.note(at, format!("reload {name}"), Blow::Other, 0, None);
        if matches!(name, "background_jobs.enabled" | "background_jobs.databases") {
            // Without it nothing runs. What is tried is a time without, not a state that it leads to.
            pause(500);
            set(self.run, name, values[values.len() - 1]);
        }
    }
}

/// Stops the server. A handler may have crashed it just before, and PostgreSQL 15 does not get over a stop that comes after the
/// crash and before the redo begins, with no extension in it either: it waits for its checkpointer, and never tells it to go.
fn stop(run: &Run, how: Stop) {
    if run.cluster.try_stop(how, Duration::from_secs(5)).is_ok() {
        return;
    }
    let stuck = log::is_stopped_in_recovery(&run.cluster.log());
    run.cluster.stop(if stuck { Stop::Immediate } else { how });
}

fn set(run: &Run, name: &str, value: &str) -> bool {
    let Ok(mut admin) = run.cluster.try_connect("postgres", "postgres") else { return false };
    admin.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).is_ok()
        && admin.batch_execute("SELECT pg_reload_conf()").is_ok()
}
