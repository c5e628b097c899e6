//! register_handler(), unregister_handler().

use super::{
    Fallible, attached_table, invalid, missing, or_raise, owned_table, priority, require_preload, table_argument,
};
use crate::catalog::{self, NewHandler};
use crate::job::MAX_HANDLER_NAME;
use crate::notes;
use crate::pg::error::PgError;
use crate::pg::fmgr::{Args, interval_micros};
use crate::pg::function::{self, Function};
use crate::pg::relation::Lock;
use crate::pg::role::{self, bookkeeping};
use crate::pg::spi;
use crate::pg::trigger::Call;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum, Oid};

/// register_handler(name, function, job_table, max_attempts, timeout, retry_delay, max_retry_delay, concurrency, queue,
/// priority, synchronous_commit)
pub fn register_handler(args: &Args) -> Datum {
    or_raise(register(args));
    args.finish(Some(Datum::from(0)))
}

fn register(args: &Args) -> Fallible<()> {
    require_preload()?;
    let name = args.text(0).ok_or_else(|| missing("name"))?;
    if name.is_empty() || name.len() > MAX_HANDLER_NAME {
        return Err(invalid(format!("handler name must have 1 to {MAX_HANDLER_NAME} bytes"))
            .detail(format!("It has {}.", name.len())));
    }
    let oid = args.oid(1).ok_or_else(|| missing("function"))?;
    let table = owned_table(table_argument(args, 2)?, Lock::Read)?;
    attached_table(&table)?;
    let function = function::find(oid).ok_or_else(|| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION,
            format!("function with OID {} does not exist", oid.to_u32()),
        )
    })?;
    let takes_id = check_function(&function)?;
    for role in [role::current(), table.owner] {
        if !function::may_execute(oid, role) {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for function {}", function.name),
            )
            .detail(format!("Role \"{}\" may not execute it.", role::name(role).unwrap_or_default())));
        }
    }
    let max_attempts = positive(args.int4(3), "max_attempts")?;
    let concurrency = positive(args.int4(7), "concurrency")?;
    let priority = priority(args, 9)?;
    for (n, what) in [(4, "timeout"), (5, "retry_delay"), (6, "max_retry_delay")] {
        if args.datum(n).is_some_and(|interval| interval_micros(interval) < 0) {
            return Err(invalid(format!("{what} must not be negative")));
        }
    }
    let synchronous_commit = args.text(10);
    if let Some(value) = &synchronous_commit {
        check_synchronous_commit(value)?;
    }
    bookkeeping(|| {
        spi::connect(|| {
            catalog::register(&NewHandler {
                table: table.oid.to_u32(),
                name: &name,
                schema: &function.schema,
                function: &function.name,
                takes_id,
                function_owner: function.owner,
                owner: table.owner,
                max_attempts,
                timeout: args.datum(4),
                retry_delay: args.datum(5),
                max_retry_delay: args.datum(6),
                concurrency,
                queue: args.text(8).as_deref(),
                priority,
                synchronous_commit: synchronous_commit.as_deref(),
            });
        });
    });
    notes::note_handlers();
    Ok(())
}

fn positive(value: Option<i32>, what: &str) -> Fallible<Option<i32>> {
    match value {
        Some(value) if value < 1 => Err(invalid(format!("{what} must be at least 1"))),
        _ => Ok(value),
    }
}

fn check_synchronous_commit(value: &str) -> Fallible<()> {
    const VALUES: [&str; 5] = ["on", "off", "local", "remote_write", "remote_apply"];
    if VALUES.contains(&value) {
        return Ok(());
    }
    Err(invalid(format!("invalid value for synchronous_commit: \"{value}\""))
        .hint(format!("Available values: {}.", VALUES.join(", "))))
}

/// Does it have a handler's shape? Returns whether it takes the id.
fn check_function(function: &Function) -> Fallible<bool> {
    let wrong = |message: String| {
        Err(PgError::new(PgSqlErrorCode::ERRCODE_INVALID_FUNCTION_DEFINITION, message)
            .hint("A handler is a function f(payload jsonb) or f(id uuid, payload jsonb) that returns jsonb or void."))
    };
    if function.kind == 'p' {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("procedure {} cannot be a handler", function.name),
        )
        .hint("Register a function."));
    }
    if function.kind != 'f' || function.returns_set {
        return wrong(format!("{} is not a plain function", function.name));
    }
    if !matches!(function.returns, pg_sys::JSONBOID | pg_sys::VOIDOID) {
        return wrong(format!("function {} does not return jsonb or void", function.name));
    }
    let (one, two): (&[Oid], &[Oid]) = (&[pg_sys::JSONBOID], &[pg_sys::UUIDOID, pg_sys::JSONBOID]);
    match &function.arguments {
        arguments if arguments == one => Ok(false),
        arguments if arguments == two => Ok(true),
        _ => wrong(format!("function {} does not have a handler's arguments", function.name)),
    }
}

/// AFTER INSERT, UPDATE, DELETE of the registry: who may write all tables must not thereby choose what runs as their owners.
pub fn guard(_: &Call) {
    if !role::is_superuser(role::current()) {
        PgError::new(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, "permission denied for table handler")
            .hint("Use background_jobs.register_handler(), as the owner of the job table.")
            .raise();
    }
}

/// unregister_handler(name, job_table) boolean: was there such a handler?
pub fn unregister_handler(args: &Args) -> Datum {
    let found = or_raise(unregister(args));
    args.finish(Some(Datum::from(found)))
}

fn unregister(args: &Args) -> Fallible<bool> {
    require_preload()?;
    let name = args.text(0).ok_or_else(|| missing("name"))?;
    let table = owned_table(table_argument(args, 1)?, Lock::Read)?;
    let found = bookkeeping(|| spi::connect(|| catalog::unregister(table.oid.to_u32(), &name)));
    notes::note_handlers();
    Ok(found)
}
