//! Statements that insert rows and do nothing else: what their triggers have to do may wait until all rows are there, because nothing
//! runs in between that could look.
//!
//! A statement is open while its AFTER triggers may run: in the executor's last step, or in a COPY. Its number is never used again, so
//! that what was kept for a statement that failed is nobody's.

use crate::pg::error::at_boundary;
use crate::pg::trigger::Call;
use crate::pg::xact::{self, End};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::sync::OnceLock;

static PREVIOUS: OnceLock<pg_sys::ExecutorFinish_hook_type> = OnceLock::new();
static AT_END: OnceLock<fn(Number)> = OnceLock::new();

pub type Number = u64;

#[derive(Clone, Copy)]
struct Statement {
    number: Number,
    subtransaction: pg_sys::SubTransactionId,
    inserts_only: bool,
}

thread_local! {
    static LAST: Cell<Number> = const { Cell::new(0) };
    /// Those that are open, the outermost first; with those that have failed since the transaction began.
    static OPEN: RefCell<Vec<Statement>> = const { RefCell::new(Vec::new()) };
}

/// Chains the hook; to be called while the server loads the library. `at_end` is called at the end of each statement that
/// `waiting_for` has told, and of others, unless it fails.
pub fn install(at_end: fn(Number)) {
    AT_END.get_or_init(|| at_end);
    xact::on_end(forget);
    // SAFETY: hooks are chained while the postmaster loads its libraries, which is single-threaded.
    unsafe {
        PREVIOUS.get_or_init(|| pg_sys::ExecutorFinish_hook);
        pg_sys::ExecutorFinish_hook = Some(finish);
    }
}

fn forget(_: End) {
    let _ = OPEN.try_with(|open| open.try_borrow_mut().map(|mut open| open.clear()));
}

fn current_subtransaction() -> pg_sys::SubTransactionId {
    // Without the guard that pgrx puts around a call: there is no error to be caught.
    unsafe extern "C-unwind" {
        fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
    }
    // SAFETY: reads the state of this backend.
    unsafe { GetCurrentSubTransactionId() }
}

/// The statement that an AFTER INSERT trigger is called for, if what the trigger has to do may wait for its end.
pub fn waiting_for(call: &Call) -> Option<Number> {
    let statement = OPEN.with_borrow(|open| open.last().copied())?;
    // The last one may have failed, where the server applies rows without a statement (logical replication): not in this subtransaction.
    let current = current_subtransaction();
    // The triggers for the statement as a whole are those of the partition's parent.
    let alone = !call.relation_is_partition() && call.is_without_others();
    (statement.inserts_only && statement.subtransaction == current && alone).then_some(statement.number)
}

/// Opens a statement, unless triggers need not know of it; for `close`.
pub(super) fn open(inserts_only: bool) -> Option<Number> {
    OPEN.with_borrow_mut(|open| {
        // Within another statement the triggers' statement is the inner one, whatever it is.
        if !inserts_only && open.is_empty() {
            return None;
        }
        let number = LAST.get() + 1;
        LAST.set(number);
        open.push(Statement { number, subtransaction: current_subtransaction(), inserts_only });
        Some(number)
    })
}

/// Closes it, when all its triggers have run.
pub(super) fn close(number: Number) {
    OPEN.with_borrow_mut(|open| open.retain(|statement| statement.number < number));
    if let Some(at_end) = AT_END.get() {
        at_end(number);
    }
}

unsafe fn inserts_only(query: *mut pg_sys::QueryDesc) -> bool {
    // SAFETY: the query is the server's, and has been executed; the tag tells the node's type.
    unsafe {
        if (*query).operation != pg_sys::CmdType::CMD_INSERT || (*(*query).plannedstmt).hasModifyingCTE {
            return false;
        }
        let plan = (*(*query).plannedstmt).planTree;
        (*plan).type_ == pg_sys::NodeTag::T_ModifyTable
            && (*plan.cast::<pg_sys::ModifyTable>()).onConflictAction != pg_sys::OnConflictAction::ONCONFLICT_UPDATE
    }
}

/// The hook. The step itself runs outside any boundary of Rust, so that its errors pass as they are.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    unsafe extern "C-unwind" {
        fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    }
    // SAFETY: the argument is the server's and is passed on as it came.
    unsafe {
        let number = at_boundary(|| open(inserts_only(query)));
        match PREVIOUS.get() {
            Some(Some(previous)) => previous(query),
            _ => standard_ExecutorFinish(query),
        }
        if let Some(number) = number {
            at_boundary(|| close(number));
        }
    }
}
