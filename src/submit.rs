//! How jobs get into the queue and out of it: the row triggers. They write the queue within the client's transaction and take
//! notes of what the dispatcher has to be told when it commits (`notes`).

use crate::catalog::{self, NewJob};
use crate::enqueue::{self, Taken};
use crate::finishing;
use crate::inserted;
use crate::job::{JobRef, RowPlace, Timing, handler_name};
use crate::job_table::{self, Options};
use crate::notes;
use crate::pg::call;
use crate::pg::clock::{self, Timestamp};
use crate::pg::encoding::from_text;
use crate::pg::error::PgError;
use crate::pg::relation::root_of_trigger;
use crate::pg::role::bookkeeping;
use crate::pg::shmem as pg_shmem;
use crate::pg::spi::{self, uuid_bytes};
use crate::pg::statement;
use crate::pg::trigger::{Call, Event, Row};
use crate::planted::{self, Bug};
use crate::protocol::{self, Flags};
use crate::shmem;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum};

/// The time of the next arrival: later than the one before, so that rows keep the order of their insertion.
pub fn arrival() -> Timestamp {
    if pg_shmem::attached() { shmem::arrival() } else { clock::now() }
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

/// A row without the column is unfinished: its job waits until the table is mended.
fn flag(row: &Row, column: &str) -> bool {
    row.get(column, pg_sys::BOOLOID).flatten().is_some_and(|datum| datum.value() as u8 != 0)
}

fn flags(row: &Row) -> Flags {
    Flags { completed: flag(row, "completed"), cancelled: flag(row, "cancelled") }
}

/// What a column says that decides about the job. Without it the job would be another than the client has asked for.
fn needed(row: &Row, column: &str, type_id: pg_sys::Oid) -> Option<Datum> {
    row.get(column, type_id).unwrap_or_else(|| job_table::lost_column(column).raise())
}

fn job_of(row: &Row, table: u32) -> JobRef {
    match needed(row, "id", pg_sys::UUIDOID) {
        Some(id) => JobRef { table, id: uuid_bytes(id) },
        None => PgError::new(PgSqlErrorCode::ERRCODE_NOT_NULL_VIOLATION, "the id of a job must not be null").raise(),
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
    let table = job_table_of(call);
    let job = job_of(&row, table);
    if finishing::includes(job) {
        return;
    }
    let new = new_job(call, &row, job);
    match statement::waiting_for(call) {
        Some(statement) => enqueue::queue_for(statement, new),
        None => enqueue::queue(new, taken_id(call)),
    }
    inserted::note(job);
}

fn options_of(call: &Call) -> Options {
    Options::from_arguments(call.argument(0), call.argument(1).as_deref())
}

/// The key of a table says that an id under which a new row's job is queued already is a former row's. That of a partitioned
/// table says nothing about other partitions.
fn taken_id(call: &Call) -> Taken {
    if call.relation_is_partition() { Taken::Refuse } else { Taken::Replace }
}

/// What a row submits.
fn new_job(call: &Call, row: &Row, job: JobRef) -> NewJob {
    let options = options_of(call);
    let value = |name: &str, type_id| if options.uses(name) { needed(row, name, type_id) } else { None };
    let column = |name: &str| value(name, pg_sys::TEXTOID).map(from_text);
    let handler = column("handler").or_else(|| {
        let payload = needed(row, "payload", pg_sys::JSONBOID)?;
        call::jsonb_field_text(payload, &options.handler_key)
    });
    let arrival = arrival();
    let asked = value("run_at", pg_sys::TIMESTAMPTZOID);
    let (timing, run_at) = schedule(asked.map(|datum| datum.value() as Timestamp), arrival);
    let partition = if call.relation_is_partition() { call.relation().to_u32() } else { 0 };
    NewJob {
        job,
        handler: handler_name(handler),
        priority: value("priority", pg_sys::INT2OID).map(|datum| datum.value() as i16),
        timing,
        run_at,
        enqueued_at: arrival,
        max_attempts: value("max_attempts", pg_sys::INT4OID).map(|datum| datum.value() as i32),
        queue: column("queue"),
        job_key: column("job_key"),
        row: RowPlace { partition, tid: row.tid() },
    }
}

/// AFTER UPDATE, DELETE, TRUNCATE: takes jobs out of the queue that are cancelled, finished by somebody else, or gone.
pub fn withdraw(call: &Call) {
    let table = job_table_of(call);
    match (call.event(), call.is_row(), call.first_row(), call.second_row()) {
        (Event::Update, true, Some(old), Some(new)) => {
            let (before, after) = (job_of(&old, table), job_of(&new, table));
            if finishing::includes(before) {
                return;
            }
            let flags = flags(&new);
            let heeded = Flags { cancelled: flags.cancelled && !planted::is(Bug::NoCancelGuard), ..flags };
            let change = protocol::on_update(heeded, before.id != after.id);
            if change.take_out {
                take_out(before);
            }
            if change.submit {
                enqueue::queue(new_job(call, &new, after), taken_id(call));
            }
        }
        (Event::Delete, true, Some(old), _) => {
            let job = job_of(&old, table);
            if !finishing::includes(job) {
                take_out(job);
            }
        }
        (Event::Truncate, ..) => {
            take_out_all(table);
        }
        _ => protocol_violation(),
    }
}

/// Takes a job out of the queue, and has its run ended.
pub fn take_out(job: JobRef) {
    if bookkeeping(|| spi::connect(|| catalog::withdraw(job))) {
        notes::note_withdrawn();
    }
}

/// Takes all jobs of a table out of the queue; returns how many there were.
pub fn take_out_all(table: u32) -> usize {
    let count = bookkeeping(|| spi::connect(|| catalog::withdraw_all(table)));
    notes::note_withdrawn();
    count
}

/// Is the job in the queue already?
pub fn is_queued(job: JobRef) -> bool {
    bookkeeping(|| spi::connect(|| catalog::find(job))).is_some()
}
