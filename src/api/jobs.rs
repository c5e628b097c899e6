//! cancel(), retry(), run_now().

use super::{Fallible, attached_table, job_argument, or_raise, owned_table, require_preload};
use crate::catalog::{self, NewJob};
use crate::enqueue::{self, Taken};
use crate::finishing;
use crate::job::{JobId, JobRef, RowPlace, Tid, Timing, handler_name};
use crate::job_table;
use crate::notes;
use crate::pg::call;
use crate::pg::fmgr::Args;
use crate::pg::relation::{Lock, Relation, quote};
use crate::pg::role::bookkeeping;
use crate::pg::spi::{self, Statement};
use crate::protocol::{FINISHED, UNFINISHED};
use crate::submit;
use pgrx::pg_sys::{self, Datum};

/// cancel(id, job_table) boolean: did this call cancel it? By an UPDATE as the caller.
pub fn cancel(args: &Args) -> Datum {
    let cancelled = or_raise((|| {
        require_preload()?;
        let job = job_argument(args, 0, 1)?;
        let table = job_table::open(pg_sys::Oid::from(job.table), Lock::Write)?;
        super::refuse_partition(&table)?;
        Ok(cancel_row(&table, &job.id))
    })());
    args.finish(Some(Datum::from(cancelled)))
}

/// The UPDATE by which cancel() and a replaced job_key cancel a job: as the user, seen by the table's triggers.
pub(super) fn cancel_row(table: &Relation, id: &JobId) -> bool {
    let sql = format!(
        "UPDATE {} SET cancelled = true WHERE id OPERATOR(pg_catalog.=) $1 AND {UNFINISHED}",
        table.qualified_name()
    );
    spi::connect(|| Statement::new(sql, &[pg_sys::UUIDOID]).execute(&[spi::uuid(id)], 0).processed > 0)
}

/// retry(id, job_table) boolean: runs a job again that has failed, was cancelled or is completed; false if it is unfinished.
pub fn retry(args: &Args) -> Datum {
    let again = or_raise(retry_job(args));
    args.finish(Some(Datum::from(again)))
}

fn retry_job(args: &Args) -> Fallible<bool> {
    require_preload()?;
    let job = job_argument(args, 0, 1)?;
    let table = owned_table(pg_sys::Oid::from(job.table), Lock::Write)?;
    let options = attached_table(&table)?;
    let name = table.qualified_name();
    let column = |name: &str, kind: &str| {
        if options.uses(name) { quote(name) } else { format!("NULL::pg_catalog.{kind}") }
    };
    let Some(row) = lock_row(&table, &job) else { return Err(super::no_such_job(&job, &table.name)) };
    // As in a new row: whoever has made one of them NOT NULL has given it a default.
    let written = ["attempts", "started_at", "finished_at"].into_iter().filter(|name| options.uses(name));
    let as_new: String = written.map(|name| format!(", {} = DEFAULT", quote(name))).collect();
    let sql = format!(
        "UPDATE {name} SET completed = false, cancelled = false, progress = 0, result = NULL{as_new} \
          WHERE id OPERATOR(pg_catalog.=) $1 AND tableoid OPERATOR(pg_catalog.=) $2 AND ctid OPERATOR(pg_catalog.=) $3 \
            AND {FINISHED} RETURNING payload, {}, {}, {}, {}, {}",
        column("handler", "text"),
        column("priority", "int2"),
        column("max_attempts", "int4"),
        column("queue", "text"),
        column("job_key", "text"),
    );
    let new = spi::connect(|| {
        let tid = spi::item_pointer(row.tid);
        let at = Some(Datum::from(std::ptr::from_ref(&tid)));
        let update = Statement::new(sql, &[pg_sys::UUIDOID, pg_sys::OIDOID, pg_sys::TIDOID]);
        // A row that moves to another partition is inserted there.
        let rows = finishing::run(vec![job], || update.execute(&[spi::uuid(&job.id), spi::oid(row.relation), at], 0));
        if rows.processed == 0 {
            return None;
        }
        let named = rows
            .get::<String>(0, 2)
            .or_else(|| rows.datum(0, 1).and_then(|payload| call::jsonb_field_text(payload, &options.handler_key)));
        let arrival = submit::arrival();
        Some(NewJob {
            job,
            handler: handler_name(named),
            priority: rows.get(0, 3),
            timing: Timing::Immediate,
            run_at: arrival,
            enqueued_at: arrival,
            max_attempts: rows.get(0, 4),
            queue: rows.get(0, 5),
            job_key: rows.get(0, 6),
            row: RowPlace::default(),
        })
    });
    let Some(new) = new else { return Ok(false) };
    bookkeeping(|| spi::connect(|| catalog::supersede_attempts(job)));
    // In another partition somebody may just have submitted the id.
    enqueue::queue(new, if table.kind == 'p' { Taken::Refuse } else { Taken::Replace });
    Ok(true)
}

/// Where a locked row is.
struct Place {
    relation: pg_sys::Oid,
    tid: Tid,
}

/// Locks the row that the id means; nobody changes it then, so that it is found at its place.
fn lock_row(table: &Relation, job: &JobRef) -> Option<Place> {
    let sql = format!(
        "SELECT tableoid, ctid FROM {} WHERE id OPERATOR(pg_catalog.=) $1{} LIMIT 1 FOR NO KEY UPDATE",
        table.qualified_name(),
        job_table::meant_first(table)
    );
    spi::connect(|| {
        let rows = Statement::new(sql, &[pg_sys::UUIDOID]).execute(&[spi::uuid(&job.id)], 1);
        rows.get(0, 1).map(|relation| Place { relation, tid: rows.tid(0, 2) })
    })
}

/// run_now(id, job_table) boolean: drops the delay of a waiting job; false if it is not waiting.
pub fn run_now(args: &Args) -> Datum {
    let found = or_raise((|| {
        require_preload()?;
        let job = job_argument(args, 0, 1)?;
        let table = owned_table(pg_sys::Oid::from(job.table), Lock::Write)?;
        // The row before the queue, like everybody else: two orders would be a deadlock some day.
        lock_row(&table, &job);
        let now = submit::arrival();
        let lane = bookkeeping(|| spi::connect(|| catalog::make_due(job, now)));
        let found = lane.is_some();
        if let Some(lane) = lane {
            // It has left the lane where it waited, and must not be handed out from there any more.
            notes::note_withdrawn();
            notes::note_job(lane, now);
        }
        Ok(found)
    })());
    args.finish(Some(Datum::from(found)))
}
