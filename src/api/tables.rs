//! create_table(), attach(), detach().

use super::{Fallible, invalid, missing, or_raise, owned_relation, owned_table, refuse_partition, require_preload};
use crate::catalog;
use crate::enqueue::{self, Taken};
use crate::job::{JobRef, RowPlace, handler_name};
use crate::job_table::{self, DEFAULT_HANDLER_KEY, Options, TRIGGERS, literal};
use crate::notes;
use crate::owner;
use crate::pg::error::PgError;
use crate::pg::fmgr::Args;
use crate::pg::relation::{self, Lock, Relation, Trigger, quote};
use crate::pg::role::bookkeeping;
use crate::pg::spi::{self, Statement};
use crate::pg::{shmem as pg_shmem, xact};
use crate::submit;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum, Oid};

/// create_table(name text, columns name[]) regclass: a plain job table of the caller's own, attached.
pub fn create_table(args: &Args) -> Datum {
    let oid = or_raise(create(args));
    args.finish(spi::oid(oid))
}

fn create(args: &Args) -> Fallible<Oid> {
    require_preload()?;
    let name = args.text(0).ok_or_else(|| missing("name"))?;
    let options = Options { handler_key: DEFAULT_HANDLER_KEY.to_string(), columns: names(args.datum(1)) };
    options.check()?;
    let name = qualified_name(&name)?;
    let oid = spi::connect(|| {
        spi::execute_once(&job_table::create_statement(&name, &options));
        let text = pg_sys::TEXTOID;
        Statement::new("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid", &[text])
            .execute(&[spi::text(&name)], 1)
            .get::<Oid>(0, 1)
    });
    let oid = oid.ok_or_else(|| invalid(format!("table {name} was not created")))?;
    attach_table(&owned_table(oid, Lock::Define)?, &options)?;
    Ok(oid)
}

/// The name as SQL would read it, in quotes; it may have a schema.
fn qualified_name(name: &str) -> Fallible<String> {
    let parts: Vec<String> = spi::connect(|| {
        let rows =
            Statement::new("SELECT part FROM pg_catalog.unnest(pg_catalog.parse_ident($1)) part", &[pg_sys::TEXTOID])
                .execute(&[spi::text(name)], 0);
        (0..rows.processed).filter_map(|row| rows.get(row, 1)).collect()
    });
    match &parts[..] {
        [schema, table] => Ok(relation::qualified(schema, table)),
        // With its schema, so that no temporary table of that name is taken for it.
        [table] => match current_schema() {
            Some(schema) => Ok(relation::qualified(&schema, table)),
            None => Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_SCHEMA_NAME,
                "no schema has been selected to create in",
            )),
        },
        _ => Err(PgError::new(PgSqlErrorCode::ERRCODE_INVALID_NAME, format!("\"{name}\" is not the name of a table"))
            .hint("Write it as table or schema.table.")),
    }
}

/// Where an unqualified table would be created.
fn current_schema() -> Option<String> {
    spi::connect(|| {
        Statement::new("SELECT pg_catalog.current_schema()::pg_catalog.text", &[]).execute(&[], 1).get(0, 1)
    })
}

/// The elements of a name[].
fn names(array: Option<Datum>) -> Vec<String> {
    const NAME_ARRAY: Oid = pg_sys::NAMEARRAYOID;
    let Some(array) = array else { return Vec::new() };
    spi::connect(|| {
        let rows = Statement::new(
            "SELECT DISTINCT n::pg_catalog.text FROM pg_catalog.unnest($1) n WHERE n IS NOT NULL ORDER BY 1",
            &[NAME_ARRAY],
        )
        .execute(&[Some(array)], 0);
        (0..rows.processed).filter_map(|row| rows.get(row, 1)).collect()
    })
}

/// attach(job_table regclass, columns name[], handler_key text) bigint: how many unfinished rows were submitted.
pub fn attach(args: &Args) -> Datum {
    let count = or_raise(attach_with(args));
    args.finish(Some(Datum::from(count as i64)))
}

fn attach_with(args: &Args) -> Fallible<usize> {
    require_preload()?;
    let oid = args.oid(0).ok_or_else(|| missing("job_table"))?;
    let table = owned_table(oid, Lock::Define)?;
    // What is not given stays: attach() is what mends triggers, and is then called without any.
    let so_far = job_table::options_so_far(&table).unwrap_or_else(|| Options::from_arguments(None, None));
    let options = Options {
        handler_key: args.text(2).unwrap_or(so_far.handler_key),
        columns: args.datum(1).map_or(so_far.columns, |given| names(Some(given))),
    };
    options.check()?;
    attach_table(&table, &options)
}

