//! The application's table: what has to be there, and what attach() puts there.

mod key;
mod statements;

pub use key::check_key;
pub use statements::Statements;

use crate::pg::error::PgError;
use crate::pg::relation::{self, Lock, Relation, Trigger};
use crate::protocol::UNFINISHED;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Oid};

pub const DEFAULT_HANDLER_KEY: &str = "handler";

pub const SUBMIT_TRIGGER: &str = "background_jobs_submit";
pub const UPDATE_TRIGGER: &str = "background_jobs_update";
pub const DELETE_TRIGGER: &str = "background_jobs_delete";
pub const TRUNCATE_TRIGGER: &str = "background_jobs_truncate";
pub const TRIGGERS: [&str; 4] = [SUBMIT_TRIGGER, UPDATE_TRIGGER, DELETE_TRIGGER, TRUNCATE_TRIGGER];

/// A column with its type, as SQL writes it.
type Column = (&'static str, Oid, &'static str);

const REQUIRED: [Column; 7] = [
    ("id", pg_sys::UUIDOID, "uuid"),
    ("timestamp", pg_sys::TIMESTAMPTZOID, "timestamptz"),
    ("payload", pg_sys::JSONBOID, "jsonb"),
    ("completed", pg_sys::BOOLOID, "boolean"),
    ("cancelled", pg_sys::BOOLOID, "boolean"),
    ("progress", pg_sys::FLOAT4OID, "real"),
    ("result", pg_sys::JSONBOID, "jsonb"),
];

/// Read when a row is inserted, and written when it is finished.
const OPTIONAL: [Column; 9] = [
    ("handler", pg_sys::TEXTOID, "text"),
    ("queue", pg_sys::TEXTOID, "text"),
    ("priority", pg_sys::INT2OID, "smallint"),
    ("run_at", pg_sys::TIMESTAMPTZOID, "timestamptz"),
    ("job_key", pg_sys::TEXTOID, "text"),
    ("max_attempts", pg_sys::INT4OID, "integer"),
    ("attempts", pg_sys::INT4OID, "integer"),
    ("started_at", pg_sys::TIMESTAMPTZOID, "timestamptz"),
    ("finished_at", pg_sys::TIMESTAMPTZOID, "timestamptz"),
];

/// What attach() was told; kept as the triggers' arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub handler_key: String,
    /// Names out of `OPTIONAL`.
    pub columns: Vec<String>,
}

impl Options {
    pub fn from_arguments(handler_key: Option<String>, columns: Option<&str>) -> Self {
        Self {
            handler_key: handler_key.unwrap_or_else(|| DEFAULT_HANDLER_KEY.to_string()),
            columns: columns
                .unwrap_or_default()
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_string)
                .collect(),
        }
    }

    /// The trigger arguments, as SQL literals.
    fn arguments(&self) -> String {
        format!("{}, {}", literal(&self.handler_key), literal(&self.columns.join(",")))
    }

    pub fn uses(&self, column: &str) -> bool {
        self.columns.iter().any(|used| used == column)
    }

    /// Refuses names that stand for nothing.
    pub fn check(&self) -> Result<(), PgError> {
        match self.columns.iter().find(|name| !OPTIONAL.iter().any(|(known, ..)| known == name)) {
            None => Ok(()),
            Some(name) => Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("\"{name}\" is not an optional column of a job table"),
            )
            .hint(format!("The optional columns are {}.", OPTIONAL.map(|(known, ..)| known).join(", ")))),
        }
    }
}

/// A column that an attached table had, and has no more.
pub fn lost_column(name: &str) -> PgError {
    let type_name = REQUIRED.iter().chain(&OPTIONAL).find(|(known, ..)| *known == name).map_or("", |(.., name)| name);
    let instead = if OPTIONAL.iter().any(|(known, ..)| *known == name) {
        "name those to be used with background_jobs.attach(..., columns => ...)"
    } else {
        "call background_jobs.detach()"
    };
    PgError::new(
        PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
        format!("job table has no column \"{name}\" of type {type_name} any more"),
    )
    .hint(format!("Put the column back, or {instead}."))
}

/// As an SQL literal, whatever standard_conforming_strings says.
pub fn literal(text: &str) -> String {
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Ends a query of the rows with an id so that the first one is the one it means: partitions may have several, of which one at most
/// is unfinished. Of finished ones it is the newest, always the same.
pub fn meant_first(table: &Relation) -> String {
    if table.kind != 'p' {
        return String::new();
    }
    format!(" ORDER BY ({UNFINISHED}) DESC, \"timestamp\" DESC NULLS LAST, tableoid, ctid")
}

/// The DDL of a new job table: the seven columns with their defaults, and the optional ones.
///
/// More than half of its pages is left empty when rows are inserted: every row is written a second time when its job ends, and
/// the second version is longer, by the result and a timestamp. Beside the first it needs no new entry in each index, and no
/// vacuum (a HOT update).
pub fn create_statement(qualified_name: &str, options: &Options) -> String {
    let mut columns = vec![
        "id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid()".to_string(),
        "\"timestamp\" timestamptz NOT NULL DEFAULT pg_catalog.now()".to_string(),
        "payload jsonb NOT NULL DEFAULT '{}'".to_string(),
        "completed boolean NOT NULL DEFAULT false".to_string(),
        "cancelled boolean NOT NULL DEFAULT false".to_string(),
        "progress real NOT NULL DEFAULT 0".to_string(),
        "result jsonb".to_string(),
    ];
    columns.extend(
        OPTIONAL
            .iter()
            .filter(|(name, ..)| options.uses(name))
            .map(|(name, _, type_name)| format!("{name} {type_name}")),
    );
    format!("CREATE TABLE {qualified_name} ({}) WITH (fillfactor = 45)", columns.join(", "))
}

/// The relation, under this lock.
pub fn open(oid: Oid, lock: Lock) -> Result<Relation, PgError> {
    relation::open(oid, lock).ok_or_else(|| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            format!("relation with OID {} does not exist", oid.to_u32()),
        )
    })
}

