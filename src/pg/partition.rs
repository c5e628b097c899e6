//! Partitions of partitioned tables.

use crate::pg::encoding;
use crate::pg::relation::attribute;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, Datum, Oid};

// Of a header that pgrx leaves out, as is the other one's number of a column.
unsafe extern "C-unwind" {
    fn get_partition_ancestors(partition: Oid) -> *mut pg_sys::List;
}

/// In pg_partitioned_table.
const ANUM_PARTATTRS: pg_sys::AttrNumber = 5;

/// What has to be locked on the way from a partitioned table to one of its partitions, however deep: those in between, and the
/// partition itself. None: it is no partition of that table, or is being detached.
pub fn way(table: Oid, partition: Oid) -> Option<Vec<Oid>> {
    // SAFETY: look-ups in the catalogs. Whatever else inherits is not asked about.
    let ancestors: Vec<Oid> = unsafe {
        if !pg_sys::get_rel_relispartition(partition) {
            return None;
        }
        let list = pg_guard_ffi_boundary(|| get_partition_ancestors(partition));
        let count = if list.is_null() { 0 } else { (*list).length as usize };
        (0..count).map(|i| (*(*list).elements.add(i)).oid_value).collect()
    };
    // The next one comes first.
    let (topmost, between) = ancestors.split_last()?;
    (*topmost == table).then(|| between.iter().rev().copied().chain([partition]).collect())
}

/// The columns whose values say in which partition a row belongs; none for what is no column.
///
/// # Safety
/// The relation is open.
pub(super) unsafe fn key(relation: pg_sys::Relation) -> Vec<Option<String>> {
    // SAFETY: a look-up in the catalogs, whose tuple is released before the function returns; the numbers are those of columns, or 0.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::PARTRELID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, Datum::from((*relation).rd_id));
        if tuple.is_null() {
            return Vec::new();
        }
        let mut null = false;
        let numbers = pg_sys::SysCacheGetAttr(cache, tuple, ANUM_PARTATTRS, &mut null);
        let numbers = &*numbers.cast_mut_ptr::<pg_sys::int2vector>();
        let name = |number: &i16| {
            let number = usize::try_from(*number).ok().filter(|number| *number > 0)?;
            encoding::from_c((*attribute((*relation).rd_att, number - 1)).attname.data.as_ptr())
        };
        let names = numbers.values.as_slice(numbers.dim1 as usize).iter().map(name).collect();
        pg_sys::ReleaseSysCache(tuple);
        names
    }
}
