//! The dispatcher: one per database that has the extension, and the only scheduler there. It reads the queue lane by lane
//! (`lane`), hands due jobs to executors of their table's owner (`assign`), starts and stops executors (`roster`),
//! and interrupts, times out and rescues what they run (`supervise`). It touches the extension's own tables only, never
//! a user's, and runs no user code.

mod assign;
mod complain;
mod lane;
mod roster;
mod supervise;

use crate::catalog::{self, Handler};
use crate::gucs;
use crate::handler;
use crate::job::{JobRef, LaneKey, Timing};
use crate::pg::error::PgError;
use crate::pg::{bgworker, clock, database, guc, lwlock, memory, relation, signal, spi, xact};
use crate::protocol::{self, Reading};
use crate::shmem::{self, Assignment, DatabaseSlot, Exit, Note};
use crate::worker::{DISPATCHER, Next, run};
use lane::Lane;
use pgrx::pg_sys::Oid;
use roster::Roster;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use supervise::Interrupts;

const LANES: usize = 1000;
const HOUSEKEEPING: Duration = Duration::from_secs(60);

thread_local! {
    static SLOT: Cell<Option<&'static DatabaseSlot>> = const { Cell::new(None) };
}

/// What others have told, taken before the snapshot in which it is looked for.
struct News {
    poll: bool,
    handlers_version: u64,
    withdrawn: bool,
    /// None: more than could be kept.
    notes: Option<Vec<Note>>,
}

/// A job that was handed out: where it is, and where it came from.
pub struct Claimed {
    executor: usize,
    number: u64,
    lane: LaneKey,
    enqueued_at: clock::Timestamp,
}

/// What the dispatcher knows of a job table.
struct Table {
    owner: u32,
    /// Its owner's jobs may run.
    runnable: bool,
}

pub use complain::runnable;

pub struct Dispatcher {
    slot: &'static DatabaseSlot,
    database: u32,
    name: String,
    handlers: HashMap<(u32, String), Handler>,
    handlers_version: Option<u64>,
    tables: HashMap<u32, Table>,
    lanes: HashMap<LaneKey, Lane>,
    claims: HashMap<JobRef, Claimed>,
    /// Jobs that were submitted again while an earlier run of their id is still claimed.
    skipped: HashMap<JobRef, (LaneKey, clock::Timestamp)>,
    /// Were running when the server crashed, and could not be charged yet.
    uncharged: HashSet<JobRef>,
    /// Some of those for the sake of another database, which may have news at any moment.
    undecided: bool,
    begun: Instant,
    /// Which installation of the extension this dispatcher works for.
    extension: Option<Oid>,
    roster: Roster,
    next_poll: Instant,
    next_housekeeping: Instant,
    /// Names that arrived and that no handler is registered for.
    unhandled: Vec<(u32, String)>,
    unhandled_from: (u32, String),
    interrupts: Interrupts,
    /// Executors that have ended with their work unsettled, and when that was seen.
    gone: HashMap<usize, Instant>,
    /// Attempts that ended with their executor: their rows still show their progress.
    restarts: Vec<Assignment>,
    complained: HashSet<String>,
    unknown_names: usize,
    turns: u64,
    failures: u32,
    /// pg_restore is at work: what a job needs may not be there yet.
    restoring: bool,
    prune_next: bool,
    /// After a failure of our own statements: nothing is done before that.
    not_before: Instant,
}

pub fn main(argument: u64) {
    signal::install(None);
    let slot = &shmem::databases()[argument as usize];
    let ours = lwlock::with(true, || {
        let ours = slot.dispatcher.pid() == 0 && slot.database.load(Ordering::Acquire) != 0;
        if ours {
            slot.dispatcher.announce();
        }
        ours
    });
    if !ours {
        return;
    }
    SLOT.set(Some(slot));
    bgworker::at_exit(|| {
        if let Some(slot) = SLOT.take() {
            slot.dispatcher.clear();
            shmem::header().launcher.wake();
        }
    });
    let database = slot.database.load(Ordering::Acquire);
    if shmem::is_blocked(database) {
        return;
    }
    bgworker::connect(Oid::from(database), Oid::INVALID);
    guc::pin_session();
    guc::notice_deadlocks_first();
    bgworker::report_application_name(DISPATCHER);
    bgworker::report_activity(None);
    let mut dispatcher = Dispatcher::new(slot, database);
    dispatcher.roster.adopt(database, &mut dispatcher.claims);
    run(|| dispatcher.tick());
}