/// Is it of a shape that can hold jobs?
pub fn check_shape(table: &Relation, options: &Options) -> Result<(), PgError> {
    let wrong = |code, message: String| PgError::new(code, message);
    if !matches!(table.kind, 'r' | 'p') {
        return Err(wrong(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("\"{}\" is not a table", table.name)));
    }
    if table.persistence == 't' {
        return Err(wrong(
            PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION,
            format!("temporary table \"{}\" cannot hold jobs", table.name),
        )
        .detail("No other session can see its rows."));
    }
    if table.is_partition {
        return Err(wrong(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, format!("\"{}\" is a partition", table.name))
            .hint("Attach the partitioned table."));
    }
    let optional = OPTIONAL.iter().filter(|(name, ..)| options.uses(name));
    for (name, type_id, type_name) in REQUIRED.iter().chain(optional) {
        let generated = table.column(name).is_some_and(|column| column.generated && column.type_id == *type_id);
        let problem = match table.column(name) {
            None => Some("is missing"),
            Some(column) if column.type_id != *type_id => Some("has another type"),
            Some(column) if column.generated => Some("is generated"),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let error = wrong(
                PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION,
                format!("table \"{}\" cannot hold jobs: column \"{name}\" {problem}", table.name),
            )
            .detail(format!(
                "The column must be of type {type_name}{}.",
                if generated { " and not generated" } else { "" }
            ));
            return Err(if options.uses(name) {
                error
                    .hint("Mend the column, or name those to be used with background_jobs.attach(..., columns => ...).")
            } else {
                error
            });
        }
    }
    Ok(())
}

/// The statements that (re)create the triggers.
///
/// The INSERT trigger has no WHEN clause: the server parses one anew for every statement, which takes longer than the rest of
/// a trigger, and rows that are inserted are seldom finished.
pub fn trigger_statements(table: &Relation, options: &Options) -> Vec<String> {
    let name = table.qualified_name();
    let open = |row: &str| format!("{row}.completed IS NOT TRUE AND {row}.cancelled IS NOT TRUE");
    // Triggers that submit nothing get no arguments: the server copies them for every statement.
    let (told, nothing) = (options.arguments(), String::new());
    let definitions = [
        (SUBMIT_TRIGGER, "INSERT", "FOR EACH ROW".to_string(), "submit", &told),
        (
            UPDATE_TRIGGER,
            "UPDATE",
            format!(
                "FOR EACH ROW WHEN ({} AND (NEW.cancelled OR NEW.completed \
                 OR NEW.id OPERATOR(pg_catalog.<>) OLD.id))",
                open("OLD")
            ),
            "withdraw",
            &told,
        ),
        (DELETE_TRIGGER, "DELETE", format!("FOR EACH ROW WHEN ({})", open("OLD")), "withdraw", &nothing),
        (TRUNCATE_TRIGGER, "TRUNCATE", "FOR EACH STATEMENT".to_string(), "withdraw", &nothing),
    ];
    let mut statements = Vec::new();
    for (trigger, event, clause, function, arguments) in definitions {
        statements.push(format!(
            "CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {name} {clause} \
             EXECUTE FUNCTION background_jobs.{function}({arguments})",
        ));
        // Replication applies with session_replication_role = replica, where an ordinary trigger is silent.
        statements.push(format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}"));
    }
    statements
}

/// The error of a table that attach() mends.
pub fn unattached(table: &Relation, message: String) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        .hint(format!("Call background_jobs.attach('{}').", table.qualified_name()))
}

/// How the table is attached: none if it is not, or if its trigger is disabled (as during a data-only restore).
pub fn attachment(table: &Relation) -> Option<Options> {
    attached_with(table, |trigger| trigger.enabled != 'D')
}

/// What attach() was told when the table was attached, enabled or not.
pub fn options_so_far(table: &Relation) -> Option<Options> {
    attached_with(table, |_| true)
}

fn attached_with(table: &Relation, counts: impl Fn(&Trigger) -> bool) -> Option<Options> {
    let trigger = table.triggers.iter().find(|trigger| trigger.name == SUBMIT_TRIGGER && counts(trigger))?;
    let argument = |n: usize| trigger.arguments.get(n);
    Some(Options::from_arguments(argument(0).cloned(), argument(1).map(String::as_str)))
}

/// Are the triggers enabled ALWAYS? A data-only restore leaves them enabled for ordinary sessions only.
pub fn fires_in_replication(table: &Relation) -> bool {
    let ours = |name: &str| TRIGGERS.contains(&name);
    table.triggers.iter().filter(|trigger| ours(&trigger.name)).all(|trigger| trigger.enabled == 'A')
}
