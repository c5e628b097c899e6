//! enqueue().

use super::{Fallible, attached_table, invalid, jobs, missing, or_raise, priority, require_preload, table_argument};
use crate::catalog::{self, NewJob};
use crate::enqueue::{self, Taken};
use crate::inserted;
use crate::job::{JobId, JobRef, RowPlace};
use crate::job_table::{self, Options};
use crate::pg::call;
use crate::pg::clock;
use crate::pg::error::PgError;
use crate::pg::fmgr::{Args, uuid_datum};
use crate::pg::memory::Context;
use crate::pg::privilege;
use crate::pg::relation::{self, Lock, Relation, quote};
use crate::pg::role::bookkeeping;
use crate::pg::spi::{self, Statement};
use crate::pg::xact;
use crate::submit;
use crate::successors;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum};

/// enqueue(handler, payload, run_at, priority, queue, job_key, job_key_mode, max_attempts, id, job_table) uuid
pub fn enqueue(args: &Args) -> Datum {
    let id = or_raise(enqueue_job(args));
    args.finish(uuid_datum(&id))
}

fn enqueue_job(args: &Args) -> Fallible<JobId> {
    require_preload()?;
    let handler = args.text(0).ok_or_else(|| missing("handler"))?;
    if handler.is_empty() {
        return Err(invalid("handler must not be empty"));
    }
    let oid = table_argument(args, 9)?;
    if !privilege::may_insert(oid) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for table {}", relation::name(oid).unwrap_or_default()),
        ));
    }
    let table = job_table::open(oid, Lock::Write)?;
    let options = attached_table(&table)?;
    if args.int4(7).is_some_and(|value| value < 1) {
        return Err(invalid("max_attempts must be at least 1"));
    }
    let priority = priority(args, 3)?;
    let keep = match args.text(6).as_deref() {
        None | Some("replace") => false,
        Some("keep") => true,
        Some(mode) => {
            return Err(invalid(format!("invalid job_key_mode: \"{mode}\"")).hint("Available values: replace, keep."));
        }
    };
    let submit = || {
        let of = table.oid.to_u32();
        let (asked, inserted) = inserted::watch(of, || insert(args, priority, &table, &options, &handler));
        let asked = asked?;
        // Whatever is queued under the id that was asked for may be somebody else's.
        if let Some(id) = inserted {
            adjust(args, priority, JobRef { table: of, id }, &options);
        }
        Ok(inserted.unwrap_or(asked))
    };
    let Some(key) = args.text(5) else { return submit() };
    let memory = Context::new_scratch(c"background_jobs enqueue");
    let mut unexplained = 0;
    for _ in 0..KEY_FIGHTS {
        if let Some(id) = take_over_key(&table, &key, keep)? {
            return Ok(id);
        }
        // Somebody else may get the key between the look and the insert: then there is somebody to look at.
        match xact::subtransaction("enqueue() with a job_key", &memory, submit) {
            Err(error) if error.is(PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION) && holder(&table, &key).is_some() => {}
            // Who had the key has ended since, or it is another key that is taken: then it is so again.
            Err(error) if error.is(PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION) && unexplained < 2 => unexplained += 1,
            Err(error) => return Err(error),
            Ok(result) => return result,
        }
    }
    submit()
}

/// How often enqueue() looks again when others submit jobs with the same key at the same moment.
const KEY_FIGHTS: usize = 100;

fn holder(table: &Relation, key: &str) -> Option<JobId> {
    bookkeeping(|| spi::connect(|| successors::holder(table.oid.to_u32(), key).job))
}

/// Deals with the unfinished job that has the key: keeps it, or cancels it to make room for the new one. A running one goes on
/// either way when it is to be kept; when it is to be replaced it is cancelled, too. The caller's own job does not count (`successors`).
fn take_over_key(table: &Relation, key: &str, keep: bool) -> Fallible<Option<JobId>> {
    let Some(id) = holder(table, key) else { return Ok(None) };
    if is_gone(table, &id) {
        submit::take_out(JobRef { table: table.oid.to_u32(), id });
        return Ok(None);
    }
    if keep {
        return Ok(Some(id));
    }
    // Should it just have finished, it has let go of its key; should the caller be unable to cancel it, the key is taken.
    jobs::cancel_row(table, &id);
    Ok(None)
}

