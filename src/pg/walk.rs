//! An index walked a few entries at a time, whatever has become of their rows. SQL would go on until it finds a live row,
//! however many entries it has to pass.

use crate::pg::heap::{Key, Row, Table};
use pgrx::pg_sys::{self, Datum};
use std::ffi::CStr;

/// Columns that an index of ours has at most.
const COLUMNS: usize = 4;

impl Table {
    /// Looks at the first entries of the index that satisfy the conditions, in its order, but at no more than `limit`. `f` is called with
    /// each row among them that the active snapshot sees, and ends the walk by saying false. Returns the columns of the last entry; none:
    /// there are no more, or `f` has ended it.
    pub fn walk(
        &self,
        index: &CStr,
        keys: &[Key],
        limit: usize,
        mut f: impl FnMut(&Row) -> bool,
    ) -> Option<[Datum; COLUMNS]> {
        let mut scan_keys: Vec<pg_sys::ScanKeyData> = keys.iter().map(Key::scan_key).collect();
        let (count, first) = (scan_keys.len() as i32, scan_keys.as_mut_ptr());
        // SAFETY: the table is open and the index one of its own, whose columns are plain ones, passed by value; there is an active
        // snapshot, or the server raises an error. A row is used while the slot holds it, an entry while the scan does.
        unsafe {
            let oid = pg_sys::get_relname_relid(index.as_ptr(), (*(*self.relation).rd_rel).relnamespace);
            let index = pg_sys::index_open(oid, pg_sys::AccessShareLock as i32);
            let snapshot = pg_sys::GetActiveSnapshot();
            #[cfg(not(feature = "pg18"))]
            let scan = pg_sys::index_beginscan(self.relation, index, snapshot, count, 0);
            #[cfg(feature = "pg18")]
            let scan = pg_sys::index_beginscan(self.relation, index, snapshot, std::ptr::null_mut(), count, 0);
            (*scan).xs_want_itup = true;
            pg_sys::index_rescan(scan, first, count, std::ptr::null_mut(), 0);
            let slot = pg_sys::table_slot_create(self.relation, std::ptr::null_mut());
            let mut last = None;
            for n in 1..=limit {
                if pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::ForwardScanDirection).is_null() {
                    break;
                }
                if pg_sys::index_fetch_heap(scan, slot) {
                    let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, std::ptr::null_mut());
                    if !f(&Row { tuple, descriptor: (*self.relation).rd_att }) {
                        break;
                    }
                }
                if n == limit {
                    let (mut values, mut nulls) = ([Datum::from(0); COLUMNS], [false; COLUMNS]);
                    assert!((*(*scan).xs_itupdesc).natts as usize <= COLUMNS, "the index has too many columns");
                    pg_sys::index_deform_tuple(
                        (*scan).xs_itup,
                        (*scan).xs_itupdesc,
                        values.as_mut_ptr(),
                        nulls.as_mut_ptr(),
                    );
                    last = Some(values);
                }
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::index_endscan(scan);
            pg_sys::index_close(index, pg_sys::AccessShareLock as i32);
            last
        }
    }
}
