//! wait().
//!
//! Between two looks at the job nothing of the caller's table is locked: it can be altered, emptied and dropped meanwhile, by the job
//! itself, too.

use super::{Fallible, attached_table, job_argument, missing, no_such_job, or_raise, require_preload};
use crate::gucs;
use crate::job::{JobRef, format_id};
use crate::job_table;
use crate::notes;
use crate::pg::error::PgError;
use crate::pg::fmgr::{Args, interval_micros};
use crate::pg::memory::{Context, Current};
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::spi::{self, Statement};
use crate::pg::{database, guc, latch, xact};
use crate::protocol::FAILED;
use crate::running;
use crate::shmem::WaiterSlot;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum, Oid};
use std::time::{Duration, Instant};

/// What a job's row says about its end.
struct Row {
    completed: bool,
    cancelled: bool,
    /// The transaction that wrote this version.
    xmin: u32,
    /// message, sqlstate, detail, hint of `result.error`.
    error: Option<PgError>,
    /// Of a completed job, in the memory of the caller's statement.
    result: Option<Datum>,
}

/// Reads the row as the caller.
fn read(table: &Relation, job: &JobRef, memory: Current) -> Option<Row> {
    let sql = format!(
        "SELECT completed IS TRUE, cancelled IS TRUE, xmin::pg_catalog.text::pg_catalog.int8, result, {FAILED},
                result OPERATOR(pg_catalog.#>>) '{{error,message}}', result OPERATOR(pg_catalog.#>>) '{{error,sqlstate}}',
                result OPERATOR(pg_catalog.#>>) '{{error,detail}}', result OPERATOR(pg_catalog.#>>) '{{error,hint}}'
           FROM {} WHERE id OPERATOR(pg_catalog.=) $1{}",
        table.qualified_name(),
        job_table::meant_first(table)
    );
    spi::connect(|| {
        let rows = Statement::new(sql, &[pg_sys::UUIDOID]).execute(&[spi::uuid(&job.id)], 1);
        if rows.processed == 0 {
            return None;
        }
        let completed = rows.get(0, 1).unwrap_or(false);
        let failed = rows.get::<bool>(0, 5).unwrap_or(false);
        Some(Row {
            completed,
            cancelled: rows.get(0, 2).unwrap_or(false),
            xmin: rows.get::<i64>(0, 3).unwrap_or(0) as u32,
            result: rows.datum(0, 4).filter(|_| completed).map(|datum| memory.keep(datum)),
            error: failed.then(|| PgError {
                message: rows.get(0, 6).unwrap_or_default(),
                sqlstate: rows.get(0, 7).unwrap_or_default(),
                detail: rows.get(0, 8),
                hint: rows.get(0, 9),
                context: None,
            }),
        })
    })
}

/// Looks at the job, again and again.
struct Observer {
    job: JobRef,
    /// The table's name when the wait began.
    name: Option<String>,
    /// What a look leaves here is freed by the next.
    scratch: Context,
    /// Where the result is kept.
    memory: Current,
}

impl Observer {
    fn open(job: JobRef) -> Self {
        let name = relation::name(Oid::from(job.table));
        Self { job, name, scratch: Context::new_scratch(c"background_jobs wait"), memory: Current::get() }
    }

    /// Looks at the job, and keeps no lock. Others' locks delay it for as long as the caller has said that it will wait, so that
    /// its lock_timeout is not asked, and a little longer, so that the time is over then.
    fn look(&self, left: Duration) -> Fallible<Row> {
        self.scratch.reset();
        let look = || xact::rolled_back(&self.scratch, || self.read());
        guc::with_lock_timeout(left + Duration::from_millis(1), || self.scratch.run(look)).flatten()
    }

    fn read(&self) -> Fallible<Row> {
        let table = job_table::open(Oid::from(self.job.table), Lock::Read).map_err(|error| match &self.name {
            Some(name) => PgError { message: format!("relation \"{name}\" does not exist"), ..error },
            None => error,
        })?;
        attached_table(&table)?;
        read(&table, &self.job, self.memory).ok_or_else(|| no_such_job(&self.job, &table.name))
    }
}

/// The session's place among those that wait, until this is dropped: after an error, too, of which the transaction may survive.
struct Place {
    has_slot: bool,
}

impl Place {
    fn take(job: JobRef) -> Self {
        let has_slot = WaiterSlot::register(database::current().to_u32(), job).is_some();
        notes::note_waiting();
        Self { has_slot }
    }

    /// Without a slot in shared memory it looks now and then; with one that is the safety net.
    fn look(&self) -> Duration {
        if self.has_slot { gucs::poll_interval() } else { Duration::from_millis(50) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WaiterSlot::release_own();
    }
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
    if running::job().is_some_and(|current| current.assignment.job() == job) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "a handler cannot wait for its own job",
        ));
    }
    let too_late = || {
        PgError::new(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!("job {} did not finish within {} ms", format_id(&job.id), timeout.as_millis()),
        )
        .hint("The job continues; wait again, or look at background_jobs.status().")
    };
    let left = || deadline.saturating_duration_since(Instant::now());
    let observer = Observer::open(job);
    // Who may not read the row, or has nothing to wait for, takes no place in shared memory.
    let mut place = None;
    let row = loop {
        let row = match observer.look(left()) {
            Err(error) if error.is(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE) && left().is_zero() => Err(too_late()),
            row => row,
        }?;
        if row.completed || row.cancelled {
            break row;
        }
        if xact::is_own(row.xmin) {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("job {} was submitted or changed by this transaction", format_id(&job.id)),
            )
            .hint("Commit first; until then the job cannot end."));
        }
        if xact::keeps_snapshot() {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot wait for a job in a transaction that keeps its snapshot",
            )
            .hint("Use READ COMMITTED."));
        }
        let left = left();
        if left.is_zero() {
            return Err(too_late());
        }
        match &place {
            // It may have ended since it was read, so it is read once more.
            None => place = Some(Place::take(job)),
            Some(place) => latch::wait(Some(left.min(place.look()))),
        }
    };
    drop(place);
    observer.scratch.delete();
    match (row.completed, row.error) {
        (true, Some(error)) => Err(error),
        (true, None) => Ok(row.result),
        (false, _) => Err(PgError::new(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!("job {} was cancelled", format_id(&job.id)),
        )),
    }
}