impl Dispatcher {
    fn new(slot: &'static DatabaseSlot, database: u32) -> Self {
        let now = Instant::now();
        Self {
            slot,
            database,
            name: xact::transaction(database::current_name).unwrap_or_default(),
            handlers: HashMap::new(),
            handlers_version: None,
            tables: HashMap::new(),
            lanes: HashMap::new(),
            claims: HashMap::new(),
            skipped: HashMap::new(),
            uncharged: HashSet::new(),
            undecided: false,
            begun: now,
            extension: None,
            roster: Roster::default(),
            next_poll: now,
            next_housekeeping: now,
            unhandled: Vec::new(),
            unhandled_from: (0, String::new()),
            interrupts: Interrupts::default(),
            gone: HashMap::new(),
            restarts: Vec::new(),
            complained: HashSet::new(),
            unknown_names: 0,
            turns: 0,
            failures: 0,
            restoring: false,
            prune_next: false,
            not_before: now,
        }
    }

    fn tick(&mut self) -> Next {
        let penalty = self.not_before.saturating_duration_since(Instant::now());
        if !penalty.is_zero() {
            return Next::Sleep(Some(penalty));
        }
        self.lanes.values_mut().for_each(Lane::unblock);
        // News first, then the claims that have ended, then the snapshot. What the news is about is in the snapshot then, and
        // a job whose end is not in it is still claimed, or it would be handed out twice.
        let allowed = gucs::database_allowed(&self.name);
        let news = self.must_look().then(|| self.news());
        let news = if allowed { news.and_then(|news| self.take_over(news)) } else { news };
        let polled = news.as_ref().is_some_and(|news| news.poll);
        if polled {
            self.charge_suspects();
        }
        self.drain();
        if let Some(news) = news {
            match xact::transaction(|| spi::connect(|| self.look(news))) {
                Ok(true) if allowed => self.failures = 0,
                Ok(true) => return self.close(Exit::NotAllowed),
                Ok(false) => return self.close(Exit::NoExtension),
                Err(error) => return self.recover(&error),
            }
            bgworker::report_statistics();
        }
        let enabled = gucs::ENABLED.get();
        self.slot.paused.store(!enabled, Ordering::Release);
        if enabled && !self.restoring {
            self.assign();
        }
        self.supervise();
        if polled {
            memory::give_back();
        }
        if std::mem::take(&mut self.prune_next) {
            self.prune();
        }
        // What was drained may have left something to look at.
        if self.must_look() { Next::Again } else { Next::Sleep(Some(self.sleep())) }
    }

    fn must_look(&self) -> bool {
        Instant::now() >= self.next_poll
            || self.handlers_version != Some(self.slot.handlers_version.load(Ordering::Acquire))
            || self.slot.withdrawn.load(Ordering::Acquire)
            || self.slot.has_notes()
            || self.lanes_want_a_look()
    }

    /// Is there a lane to be read on, or one where something has become due?
    fn lanes_want_a_look(&self) -> bool {
        let now = shmem::monotone_now();
        self.lanes.values().any(|lane| lane.is_low() || lane.due_in(now).is_some_and(|wait| wait.is_zero()))
    }

    fn news(&self) -> News {
        News {
            poll: Instant::now() >= self.next_poll,
            handlers_version: self.slot.handlers_version.load(Ordering::Acquire),
            withdrawn: self.slot.withdrawn.swap(false, Ordering::AcqRel),
            notes: self.slot.take(),
        }
    }

