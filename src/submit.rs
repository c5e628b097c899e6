//! How jobs get into the queue and out of it: the row triggers, and what happens when their transaction commits.
//!
//! A trigger writes the queue within the client's transaction and takes a note in this process. The commit
//! callback hands the notes to the dispatcher and wakes it: one wake-up for a transaction, however many rows it wrote. A
//! wake-up that is lost (a prepared transaction committed from elsewhere) costs at most poll_interval.

use crate::catalog::{self, NewJob};
use crate::job::{JobRef, LaneKey, Timing, Waiting, format_id, handler_name};
use crate::job_table::Options;
use crate::pg::clock::{self, Timestamp};
use crate::pg::encoding::from_text;
use crate::pg::error::PgError;
use crate::pg::relation::{self, root_of_trigger};
use crate::pg::role::bookkeeping;
use crate::pg::spi::{self, uuid_bytes};
use crate::pg::trigger::{Call, Event, Row};
use crate::pg::xact::End;
use crate::pg::{call, database, shmem as pg_shmem};
use crate::planted::{self, Bug};
use crate::protocol::{self, Flags};
use crate::shmem::{self, NOTES, Note, WaiterSlot};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// What the current transaction will have to tell when it commits.
#[derive(Default)]
struct Pending {
    lanes: Vec<(LaneKey, Timestamp)>,
    /// What was done to the queue but for withdrawals, counted.
    changes: usize,
    /// The job of the first change, if that was its submission.
    first: Option<Waiting>,
    withdrawn: bool,
    handlers: bool,
    extension: bool,
    databases: bool,
    blocked: Option<u32>,
}

/// The priorities of handlers that this session has submitted to.
#[derive(Default)]
struct Priorities {
    /// None: good for the current transaction only.
    version: Option<u64>,
    priorities: HashMap<u32, HashMap<String, i16>>,
    count: usize,
}

thread_local! {
    static PENDING: RefCell<Pending> = RefCell::new(Pending::default());
    static SOMETHING_PENDING: Cell<bool> = const { Cell::new(false) };
    static PRIORITIES: RefCell<Priorities> = RefCell::new(Priorities::default());
    static LAST_ARRIVAL: Cell<Timestamp> = const { Cell::new(0) };
    static FINISHING: RefCell<Vec<JobRef>> = const { RefCell::new(Vec::new()) };
}

fn pending(f: impl FnOnce(&mut Pending)) {
    SOMETHING_PENDING.set(true);
    PENDING.with_borrow_mut(f);
}

/// When the lane is to be looked at after the commit.
pub fn note_job(lane: LaneKey, run_at: Timestamp) {
    note_change(lane, run_at, None);
}

fn note_change(lane: LaneKey, run_at: Timestamp, submitted: Option<Waiting>) {
    pending(|p| {
        if p.changes == 0 {
            p.first = submitted;
        }
        p.changes += 1;
        let full = p.lanes.len() > NOTES;
        match p.lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, earliest)) => *earliest = run_at.min(*earliest),
            // More than the dispatcher is told one by one: it will look everywhere.
            None if full => {}
            None => p.lanes.push((lane, run_at)),
        }
    });
}

/// Jobs that may be running were taken out of the queue.
pub fn note_withdrawn() {
    pending(|p| p.withdrawn = true);
}

/// Handlers, or which tables are attached, have changed.
pub fn note_handlers() {
    PRIORITIES.set(Priorities::default());
    pending(|p| p.handlers = true);
}

/// Something was dropped that may be a job table, or hold one, or be the extension.
pub fn note_dropped() {
    pending(|p| {
        p.withdrawn = true;
        p.handlers = true;
    });
}

/// The extension was installed in this database.
pub fn note_extension() {
    pending(|p| p.extension = true);
}

/// A database was created.
pub fn note_databases() {
    pending(|p| p.databases = true);
}

/// This session waits for a job.
pub fn note_waiting() {
    pending(|_| ());
}

/// This session keeps the database to itself until the transaction ends.
pub fn note_blocked(database: u32) {
    pending(|p| p.blocked = Some(database));
}

/// The commit callback: atomics and latches only, an error here would take the server down.
pub fn on_end(end: End) {
    if !SOMETHING_PENDING.replace(false) || !pg_shmem::attached() {
        return;
    }
    let Ok(told) = PENDING.try_with(|p| p.try_borrow_mut().map(|mut p| std::mem::take(&mut *p))) else {
        return;
    };
    let Ok(told) = told else { return };
    forget_passing_priorities();
    if let Some(slot) = told.blocked.and_then(shmem::database) {
        slot.blocked_by.store(0, std::sync::atomic::Ordering::Release);
        shmem::rescan();
    }
    WaiterSlot::release_own();
    if end == End::Abort {
        return;
    }
    let database = database::current().to_u32();
    if told.extension {
        shmem::announce_extension(database);
    }
    if told.databases {
        shmem::rescan();
    }
    if let Some(slot) = shmem::database(database) {
        if told.handlers {
            slot.change_handlers();
        }
        if told.withdrawn {
            slot.withdraw();
            WaiterSlot::wake_all(database);
        }
        let only = told.first.filter(|_| end == End::Commit && told.changes == 1 && !told.withdrawn && !told.handlers);
        let notes: Vec<Note> = told.lanes.iter().filter_map(|(lane, run_at)| Note::new(lane, *run_at, only)).collect();
        if !notes.is_empty() {
            slot.leave(&notes);
        }
    }
}

