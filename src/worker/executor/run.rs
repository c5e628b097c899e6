//! Running jobs: one commit for one long job, or for several short ones.
//!
//! A job that shares a commit has a subtransaction of its own. What is finished waits for its commit only as long as
//! `COMPANY`: a job that overruns it is interrupted, rolled back to its subtransaction, and runs again alone once the finished
//! ones are committed, at no cost in attempts. The same happens when the commit itself fails (a deferred
//! constraint): every job of the group runs again alone, and whoever is to blame fails alone.

use super::Executor;
use super::batch::{Job, LIMIT};
use super::outcome::{self, Ended};
use super::row::{self, Returned};
use crate::job::{LaneKey, Timing, format_id};
use crate::journal::{self, Entry};
use crate::pg::error::{PgError, forget_cancel};
use crate::pg::{bgworker, clock, guc, session, signal, timer, xact};
use crate::planted::{self, Bug};
use crate::progress;
use crate::protocol;
use crate::shmem::{Action, Assignment, ClaimState, Note, REFUSED, WaiterSlot};
use crate::submit;
use crate::worker::progress_writer;
use pgrx::PgSqlErrorCode;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long finished jobs wait for others to share their commit.
pub const COMPANY: Duration = Duration::from_millis(5);

/// How long code of the owner may take that is no handler: triggers, policies and constraints around its rows.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A handler whose runs take less than this on average is short.
const SHORT: Duration = Duration::from_millis(1);

/// The job that runs in this process, for current_job() and set_progress().
#[derive(Clone, Copy)]
pub struct Current {
    pub assignment: Assignment,
    pub max_attempts: i32,
}

thread_local! {
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
}

pub fn current() -> Option<Current> {
    CURRENT.get()
}

/// How long handlers take: a moving average per handler.
#[derive(Default)]
pub struct Pace(HashMap<(u32, String), Duration>);

impl Pace {
    fn key(job: &Job) -> (u32, String) {
        (job.assignment.table, job.handler.definition.name.clone())
    }

    fn is_short(&self, job: &Job) -> bool {
        self.0.get(&Self::key(job)).is_some_and(|mean| *mean < SHORT)
    }

    fn note(&mut self, job: &Job, took: Duration) {
        self.0.entry(Self::key(job)).and_modify(|mean| *mean = (*mean * 7 + took) / 8).or_insert(took);
    }
}

/// How the run of a job ended, told to the others once it is committed.
struct Run {
    number: u64,
    assignment: Assignment,
    ended: Ended,
    started_at: clock::Timestamp,
    took: Duration,
    /// It was a run of the handler, or the end of one: to be counted.
    counts: bool,
}

/// Runs the jobs in order.
pub fn all(executor: &mut Executor, jobs: Vec<Job>) {
    let mut jobs = VecDeque::from(jobs);
    while !jobs.is_empty() {
        let (mut runs, mut tried) = (Vec::new(), 0);
        let together = jobs.len() > 1;
        match commit_some(executor, &mut jobs, together, &mut runs, &mut tried) {
            Ok(()) => {
                jobs.drain(..runs.len());
                settle(executor, &runs);
            }
            Err(error) if !together || (tried < 2 && !shares_commit(executor, &jobs[0])) => {
                if let Some(job) = jobs.pop_front() {
                    give_up(executor, &job, error);
                }
            }
            Err(_) => {
                executor.slot.end();
                forget_cancel();
                submit::not_finishing();
                // The first one even if it was not reached: by itself it is given up, or an error at the start would come for ever.
                jobs.iter_mut().take(tried.max(1)).for_each(|job| job.alone = true);
            }
        }
    }
}

/// Runs the first job, and as many of the next as may share its commit, in one transaction; `together`: then their completions
/// are written with one statement at the end. `runs` gets one element for each of the first jobs that is done with; `tried`
/// counts those that were begun, the one that an error came from included.
fn commit_some(
    executor: &mut Executor,
    jobs: &mut VecDeque<Job>,
    together: bool,
    runs: &mut Vec<Run>,
    tried: &mut usize,
) -> Result<(), PgError> {
    let errors = executor.errors;
    xact::user_transaction(&errors, || {
        let mut first_finished: Option<Instant> = None;
        let mut returned = Vec::new();
        let durability = jobs[0].handler.definition.synchronous_commit.clone();
        if let Some(value) = &durability {
            guc::set_local(c"synchronous_commit", value);
        }
        for job in jobs.iter_mut().take(LIMIT) {
            let waited = first_finished.map(|time| time.elapsed());
            let joins = shares_commit(executor, job)
                && job.handler.definition.synchronous_commit == durability
                && waited.is_none_or(|waited| waited < COMPANY);
            if !runs.is_empty() && !joins {
                break;
            }
            *tried += 1;
            if !job.taken && !executor.slot.claim(job.number).take(ClaimState::Running) {
                runs.push(Run::of(job, Ended::Revoked));
                continue;
            }
            job.taken = true;
            let can_wait = together && shares_commit(executor, job) && executor.tables.is_plain(job.assignment.table);
            let later = can_wait.then_some(&mut returned);
            let run = run_one(executor, job, waited.map(|waited| COMPANY - waited), later);
            if matches!(run.ended, Ended::Overran) {
                job.alone = true;
                break;
            }
            runs.push(run);
            first_finished.get_or_insert_with(Instant::now);
            if !shares_commit(executor, job) {
                break;
            }
        }
        if runs.len() > 1 || !returned.is_empty() {
            // Deferred triggers that take too long: every job again, in a commit of its own. One that swallows the alarm has the
            // time that the last of the jobs has.
            executor.slot.started_ns.store(clock::monotonic_ns(), Ordering::Release);
            if let Some(last) = runs.iter().rfind(|run| !matches!(run.ended, Ended::Revoked)) {
                executor.slot.begin(last.number);
            }
            timer::arm(PATIENCE);
            row::complete_together(executor, &returned);
        }
    })
    .inspect(|()| timer::disarm())
    .inspect_err(|_| timer::disarm())
}

