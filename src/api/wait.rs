//! wait().

use super::{Fallible, attached_table, job_argument, missing, no_such_job, or_raise, require_preload};
use crate::gucs;
use crate::job::{JobRef, format_id};
use crate::job_table;
use crate::notes;
use crate::pg::error::PgError;
use crate::pg::fmgr::{Args, interval_micros};
use crate::pg::memory::Current;
use crate::pg::relation::{Lock, Relation};
use crate::pg::spi::{self, Statement};
use crate::pg::{database, latch, xact};
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
    /// In the memory of the caller's statement.
    result: Option<Datum>,
}

/// Reads the row as the caller.
fn read(table: &Relation, job: &JobRef) -> Option<Row> {
    let sql = format!(
        "SELECT completed IS TRUE, cancelled IS TRUE, xmin::pg_catalog.text::pg_catalog.int8, result, {FAILED},
                result OPERATOR(pg_catalog.#>>) '{{error,message}}', result OPERATOR(pg_catalog.#>>) '{{error,sqlstate}}',
                result OPERATOR(pg_catalog.#>>) '{{error,detail}}', result OPERATOR(pg_catalog.#>>) '{{error,hint}}'
           FROM {} WHERE id OPERATOR(pg_catalog.=) $1{}",
        table.qualified_name(),
        job_table::meant_first(table)
    );
    let memory = Current::get();
    spi::connect(|| {
        let rows = Statement::new(sql, &[pg_sys::UUIDOID]).execute(&[spi::uuid(&job.id)], 1);
        if rows.processed == 0 {
            return None;
        }
        let failed = rows.get::<bool>(0, 5).unwrap_or(false);
        Some(Row {
            completed: rows.get(0, 1).unwrap_or(false),
            cancelled: rows.get(0, 2).unwrap_or(false),
            xmin: rows.get::<i64>(0, 3).unwrap_or(0) as u32,
            result: rows.datum(0, 4).map(|datum| memory.keep(datum)),
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
    let table = job_table::open(Oid::from(job.table), Lock::Read)?;
    attached_table(&table)?;
    if running::job().is_some_and(|current| current.assignment.job() == job) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "a handler cannot wait for its own job",
        ));
    }
    // Who may not read the row, or has nothing to wait for, takes no place in shared memory.
    let mut place = None;
    let row = loop {
        let row = read(&table, &job).ok_or_else(|| no_such_job(&job, &table.name))?;
        if row.completed || row.cancelled {
            break row;
        }
        if xact::is_own(row.xmin) {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("job {} was submitted by this transaction", format_id(&job.id)),
            )
            .hint("Commit first; until then nobody else can see the job."));
        }
        if xact::keeps_snapshot() {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot wait for a job in a transaction that keeps its snapshot",
            )
            .hint("Use READ COMMITTED."));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
                format!("job {} did not finish within {} ms", format_id(&job.id), timeout.as_millis()),
            )
            .hint("The job continues; wait again, or look at background_jobs.status()."));
        }
        match &place {
            // It may have ended since it was read, so it is read once more.
            None => place = Some(Place::take(job)),
            Some(place) => latch::wait(Some(left.min(place.look()))),
        }
    };
    drop(place);
    match (row.completed, row.error) {
        (true, Some(error)) => Err(error),
        (true, None) => Ok(row.result),
        (false, _) => Err(PgError::new(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!("job {} was cancelled", format_id(&job.id)),
        )),
    }
}
