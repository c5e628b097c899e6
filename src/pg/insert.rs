//! New rows of the extension's own tables, a page at a time.

use crate::pg::heap::Table;
use crate::pg::index::{self, Duplicate, Entry};
use crate::pg::memory::Context;
use pgrx::itemptr::item_pointer_to_u64;
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::Cell;

thread_local! {
    /// Of a table's so many first columns the descriptor, which takes longer to make than a row.
    static FIRST_COLUMNS: Cell<(Oid, i16, pg_sys::TupleDesc)> = const { Cell::new((Oid::INVALID, 0, std::ptr::null_mut())) };
}

impl Table {
    /// Inserts rows with their entries in all indexes but the partial ones, none of which may apply to them. A row has one element
    /// for each column, in their order. Returns their tids; none: a unique index has, or may soon have, the row's key already,
    /// and the row is not there.
    pub fn insert<const COLUMNS: usize>(&self, rows: &[[Option<Datum>; COLUMNS]]) -> Vec<Option<u64>> {
        Context::new_scratch(c"background_jobs rows").run_and_delete(|| self.insert_rows(rows))
    }

    /// The descriptor of the table's first columns.
    fn first_columns(&self, width: i16) -> pg_sys::TupleDesc {
        // SAFETY: the table is open, and has so many columns; whatever is kept for the process is freed when nobody has it any more.
        unsafe {
            let (table, kept_width, kept) = FIRST_COLUMNS.get();
            if (table, kept_width) == ((*self.relation).rd_id, width) {
                return kept;
            }
            FIRST_COLUMNS.set((Oid::INVALID, 0, std::ptr::null_mut()));
            if !kept.is_null() {
                pg_sys::FreeTupleDesc(kept);
            }
            let made = Context::top().run(|| {
                let made = pg_sys::CreateTemplateTupleDesc(i32::from(width));
                let own = (*self.relation).rd_att;
                (1..=width).for_each(|column| pg_sys::TupleDescCopyEntry(made, column, own, column));
                made
            });
            FIRST_COLUMNS.set(((*self.relation).rd_id, width, made));
            made
        }
    }

    fn insert_rows<const COLUMNS: usize>(&self, rows: &[[Option<Datum>; COLUMNS]]) -> Vec<Option<u64>> {
        let plain = |row: &[Option<Datum>; COLUMNS]| {
            (row.map(|value| value.unwrap_or(Datum::from(0))), row.map(|value| value.is_none()))
        };
        let rows: Vec<_> = rows.iter().map(plain).collect();
        // Nulls at the end need not be written: of a column behind its end a row has none.
        let end = |(_, nulls): &(_, [bool; COLUMNS])| nulls.iter().rposition(|null| !null).map_or(0, |last| last + 1);
        let width = rows.iter().map(end).max().unwrap_or_default() as i16;
        // SAFETY: the table is open, and each row has as many elements as it has columns. What is made here lies in the current memory
        // context.
        unsafe {
            let columns = (*(*self.relation).rd_att).natts as usize;
            assert_eq!(columns, COLUMNS, "the table has other columns than this version knows");
            let descriptor = self.first_columns(width);
            let mut slots: Vec<_> = rows
                .iter()
                .map(|(values, nulls)| {
                    let slot = pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsHeapTuple);
                    let (values, nulls) = (values.as_ptr().cast_mut(), nulls.as_ptr().cast_mut());
                    pg_sys::ExecStoreHeapTuple(pg_sys::heap_form_tuple(descriptor, values, nulls), slot, true)
                })
                .collect();
            let command = pg_sys::GetCurrentCommandId(true);
            let (first, count) = (slots.as_mut_ptr(), slots.len() as i32);
            pg_sys::heap_multi_insert(self.relation, first, count, command, 0, std::ptr::null_mut());
            let mut entries: Vec<_> = rows
                .iter()
                .zip(&slots)
                .map(|((values, nulls), slot)| Entry { values, nulls, position: (**slot).tts_tid })
                .collect();
            let unique = index::insert_entries(self.relation, &mut entries, Duplicate::Tell);
            if unique.contains(&false) {
                // What a command has written it cannot delete itself.
                pg_sys::CommandCounterIncrement();
            }
            let places = entries.iter_mut().zip(unique).map(|(entry, unique)| {
                if !unique {
                    pg_sys::simple_heap_delete(self.relation, &raw mut entry.position);
                }
                unique.then(|| item_pointer_to_u64(entry.position))
            });
            places.collect()
        }
    }
}
