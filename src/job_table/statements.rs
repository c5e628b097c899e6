//! The statements that executors and progress writers run on a job table, as its owner. They fire the owner's triggers, so they
//! leave the settings alone and qualify what they use instead.

use super::{Options, TRIGGERS};
use crate::pg::relation::{Relation, quote};
use crate::pg::spi::Statement;
use crate::planted::{self, Bug};
use crate::protocol::UNFINISHED;
use pgrx::pg_sys;

/// What the completion writes.
const WRITTEN: [&str; 3] = ["completed", "progress", "result"];
const OPTIONAL_WRITTEN: [&str; 3] = ["attempts", "started_at", "finished_at"];

/// The prepared statements for one table under one name and with one set of options.
pub struct Statements {
    /// No code of the owner's runs with our UPDATE of the table, and no row moves, so that several jobs can be completed at once: nobody
    /// else can make that fail, or take long. Of a partitioned table, partitions aside: see `is_plain_part`.
    pub plain: bool,
    pub partitioned: bool,
    name: String,
    options: Options,
    /// $1 id -> finished
    pub look: Statement,
    /// $1 ids -> finished, payload, tid, id, oid of the part of the table
    pub load_many: Statement,
    /// $1 id, $2 result, $3 attempts, $4 started_at, $5 finished_at, $6 the progress that was reported
    pub complete: Statement,
    /// $1 ids, $2 results, $3 attempts, $4 started_at, $5 finished_at: several at once
    pub complete_many: Statement,
    /// as `complete`; leaves the progress where the attempt got to
    pub fail: Statement,
    /// $1 id
    pub restart: Statement,
    /// $1 id, $2 progress
    pub flush: Statement,
}

impl Statements {
    pub fn new(table: &Relation, options: &Options) -> Self {
        let name = format!("{}.{}", quote(&table.schema), quote(&table.name));
        let own = "id OPERATOR(pg_catalog.=) $1";
        let written = |values: [&str; 3]| {
            let used = OPTIONAL_WRITTEN.iter().zip(values).filter(|(column, _)| options.uses(column));
            used.map(|(column, value)| format!(", {column} = {value}")).collect::<String>()
        };
        let times = written(["$3", "$4", "$5"]);
        let guard = if planted::is(Bug::NoCancelGuard) { "completed IS NOT TRUE" } else { UNFINISHED };
        let times_of_many = written(["ended.attempts", "ended.started_at", "$5"]);
        let finish = |progress: &str| {
            Statement::new(
                format!(
                    "UPDATE {name} SET completed = true, progress = {progress}, result = $2{times} \
                      WHERE {own} AND {guard}"
                ),
                &[
                    pg_sys::UUIDOID,
                    pg_sys::JSONBOID,
                    pg_sys::INT4OID,
                    pg_sys::TIMESTAMPTZOID,
                    pg_sys::TIMESTAMPTZOID,
                    pg_sys::FLOAT4OID,
                ],
            )
        };
        // A client may have left it NULL.
        let behind = format!("{UNFINISHED} AND (progress IS NULL OR progress OPERATOR(pg_catalog.<) $2)");
        // Partitions may have finished rows of the same id.
        let partitioned = table.kind == 'p';
        let unfinished_first = if partitioned { " ORDER BY 1" } else { "" };
        Self {
            plain: is_plain(table, options),
            partitioned,
            look: Statement::new(
                format!("SELECT NOT ({UNFINISHED}) FROM {name} WHERE {own}{unfinished_first}"),
                &[pg_sys::UUIDOID],
            ),
            load_many: Statement::new(
                format!(
                    "SELECT NOT ({UNFINISHED}), payload, ctid, id, tableoid FROM {name} \
                      WHERE id OPERATOR(pg_catalog.=) ANY ($1){unfinished_first}"
                ),
                &[pg_sys::UUIDARRAYOID],
            ),
            complete: finish("1"),
            complete_many: Statement::new(
                format!(
                    "UPDATE {name} job SET completed = true, progress = 1, result = ended.result{times_of_many} \
                       FROM unnest($1, $2, $3, $4) ended(id, result, attempts, started_at) \
                      WHERE job.id OPERATOR(pg_catalog.=) ended.id AND {guard}"
                ),
                &[
                    pg_sys::UUIDARRAYOID,
                    pg_sys::JSONBARRAYOID,
                    pg_sys::INT4ARRAYOID,
                    pg_sys::TIMESTAMPTZARRAYOID,
                    pg_sys::TIMESTAMPTZOID,
                ],
            ),
            // Below 1, whatever a client has written there: see `protocol::FAILED`.
            fail: finish(
                "CASE WHEN progress OPERATOR(pg_catalog.<) 1::pg_catalog.float4 THEN GREATEST(progress, $6) ELSE $6 END",
            ),
            restart: Statement::new(
                format!(
                    "UPDATE {name} SET progress = 0 WHERE {own} AND {UNFINISHED} \
                         AND progress OPERATOR(pg_catalog.<>) 0::pg_catalog.float4"
                ),
                &[pg_sys::UUIDOID],
            ),
            // A row that somebody has locked is left for the next time: a progress writer waits for nobody. The guard is there twice:
            // what is locked says nothing of a finished row with the same id in another partition.
            flush: Statement::new(
                format!(
                    "UPDATE {name} SET progress = $2 WHERE {own} AND {behind} AND EXISTS (SELECT FROM {name} WHERE {own} \
                     AND {behind} FOR NO KEY UPDATE SKIP LOCKED)"
                ),
                &[pg_sys::UUIDOID, pg_sys::FLOAT4OID],
            ),
            name,
            options: options.clone(),
        }
    }

    /// Has the table this optional column, to be written by us?
    pub fn writes(&self, column: &str) -> bool {
        self.options.uses(column)
    }

    /// Is the same true of this partition?
    pub fn is_plain_part(&self, partition: &Relation) -> bool {
        is_plain(partition, &self.options)
    }

    /// Do they still fit the table as it is now?
    pub fn fit(&self, table: &Relation, options: &Options) -> bool {
        self.options == *options && self.name == table.qualified_name() && self.plain == is_plain(table, options)
    }
}

fn is_plain(table: &Relation, options: &Options) -> bool {
    let moves = |column: &&str| table.is_partitioned_by(column);
    let optional = OPTIONAL_WRITTEN.iter().filter(|column| options.uses(column));
    !table.has_code
        && table.triggers.iter().all(|trigger| TRIGGERS.contains(&trigger.name.as_str()))
        && !WRITTEN.iter().chain(optional).any(moves)
}