/// Has the job's row gone away with its partition? That fires no trigger of ours. Who may not see all rows cannot tell.
fn is_gone(table: &Relation, id: &JobId) -> bool {
    if table.kind != 'p' || !privilege::may_select(table.oid) || privilege::hides_rows(table.oid) {
        return false;
    }
    let sql = format!("SELECT FROM {} WHERE id OPERATOR(pg_catalog.=) $1", table.qualified_name());
    let look = Statement::new(sql, &[pg_sys::UUIDOID]);
    xact::with_latest_snapshot(|| spi::connect(|| look.read(&[spi::uuid(id)], 1).processed)) == 0
}

/// INSERTs the row as the caller, with what goes into columns that are used.
fn insert(args: &Args, priority: Option<i16>, table: &Relation, options: &Options, handler: &str) -> Fallible<JobId> {
    const JSONB: pg_sys::Oid = pg_sys::JSONBOID;
    let key = spi::text(&options.handler_key);
    let payload = args.datum(1);
    let mut columns = vec!["id", "timestamp", "payload", "completed", "cancelled", "progress"];
    let mut values = vec![
        "$1",
        "pg_catalog.now()",
        if options.uses("handler") {
            "COALESCE($2, '{}'::pg_catalog.jsonb)"
        } else {
            "COALESCE($2, '{}'::pg_catalog.jsonb) OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object($3, $4)"
        },
        "false",
        "false",
        "0",
    ];
    if !options.uses("handler") {
        let object = payload.is_none_or(call::jsonb_is_object);
        if !object {
            return Err(invalid("payload must be a JSON object")
                .detail("The name of the handler is put into it.")
                .hint("Attach the table with columns => '{handler}' to use any other JSON value."));
        }
    }
    let optional = [
        ("handler", "$4"),
        ("run_at", "$5"),
        ("priority", "$6"),
        ("queue", "$7"),
        ("job_key", "$8"),
        ("max_attempts", "$9"),
    ];
    for (column, value) in optional {
        if options.uses(column) {
            columns.push(column);
            values.push(value);
        }
    }
    let columns: Vec<String> = columns.into_iter().map(quote).collect();
    // The parameters are all mentioned, so that each has its type whether its column is used or not.
    let sql = format!(
        "WITH given AS (SELECT $3, $5, $6, $7, $8, $9) INSERT INTO {} ({}) SELECT {} FROM given",
        table.qualified_name(),
        columns.join(", "),
        values.join(", ")
    );
    let types = [
        pg_sys::UUIDOID,
        JSONB,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::INT2OID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::INT4OID,
    ];
    // Made here, because reading it back would require SELECT.
    let id = args.uuid(8).unwrap_or_else(call::random_uuid);
    let given = [
        spi::uuid(&id),
        payload,
        key,
        spi::text(handler),
        args.datum(2),
        priority.map(Datum::from),
        args.datum(4),
        args.datum(5),
        args.datum(7),
    ];
    let inserted = spi::connect(|| Statement::new(sql, &types).execute(&given, 0).processed);
    if inserted == 1 {
        return Ok(id);
    }
    Err(PgError::new(
        PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
        format!("the job was not inserted into \"{}\"", table.name),
    )
    .hint("A trigger or rule of the table turns the INSERT away."))
}

/// Gives the queued job what the table has no column for.
fn adjust(args: &Args, priority: Option<i16>, job: JobRef, options: &Options) {
    let given = [(2, "run_at"), (3, "priority"), (4, "queue"), (5, "job_key"), (7, "max_attempts")];
    if given.iter().all(|(n, column)| args.datum(*n).is_none() || options.uses(column)) {
        return;
    }
    let Some(queued) = bookkeeping(|| spi::connect(|| catalog::find(job))) else { return };
    let (timing, run_at) = submit::schedule(args.int8(2).or(Some(queued.run_at)), clock::now());
    let new = NewJob {
        job,
        handler: queued.handler,
        priority: Some(priority.unwrap_or(queued.priority)),
        timing,
        run_at,
        enqueued_at: queued.enqueued_at,
        max_attempts: args.int4(7).or(queued.max_attempts),
        queue: args.text(4).or(queued.queue),
        job_key: args.text(5),
        row: RowPlace::default(),
    };
    enqueue::requeue(new, Taken::Replace);
}
