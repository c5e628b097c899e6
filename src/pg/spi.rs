//! Prepared statements through the Server Programming Interface, with datums passed through as they are.

use crate::pg::encoding;
use crate::pg::error::PgError;
use crate::pg::memory::{Context, HeldDatum, hold_varlena};
use pgrx::itemptr::{item_pointer_to_u64, u64_to_item_pointer};
use pgrx::{FromDatum, PgSqlErrorCode, pg_sys};
use std::cell::Cell;
use std::ffi::{CStr, CString};

pub type Args<'a> = &'a [Option<pg_sys::Datum>];

/// A statement that is prepared at its first use in a process and kept. Its text must qualify every table and function.
pub struct Statement {
    sql: CString,
    types: Vec<pg_sys::Oid>,
    plan: Cell<pg_sys::SPIPlanPtr>,
}

/// The rows of one execution; they live until the enclosing `connect` returns.
pub struct Rows {
    table: *mut pg_sys::SPITupleTable,
    /// Rows returned or changed.
    pub processed: usize,
}

/// A type that a column can be read as. The statement's text fixes the column's type to the one asked for.
pub trait Value: Sized {
    fn of(datum: pg_sys::Datum) -> Option<Self>;
}

macro_rules! values {
    ($($type:ty),*) => {
        $(impl Value for $type {
            fn of(datum: pg_sys::Datum) -> Option<Self> {
                // SAFETY: see the trait.
                unsafe { <$type>::from_datum(datum, false) }
            }
        })*
    };
}

values!(bool, i16, i32, i64, f32, f64, pg_sys::Oid);

/// A column of type text.
impl Value for String {
    fn of(datum: pg_sys::Datum) -> Option<Self> {
        Some(encoding::from_text(datum))
    }
}

/// A column of type name.
pub struct Name(pub String);

impl Value for Name {
    fn of(datum: pg_sys::Datum) -> Option<Self> {
        // SAFETY: a name is a nul-terminated string in a fixed room.
        unsafe { encoding::from_c(datum.cast_mut_ptr()) }.map(Self)
    }
}

fn failed(what: &str, code: i32) -> ! {
    // SAFETY: returns a static string.
    let name = unsafe { CStr::from_ptr(pg_sys::SPI_result_code_string(code)) };
    PgError::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("{what} failed: {}", name.to_string_lossy())).raise()
}

/// Opens the interface for the statements of `f`. After an error the (sub)transaction's abort closes it.
pub fn connect<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: inside a transaction; every connect on the normal path has its finish.
    let code = unsafe { pg_sys::SPI_connect() };
    if code != pg_sys::SPI_OK_CONNECT as i32 {
        failed("SPI_connect", code);
    }
    let value = f();
    // SAFETY: as above.
    unsafe { pg_sys::SPI_finish() };
    value
}

impl Statement {
    pub fn new(sql: impl AsRef<str>, types: &[pg_sys::Oid]) -> Self {
        Self { sql: encoding::to_c(sql.as_ref()), types: types.to_vec(), plan: Cell::new(std::ptr::null_mut()) }
    }

    fn plan(&self) -> pg_sys::SPIPlanPtr {
        if self.plan.get().is_null() {
            // SAFETY: text and types outlive the calls; keepplan moves the plan to lasting memory.
            unsafe {
                let plan =
                    pg_sys::SPI_prepare(self.sql.as_ptr(), self.types.len() as i32, self.types.as_ptr().cast_mut());
                if plan.is_null() {
                    failed("SPI_prepare", pg_sys::SPI_result);
                }
                pg_sys::SPI_keepplan(plan);
                self.plan.set(plan);
            }
        }
        self.plan.get()
    }

    /// Executes it inside a `connect`. `limit` 0 means all rows.
    pub fn execute(&self, args: Args, limit: usize) -> Rows {
        self.run(args, false, limit)
    }

    /// The same for a pure SELECT: under the active snapshot, without taking a transaction id.
    pub fn read(&self, args: Args, limit: usize) -> Rows {
        self.run(args, true, limit)
    }

