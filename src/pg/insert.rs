//! New rows of the extension's own tables, a page at a time.

use crate::pg::heap::Table;
use crate::pg::index::{self, Duplicate, Entry};
use crate::pg::memory::Context;
use pgrx::itemptr::item_pointer_to_u64;
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::Cell;

thread_local! {
    /// Table, number of columns, and their descriptor, which takes longer to make than a row.
    static FIRST_COLUMNS: Cell<(Oid, i16, pg_sys::TupleDesc)> = const { Cell::new((Oid::INVALID, 0, std::ptr::null_mut())) };
}

impl Table {
    /// Inserts rows with their entries in all indexes but the partial ones, none of which may apply to them. A row has one element
    /// for each column, in their order. Returns their tids; none: a unique index has, or may soon have, the row's key already,
    /// and the row is not there.
    pub fn insert<const COLUMNS: usize>(
        &self,
        rows: impl Iterator<Item = [Option<Datum>; COLUMNS]>,
    ) -> Vec<Option<u64>> {
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

    fn insert_rows<const COLUMNS: usize>(
        &self,
        rows: impl Iterator<Item = [Option<Datum>; COLUMNS]>,
    ) -> Vec<Option<u64>> {
        let mut rows: Vec<_> = rows.map(NewRow::of).collect();
        // Nulls at the end need not be written: of a column behind its end a row has none.
        let end = |row: &NewRow<COLUMNS>| row.nulls.iter().rposition(|null| !null).map_or(0, |last| last + 1);
        let width = rows.iter().map(end).max().unwrap_or_default() as i16;
        // SAFETY: the table is open, and each row has as many elements as it has columns. What is made here lies in the current memory
        // context.
        unsafe {
            let columns = (*(*self.relation).rd_att).natts as usize;
            assert_eq!(columns, COLUMNS, "the table has other columns than this version knows");
            let descriptor = self.first_columns(width);
            match &mut rows[..] {
                [row] => self.write_one(row, descriptor),
                rows => self.write(rows, descriptor),
            }
            index::insert_entries(self.relation, &mut rows, Duplicate::Tell);
            if rows.iter().any(|row| !row.is_unique) {
                // What a command has written it cannot delete itself.
                pg_sys::CommandCounterIncrement();
            }
            let places = rows.iter_mut().map(|row| {
                if !row.is_unique {
                    pg_sys::simple_heap_delete(self.relation, &raw mut row.position);
                }
                row.is_unique.then(|| item_pointer_to_u64(row.position))
            });
            places.collect()
        }
    }

    /// Writes the rows into the table, as many into a page as there is room for with one record in the log.
    ///
    /// # Safety
    /// The descriptor is that of columns of the table's.
    unsafe fn write<const COLUMNS: usize>(&self, rows: &mut [NewRow<COLUMNS>], descriptor: pg_sys::TupleDesc) {
        // SAFETY: as promised.
        unsafe {
            let slot = |row: &mut NewRow<COLUMNS>| {
                let slot = pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsHeapTuple);
                pg_sys::ExecStoreHeapTuple(row.form(descriptor), slot, true)
            };
            let mut slots: Vec<_> = rows.iter_mut().map(slot).collect();
            let (first, count) = (slots.as_mut_ptr(), slots.len() as i32);
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_multi_insert(self.relation, first, count, command, 0, std::ptr::null_mut());
            for (row, slot) in rows.iter_mut().zip(slots) {
                row.position = (*slot).tts_tid;
            }
        }
    }

    /// The same for a row alone, which is simpler.
    ///
    /// # Safety
    /// As for `write`.
    unsafe fn write_one<const COLUMNS: usize>(&self, row: &mut NewRow<COLUMNS>, descriptor: pg_sys::TupleDesc) {
        // SAFETY: as promised.
        unsafe {
            let tuple = row.form(descriptor);
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_insert(self.relation, tuple, command, 0, std::ptr::null_mut());
            row.position = (*tuple).t_self;
        }
    }
}

type NewRow<const COLUMNS: usize> = Entry<[Datum; COLUMNS], [bool; COLUMNS]>;

impl<const COLUMNS: usize> NewRow<COLUMNS> {
    fn of(columns: [Option<Datum>; COLUMNS]) -> Self {
        Self {
            values: columns.map(|value| value.unwrap_or(Datum::from(0))),
            nulls: columns.map(|value| value.is_none()),
            position: pg_sys::ItemPointerData::default(),
            is_unique: true,
        }
    }

    /// # Safety
    /// The descriptor has no more columns than the row.
    unsafe fn form(&mut self, descriptor: pg_sys::TupleDesc) -> pg_sys::HeapTuple {
        // SAFETY: as promised.
        unsafe { pg_sys::heap_form_tuple(descriptor, self.values.as_mut_ptr(), self.nulls.as_mut_ptr()) }
    }
}