    /// Takes jobs that came with their notes, if that is all there is to it: an idle server need not look into the queue for the
    /// one job that somebody has just submitted. None: nothing is left to look at.
    fn take_over(&mut self, mut news: News) -> Option<News> {
        if news.poll || news.withdrawn || self.handlers_version != Some(news.handlers_version) {
            return Some(news);
        }
        let Some(notes) = &mut news.notes else { return Some(news) };
        notes.retain(|note| !self.accept(note));
        (!notes.is_empty() || self.lanes_want_a_look()).then_some(news)
    }

    fn accept(&mut self, note: &Note) -> bool {
        let Some(job) = note.only() else { return false };
        let key = note.lane();
        let known = self.handlers.contains_key(&(key.table, key.handler.clone()));
        let other = JobRef { table: key.table, id: job.id };
        if !known || self.claims.contains_key(&other) || self.uncharged.contains(&other) {
            return false;
        }
        match self.lanes.get_mut(&key) {
            Some(lane) => lane.accept(job),
            None => {
                self.lanes.insert(key.clone(), Lane::of(key, job));
                true
            }
        }
    }

    /// Reads what has changed; inside a transaction that was begun after the news. False: the extension is gone.
    fn look(&mut self, news: News) -> bool {
        // DROP EXTENSION locks the extension before its tables; so do we, or each would wait for the other.
        let Some(extension) = database::lock_extension() else { return false };
        // Another one: the executors' sessions know the functions of the former.
        if *self.extension.get_or_insert(extension) != extension {
            return false;
        }
        let (poll, version) = (news.poll, news.handlers_version);
        let handlers_changed = self.handlers_version != Some(version);
        let first = self.handlers_version.is_none();
        if poll || handlers_changed {
            self.restoring = database::is_being_restored();
        }
        if poll || handlers_changed {
            self.handlers = catalog::handlers(None)
                .into_iter()
                .map(|handler| ((handler.table, handler.name.clone()), handler))
                .collect();
            self.handlers_version = Some(version);
            self.lanes.values_mut().for_each(|lane| lane.blocked_until = None);
            self.read_tables();
        }
        let notes = news.notes;
        if poll || handlers_changed || notes.is_none() {
            self.discover();
        }
        if first {
            self.lanes.keys().for_each(|lane| self.forget_clock(lane));
        }
        for note in notes.unwrap_or_default() {
            self.note(note.lane(), note.run_at);
        }
        if news.withdrawn || poll {
            if catalog::purge_dropped_tables() > 0 {
                self.lanes.retain(|key, _| relation::owner(Oid::from(key.table)).is_some());
            }
            self.verify_claims();
            self.lanes.values_mut().for_each(Lane::reread);
        }
        if poll {
            let soon = Duration::from_millis(if self.undecided { 100 } else { u64::MAX });
            self.next_poll = Instant::now() + gucs::poll_interval().min(soon);
            self.complain_about_unhandled();
        }
        if Instant::now() >= self.next_housekeeping {
            self.next_housekeeping = Instant::now() + HOUSEKEEPING;
            self.prune_next = true;
        }
        let monotone_now = shmem::monotone_now();
        let (claims, uncharged, skipped) = (&self.claims, &self.uncharged, &mut self.skipped);
        for lane in self.lanes.values_mut() {
            lane.fill(monotone_now, |key, job, waiting| {
                let claimed = claims.get(job).map(|claimed| claimed.enqueued_at);
                let reading = protocol::on_reading(claimed, waiting.enqueued_at);
                if reading == Reading::Remember {
                    skipped.insert(*job, (key.clone(), waiting.run_at));
                }
                reading != Reading::Keep || uncharged.contains(job)
            });
        }
        // Empty ones are kept for the place that they remember, unless there are very many.
        if self.lanes.len() > LANES {
            self.lanes.retain(|_, lane| !lane.is_empty());
        }
        for (table, name) in std::mem::take(&mut self.unhandled) {
            self.complain_unhandled(table, &name);
        }
        true
    }

