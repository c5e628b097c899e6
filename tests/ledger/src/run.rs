//! What the threads of a round share.

use crate::history::{History, Time};
use crate::rhythm::pause;
use crate::scene::Table;
use server_tests::postgres::Client;
use server_tests::{Cluster, Uuid};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Something that the nemesis did.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Time,
    pub what: String,
    pub kind: Blow,
    /// Of the process, where there is one.
    pub pid: u32,
    /// Until the server took connections again, for what ends it.
    pub back_after: Option<Time>,
}

impl Event {
    /// A process that was killed, and the server with it: no stop, however immediate.
    pub fn is_kill(&self) -> bool {
        ["kill ", "segfault ", "abort "].iter().any(|verb| self.what.starts_with(verb))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The server went down without a shutdown: what ran is suspected.
    Crash,
    /// The server was stopped in good order: nobody is charged.
    Stop,
    /// A signal to one process.
    Signal,
    Other,
}

/// A broken invariant: which, in which table, and the job that shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub invariant: &'static str,
    pub table: Option<usize>,
    pub job: Option<Uuid>,
}

pub struct Run {
    pub cluster: Cluster,
    pub tables: Vec<Table>,
    pub seed: u64,
    /// Are there jobs that crash the server? Each takes its time, of which a planted bug has a minute to be found in.
    pub crashers: bool,
    pub history: History,
    pub events: Mutex<Vec<Event>>,
    violations: Mutex<BTreeMap<Violation, String>>,
    /// No new operations.
    pub stop: AtomicBool,
    /// No observers either.
    pub done: AtomicBool,
    /// Clients stay away: a smart stop waits for them.
    pub pause: AtomicBool,
    pub connected: AtomicI32,
}

impl Run {
    pub fn new(cluster: Cluster, tables: Vec<Table>, seed: u64, crashers: bool) -> Run {
        Run {
            cluster,
            tables,
            seed,
            crashers,
            history: History::default(),
            events: Mutex::default(),
            violations: Mutex::default(),
            stop: AtomicBool::new(false),
            done: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            connected: AtomicI32::new(0),
        }
    }

    /// The choices of one thread.
    pub fn rng(&self, stream: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(stream))
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn event(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Adds the crashes that are not known yet; the nemesis may have met such a process at the same moment.
    pub fn crashed(&self, crashes: &[Event]) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        for crash in crashes {
            if !events.iter().any(|known| known.kind == Blow::Crash && known.pid == crash.pid) {
                events.push(crash.clone());
            }
        }
    }

    /// In the order of time.
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        events.sort_by(|one, other| one.at.total_cmp(&other.at));
        events
    }

    /// Takes down a broken invariant, once for each job.
    pub fn violated(&self, invariant: &'static str, table: Option<usize>, job: Option<Uuid>, text: String) {
        let violation = Violation { invariant, table, job };
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).entry(violation).or_insert(text);
    }

    /// How many violations of these there are.
    pub fn broken(&self, invariants: &[&str]) -> usize {
        self.violations().keys().filter(|violation| invariants.contains(&violation.invariant)).count()
    }

    pub fn violations(&self) -> BTreeMap<Violation, String> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A session that comes back when it was ended.
pub struct Session<'a> {
    run: &'a Run,
    database: String,
    role: String,
    client: Option<Client>,
}

impl<'a> Session<'a> {
    pub fn new(run: &'a Run, database: &str, role: &str) -> Session<'a> {
        Session { run, database: database.to_owned(), role: role.to_owned(), client: None }
    }

    /// The session, if the server takes one now; else a short wait.
    pub fn get(&mut self) -> Option<&mut Client> {
        if self.run.pause.load(Ordering::SeqCst) {
            self.leave();
        } else if self.client.as_ref().is_none_or(Client::is_closed) {
            self.leave();
            // Counted first, so that whoever pauses us sees either the count or a session that was refused.
            self.run.connected.fetch_add(1, Ordering::SeqCst);
            self.client = self.run.cluster.try_connect(&self.database, &self.role).ok();
            if self.client.is_none() {
                self.run.connected.fetch_sub(1, Ordering::SeqCst);
            }
        }
        if self.client.is_none() {
            pause(20);
        }
        self.client.as_mut()
    }

    fn leave(&mut self) {
        if self.client.take().is_some() {
            self.run.connected.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
