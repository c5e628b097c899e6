//! What the planner believes of a queue, when it plans a statement of the extension's own.
//!
//! A queue is empty now and has a million rows in a minute, and VACUUM and ANALYZE write down what it was when they came
//! by. Of a table with no rows on many pages every plan seems to cost nothing: one that reads all of it to find a job by its
//! id, or that sorts all of it for the next few, is as good as any. So it is planned for as if it were always large.

use crate::pg::encoding;
use crate::pg::error::at_boundary;
use pgrx::pg_sys;
use std::cell::Cell;
use std::sync::OnceLock;

static PREVIOUS: OnceLock<pg_sys::get_relation_info_hook_type> = OnceLock::new();

/// The name of the table that is always large.
static QUEUE: OnceLock<&str> = OnceLock::new();

/// Rows and pages that it has at least; of an index, pages.
const ROWS: f64 = 1e6;
const PAGES: u32 = 15_000;
const INDEX_PAGES: u32 = 7_000;

thread_local! {
    static OWN_STATEMENTS: Cell<bool> = const { Cell::new(false) };
}

/// Puts back what was so before, after an error, too.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        OWN_STATEMENTS.set(self.0);
    }
}

/// Chains the hook, for a table of that name. To be called while the server loads the library.
pub fn install(queue: &'static str) {
    QUEUE.get_or_init(|| queue);
    // SAFETY: hooks are chained while the postmaster loads its libraries, which is single-threaded.
    unsafe {
        PREVIOUS.get_or_init(|| pg_sys::get_relation_info_hook);
        pg_sys::get_relation_info_hook = Some(on_relation);
    }
}

/// Runs `f`, which plans statements of the extension's own and no others.
pub fn own_statements<T>(f: impl FnOnce() -> T) -> T {
    let _before = Before(OWN_STATEMENTS.replace(true));
    f()
}

/// The same for the rest of a worker's life.
pub fn own_statements_only() {
    OWN_STATEMENTS.set(true);
}

fn is_queue(table: pg_sys::Oid) -> bool {
    // SAFETY: a look-up inside a transaction; the result is a palloc'd string or null.
    unsafe { encoding::from_c(pg_sys::get_rel_name(table)).as_deref() == QUEUE.get().copied() }
}

unsafe extern "C-unwind" fn on_relation(
    root: *mut pg_sys::PlannerInfo,
    table: pg_sys::Oid,
    is_parent: bool,
    relation: *mut pg_sys::RelOptInfo,
) {
    // SAFETY: called by the planner with what it is about to plan with; the indexes are those that it has found. Nothing that would
    // have to be dropped is alive when an error passes.
    unsafe {
        if let Some(Some(previous)) = PREVIOUS.get() {
            previous(root, table, is_parent, relation);
        }
        if !OWN_STATEMENTS.get() || !at_boundary(|| is_queue(table)) {
            return;
        }
        let relation = &mut *relation;
        relation.tuples = relation.tuples.max(ROWS);
        relation.pages = relation.pages.max(PAGES);
        let count = relation.indexlist.as_ref().map_or(0, |list| list.length as usize);
        for i in 0..count {
            let index = &mut *(*(*relation.indexlist).elements.add(i)).ptr_value.cast::<pg_sys::IndexOptInfo>();
            if index.indpred.is_null() {
                index.tuples = index.tuples.max(relation.tuples);
                index.pages = index.pages.max(INDEX_PAGES);
            }
        }
    }
}
