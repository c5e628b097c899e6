//! The key of a job table.

use crate::pg::error::PgError;
use crate::pg::relation::{Relation, quote};
use crate::pg::spi::{self, Statement};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Datum};

/// Every job is looked up by its id, and named by it: the id must have a unique index, which a partitioned table can
/// only have together with the partition's column. One that is checked at the end of a statement or later would let two waiting
/// jobs exchange their ids, as which they could not be told apart.
pub fn check_key(table: &Relation) -> Result<(), PgError> {
    let partitioned = table.kind == 'p';
    let (at_once, not_null) = spi::connect(|| {
        let rows = Statement::new(
            "SELECT pg_catalog.bool_or(i.indimmediate), pg_catalog.bool_and(a.attnotnull)
               FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a
                 ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) i.indkey[0]
              WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND a.attname OPERATOR(pg_catalog.=) 'id'
                AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                AND (i.indnkeyatts OPERATOR(pg_catalog.=) 1 OR $2)",
            &[pg_sys::OIDOID, pg_sys::BOOLOID],
        )
        .execute(&[spi::oid(table.oid), Some(Datum::from(partitioned))], 1);
        (rows.get::<bool>(0, 1), rows.get::<bool>(0, 2))
    });
    let problem = |problem: &str| {
        let message = format!("table \"{}\" cannot hold jobs: {problem}", table.name);
        PgError::new(PgSqlErrorCode::ERRCODE_INVALID_TABLE_DEFINITION, message)
            .detail("Every job is looked up by its id.")
    };
    let alter = |what: &str| format!("Use ALTER TABLE {} {what}.", table.qualified_name());
    let with = |error: PgError, key: &str| match key_columns(table) {
        Some(columns) => error.hint(alter(&format!("ADD {key} ({columns})"))),
        None => error,
    };
    match (at_once, not_null) {
        (None, _) => Err(with(problem("column \"id\" is not its key"), "PRIMARY KEY")),
        // It may be the primary key, of which there can be only one.
        (Some(false), _) => Err(with(problem("the key of column \"id\" is deferrable"), "UNIQUE")),
        (Some(true), Some(true)) => Ok(()),
        _ => Err(problem("column \"id\" may be null").hint(alter("ALTER COLUMN id SET NOT NULL"))),
    }
}

/// What a key of the table has to consist of; none if it can have no such key, because it is partitioned by an expression.
fn key_columns(table: &Relation) -> Option<String> {
    let mut columns = vec!["id".to_string()];
    if table.kind != 'p' {
        return columns.pop();
    }
    spi::connect(|| {
        let rows = Statement::new(
            "SELECT a.attname::pg_catalog.text
               FROM pg_catalog.pg_partitioned_table p
              CROSS JOIN pg_catalog.unnest(p.partattrs::pg_catalog.int2[]) WITH ORDINALITY part(number, place)
               LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) p.partrelid
                AND a.attnum OPERATOR(pg_catalog.=) part.number AND part.number OPERATOR(pg_catalog.>) 0::pg_catalog.int2
              WHERE p.partrelid OPERATOR(pg_catalog.=) $1 ORDER BY part.place",
            &[pg_sys::OIDOID],
        )
        .execute(&[spi::oid(table.oid)], 0);
        for row in 0..rows.processed {
            let column = quote(&rows.get::<String>(row, 1)?);
            if column != quote("id") && !columns.contains(&column) {
                columns.push(column);
            }
        }
        Some(columns.join(", "))
    })
}