    /// Calls `f` for each row of a query without parameters, a batch at a time, so that their number does not matter. Under
    /// the active snapshot. What `f` allocates of the server is freed after the batch.
    pub fn for_each(&self, mut f: impl FnMut(&Rows, usize)) {
        const BATCH: i64 = 1000;
        let scratch = Context::new_scratch(c"background_jobs batch of rows");
        // SAFETY: the plan has no parameters; each batch is freed before the next is fetched, and the cursor is closed here or
        // by the transaction's abort.
        unsafe {
            let cursor =
                pg_sys::SPI_cursor_open(std::ptr::null(), self.plan(), std::ptr::null_mut(), std::ptr::null(), true);
            loop {
                pg_sys::SPI_cursor_fetch(cursor, true, BATCH);
                let rows = Rows { table: pg_sys::SPI_tuptable, processed: pg_sys::SPI_processed as usize };
                scratch.run(|| (0..rows.processed).for_each(|row| f(&rows, row)));
                scratch.reset();
                pg_sys::SPI_freetuptable(rows.table);
                if rows.processed == 0 {
                    break;
                }
            }
            pg_sys::SPI_cursor_close(cursor);
        }
    }

    fn run(&self, args: Args, read_only: bool, limit: usize) -> Rows {
        assert_eq!(args.len(), self.types.len());
        let plan = self.plan();
        let mut values: Vec<pg_sys::Datum> = args.iter().map(|a| a.unwrap_or(0.into())).collect();
        let nulls: Vec<i8> = args.iter().map(|a| if a.is_some() { b' ' } else { b'n' } as i8).collect();
        // SAFETY: the arrays have as many elements as the plan has parameters, with datums of their types.
        let code =
            unsafe { pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), nulls.as_ptr(), read_only, limit as i64) };
        if code < 0 {
            failed("SPI_execute_plan", code);
        }
        // SAFETY: set by the call above.
        unsafe { Rows { table: pg_sys::SPI_tuptable, processed: pg_sys::SPI_processed as usize } }
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        if !self.plan.get().is_null() {
            // SAFETY: the plan is ours, kept, and not executing.
            unsafe { pg_sys::SPI_freeplan(self.plan.get()) };
        }
    }
}

/// Runs a command text once; for DDL, which cannot be prepared with profit.
pub fn execute_once(sql: &str) {
    let text = encoding::to_c(sql);
    // SAFETY: the text outlives the call.
    let code = unsafe { pg_sys::SPI_execute(text.as_ptr(), false, 0) };
    if code < 0 {
        failed("SPI_execute", code);
    }
}

impl Rows {
    pub fn datum(&self, row: usize, column: i32) -> Option<pg_sys::Datum> {
        if row >= self.processed || self.table.is_null() {
            return None;
        }
        let mut null = false;
        // SAFETY: the row exists, and the table lives until SPI_finish.
        unsafe {
            let tuple = *(*self.table).vals.add(row);
            let datum = pg_sys::SPI_getbinval(tuple, (*self.table).tupdesc, column, &mut null);
            (!null).then_some(datum)
        }
    }

    /// The value of a column (counted from 1), copied into Rust.
    pub fn get<T: Value>(&self, row: usize, column: i32) -> Option<T> {
        self.datum(row, column).and_then(T::of)
    }

    pub fn timestamp(&self, row: usize, column: i32) -> Option<i64> {
        self.datum(row, column).map(|datum| datum.value() as i64)
    }

    pub fn uuid(&self, row: usize, column: i32) -> Option<[u8; 16]> {
        self.datum(row, column).map(uuid_bytes)
    }

    /// Of a column of type tid.
    pub fn tid(&self, row: usize, column: i32) -> u64 {
        self.datum(row, column).map_or(0, tid_of)
    }

    /// A jsonb or text kept for longer than the statement.
    pub fn hold(&self, row: usize, column: i32, into: &Context) -> Option<HeldDatum> {
        self.datum(row, column).map(|datum| hold_varlena(datum, into))
    }
}

