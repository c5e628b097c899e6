//! The entries of a row in the indexes of its table, written without the executor: for B-trees of plain columns.

use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::Cell;

/// What to do about a row whose key a unique index already has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Duplicate {
    /// Tell, without a wait for whoever may be about to make one.
    Tell,
    /// Raise an error.
    Refuse,
}

thread_local! {
    /// A table and an index of it that is known to be partial, which an index is for good.
    static PARTIAL: Cell<(Oid, Oid)> = const { Cell::new((Oid::INVALID, Oid::INVALID)) };
}

/// Calls `f` with the table's indexes, one after the other, until it says false; says whether it never did.
///
/// # Safety
/// The table is open and locked. `f` keeps no index.
pub(super) unsafe fn each(table: pg_sys::Relation, lock: u32, f: impl FnMut(pg_sys::Relation) -> bool) -> bool {
    // SAFETY: as promised.
    unsafe { each_but((Oid::INVALID, Oid::INVALID), table, lock, f) }
}

/// The same without this one of that table.
///
/// # Safety
/// As for `each`.
unsafe fn each_but(
    (of, without): (Oid, Oid),
    table: pg_sys::Relation,
    lock: u32,
    mut f: impl FnMut(pg_sys::Relation) -> bool,
) -> bool {
    // SAFETY: the indexes are the table's own and open while they are used.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(table);
        let count = if indexes.is_null() { 0 } else { (*indexes).length as usize };
        (0..count).map(|i| (*(*indexes).elements.add(i)).oid_value).all(|index| {
            if (of, without) == ((*table).rd_id, index) {
                return true;
            }
            let index = pg_sys::index_open(index, lock as i32);
            let goes_on = f(index);
            pg_sys::index_close(index, pg_sys::NoLock as i32);
            goes_on
        })
    }
}

/// Is the column of the index's own row in pg_index set?
///
/// # Safety
/// The index is open.
pub(super) unsafe fn has(index: pg_sys::Relation, column: u32) -> bool {
    // SAFETY: the index is open.
    unsafe { !pg_sys::heap_attisnull((*index).rd_indextuple, column as i32, std::ptr::null_mut()) }
}

/// Are all of them what `insert_entries` writes, but for those of expressions and partial ones?
///
/// # Safety
/// The table is open and locked.
pub unsafe fn are_plain(table: pg_sys::Relation) -> bool {
    // SAFETY: as for `each`.
    unsafe {
        each(table, pg_sys::AccessShareLock, |index| {
            let form = &*(*index).rd_index;
            (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID && form.indimmediate && !form.indisexclusion
        })
    }
}

/// A row that the table has.
pub struct Entry<Values, Nulls> {
    /// One for each column.
    pub values: Values,
    pub nulls: Nulls,
    pub position: pg_sys::ItemPointerData,
    /// No unique index has, or may soon have, one of its keys for another row.
    pub is_unique: bool,
}

/// Inserts the rows' entries into all indexes but the partial ones, none of which may apply to them, as long as they are unique.
///
/// # Safety
/// The table is open and locked by a writer, has no indexes of expressions, and has these rows.
pub unsafe fn insert_entries<Values: AsRef<[Datum]>, Nulls: AsRef<[bool]>>(
    table: pg_sys::Relation,
    rows: &mut [Entry<Values, Nulls>],
    duplicate: Duplicate,
) {
    // SAFETY: an index has no more columns than a row has values, and each is a column of the table, because there are no
    // expressions.
    unsafe {
        each_but(PARTIAL.get(), table, pg_sys::RowExclusiveLock, |index| {
            let form = &*(*index).rd_index;
            if has(index, pg_sys::Anum_pg_index_indpred) {
                PARTIAL.set(((*table).rd_id, (*index).rd_id));
                return true;
            }
            if !form.indisready {
                return true;
            }
            let columns = form.indkey.values.as_slice(form.indnatts as usize);
            let check = match duplicate {
                _ if !form.indisunique => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
                Duplicate::Tell => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_PARTIAL,
                Duplicate::Refuse => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES,
            };
            for row in rows.iter_mut().filter(|row| row.is_unique) {
                let mut keys = [Datum::from(0); pg_sys::INDEX_MAX_KEYS as usize];
                let mut key_nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
                for (key, column) in columns.iter().enumerate() {
                    let column = *column as usize - 1;
                    (keys[key], key_nulls[key]) = (row.values.as_ref()[column], row.nulls.as_ref()[column]);
                }
                let (keys, key_nulls) = (keys.as_mut_ptr(), key_nulls.as_mut_ptr());
                // What a B-tree does not ask for.
                let info = std::ptr::null_mut();
                let inserted =
                    pg_sys::index_insert(index, keys, key_nulls, &mut row.position, table, check, false, info);
                row.is_unique = inserted || !form.indisunique;
            }
            true
        });
    }
}
