//! Rows of somebody else's table, read and updated where they were last seen: no plan, no index to search. What the current user
//! may not read or write as it stands there, or what takes more than that, is left to a statement.

use crate::pg::clock::Timestamp;
use crate::pg::encoding::from_text;
use crate::pg::index::{self, Duplicate, Entry};
use crate::pg::relation::attribute;
use crate::pg::spi::{item_pointer, tid_of, uuid_bytes};
use pgrx::itemptr::{item_pointer_get_both, item_pointer_to_u64};
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// A table, or a part of it, that somebody here has locked already.
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
    /// Those of the table that are in this part of it: a partition, or the table itself. None: the part has no rows of its own that are
    /// stored as the server does, a policy may hide some, or the current user has no right to all columns of the table; as with a
    /// statement, rights on a partition do not count.
    pub fn open(table: Oid, part: Oid) -> Option<Self> {
        Self::open_for(table, part, pg_sys::ACL_SELECT)
    }

    /// For `update`, under a writer's lock. None: as for `open`; or there is an index that takes more than a row's values. That no
    /// code of the owner's runs with an update, and that none moves a row, is the caller's to know: see `Relation`.
    pub fn open_to_update(table: Oid, part: Oid) -> Option<Self> {
        // SAFETY: the table is open, and locked by the caller.
        Self::open_for(table, part, pg_sys::ACL_SELECT | pg_sys::ACL_UPDATE).filter(|places| unsafe {
            pg_sys::CheckCmdReplicaIdentity(places.relation, pg_sys::CmdType::CMD_UPDATE);
            index::are_plain(places.relation)
        })
    }

    fn open_for(table: Oid, part: Oid, rights: u32) -> Option<Self> {
        // SAFETY: the caller has locked the table and its part in this transaction; closed when the value is dropped.
        unsafe {
            let relation = pg_sys::table_open(part, pg_sys::NoLock as i32);
            let form = &*(*relation).rd_rel;
            let mut places = Self { relation, blocks: 0 };
            let fit = form.relkind as u8 == pg_sys::RELKIND_RELATION
                && form.relam == pg_sys::HEAP_TABLE_AM_OID
                && !form.relrowsecurity
                && (part == table || !has_policies(table))
                && has_all(table, rights);
            fit.then(|| {
                places.blocks = length(relation);
                places
            })
        }
    }

    fn width(&self) -> usize {
        // SAFETY: the table is open.
        unsafe { (*(*self.relation).rd_att).natts as usize }
    }

    /// The number of a column; 0: there is none.
    pub fn column(&self, name: &str) -> i32 {
        // SAFETY: the table is open, and has so many columns.
        let is = |i: &usize| unsafe {
            let column = &*attribute((*self.relation).rd_att, *i);
            !column.attisdropped && CStr::from_ptr(column.attname.data.as_ptr()).to_bytes() == name.as_bytes()
        };
        (0..self.width()).find(is).map_or(0, |i| i as i32 + 1)
    }

    /// The row at `tid`, if the active snapshot sees one there.
    pub fn read(&self, tid: u64) -> Option<Row> {
        // SAFETY: the table is open and has so many blocks; the tuple is copied while it is there.
        unsafe {
            at(self.relation, self.blocks, tid, pg_sys::GetActiveSnapshot(), |row| Row {
                tuple: pg_sys::heap_copytuple(row.tuple),
                descriptor: row.descriptor,
            })
        }
    }

    /// Writes a version of the row, which was read with the latest snapshot, that has other values in some columns; by their
    /// numbers. Waits for whoever is changing it. False: it was changed, or the new version is not one that the table allows. For
    /// the transaction itself it is there after `xact::next_command`.
    pub fn update(&self, row: &Row, changes: &[(i32, Option<Datum>)]) -> bool {
        let width = self.width();
        let (mut values, mut nulls) = (vec![Datum::from(0); width], vec![false; width]);
        let mut replaced = vec![false; width];
        for (column, value) in changes {
            let i = *column as usize - 1;
            // SAFETY: the table has so many columns.
            if value.is_none() && unsafe { (*attribute((*self.relation).rd_att, i)).attnotnull } {
                return false;
            }
            (values[i], nulls[i], replaced[i]) = (value.unwrap_or(Datum::from(0)), value.is_none(), true);
        }
        // SAFETY: the table is open and locked by a writer, the row one of its own, and the arrays have an element for each column.
        unsafe {
            let (new_values, new_nulls) = (values.as_mut_ptr(), nulls.as_mut_ptr());
            let tuple =
                pg_sys::heap_modify_tuple(row.tuple, row.descriptor, new_values, new_nulls, replaced.as_mut_ptr());
            let updated = update(self.relation, &raw mut (*row.tuple).t_self, tuple);
            if updated && u32::from((*(*tuple).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE == 0 {
                pg_sys::heap_deform_tuple(tuple, row.descriptor, new_values, new_nulls);
                let entry = Entry { values, nulls, position: (*tuple).t_self, is_unique: true };
                index::insert_entries(self.relation, &mut [entry], Duplicate::Refuse);
            }
            pg_sys::heap_freetuple(tuple);
            updated
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

    /// Of a column of type timestamptz.
    pub fn timestamp(&self, column: i32) -> Option<Timestamp> {
        self.get(column).map(|datum| datum.value() as Timestamp)
    }

    /// Of a column of type integer.
    pub fn int4(&self, column: i32) -> Option<i32> {
        self.get(column).map(|datum| datum.value() as i32)
    }

    /// Of a column of type oid, or regclass.
    pub fn oid(&self, column: i32) -> Option<u32> {
        self.get(column).map(|datum| datum.value() as u32)
    }

    /// Of a column of type tid; 0 for NULL, which is nobody's.
    pub fn tid(&self, column: i32) -> u64 {
        self.get(column).map_or(0, tid_of)
    }

    /// Its own tid.
    pub fn place(&self) -> u64 {
        // SAFETY: the tuple is alive.
        item_pointer_to_u64(unsafe { (*self.tuple).t_self })
    }

    /// Of a column of type text.
    pub fn text(&self, column: i32) -> Option<String> {
        self.get(column).map(from_text)
    }
}

fn has_policies(table: Oid) -> bool {
    // SAFETY: the caller has locked the table.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::NoLock as i32);
        let has = (*(*relation).rd_rel).relrowsecurity;
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        has
    }
}

fn has_all(table: Oid, rights: u32) -> bool {
    let all = pg_sys::AclMaskHow::ACLMASK_ALL;
    // SAFETY: look-ups in the catalogs.
    unsafe {
        let mode = pg_sys::AclMode::from(rights);
        pg_sys::pg_class_aclmask(table, pg_sys::GetUserId(), mode, all) == mode
    }
}

/// False: somebody has changed the row meanwhile.
///
/// # Safety
/// The relation is an open table under a writer's lock, `position` that of a row that its latest snapshot sees, and `tuple` the
/// new version.
unsafe fn update(relation: pg_sys::Relation, position: pg_sys::ItemPointer, tuple: pg_sys::HeapTuple) -> bool {
    let mut failure = pg_sys::TM_FailureData::default();
    let mut mode = pg_sys::LockTupleMode::LockTupleExclusive;
    // SAFETY: by the caller's promise.
    let result = unsafe {
        pg_sys::heap_update(
            relation,
            position,
            tuple,
            pg_sys::GetCurrentCommandId(true),
            std::ptr::null_mut(),
            true,
            &mut failure,
            &mut mode,
            #[cfg(not(any(feature = "pg14", feature = "pg15")))]
            &mut { pg_sys::TU_UpdateIndexes::TU_All },
        )
    };
    result == pg_sys::TM_Result::TM_Ok
}

/// How many blocks the table has.
///
/// # Safety
/// The table is open.
pub(super) unsafe fn length(table: pg_sys::Relation) -> u32 {
    // SAFETY: by the caller's promise.
    unsafe { pg_sys::RelationGetNumberOfBlocksInFork(table, pg_sys::ForkNumber::MAIN_FORKNUM) }
}

/// Calls `f` with the version at a tid, if there is such a place and the snapshot sees it. The version is there until `f` returns.
///
/// # Safety
/// The table is open and has so many blocks.
pub(super) unsafe fn at<T>(
    table: pg_sys::Relation,
    blocks: u32,
    tid: u64,
    snapshot: pg_sys::Snapshot,
    f: impl FnOnce(&Row) -> T,
) -> Option<T> {
    let position = item_pointer(tid);
    if position.ip_posid == 0 || item_pointer_get_both(position).0 >= blocks {
        return None;
    }
    let mut tuple = pg_sys::HeapTupleData { t_self: position, ..Default::default() };
    let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
    // SAFETY: by the caller's promise; the buffer is pinned while the tuple is looked at. After an error the transaction's abort
    // lets go of it.
    unsafe {
        #[cfg(feature = "pg14")]
        let seen = pg_sys::heap_fetch(table, snapshot, &mut tuple, &mut buffer);
        #[cfg(not(feature = "pg14"))]
        let seen = pg_sys::heap_fetch(table, snapshot, &mut tuple, &mut buffer, false);
        seen.then(|| {
            let value = f(&Row { tuple: &raw mut tuple, descriptor: (*table).rd_att });
            pg_sys::ReleaseBuffer(buffer);
            value
        })
    }
}