fn forget_passing_priorities() {
    let _ = PRIORITIES.try_with(|known| {
        if let Ok(mut known) = known.try_borrow_mut()
            && known.version.is_none()
        {
            *known = Priorities::default();
        }
    });
}

/// The next arrival time of this session: later than the one before, so that rows keep the order of their insertion.
pub fn arrival() -> Timestamp {
    let now = clock::now();
    let next = now.max(LAST_ARRIVAL.get().saturating_add(1));
    // A clock that was set back must not keep us ahead of it for long.
    let arrival = if next > now + 1_000_000 { now } else { next };
    LAST_ARRIVAL.set(arrival);
    arrival
}

/// Runs `f`, which finishes these jobs: its own UPDATE is not a client's.
pub fn while_finishing<T>(jobs: Vec<JobRef>, f: impl FnOnce() -> T) -> T {
    FINISHING.replace(jobs);
    let value = f();
    not_finishing();
    value
}

/// After an error inside `while_finishing`.
pub fn not_finishing() {
    FINISHING.take();
}

fn is_finishing(job: JobRef) -> bool {
    FINISHING.with_borrow(|jobs| jobs.contains(&job))
}

/// When a job is due that asks for `run_at`: now, or not before that. A time in the past keeps its place in the order, but
/// for "-infinity", which no position of a lane can lie before.
pub fn schedule(asked: Option<Timestamp>, arrival: Timestamp) -> (Timing, Timestamp) {
    match asked {
        Some(run_at) if run_at > arrival => (Timing::Scheduled, run_at),
        Some(run_at) if run_at > clock::BEGINNING => (Timing::Immediate, run_at),
        _ => (Timing::Immediate, arrival),
    }
}

fn protocol_violation() -> ! {
    PgError::new(
        PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
        "trigger of a job table was not created by background_jobs.attach()",
    )
    .hint("Drop the trigger and call background_jobs.attach().")
    .raise()
}

fn job_table_of(call: &Call) -> u32 {
    let relation = call.relation();
    let root = if call.relation_is_partition() { root_of_trigger(call.trigger(), relation) } else { relation };
    root.to_u32()
}

fn flag(row: &Row, column: &str) -> bool {
    row.get(column, pg_sys::BOOLOID).is_some_and(|datum| datum.value() as u8 != 0)
}

fn flags(row: &Row) -> Flags {
    Flags { completed: flag(row, "completed"), cancelled: flag(row, "cancelled") }
}

fn string(row: &Row, column: &str) -> Option<String> {
    row.get(column, pg_sys::TEXTOID).map(from_text)
}

fn job_of(row: &Row, table: u32) -> JobRef {
    match row.get("id", pg_sys::UUIDOID) {
        Some(id) => JobRef { table, id: uuid_bytes(id) },
        None => PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            "job table has no column \"id\" of type uuid any more",
        )
        .hint("Put the column back, or call background_jobs.detach().")
        .raise(),
    }
}

/// AFTER INSERT FOR EACH ROW: queues the job.
pub fn submit(call: &Call) {
    let (Event::Insert, true, Some(row)) = (call.event(), call.is_row(), call.first_row()) else {
        protocol_violation()
    };
    if !flags(&row).is_open() {
        return;
    }
    submit_row(&row, job_table_of(call), &options_of(call), taken_id(call));
}

fn options_of(call: &Call) -> Options {
    Options::from_arguments(call.argument(0).as_deref(), call.argument(1).as_deref())
}

/// The key of a table says that an id under which a new row's job is queued already is a former row's. That of a partitioned
/// table says nothing about other partitions.
fn taken_id(call: &Call) -> Taken {
    if call.relation_is_partition() { Taken::Refuse } else { Taken::Replace }
}

fn submit_row(row: &Row, table: u32, options: &Options, taken: Taken) {
    let column = |name: &str| options.uses(name).then(|| string(row, name)).flatten();
    let handler = column("handler").or_else(|| {
        let payload = row.get("payload", pg_sys::JSONBOID)?;
        call::jsonb_field_text(payload, &options.handler_key)
    });
    let arrival = arrival();
    let asked = options.uses("run_at").then(|| row.get("run_at", pg_sys::TIMESTAMPTZOID)).flatten();
    let (timing, run_at) = schedule(asked.map(|datum| datum.value() as Timestamp), arrival);
    let number = |name: &str, type_id| options.uses(name).then(|| row.get(name, type_id)).flatten();
    let new = NewJob {
        job: job_of(row, table),
        handler: handler_name(handler),
        priority: number("priority", pg_sys::INT2OID).map(|datum| datum.value() as i16),
        timing,
        run_at,
        enqueued_at: arrival,
        max_attempts: number("max_attempts", pg_sys::INT4OID).map(|datum| datum.value() as i32),
        queue: column("queue"),
        job_key: column("job_key"),
    };
    queue(new, taken);
}

