//! The SQL functions, thin: they check their caller and their arguments, and leave the rest to the modules below.

pub mod enqueue;
pub mod handlers;
pub mod inside;
pub mod jobs;
pub mod status;
pub mod tables;
pub mod wait;
pub mod workers;

use crate::job::JobRef;
use crate::job_table::{self, Options};
use crate::pg::error::PgError;
use crate::pg::fmgr::Args;
use crate::pg::relation::{self, Lock, Relation};
use crate::pg::spi::{self, Statement};
use crate::pg::{role, shmem};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Oid};

/// The result of a function body; the error is raised at its end.
type Fallible<T> = Result<T, PgError>;

fn or_raise<T>(result: Fallible<T>) -> T {
    result.unwrap_or_else(|error| error.raise())
}

/// Refuses to work without shared memory: nothing would ever run.
fn require_preload() -> Fallible<()> {
    if shmem::attached() {
        return Ok(());
    }
    Err(PgError::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "background_jobs is not loaded")
        .detail("It must be loaded at server start.")
        .hint("Put shared_preload_libraries = 'background_jobs' into postgresql.conf and restart the server."))
}

fn missing(argument: &str) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("argument \"{argument}\" must not be null"))
}

fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

/// A priority, which comes as an integer.
fn priority(args: &Args, n: usize) -> Fallible<Option<i16>> {
    let outside = |_| {
        let message = "priority is out of range for type smallint";
        PgError::new(PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, message)
    };
    args.int4(n).map(i16::try_from).transpose().map_err(outside)
}

/// The job table argument, or the error that says how to name one.
fn table_argument(args: &Args, n: usize) -> Fallible<Oid> {
    args.oid(n).ok_or_else(|| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "there is no job table \"background_jobs\" in the search_path",
        )
        .hint("Name the table with job_table => 'schema.table', or create one with background_jobs.create_table().")
    })
}

/// The table, if the current user may act as its owner.
fn owned_table(oid: Oid, lock: Lock) -> Fallible<Relation> {
    let table = owned_relation(oid, lock)?;
    refuse_partition(&table)?;
    Ok(table)
}

/// The same for a partition, too.
fn owned_relation(oid: Oid, lock: Lock) -> Fallible<Relation> {
    // Before the lock: who may not have it must not make others wait for it. And under it, for it may have changed.
    if relation::owner(oid).is_none_or(role::is_member_of) {
        let table = job_table::open(oid, lock)?;
        if role::is_member_of(table.owner) {
            return check_kind(table);
        }
    }
    let name = relation::name(oid).unwrap_or_default();
    Err(PgError::new(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table {name}")))
}

/// The relation, if it is a table.
fn check_kind(table: Relation) -> Fallible<Relation> {
    if matches!(table.kind, 'r' | 'p') {
        return Ok(table);
    }
    Err(PgError::new(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("\"{}\" is not a table", table.name)))
}

/// Jobs are those of the partitioned table, whichever partition their rows are in: under another name they would not be found.
fn refuse_partition(table: &Relation) -> Fallible<()> {
    if !table.is_partition {
        return Ok(());
    }
    let root = spi::connect(|| {
        let rows = Statement::new(
            "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
              WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.pg_partition_root($1)::pg_catalog.oid",
            &[pg_sys::OIDOID],
        )
        .execute(&[spi::oid(table.oid)], 1);
        Some(relation::qualified(&rows.get::<String>(0, 1)?, &rows.get::<String>(0, 2)?))
    });
    let error = PgError::new(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("\"{}\" is a partition", table.name));
    Err(match root {
        Some(name) => error.hint(format!("Name the partitioned table, {name}.")),
        None => error,
    })
}

/// How the table is attached.
fn attached_table(table: &Relation) -> Fallible<Options> {
    // A partition has the triggers, too.
    refuse_partition(table)?;
    job_table::attachment(table)
        .ok_or_else(|| job_table::unattached(table, format!("table \"{}\" is not attached", table.name)))
}

fn job_argument(args: &Args, id: usize, table: usize) -> Fallible<JobRef> {
    let table = table_argument(args, table)?;
    let id = args.uuid(id).ok_or_else(|| missing("id"))?;
    Ok(JobRef { table: table.to_u32(), id })
}

fn no_such_job(job: &JobRef, table: &str) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_NO_DATA_FOUND,
        format!("there is no job {} in table \"{table}\"", crate::job::format_id(&job.id)),
    )
}