fn shares_commit(executor: &Executor, job: &Job) -> bool {
    !job.alone && job.assignment.action == Action::Run && executor.pace.is_short(job)
}

impl Run {
    fn of(job: &Job, ended: Ended) -> Self {
        Self {
            number: job.number,
            assignment: job.assignment,
            ended,
            started_at: 0,
            took: Duration::ZERO,
            counts: true,
        }
    }
}

/// Runs one job in a subtransaction, up to the point where only the commit is missing; if `later` takes the returned job, its
/// completion as well. `company` is how long it may take because finished jobs wait for it.
fn run_one(executor: &mut Executor, job: &Job, company: Option<Duration>, later: Option<&mut Vec<Returned>>) -> Run {
    let slot = executor.slot;
    let mut run = Run::of(job, Ended::Completed);
    run.started_at = clock::now();
    match job.assignment.action {
        Action::Run => {}
        Action::Fail => {
            timer::arm(PATIENCE);
            run.ended = outcome::fail_exhausted(executor, job);
            timer::disarm();
            return run;
        }
        Action::Restart => {
            let errors = executor.errors;
            timer::arm(PATIENCE);
            // Should it fail, the row shows too much for a while; that is worth no attempt.
            let _ = xact::subtransaction("restarting the progress of a job", &errors, || {
                row::restart_progress(executor, job);
            });
            timer::disarm();
            submit::not_finishing();
            run.ended = Ended::Restarted;
            return run;
        }
    }
    let id = format_id(&job.assignment.id);
    let line = format!("background job {id} ({})", job.handler.definition.name);
    bgworker::report_application_name(&job.handler.definition.name);
    bgworker::report_activity(Some(&line));
    begin(executor, job, run.started_at);
    if let Some(company) = company {
        timer::arm(company);
    }
    let begun = Instant::now();
    let mut withdrawn = false;
    let errors = executor.errors;
    let result = xact::subtransaction(&line, &errors, || {
        let value = job.handler.call(&job.assignment.id, job.payload, &executor.memory);
        run.took = begun.elapsed();
        if slot.interrupt().is_some() || (company.is_some() && timer::fired()) {
            // The handler has swallowed it.
            PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "background job was interrupted").raise();
        }
        close_progress(executor);
        if later.is_none() {
            row::complete(executor, job, value, run.started_at, &mut withdrawn);
        }
        value
    });
    let overran = company.is_some() && timer::fired();
    timer::disarm();
    if run.took.is_zero() {
        run.took = begun.elapsed();
    }
    let interrupt = slot.interrupt();
    if shares_commit(executor, job) {
        // A job with a commit of its own stays marked until that is over, so that a deadline holds for it, too.
        slot.end();
    }
    forget_cancel();
    submit::not_finishing();
    CURRENT.set(None);
    close_progress(executor);
    if !planted::is(Bug::NoScrub) {
        session::scrub();
    }
    run.ended = match result {
        Ok(result) => {
            let started_at = run.started_at;
            later.into_iter().for_each(|later| {
                later.push(Returned { assignment: job.assignment, place: job.place, result, started_at })
            });
            Ended::Completed
        }
        Err(_) if protocol::looks_withdrawn(withdrawn, interrupt) => outcome::withdrawn(executor, job, run.started_at),
        Err(_) if overran && interrupt.is_none() => Ended::Overran,
        Err(error) => {
            let (setback, error) = outcome::classify(job, error, interrupt);
            outcome::record(executor, job, setback, &error, run.started_at)
        }
    };
    executor.pace.note(job, if matches!(run.ended, Ended::Overran) { SHORT * 4 } else { run.took });
    run
}

