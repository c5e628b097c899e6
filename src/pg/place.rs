//! Rows of somebody else's table, read where they were last seen: no plan and no index. What the current user may not read as
//! it stands there has to be read by a statement.

use crate::pg::spi::{item_pointer, uuid_bytes};
use pgrx::itemptr::item_pointer_get_both;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// A table that somebody here has locked already.
pub struct Places {
    relation: pg_sys::Relation,
    blocks: u32,
}

/// A row as the active snapshot shows it, in the memory context that was current when it was read.
pub struct Row {
    pub(super) tuple: pg_sys::HeapTuple,
    pub(super) descriptor: pg_sys::TupleDesc,
}

impl Places {
    /// None: the table has no rows of its own that are stored as the server does, a policy may hide some, or the current user
    /// has no right to all columns.
    pub fn open(table: Oid) -> Option<Self> {
        // SAFETY: the caller has locked the table in this transaction; closed when the value is dropped.
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::NoLock as i32);
            let form = &*(*relation).rd_rel;
            let readable = form.relkind as u8 == pg_sys::RELKIND_RELATION
                && form.relam == pg_sys::HEAP_TABLE_AM_OID
                && !form.relrowsecurity
                && pg_sys::pg_class_aclcheck(table, pg_sys::GetUserId(), pg_sys::ACL_SELECT.into())
                    == pg_sys::AclResult::ACLCHECK_OK;
            let blocks = if readable {
                pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM)
            } else {
                0
            };
            let places = Self { relation, blocks };
            readable.then_some(places)
        }
    }

    /// The number of a column; 0: there is none.
    pub fn column(&self, name: &CStr) -> i32 {
        // SAFETY: a look-up in the catalogs.
        unsafe { pg_sys::get_attnum((*self.relation).rd_id, name.as_ptr()) }.into()
    }

    /// The row at `tid`, if the active snapshot sees one there.
    pub fn read(&self, tid: u64) -> Option<Row> {
        let position = item_pointer(tid);
        if position.ip_posid == 0 || item_pointer_get_both(position).0 >= self.blocks {
            return None;
        }
        let mut tuple = pg_sys::HeapTupleData { t_self: position, ..Default::default() };
        let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
        // SAFETY: the table is open and has this block; the buffer is pinned until the copy is made.
        unsafe {
            fetch(self.relation, pg_sys::GetActiveSnapshot(), &mut tuple, &mut buffer).then(|| {
                let copy = pg_sys::heap_copytuple(&mut tuple);
                pg_sys::ReleaseBuffer(buffer);
                Row { tuple: copy, descriptor: (*self.relation).rd_att }
            })
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`; the lock is the caller's. After an error the transaction's abort has closed it.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}

impl Row {
    /// The value of a column, by its number. It lies in the row.
    pub fn get(&self, column: i32) -> Option<Datum> {
        let mut null = false;
        // SAFETY: tuple and descriptor belong together and are alive.
        let value = unsafe { pg_sys::heap_getattr(self.tuple, column, self.descriptor, &mut null) };
        (!null).then_some(value)
    }

    /// Of a column of type boolean; NULL is false.
    pub fn flag(&self, column: i32) -> bool {
        self.get(column).is_some_and(|datum| datum.value() as u8 != 0)
    }

    /// Of a column of type uuid.
    pub fn uuid(&self, column: i32) -> Option<[u8; 16]> {
        self.get(column).map(uuid_bytes)
    }
}

/// Reads the version at a tid if the snapshot sees it, and pins its buffer.
///
/// # Safety
/// The relation is an open table, the tuple says which row, and its block exists.
pub(super) unsafe fn fetch(
    relation: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    tuple: &mut pg_sys::HeapTupleData,
    buffer: &mut pg_sys::Buffer,
) -> bool {
    // SAFETY: by the caller's promise.
    unsafe {
        #[cfg(feature = "pg14")]
        return pg_sys::heap_fetch(relation, snapshot, tuple, buffer);
        #[cfg(not(feature = "pg14"))]
        pg_sys::heap_fetch(relation, snapshot, tuple, buffer, false)
    }
}