/// What becomes of a queued job that has the id of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Replace,
    Refuse,
}

/// Queues a job for whoever the caller is, and takes the note.
pub fn queue(new: NewJob, taken: Taken) {
    let new = at_least_one_attempt(new);
    let quick = handler_priority(new.job.table, &new.handler).and_then(|priority| catalog::insert(&new, priority));
    match quick {
        Some(lane) => {
            let NewJob { job, run_at, enqueued_at, max_attempts, .. } = new;
            note_change(lane, run_at, Some(Waiting { id: job.id, run_at, enqueued_at, attempts: 0, max_attempts }));
        }
        None => requeue(new, taken),
    }
}

/// The same for a job that is, or may be, in the queue already.
pub fn requeue(new: NewJob, taken: Taken) {
    let new = at_least_one_attempt(new);
    let lane = bookkeeping(|| {
        spi::connect(|| {
            if let Some(key) = &new.job_key {
                refuse_taken_key(new.job, key);
            }
            catalog::enqueue(&new, taken == Taken::Refuse)
        })
    });
    let Some(lane) = lane else { refuse_taken_id(new.job) };
    note_job(lane, new.run_at);
}

fn at_least_one_attempt(new: NewJob) -> NewJob {
    NewJob { max_attempts: new.max_attempts.map(|limit| limit.max(1)), ..new }
}

/// The priority of a handler's jobs, looked up once per session and version of the registry; once per transaction while there is
/// no dispatcher whose slot would tell when it changes. None: nobody tells us when a transaction ends.
fn handler_priority(table: u32, handler: &str) -> Option<i16> {
    if !pg_shmem::attached() {
        return None;
    }
    let slot = shmem::database(database::current().to_u32());
    let version = slot.map(|slot| slot.handlers_version.load(std::sync::atomic::Ordering::Acquire));
    PRIORITIES.with_borrow_mut(|known| {
        if known.version != version || known.count > 1000 {
            *known = Priorities { version, ..Priorities::default() };
        }
        if let Some(priority) = known.priorities.get(&table).and_then(|of_table| of_table.get(handler)) {
            return Some(*priority);
        }
        let priority = bookkeeping(|| spi::connect(|| catalog::handler_priority(table, handler))).unwrap_or(0);
        known.priorities.entry(table).or_default().insert(handler.to_string(), priority);
        known.count += 1;
        Some(priority)
    })
}

fn refuse_taken_id(job: JobRef) -> ! {
    let table = relation::name(pg_sys::Oid::from(job.table)).unwrap_or_else(|| job.table.to_string());
    PgError::new(
        PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
        format!("an unfinished job with id {} exists already in job table \"{table}\"", format_id(&job.id)),
    )
    .detail("The id names the job, so it has to be unique over all partitions.")
    .hint("Should no partition have such a row, call background_jobs.detach() and background_jobs.attach().")
    .raise()
}

fn refuse_taken_key(job: JobRef, key: &str) {
    if catalog::find_by_key(job.table, key).is_some_and(|holder| holder != job.id) {
        PgError::new(
            PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
            format!("an unfinished job with job_key \"{key}\" exists already"),
        )
        .hint("Use background_jobs.enqueue() with job_key_mode 'replace' or 'keep', or cancel that job first.")
        .raise();
    }
}

/// AFTER UPDATE, DELETE, TRUNCATE: takes jobs out of the queue that are cancelled, finished by somebody else, or gone.
pub fn withdraw(call: &Call) {
    let table = job_table_of(call);
    match (call.event(), call.is_row(), call.first_row(), call.second_row()) {
        (Event::Update, true, Some(old), Some(new)) => {
            let (before, after) = (job_of(&old, table), job_of(&new, table));
            if is_finishing(before) {
                return;
            }
            let flags = flags(&new);
            let heeded = Flags { cancelled: flags.cancelled && !planted::is(Bug::NoCancelGuard), ..flags };
            let change = protocol::on_update(heeded, before.id != after.id);
            if change.take_out {
                take_out(before);
            }
            if change.submit {
                submit_row(&new, table, &options_of(call), taken_id(call));
            }
        }
        (Event::Delete, true, Some(old), _) => {
            let job = job_of(&old, table);
            if !is_finishing(job) {
                take_out(job);
            }
        }
        (Event::Truncate, ..) => {
            take_out_all(table);
        }
        _ => protocol_violation(),
    }
}

fn take_out(job: JobRef) {
    if bookkeeping(|| spi::connect(|| catalog::withdraw(job))) {
        note_withdrawn();
    }
}

/// Takes all jobs of a table out of the queue; returns how many there were.
pub fn take_out_all(table: u32) -> usize {
    let count = bookkeeping(|| spi::connect(|| catalog::withdraw_all(table)));
    note_withdrawn();
    count
}

/// Is the job in the queue already?
pub fn is_queued(job: JobRef) -> bool {
    bookkeeping(|| spi::connect(|| catalog::find(job))).is_some()
}
