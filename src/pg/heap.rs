//! Rows of the extension's own tables, written and looked up without SQL: no plan, no settings, no switch of user, because
//! below SQL nobody asks for privileges. For tables without triggers, expressions and generated columns only.

use crate::pg::memory::zeroed;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// A table of the extension, open and locked as by a writer until the transaction ends.
pub struct Table(pg_sys::Relation);

/// The condition "column = value", by the column's number in the index.
pub enum Key {
    Oid(i16, Datum),
    Uuid(i16, Datum),
}

fn relation_oid(name: &CStr) -> Oid {
    // SAFETY: look-ups inside a transaction.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"background_jobs".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    }
}

impl Table {
    /// None: there is no such table, so the extension is being dropped.
    pub fn open(name: &CStr) -> Option<Self> {
        let oid = relation_oid(name);
        if oid == Oid::INVALID {
            return None;
        }
        // SAFETY: inside a transaction; closed when the value is dropped.
        let relation = unsafe { pg_sys::try_table_open(oid, pg_sys::RowExclusiveLock as i32) };
        (!relation.is_null()).then_some(Self(relation))
    }

    /// Is there a row with this key? `index` is a unique index of the table.
    pub fn has(&self, index: &CStr, keys: &[Key]) -> bool {
        let mut scan_keys: Vec<pg_sys::ScanKeyData> = keys
            .iter()
            .map(|key| {
                let mut scan_key = pg_sys::ScanKeyData::default();
                let (column, function, value) = match key {
                    Key::Oid(column, value) => (*column, pg_sys::F_OIDEQ, *value),
                    Key::Uuid(column, value) => (*column, pg_sys::F_UUID_EQ, *value),
                };
                // SAFETY: the equality functions take values of the types that the constructors name.
                unsafe {
                    pg_sys::ScanKeyInit(
                        &mut scan_key,
                        column,
                        pg_sys::BTEqualStrategyNumber as u16,
                        function.into(),
                        value,
                    );
                }
                scan_key
            })
            .collect();
        // SAFETY: the table is open, the index is one of its own, and the scan ends before the function returns. Without a
        // snapshot of the caller's it takes one of what is committed and of what this command can see.
        unsafe {
            let scan = pg_sys::systable_beginscan(
                self.0,
                relation_oid(index),
                true,
                std::ptr::null_mut(),
                scan_keys.len() as i32,
                scan_keys.as_mut_ptr(),
            );
            let found = !pg_sys::systable_getnext(scan).is_null();
            pg_sys::systable_endscan(scan);
            found
        }
    }

    /// Inserts a row with its index entries. `values` has one element for each column, in their order; a violated
    /// constraint is an ordinary error.
    pub fn insert(&self, values: &[Option<Datum>]) {
        let target = zeroed::<pg_sys::ResultRelInfo>();
        // SAFETY: the protocol by which the server's own apply worker inserts a row: executor state, target relation, open
        // indexes, a slot of the table's kind filled with as many values as the table has columns.
        unsafe {
            let descriptor = (*self.0).rd_att;
            assert_eq!(
                (*descriptor).natts as usize,
                values.len(),
                "the table has other columns than this version knows"
            );
            let state = pg_sys::CreateExecutorState();
            (*state).es_output_cid = pg_sys::GetCurrentCommandId(true);
            let target = target.as_ptr();
            pg_sys::InitResultRelInfo(target, self.0, 1, std::ptr::null_mut(), 0);
            pg_sys::ExecOpenIndices(target, false);
            let slot = pg_sys::MakeSingleTupleTableSlot(descriptor, pg_sys::table_slot_callbacks(self.0));
            for (i, value) in values.iter().enumerate() {
                *(*slot).tts_values.add(i) = value.unwrap_or(Datum::from(0));
                *(*slot).tts_isnull.add(i) = value.is_none();
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            pg_sys::ExecSimpleRelationInsert(target, state, slot);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::ExecCloseIndices(target);
            pg_sys::FreeExecutorState(state);
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened by `open`; the lock stays. After an error the transaction's abort has closed it.
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock as i32) };
        }
    }
}
