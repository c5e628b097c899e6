//! wait(), status(), and what the views are made of.

use super::{Fallible, job_argument, missing, no_such_job, or_raise, require_preload};
use crate::catalog;
use crate::gucs;
use crate::job::{JobRef, State, Timing, format_id};
use crate::job_table;
use crate::pg::error::PgError;
use crate::pg::fmgr::{Args, float4_datum, interval_micros, text_datum, uuid_datum};
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::role::bookkeeping;
use crate::pg::spi::{self, Statement};
use crate::pg::{clock, database, latch, lwlock, xact};
use crate::progress;
use crate::shmem::{self, Assignment, ExecutorSlot, WaiterSlot};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum, Oid};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What a job's row says.
struct Row {
    completed: bool,
    cancelled: bool,
    progress: Option<f32>,
    /// The transaction that wrote this version.
    xmin: u32,
    /// message, sqlstate, detail, hint of `result.error`.
    error: Option<PgError>,
    /// `result`, in the memory of the caller's statement.
    result: Option<Datum>,
    last_error: Option<Datum>,
    attempts: Option<i32>,
}

/// Reads the row as the caller.
fn read(table: &Relation, job: &JobRef) -> Option<Row> {
    let sql = format!(
        "SELECT completed IS TRUE, cancelled IS TRUE, progress, xmin::pg_catalog.text::pg_catalog.int8, result,
                result OPERATOR(pg_catalog.#>>) '{{error,message}}', result OPERATOR(pg_catalog.#>>) '{{error,sqlstate}}',
                result OPERATOR(pg_catalog.#>>) '{{error,detail}}', result OPERATOR(pg_catalog.#>>) '{{error,hint}}',
                CASE WHEN pg_catalog.jsonb_typeof(result OPERATOR(pg_catalog.#>) '{{error,attempts}}')
                          OPERATOR(pg_catalog.=) 'number'
                     THEN (result OPERATOR(pg_catalog.#>>) '{{error,attempts}}') END,
                result OPERATOR(pg_catalog.->) 'error'
           FROM {} WHERE id OPERATOR(pg_catalog.=) $1",
        table.qualified_name()
    );
    let context = crate::pg::memory::Current::get();
    spi::connect(|| {
        let rows = Statement::new(sql, &[pg_sys::UUIDOID]).execute(&[spi::uuid(&job.id)], 1);
        if rows.processed == 0 {
            return None;
        }
        let failed = rows.get::<String>(0, 7).filter(|sqlstate| sqlstate.len() == 5);
        Some(Row {
            completed: rows.get(0, 1).unwrap_or(false),
            cancelled: rows.get(0, 2).unwrap_or(false),
            progress: rows.get(0, 3),
            xmin: rows.get::<i64>(0, 4).unwrap_or(0) as u32,
            result: rows.datum(0, 5).map(|datum| context.keep(datum)),
            error: failed.map(|sqlstate| PgError {
                sqlstate,
                message: rows.get(0, 6).unwrap_or_default(),
                detail: rows.get(0, 8),
                hint: rows.get(0, 9),
                context: None,
            }),
            attempts: rows.get::<String>(0, 10).and_then(|n| n.parse().ok()),
            last_error: rows.datum(0, 11).map(|datum| context.keep(datum)),
        })
    })
}

/// wait(id, timeout, job_table) jsonb
pub fn wait(args: &Args) -> Datum {
    let result = or_raise(wait_for(args));
    args.finish(result)
}

fn wait_for(args: &Args) -> Fallible<Option<Datum>> {
    require_preload()?;
    let job = job_argument(args, 0, 2)?;
    let timeout = args.datum(1).map(interval_micros).ok_or_else(|| missing("timeout"))?;
    let timeout = Duration::from_micros(timeout.max(0) as u64);
    let deadline = Instant::now() + timeout;
    let table = job_table::open(Oid::from(job.table), Lock::Read)?;
    let waiter = WaiterSlot::register(database::current().to_u32(), job);
    submit_on_end();
    // Without a place in shared memory it looks now and then; with one that is the safety net.
    let look = if waiter.is_some() { gucs::poll_interval() } else { Duration::from_millis(50) };
    let ended = loop {
        let row = read(&table, &job).ok_or_else(|| no_such_job(&job, &table.name))?;
        if row.completed || row.cancelled {
            break Ok(row);
        }
        if xact::is_own(row.xmin) {
            break Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("job {} was submitted by this transaction", format_id(&job.id)),
            )
            .hint("Commit first: nobody else can see the job before."));
        }
        if xact::keeps_snapshot() {
            break Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot wait for a job in a transaction that keeps its snapshot",
            )
            .hint("Use READ COMMITTED."));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break Err(PgError::new(
                PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
                format!("job {} did not finish within {} ms", format_id(&job.id), timeout.as_millis()),
            )
            .hint("It goes on; wait again, or look at background_jobs.status()."));
        }
        latch::wait(Some(left.min(look)));
    };
    WaiterSlot::release_own();
    let row = ended?;
    match (row.completed, row.error) {
        (true, Some(error)) => Err(error),
        (true, None) => Ok(row.result),
        (false, _) => Err(PgError::new(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!("job {} was cancelled", format_id(&job.id)),
        )),
    }
}

/// Has the waiter's place freed when the transaction ends, should an error end the wait.
fn submit_on_end() {
    crate::submit::note_waiting();
}

/// status(id, job_table): one row, or none if there is no such job.
pub fn status(args: &Args) -> Datum {
    let row = or_raise(status_of(args));
    args.finish_rows(&row.into_iter().collect::<Vec<_>>()).unwrap_or_else(|| args.finish(None))
}

fn status_of(args: &Args) -> Fallible<Option<Vec<Option<Datum>>>> {
    require_preload()?;
    let job = job_argument(args, 0, 1)?;
    let table = job_table::open(Oid::from(job.table), Lock::Read)?;
    let Some(row) = read(&table, &job) else { return Ok(None) };
    let context = Some(crate::pg::memory::Current::get());
    let queued = bookkeeping(|| spi::connect(|| catalog::find_in(job, context)));
    let running = running_executor(&job);
    let int4 = |value: Option<i32>| value.map(Datum::from);
    let final_state = State::of_final(row.completed, row.cancelled, row.error.is_some());
    let Some(queued) = queued.filter(|_| final_state.is_none()) else {
        // Unfinished, but not queued: the table was detached, or its triggers are disabled.
        let state = final_state.map(|state| state.to_string());
        return Ok(Some(vec![
            state.as_deref().and_then(text_datum),
            None,
            None,
            None,
            None,
            int4(row.attempts),
            None,
            None,
            None,
            row.progress.and_then(float4_datum),
            row.last_error,
            None,
        ]));
    };
    let due = queued.timing == Timing::Immediate || queued.run_at <= clock::now();
    let state = State::of_queued(queued.timing, due, queued.handled, running.is_some());
    let limit = queued.max_attempts.or(queued.handler_max_attempts).unwrap_or(gucs::retry_policy().max_attempts);
    let progress = running.as_ref().map(|(slot, _)| progress::reported(slot)).or(row.progress);
    Ok(Some(vec![
        text_datum(&state.to_string()),
        text_datum(&queued.handler),
        queued.queue.as_deref().and_then(text_datum),
        Some(Datum::from(queued.priority)),
        spi::timestamp(queued.run_at),
        int4(Some(queued.attempts + i32::from(running.is_some()))),
        int4(Some(limit)),
        running.as_ref().and_then(|(slot, _)| spi::timestamp(slot.started_at.load(Ordering::Acquire))),
        None,
        progress.and_then(float4_datum),
        queued.last_error,
        int4(running.as_ref().map(|(slot, _)| slot.process.pid())),
    ]))
}

/// The executor that runs the job at this moment.
fn running_executor(job: &JobRef) -> Option<(&'static ExecutorSlot, Assignment)> {
    let database = database::current().to_u32();
    lwlock::with(false, || {
        shmem::executors().iter().filter(|slot| slot.in_database(database)).find_map(|slot| {
            let assignment = slot.claim(slot.running()?).assignment();
            (assignment.job() == *job).then_some((slot, assignment))
        })
    })
}

/// worker_state(): the extension's processes. Jobs are shown to whoever may SELECT from their table.
pub fn worker_state(args: &Args) -> Datum {
    or_raise(require_preload());
    let mut rows = Vec::new();
    let mut push = |pid: i32, role: &str, database: u32, owner: u32, state: &str| {
        let oid = |value: u32| (value != 0).then(|| Datum::from(Oid::from(value)));
        let mut row =
            vec![Some(Datum::from(pid)), text_datum(role), oid(database), oid(owner), text_datum(state)];
        row.resize(11, None);
        rows.push(row);
        rows.len() - 1
    };
    let launcher = shmem::header().launcher.pid();
    if launcher != 0 {
        push(launcher, "launcher", 0, 0, "running");
    }
    for slot in shmem::databases().iter().filter(|slot| slot.dispatcher.pid() != 0) {
        push(slot.dispatcher.pid(), "dispatcher", slot.database.load(Ordering::Acquire), 0, "running");
    }
    for slot in shmem::writers().iter().filter(|slot| slot.process.pid() != 0) {
        let (database, owner) = (slot.database.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
        push(slot.process.pid(), "progress writer", database, owner, "running");
    }
    let mut jobs = Vec::new();
    for slot in shmem::executors().iter().filter(|slot| slot.process.pid() != 0) {
        let (database, owner) = (slot.database.load(Ordering::Acquire), slot.owner.load(Ordering::Acquire));
        let running = lwlock::with(false, || slot.running().map(|number| slot.claim(number).assignment()));
        let state = if running.is_some() { "running" } else { "idle" };
        let row = push(slot.process.pid(), "executor", database, owner, state);
        if let Some(assignment) = running {
            jobs.push((row, slot, assignment));
        }
    }
    for (row, slot, assignment) in jobs {
        let here = slot.database.load(Ordering::Acquire) == database::current().to_u32();
        if !here || !relation::may_select(Oid::from(assignment.table)) {
            continue;
        }
        rows[row].truncate(5);
        rows[row].extend([
            spi::oid(Oid::from(assignment.table)),
            uuid_datum(&assignment.id),
            text_datum(&assignment.handler.to_text()),
            Some(Datum::from(assignment.attempt)),
            spi::timestamp(slot.started_at.load(Ordering::Acquire)),
            float4_datum(progress::reported(slot)),
        ]);
    }
    args.finish_rows(&rows).unwrap_or_else(|| args.finish(None))
}