fn begin(executor: &Executor, job: &Job, started_at: clock::Timestamp) {
    let own_limit = (job.assignment.max_attempts > 0).then_some(job.assignment.max_attempts);
    let max_attempts = job.handler.policy(own_limit).max_attempts;
    CURRENT.set(Some(Current { assignment: job.assignment, max_attempts }));
    executor.slot.started_at.store(started_at, Ordering::Release);
    journal::begin(
        executor.index,
        Entry {
            database: executor.database,
            suspect: job.assignment.suspect,
            assignment: job.assignment,
            started_at,
            crash: 0,
            bystander: false,
        },
    );
    executor.slot.started_ns.store(clock::monotonic_ns(), Ordering::Release);
    forget_cancel();
    // Above READ COMMITTED the job's own completion would fail to serialize after a flush of its progress.
    progress::begin(executor.slot, xact::sees_new_commits());
    executor.slot.begin(job.number);
    // It may have been asked for before there was something to interrupt.
    signal::interrupt_self();
}

fn close_progress(executor: &Executor) {
    progress::close(executor.slot, progress_writer::is_alive);
}

/// Tells everybody whom it concerns how the runs ended; they are committed.
fn settle(executor: &mut Executor, runs: &[Run]) {
    executor.slot.end();
    forget_cancel();
    journal::end(executor.index);
    let mut finished = Vec::new();
    let mut notes = Vec::new();
    for run in runs {
        let claim = executor.slot.claim(run.number);
        let handler = run.assignment.handler.to_text();
        match run.ended {
            Ended::Revoked => {}
            Ended::Refused => claim.run_us.store(REFUSED, Ordering::Release),
            _ => claim.run_us.store(run.took.as_micros() as u64, Ordering::Release),
        }
        match run.ended {
            Ended::Completed | Ended::Failed | Ended::Withdrawn => finished.push(run.assignment.job()),
            Ended::Retry(run_at) => {
                let lane = LaneKey {
                    table: run.assignment.table,
                    handler: handler.clone(),
                    priority: run.assignment.priority,
                    timing: Timing::Retry,
                };
                notes.extend(Note::new(&lane, run_at, None));
            }
            Ended::Revoked | Ended::Refused | Ended::Overran | Ended::Restarted => {}
        }
        count(executor, run, &handler);
        if !matches!(run.ended, Ended::Revoked) {
            claim.set(ClaimState::Done);
        }
        executor.slot.passed.store(run.number + 1, Ordering::Release);
    }
    if let Some(slot) = executor.dispatcher() {
        slot.leave(&notes);
    }
    WaiterSlot::wake(executor.database, &finished);
}

fn count(executor: &mut Executor, run: &Run, handler: &str) {
    if !run.counts {
        return;
    }
    let took = run.took.as_secs_f64() * 1000.0;
    let waited = (run.started_at - run.assignment.due_at).max(0) as f64 / 1000.0;
    executor.count(run.assignment.table, handler, |counts| {
        match run.ended {
            Ended::Completed => counts.completed += 1,
            Ended::Failed => counts.failed += 1,
            Ended::Retry(_) => counts.retried += 1,
            Ended::Withdrawn => counts.cancelled += 1,
            Ended::Revoked | Ended::Refused | Ended::Overran | Ended::Restarted => return,
        }
        counts.total_run += took;
        counts.max_run = counts.max_run.max(took);
        counts.total_wait += waited;
        counts.max_wait = counts.max_wait.max(waited);
    });
}

/// The transaction of a single job failed as a whole: at its commit, or in our own part of it.
fn give_up(executor: &mut Executor, job: &Job, error: PgError) {
    CURRENT.set(None);
    let interrupt = executor.slot.interrupt();
    executor.slot.end();
    forget_cancel();
    submit::not_finishing();
    close_progress(executor);
    let started_at = executor.slot.started_at.load(Ordering::Acquire);
    let mut run = Run::of(job, Ended::Refused);
    let (setback, error) = outcome::classify(job, error, interrupt);
    match xact::transaction(|| match protocol::looks_withdrawn(false, interrupt) {
        true => outcome::withdrawn(executor, job, started_at),
        false => outcome::record(executor, job, setback, &error, started_at),
    }) {
        Ok(ended) => run.ended = ended,
        Err(second) => {
            error.without_data().log();
            second.without_data().log();
        }
    }
    settle(executor, &[run]);
}

/// Takes a job out of the queue whose row is finished already.
pub fn discard(executor: &mut Executor, number: u64, assignment: &Assignment) {
    without_handler(executor, number, assignment, |assignment| {
        outcome::take_out(assignment);
        Ended::Withdrawn
    });
}

/// Lets a job wait whose row is not there.
pub fn postpone(executor: &mut Executor, number: u64, assignment: &Assignment) {
    without_handler(executor, number, assignment, outcome::postpone);
}

/// Settles a job that is not run, in a transaction of its own.
fn without_handler(
    executor: &mut Executor,
    number: u64,
    assignment: &Assignment,
    settle_as: impl FnOnce(&Assignment) -> Ended,
) {
    if !executor.slot.claim(number).take(ClaimState::Running) {
        executor.slot.passed.store(number + 1, Ordering::Release);
        return;
    }
    let (started_at, took) = (clock::now(), Duration::ZERO);
    let mut run = Run { number, assignment: *assignment, ended: Ended::Refused, started_at, took, counts: false };
    match xact::transaction(|| settle_as(assignment)) {
        Ok(ended) => run.ended = ended,
        Err(error) => error.without_data().log(),
    }
    settle(executor, &[run]);
}
