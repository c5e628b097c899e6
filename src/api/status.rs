//! status().

use super::{Fallible, job_argument, or_raise, require_preload};
use crate::catalog::{self, QueuedJob};
use crate::gucs;
use crate::job::{JobRef, State, Timing};
use crate::job_table::{self, Options};
use crate::pg::fmgr::{Args, float4_datum, text_datum};
use crate::pg::memory::Current;
use crate::pg::relation::{Lock, Relation, quote};
use crate::pg::role::bookkeeping;
use crate::pg::spi::{self, Statement};
use crate::pg::{call, clock, database, lwlock};
use crate::progress;
use crate::protocol::FAILED;
use crate::shmem::{self, ExecutorSlot};
use pgrx::pg_sys::{self, Datum, Oid};
use std::sync::atomic::Ordering;

/// The columns of the result, in their order.
#[derive(Default)]
struct Status {
    state: Option<State>,
    handler: Option<String>,
    queue: Option<String>,
    priority: Option<i16>,
    run_at: Option<Datum>,
    attempts: Option<i32>,
    max_attempts: Option<i32>,
    started_at: Option<Datum>,
    finished_at: Option<Datum>,
    progress: Option<f32>,
    last_error: Option<Datum>,
    pid: Option<i32>,
}

impl Status {
    fn into_row(self) -> Vec<Option<Datum>> {
        let text = |value: Option<String>| value.as_deref().and_then(text_datum);
        vec![
            text(self.state.map(|state| state.to_string())),
            text(self.handler),
            text(self.queue),
            self.priority.map(Datum::from),
            self.run_at,
            self.attempts.map(Datum::from),
            self.max_attempts.map(Datum::from),
            self.started_at,
            self.finished_at,
            self.progress.and_then(float4_datum),
            self.last_error,
            self.pid.map(Datum::from),
        ]
    }
}

/// status(id, job_table): one row, or none if there is no such job.
pub fn status(args: &Args) -> Datum {
    let status = or_raise(status_of(args));
    let rows: Vec<_> = status.into_iter().map(Status::into_row).collect();
    args.finish_rows(&rows).unwrap_or_else(|| args.finish(None))
}

fn status_of(args: &Args) -> Fallible<Option<Status>> {
    require_preload()?;
    let job = job_argument(args, 0, 1)?;
    let table = job_table::open(Oid::from(job.table), Lock::Read)?;
    super::refuse_partition(&table)?;
    let memory = Current::get();
    // The queue before the row: a job that is not in the queue any more has its end in the row by then. Whether the
    // caller may read the row decides about the rest.
    let (queued, attempts) =
        bookkeeping(|| spi::connect(|| (catalog::find_in(job, Some(memory)), catalog::last_attempt(job))));
    let Some(mut status) = read(&table, &job, memory) else { return Ok(None) };
    match queued {
        Some(queued) if status.state.is_none() => add_queued(&mut status, &job, queued),
        _ if status.state == Some(State::Completed) => {
            status.attempts = status.attempts.or(Some(attempts.unwrap_or(0) + 1));
        }
        _ => status.attempts = status.attempts.or(attempts),
    }
    Ok(Some(status))
}

/// What the row says, read as the caller.
fn read(table: &Relation, job: &JobRef, memory: Current) -> Option<Status> {
    let options = job_table::attachment(table).unwrap_or_else(|| Options::from_arguments(None, None));
    let column = |name: &str, type_name: &str| {
        if options.uses(name) { quote(name) } else { format!("NULL::pg_catalog.{type_name}") }
    };
    let sql = format!(
        "SELECT completed IS TRUE, cancelled IS TRUE, progress, payload, result OPERATOR(pg_catalog.->) 'error',
                result OPERATOR(pg_catalog.#>>) '{{error,attempts}}', {FAILED},
                {}, {}, {}, {}, {}, {}, {}, {}
           FROM {} WHERE id OPERATOR(pg_catalog.=) $1{}",
        column("handler", "text"),
        column("queue", "text"),
        column("priority", "int2"),
        column("run_at", "timestamptz"),
        column("max_attempts", "int4"),
        column("attempts", "int4"),
        column("started_at", "timestamptz"),
        column("finished_at", "timestamptz"),
        table.qualified_name(),
        job_table::meant_first(table)
    );
    spi::connect(|| {
        let rows = Statement::new(sql, &[pg_sys::UUIDOID]).execute(&[spi::uuid(&job.id)], 1);
        if rows.processed == 0 {
            return None;
        }
        let flag = |column| rows.get::<bool>(0, column).unwrap_or(false);
        let failed = flag(7);
        let error = rows.datum(0, 5).filter(|_| failed).map(|datum| memory.keep(datum));
        let named = |payload| call::jsonb_field_text(payload, &options.handler_key);
        let failed_after = rows.get::<String>(0, 6).filter(|_| failed).and_then(|attempts| attempts.parse().ok());
        Some(Status {
            state: State::of_final(flag(1), flag(2), failed),
            handler: Some(crate::job::handler_name(rows.get(0, 8).or_else(|| rows.datum(0, 4).and_then(named)))),
            queue: rows.get(0, 9),
            priority: rows.get(0, 10),
            run_at: rows.datum(0, 11),
            attempts: rows.get(0, 13).or(failed_after),
            max_attempts: rows.get(0, 12),
            started_at: rows.datum(0, 14),
            finished_at: rows.datum(0, 15),
            progress: rows.get(0, 3),
            last_error: error,
            pid: None,
        })
    })
}

/// What the queue and the executors say about a job that is unfinished.
fn add_queued(status: &mut Status, job: &JobRef, queued: QueuedJob) {
    let running = running_executor(job);
    let due = queued.timing != Timing::Scheduled || queued.run_at <= clock::now();
    status.state = Some(State::of_queued(queued.timing, due, queued.handled, running.is_some()));
    status.handler = Some(queued.handler);
    status.queue = queued.queue;
    status.priority = Some(queued.priority);
    status.run_at = spi::timestamp(queued.run_at);
    status.attempts = Some(queued.attempts + i32::from(running.is_some()));
    let limit = queued.max_attempts.or(queued.handler_max_attempts);
    status.max_attempts = Some(limit.unwrap_or(gucs::retry_policy().max_attempts));
    status.last_error = queued.last_error;
    if let Some(slot) = running {
        status.started_at = spi::timestamp(slot.started_at.load(Ordering::Acquire));
        status.progress = Some(progress::reported(slot));
        status.pid = Some(slot.process.pid());
    }
}

/// The executor that runs the job at this moment.
fn running_executor(job: &JobRef) -> Option<&'static ExecutorSlot> {
    let database = database::current().to_u32();
    lwlock::with(false, || {
        shmem::executors()
            .iter()
            .filter(|slot| slot.in_database(database))
            .find(|slot| slot.running().is_some_and(|number| slot.claim(number).assignment().job() == *job))
    })
}
