//! The dispatcher: one per database that has the extension, and the only scheduler there. It reads the queue lane by lane
//! (`lane`, `lanes`, `reading`, `look`, `search`), hands due jobs to executors of their table's owner (`turns`, `assign`), starts and stops
//! executors (`roster`), and interrupts, times out and rescues what they run (`supervise`, `debts`). It touches the extension's own
//! tables only, never a user's, and runs no user code.

mod assign;
mod complain;
mod debts;
mod lane;
mod lanes;
mod look;
mod pace;
mod reading;
mod rescan;
mod roster;
mod search;
mod supervise;
mod suspects;
mod turns;

use crate::catalog::{self, Handler};
use crate::gucs;
use crate::job::{JobRef, LaneKey};
use crate::pg::error::PgError;
use crate::pg::{bgworker, clock, database, guc, lwlock, memory, signal, spi, xact};
use crate::shmem::{self, Assignment, DatabaseSlot, Exit};
use crate::worker::{DISPATCHER, Next, run};
use complain::Complaints;
use debts::Debts;
use lane::Lane;
use lanes::Lanes;
use pgrx::pg_sys::Oid;
use roster::Roster;
use search::Search;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use supervise::Interrupts;

const HOUSEKEEPING: Duration = Duration::from_secs(60);

thread_local! {
    static SLOT: Cell<Option<&'static DatabaseSlot>> = const { Cell::new(None) };
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

pub struct Dispatcher {
    slot: &'static DatabaseSlot,
    database: u32,
    name: String,
    handlers: HashMap<(u32, Rc<str>), Handler>,
    handlers_version: Option<u64>,
    tables: HashMap<u32, Table>,
    lanes: Lanes,
    /// How long the lanes were left alone the last time that are refused, or share a table with one that is. No other lane is blocked.
    refusals: HashMap<LaneKey, Duration>,
    claims: HashMap<JobRef, Claimed>,
    /// Jobs that were submitted again while an earlier run of their id is still claimed.
    skipped: HashMap<JobRef, (LaneKey, clock::Timestamp)>,
    /// Were running when the server crashed, and could not be charged yet.
    uncharged: HashSet<JobRef>,
    /// Some of those for the sake of another database, which may have news at any moment.
    undecided: bool,
    debts: Debts,
    begun: Instant,
    /// Which installation of the extension this dispatcher works for.
    extension: Option<Oid>,
    roster: Roster,
    next_poll: Instant,
    last_poll: Instant,
    next_housekeeping: Instant,
    search: Search,
    /// Something was withdrawn that may wait in a window.
    windows_are_stale: bool,
    last_renewal: Instant,
    /// Names that arrived and that no handler is registered for.
    unhandled: Vec<(u32, Rc<str>)>,
    /// The table and the lane up to which the queue was looked through for such names.
    unhandled_from: (u32, i64),
    interrupts: Interrupts,
    /// Executors that have ended with their work unsettled, and when that was seen.
    gone: HashMap<usize, Instant>,
    /// Attempts that ended with their executor: their rows still show their progress.
    restarts: Vec<Assignment>,
    complaints: Complaints,
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
            slot.starving.store(0, Ordering::Release);
            // Nobody books any more what sessions hand over.
            slot.set_quiet(false);
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
    // The one before may have ended in its sleep.
    slot.set_quiet(false);
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
            lanes: Lanes::default(),
            refusals: HashMap::new(),
            claims: HashMap::new(),
            skipped: HashMap::new(),
            uncharged: HashSet::new(),
            undecided: false,
            debts: Debts::default(),
            begun: now,
            extension: None,
            roster: Roster::default(),
            next_poll: now,
            last_poll: now,
            next_housekeeping: now,
            search: Search::default(),
            windows_are_stale: false,
            last_renewal: now,
            unhandled: Vec::new(),
            unhandled_from: (0, i64::MIN),
            interrupts: Interrupts::default(),
            gone: HashMap::new(),
            restarts: Vec::new(),
            complaints: Complaints::default(),
            turns: 0,
            failures: 0,
            restoring: false,
            prune_next: false,
            not_before: now,
        }
    }

    fn tick(&mut self) -> Next {
        if self.slot.is_quiet() {
            self.slot.set_quiet(false);
            self.roster.book(self.database, &mut self.claims);
        }
        let penalty = self.not_before.saturating_duration_since(Instant::now());
        if !penalty.is_zero() {
            return Next::Sleep(Some(penalty));
        }
        if !self.refusals.is_empty() {
            self.lanes.values_mut().for_each(Lane::unblock);
        }
        // News first, then the claims that have ended, then the snapshot. What the news is about is in the snapshot then, and
        // a job whose end is not in it is still claimed, or it would be handed out twice.
        let allowed = gucs::database_allowed(&self.name);
        let news = self.must_look().then(|| self.news());
        let news = if allowed { news.and_then(|news| self.take_over(news)) } else { news };
        let polled = news.as_ref().is_some_and(|news| news.poll);
        if polled {
            self.charge_suspects();
        }
        self.charge_debts();
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
        self.slot.restoring.store(self.restoring, Ordering::Release);
        let more = enabled && !self.restoring && self.assign();
        self.supervise();
        if polled {
            memory::give_back();
        }
        if std::mem::take(&mut self.prune_next) {
            self.prune();
        }
        // What was drained may have left something to look at.
        if more || self.must_look() {
            return Next::Again;
        }
        self.slot.set_quiet(enabled && self.has_nothing_to_hand_out());
        Next::Sleep(Some(self.sleep()))
    }

    /// May others hand out what is submitted from now on, until the next tick?
    fn has_nothing_to_hand_out(&self) -> bool {
        !self.restoring
            && self.handlers_version.is_some()
            && self.restarts.is_empty()
            && self.uncharged.is_empty()
            && self.debts.is_empty()
            && self.search.is_over()
            && self.lanes.values().all(|lane| lane.first().is_none())
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
            Err(error) => self.complain("prune".to_string(), &error),
        }
    }

    fn close(&mut self, why: Exit) -> Next {
        self.slot.exit.store(why as u32, Ordering::Release);
        self.roster.dismiss(self.database, why == Exit::NoExtension);
        Next::Leave
    }
}