/// Puts the triggers on the table, as the caller, and queues the unfinished rows that are not queued yet. Writers wait
/// meanwhile, so that no row falls between the two.
fn attach_table(table: &Relation, options: &Options) -> Fallible<usize> {
    job_table::check_shape(table, options)?;
    job_table::check_key(table)?;
    owner::check(table.owner)?;
    spi::connect(|| {
        for statement in job_table::trigger_statements(table, options) {
            spi::execute_once(&statement);
        }
    });
    let submitted = submit_backlog(table, options);
    // Not before: whoever has changed handlers looks them up anew for each row.
    notes::note_handlers();
    Ok(submitted)
}

/// Queues unfinished rows that are not in the queue, in the order of their timestamps.
fn submit_backlog(table: &Relation, options: &Options) -> usize {
    let column = |name: &str, otherwise: &str| {
        if options.uses(name) { quote(name) } else { otherwise.to_string() }
    };
    let sql = format!(
        "SELECT id, COALESCE({}, payload OPERATOR(pg_catalog.->>) {}), {}, {}, {}, {}, {} FROM {}{} \
          WHERE completed IS NOT TRUE AND cancelled IS NOT TRUE ORDER BY \"timestamp\", id",
        column("handler", "NULL::pg_catalog.text"),
        literal(&options.handler_key),
        column("priority", "NULL::pg_catalog.int2"),
        column("run_at", "NULL::pg_catalog.timestamptz"),
        column("max_attempts", "NULL::pg_catalog.int4"),
        column("queue", "NULL::pg_catalog.text"),
        column("job_key", "NULL::pg_catalog.text"),
        // Tables that inherit from it have no triggers of ours; partitions have.
        if table.kind == 'p' { "" } else { "ONLY " },
        table.qualified_name(),
    );
    // A transaction that keeps its snapshot would not see what was committed before the lock was granted, be it a row or a place in
    // the queue. Nobody changes either under the lock.
    let keeps_snapshot = xact::keeps_snapshot();
    // A partitioned table may have an id several times.
    let may_be_queued =
        table.kind == 'p' || keeps_snapshot || bookkeeping(|| spi::connect(|| catalog::has_any(table.oid.to_u32())));
    let mut submitted = 0;
    let submit_all = || {
        Statement::new(&sql, &[]).for_each(|rows, row| {
            let Some(id) = rows.uuid(row, 1) else { return };
            let job = JobRef { table: table.oid.to_u32(), id };
            let is_there = || bookkeeping(|| spi::connect(|| catalog::is_there(job)));
            if may_be_queued && (submit::is_queued(job) || (keeps_snapshot && is_there())) {
                return;
            }
            let arrival = submit::arrival();
            let (timing, run_at) = submit::schedule(rows.timestamp(row, 4), arrival);
            let new = catalog::NewJob {
                job,
                handler: handler_name(rows.get(row, 2)),
                priority: rows.get(row, 3),
                timing,
                run_at,
                enqueued_at: arrival,
                max_attempts: rows.get(row, 5),
                queue: rows.get(row, 6),
                job_key: rows.get(row, 7),
                row: RowPlace::default(),
            };
            enqueue::queue(new, Taken::Replace);
            submitted += 1;
        });
    };
    xact::with_latest_snapshot(|| spi::connect(submit_all));
    submitted
}

/// detach(job_table regclass): drops the triggers and the queued jobs; the table and its rows stay.
pub fn detach(args: &Args) -> Datum {
    or_raise(detach_table(args));
    args.finish(Some(Datum::from(0)))
}

fn detach_table(args: &Args) -> Fallible<()> {
    require_preload()?;
    let oid = args.oid(0).ok_or_else(|| missing("job_table"))?;
    // One that was attached before it became a partition has triggers of its own.
    let table = owned_relation(oid, Lock::Define)?;
    let is_ours = |trigger: &&Trigger| TRIGGERS.contains(&trigger.name.as_str()) && !trigger.is_clone;
    let ours: Vec<_> = table.triggers.iter().filter(is_ours).collect();
    if ours.is_empty() {
        refuse_partition(&table)?;
        let message = format!("table \"{}\" is not attached, skipping", table.name);
        PgError::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message).notice();
    }
    spi::connect(|| {
        for trigger in ours {
            spi::execute_once(&format!("DROP TRIGGER {} ON {}", quote(&trigger.name), table.qualified_name()));
        }
    });
    submit::take_out_all(oid.to_u32());
    notes::note_handlers();
    Ok(())
}

/// announce(): called by the install script; tells the launcher at commit, or says what is missing.
pub fn announce(args: &Args) -> Datum {
    or_raise(if pg_shmem::attached() || crate::pg::bgworker::in_binary_upgrade() { Ok(()) } else { require_preload() });
    notes::note_extension();
    args.finish(Some(Datum::from(0)))
}