/// The bytes behind a uuid datum.
pub fn uuid_bytes(datum: pg_sys::Datum) -> [u8; 16] {
    // SAFETY: a uuid datum points at exactly 16 bytes.
    unsafe { *datum.cast_mut_ptr::<[u8; 16]>() }
}

/// A uuid datum that points at `id`, which therefore has to outlive the execution.
pub fn uuid(id: &[u8; 16]) -> Option<pg_sys::Datum> {
    Some(pg_sys::Datum::from(id.as_ptr()))
}

/// An array in the current memory context.
fn array(
    elements: impl Iterator<Item = Option<pg_sys::Datum>>,
    kind: pg_sys::Oid,
    length: i32,
    by_value: bool,
    alignment: u8,
) -> Option<pg_sys::Datum> {
    let (mut values, mut nulls): (Vec<pg_sys::Datum>, Vec<bool>) =
        elements.map(|element| (element.unwrap_or(0.into()), element.is_none())).unzip();
    let (mut size, mut first) = (values.len() as i32, 1);
    // SAFETY: both arrays have `size` elements, which are of the type that length, passing and alignment belong to; copied.
    let array = unsafe {
        let alignment = alignment as std::ffi::c_char;
        let (values, nulls) = (values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::construct_md_array(values, nulls, 1, &mut size, &mut first, kind, length, by_value, alignment)
    };
    Some(pg_sys::Datum::from(array))
}

pub fn uuids<'a>(ids: impl Iterator<Item = &'a [u8; 16]>) -> Option<pg_sys::Datum> {
    array(ids.map(uuid), pg_sys::UUIDOID, 16, false, b'c')
}

/// A tid as the server has it.
pub fn item_pointer(tid: u64) -> pg_sys::ItemPointerData {
    let mut pointer = pg_sys::ItemPointerData::default();
    u64_to_item_pointer(tid, &mut pointer);
    pointer
}

/// A tid out of a datum of that type.
pub fn tid_of(datum: pg_sys::Datum) -> u64 {
    // SAFETY: such a datum points at an item pointer.
    item_pointer_to_u64(unsafe { *datum.cast_mut_ptr() })
}

/// The same as `item_pointer`, in the current memory context.
pub fn item_pointer_datum(tid: u64) -> pg_sys::Datum {
    // SAFETY: the piece of memory is as long as what is written there.
    unsafe {
        let pointer = pg_sys::palloc(size_of::<pg_sys::ItemPointerData>()).cast();
        *pointer = item_pointer(tid);
        pg_sys::Datum::from(pointer)
    }
}

pub fn jsonbs(documents: impl Iterator<Item = Option<pg_sys::Datum>>) -> Option<pg_sys::Datum> {
    array(documents, pg_sys::JSONBOID, -1, false, b'i')
}

pub fn oids(values: impl Iterator<Item = pg_sys::Oid>) -> Option<pg_sys::Datum> {
    array(values.map(oid), pg_sys::OIDOID, 4, true, b'i')
}

pub fn int4s(numbers: impl Iterator<Item = i32>) -> Option<pg_sys::Datum> {
    array(numbers.map(|number| Some(pg_sys::Datum::from(number))), pg_sys::INT4OID, 4, true, b'i')
}

pub fn int8s(numbers: impl Iterator<Item = i64>) -> Option<pg_sys::Datum> {
    array(numbers.map(|number| Some(pg_sys::Datum::from(number))), pg_sys::INT8OID, 8, true, b'd')
}

pub fn timestamps(times: impl Iterator<Item = i64>) -> Option<pg_sys::Datum> {
    array(times.map(timestamp), pg_sys::TIMESTAMPTZOID, 8, true, b'd')
}

pub fn text(value: &str) -> Option<pg_sys::Datum> {
    Some(encoding::to_text(value))
}

pub fn oid(value: pg_sys::Oid) -> Option<pg_sys::Datum> {
    Some(pg_sys::Datum::from(value))
}

pub fn timestamp(value: i64) -> Option<pg_sys::Datum> {
    Some(pg_sys::Datum::from(value))
}
