//! What the executor writes into the rows of a group at its end, for all of its jobs at once.

use super::Executor;
use super::group::COMPANY;
use super::row::finish;
use super::tables::Reach;
use crate::finishing;
use crate::job::RowPlace;
use crate::job_table::Statements;
use crate::pg::clock::{self, Timestamp};
use crate::pg::error::PgError;
use crate::pg::fmgr::float4_datum;
use crate::pg::memory::HeldDatum;
use crate::pg::place::Places;
use crate::pg::relation::Lock;
use crate::pg::{guc, spi, xact};
use crate::planted::{self, Bug};
use crate::protocol::Flags;
use crate::shmem::Assignment;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::Datum;

/// A job whose handler has returned, and whose completion is to be written.
#[derive(Clone, Copy)]
pub struct Returned {
    pub assignment: Assignment,
    /// Of the job's row, when it was loaded.
    pub row: RowPlace,
    pub result: Option<HeldDatum>,
    pub started_at: Timestamp,
}

/// Writes the completions of several jobs. Raises an error if one of them does not find its row open, or is not the attempt that
/// may finish its job: each has to be run by itself then, because the effects of all are in the transaction already. That one
/// cannot wait for a row either, with the others finished.
pub fn complete_together(executor: &mut Executor, returned: &[Returned]) {
    for jobs in returned.chunk_by(|a, b| a.assignment.table == b.assignment.table) {
        let written = guc::with_lock_timeout(COMPANY, || {
            let table = jobs[0].assignment.table;
            let statements = executor.tables.open(table, Lock::Write);
            let parts = open_parts(executor, table, jobs);
            statements.zip(parts).is_some_and(|(table, parts)| complete_in(&table, &parts, jobs) == jobs.len())
                && finish(jobs.iter().map(|job| &job.assignment))
        });
        if !written && !planted::is(Bug::EffectsApart) {
            PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "a background job of a group was withdrawn").raise();
        }
    }
}

/// The parts of an open table that the jobs' rows are in, locked; none if code of the owner's runs with an UPDATE of one of them,
/// or rows move.
pub fn open_parts(executor: &mut Executor, table: u32, jobs: &[Returned]) -> Option<Vec<u32>> {
    let tables = &mut executor.tables;
    let reached = tables.reach(table, jobs.iter().map(|job| job.row.partition), Lock::Write);
    let parts = reached.into_iter().map(|(part, reach)| {
        let is_plain = reach == Reach::There && tables.is_plain(table, part);
        is_plain.then_some(part)
    });
    parts.collect()
}

/// How many rows it reached.
fn complete_in(table: &Statements, parts: &[u32], jobs: &[Returned]) -> usize {
    let finished_at = clock::now();
    let reached = complete_where_they_were(table, parts, jobs, finished_at);
    if reached == jobs.len() {
        return reached;
    }
    // Rows that were changed meanwhile, by a client or for their progress, are elsewhere now. Those that were reached are
    // finished, so that they are not reached again.
    let refs = jobs.iter().map(|job| job.assignment.job()).collect();
    guc::nested(|| {
        // As for `Statements::load_many`.
        for setting in [c"enable_seqscan", c"enable_hashjoin", c"enable_mergejoin"] {
            guc::set_local(setting, "off");
        }
        guc::set_local(c"plan_cache_mode", "force_generic_plan");
        finishing::run(refs, || {
            spi::connect(|| {
                let arguments = [
                    spi::uuids(jobs.iter().map(|job| &job.assignment.id)),
                    spi::jsonbs(jobs.iter().map(|job| job.result.map(|held| held.0))),
                    spi::int4s(jobs.iter().map(|job| job.assignment.attempt)),
                    spi::timestamps(jobs.iter().map(|job| job.started_at)),
                    spi::timestamp(finished_at),
                ];
                reached + table.complete_many.execute(&arguments, 0).processed
            })
        })
    })
}

/// The same below SQL, for rows that are where they were when they were loaded. `parts` are those of `open_parts`.
pub fn complete_where_they_were(table: &Statements, parts: &[u32], jobs: &[Returned], finished_at: Timestamp) -> usize {
    let complete = |part: &u32| complete_in_part(table, *part, jobs, finished_at);
    let reached = xact::with_latest_snapshot(|| parts.iter().map(complete).sum());
    xact::next_command();
    reached
}

fn complete_in_part(table: &Statements, part: u32, jobs: &[Returned], finished_at: Timestamp) -> usize {
    let oid = jobs[0].assignment.table;
    let Some(places) = Places::open_to_update(oid.into(), if part == 0 { oid } else { part }.into()) else { return 0 };
    let column = |name: &str| places.column(name);
    let optional = |name: &str| if table.writes(name) { column(name) } else { 0 };
    let (id, completed, cancelled) = (column("id"), column("completed"), column("cancelled"));
    let (progress, result) = (column("progress"), column("result"));
    let (attempts, started_at) = (optional("attempts"), optional("started_at"));
    let last = optional("finished_at");
    let mut changes = Vec::with_capacity(6);
    let finish = |job: &&Returned| {
        let Some(row) = places.read(job.row.tid) else { return false };
        let cancelled = row.flag(cancelled) && !planted::is(Bug::NoCancelGuard);
        let flags = Flags { completed: row.flag(completed), cancelled };
        if row.uuid(id) != Some(job.assignment.id) || !flags.is_open() {
            return false;
        }
        changes.clear();
        changes.extend([
            (completed, Some(Datum::from(true))),
            (progress, float4_datum(1.0)),
            (result, job.result.map(|held| held.0)),
            (attempts, Some(Datum::from(job.assignment.attempt))),
            (started_at, spi::timestamp(job.started_at)),
            (last, spi::timestamp(finished_at)),
        ]);
        changes.retain(|(column, _)| *column > 0);
        places.update(&row, &changes)
    };
    jobs.iter().filter(|job| job.row.partition == part).filter(finish).count()
}
