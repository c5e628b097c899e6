//! Rows of the extension's own tables, written without SQL: no plan, no settings, no switch of user, because below SQL nobody
//! asks for privileges. For tables without triggers, constraints but NOT NULL, expressions and generated columns only.

use crate::pg::clock::Timestamp;
use crate::pg::place;
pub use crate::pg::place::Row;
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::{Cell, OnceCell};
use std::ffi::CStr;

/// A table of the extension, open and locked as by a writer until the transaction ends.
pub struct Table {
    pub(super) relation: pg_sys::Relation,
    /// Its length. Nobody can make it shorter under the lock.
    blocks: OnceCell<u32>,
}

/// A condition of a scan, by the column's number in the table, or for `walk` in the index.
#[derive(Clone, Copy)]
pub enum Key {
    /// Of that type, and equal to the value.
    Oid(i16, Datum),
    Uuid(i16, Datum),
    Int8(i16, Datum),
    /// At that time; later; not later.
    At(i16, Timestamp),
    After(i16, Timestamp),
    UpTo(i16, Timestamp),
}

impl Key {
    pub(super) fn scan_key(&self) -> pg_sys::ScanKeyData {
        use pg_sys::{BTEqualStrategyNumber, BTGreaterStrategyNumber, BTLessEqualStrategyNumber};
        let (column, strategy, function, value) = match self {
            Self::Oid(column, value) => (*column, BTEqualStrategyNumber, pg_sys::F_OIDEQ, *value),
            Self::Uuid(column, value) => (*column, BTEqualStrategyNumber, pg_sys::F_UUID_EQ, *value),
            Self::Int8(column, value) => (*column, BTEqualStrategyNumber, pg_sys::F_INT8EQ, *value),
            Self::At(column, time) => (*column, BTEqualStrategyNumber, pg_sys::F_TIMESTAMPTZ_EQ, Datum::from(*time)),
            Self::After(column, time) => {
                (*column, BTGreaterStrategyNumber, pg_sys::F_TIMESTAMPTZ_GT, Datum::from(*time))
            }
            Self::UpTo(column, time) => {
                (*column, BTLessEqualStrategyNumber, pg_sys::F_TIMESTAMPTZ_LE, Datum::from(*time))
            }
        };
        let mut key = pg_sys::ScanKeyData::default();
        // SAFETY: the functions take values of the types that the variants name.
        unsafe { pg_sys::ScanKeyInit(&mut key, column, strategy as u16, function.into(), value) };
        key
    }
}

/// What became of a `delete`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    Yes,
    /// There is no such row (any more).
    No,
    /// Somebody has changed it since we looked: the statement that does the same in SQL knows what to do then.
    Changed,
}

thread_local! {
    /// Where the table was that was opened last: its schema and itself.
    static LAST: Cell<(Oid, Oid)> = const { Cell::new((Oid::INVALID, Oid::INVALID)) };
}

impl Table {
    /// None: there is no such table, so the extension is being dropped.
    pub fn open(name: &CStr) -> Option<Self> {
        let last = LAST.get();
        if let Some(table) = Self::open_at(last, name) {
            return Some(table);
        }
        // SAFETY: look-ups inside a transaction.
        let found = unsafe {
            let schema = pg_sys::get_namespace_oid(c"background_jobs".as_ptr(), true);
            (schema, pg_sys::get_relname_relid(name.as_ptr(), schema))
        };
        LAST.set(found);
        Self::open_at(found, name)
    }

    /// Opens the table with this OID, if it is the one of this name in the schema with that OID.
    fn open_at((schema, oid): (Oid, Oid), name: &CStr) -> Option<Self> {
        if oid == Oid::INVALID {
            return None;
        }
        // SAFETY: inside a transaction; closed when the value is dropped.
        unsafe {
            let relation = pg_sys::try_table_open(oid, pg_sys::RowExclusiveLock as i32);
            if relation.is_null() {
                return None;
            }
            let table = Self { relation, blocks: OnceCell::new() };
            let form = &*(*relation).rd_rel;
            let same = form.relnamespace == schema && CStr::from_ptr(form.relname.data.as_ptr()) == name;
            same.then_some(table)
        }
    }

    /// Deletes the row with these keys, in the order of the columns of a unique index, if `matches` says so of the newest version
    /// that is committed or our own. Waits for whoever is changing it. For the transaction itself the row is gone after
    /// `xact::next_command`.
    pub fn delete(&self, index: &CStr, keys: &[Key], matches: impl Fn(&Row) -> bool) -> Deleted {
        let mut scan_keys: Vec<pg_sys::ScanKeyData> = keys.iter().map(Key::scan_key).collect();
        // SAFETY: the table is open and the index one of its own; without a snapshot of the caller's the scan takes one of this
        // moment. The tuple is used while the scan holds it.
        unsafe {
            let index = pg_sys::get_relname_relid(index.as_ptr(), (*(*self.relation).rd_rel).relnamespace);
            let (count, first) = (scan_keys.len() as i32, scan_keys.as_mut_ptr());
            let scan = pg_sys::systable_beginscan(self.relation, index, true, std::ptr::null_mut(), count, first);
            let tuple = pg_sys::systable_getnext(scan);
            let row = Row { tuple, descriptor: (*self.relation).rd_att };
            let deleted = if tuple.is_null() { Deleted::No } else { self.delete_if(&row, matches) };
            pg_sys::systable_endscan(scan);
            deleted
        }
    }

    /// The same for the row at `tid`, if there is one. A row that was changed since somebody looked is elsewhere.
    pub fn delete_at(&self, tid: u64, matches: impl Fn(&Row) -> bool) -> Deleted {
        // SAFETY: the row is this table's, and stays where it is while its buffer is pinned.
        let delete = |row: &Row| unsafe { self.delete_if(row, matches) };
        self.at(tid, &raw mut pg_sys::SnapshotSelfData, delete).unwrap_or(Deleted::No)
    }

    /// Looks at the row at `tid`, if the active snapshot sees one there.
    pub fn look_at<T>(&self, tid: u64, f: impl FnOnce(&Row) -> T) -> Option<T> {
        // SAFETY: there is an active snapshot, or the server raises an error.
        self.at(tid, unsafe { pg_sys::GetActiveSnapshot() }, f)
    }

    fn at<T>(&self, tid: u64, snapshot: pg_sys::Snapshot, f: impl FnOnce(&Row) -> T) -> Option<T> {
        // SAFETY: the relation is open.
        let blocks = *self.blocks.get_or_init(|| unsafe { place::length(self.relation) });
        // SAFETY: the table is open and has so many blocks.
        unsafe { place::at(self.relation, blocks, tid, snapshot, f) }
    }

    /// # Safety
    /// The row is one of this table's, and stays where it is while this runs.
    unsafe fn delete_if(&self, row: &Row, matches: impl Fn(&Row) -> bool) -> Deleted {
        if !matches(row) {
            return Deleted::No;
        }
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: the table is open for writing, and the row one of its own.
        let result = unsafe {
            pg_sys::heap_delete(
                self.relation,
                &raw mut (*row.tuple).t_self,
                pg_sys::GetCurrentCommandId(true),
                std::ptr::null_mut(),
                true,
                &mut failure,
                false,
            )
        };
        match result {
            pg_sys::TM_Result::TM_Ok => Deleted::Yes,
            pg_sys::TM_Result::TM_Deleted => Deleted::No,
            _ => Deleted::Changed,
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`; the lock stays. After an error the transaction's abort has closed it.
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as i32) };
        }
    }
}