    /// Something in this lane is due at `run_at`.
    fn note(&mut self, key: LaneKey, run_at: clock::Timestamp) {
        if self.handlers_version.is_none() {
            // Nothing was read yet; the first look is at everything.
        } else if !self.handlers.contains_key(&(key.table, key.handler.clone())) {
            // Whoever is not registered yet: the registration has the whole queue looked through.
            self.unhandled.push((key.table, key.handler));
        } else if let Some(lane) = self.lanes.get_mut(&key) {
            lane.note(run_at);
        } else {
            self.lanes.insert(key.clone(), Lane::starting_at(key, run_at));
        }
    }

    /// Looks for lanes everywhere, and at each from its beginning.
    fn discover(&mut self) {
        let handlers = &self.handlers;
        self.lanes.retain(|key, _| handlers.contains_key(&(key.table, key.handler.clone())));
        self.lanes.values_mut().for_each(Lane::rewind);
        for key in catalog::lanes() {
            if handlers.contains_key(&(key.table, key.handler.clone())) {
                self.lanes.entry(key).or_insert_with_key(|key| Lane::new(key.clone()));
            }
        }
    }

    /// A delay that was written down while the clock was ahead is as long as it was meant to be only as long as the server knows of
    /// that, which ends when it does. From then on no delay is longer than the longest there is.
    fn forget_clock(&self, lane: &LaneKey) {
        let longest = match lane.timing {
            Timing::Immediate | Timing::Scheduled => return,
            Timing::Quarantine => gucs::crash_quarantine(),
            Timing::Retry => {
                let own = self.handlers.get(&(lane.table, lane.handler.clone()));
                let own = own.map_or(Duration::ZERO, |definition| handler::policy(definition, None).max_delay);
                own.max(gucs::retry_policy().max_delay)
            }
        };
        let longest = longest.as_micros().min(i64::MAX as u128 / 4) as i64;
        catalog::bring_forward(lane, shmem::monotone_now().saturating_add(longest));
    }

    /// Reads whose the tables are, and says once why a table's jobs do not run.
    fn read_tables(&mut self) {
        let tables: HashSet<u32> = self.handlers.keys().map(|(table, _)| *table).collect();
        self.tables.clear();
        for table in tables {
            let Some(owner) = relation::owner(Oid::from(table)) else { continue };
            let problem = runnable(owner).err();
            self.tables.insert(table, Table { owner: owner.to_u32(), runnable: problem.is_none() });
            if let Some(problem) = problem {
                self.complain(format!("owner {} {}", owner.to_u32(), problem.sqlstate), &problem);
            }
        }
    }

    /// Our own statements failed: say so, once in a while, and try again.
    fn recover(&mut self, error: &PgError) -> Next {
        if !xact::transaction(database::has_extension).unwrap_or(true) {
            return self.close(Exit::NoExtension);
        }
        if self.failures == 0 || self.failures.is_power_of_two() {
            error.log();
        }
        self.failures = self.failures.saturating_add(1);
        // What was read of the notes is lost with the transaction; a look from the beginning makes up for it.
        self.next_poll = Instant::now();
        self.supervise();
        self.not_before = Instant::now() + Duration::from_secs(u64::from(self.failures.min(30)));
        Next::Again
    }

    /// Deletes old attempts, in a transaction of its own.
    fn prune(&mut self) {
        match xact::transaction(|| spi::connect(|| catalog::prune(gucs::attempts_retention()))) {
            Ok(0) => {}
            Ok(_) => self.next_housekeeping = Instant::now() + HOUSEKEEPING / 60,
            Err(error) => {
                self.complain("prune".to_string(), &error);
            }
        }
    }

    fn close(&mut self, why: Exit) -> Next {
        self.slot.exit.store(why as u32, Ordering::Release);
        self.roster.dismiss(self.database, why == Exit::NoExtension);
        Next::Leave
    }
}
