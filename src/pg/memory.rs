//! Memory contexts: who owns what was allocated by the server.

use pgrx::pg_sys;
use std::ffi::CStr;

/// A memory context: emptied with `reset`, and there until its owner deletes it or the context that it is a child of.
#[derive(Clone, Copy)]
pub struct Context(pg_sys::MemoryContext);

impl Context {
    /// A child of the process's lasting one.
    pub fn new(name: &'static CStr) -> Self {
        // SAFETY: TopMemoryContext exists in every process that runs extension code; the name is static.
        Self(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                name.as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// The same, child of the current context, with which it goes away.
    pub fn new_scratch(name: &'static CStr) -> Self {
        // SAFETY: there always is a current context; the name is static.
        Self(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                name.as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// The one that lasts as long as the process.
    pub fn top() -> Self {
        // SAFETY: exists in every process that runs extension code.
        Self(unsafe { pg_sys::TopMemoryContext })
    }

    pub fn raw(&self) -> pg_sys::MemoryContext {
        self.0
    }

    /// Frees everything in the context. Datums that were copied into it are gone with this.
    pub fn reset(&self) {
        // SAFETY: the context has not been deleted: its owner holds it. Only a caller that holds no datum of it calls this.
        unsafe { pg_sys::MemoryContextReset(self.0) }
    }

    /// Runs `f` with this context as the current one, and frees it.
    pub fn run_and_delete<T>(self, f: impl FnOnce() -> T) -> T {
        let value = self.run(f);
        self.delete();
        value
    }

    /// Frees it with all that is in it. The last use of a context that its owner has made.
    pub fn delete(self) {
        // SAFETY: as for `reset`; nobody uses it any more.
        unsafe { pg_sys::MemoryContextDelete(self.0) }
    }

    /// Runs `f` with this context as the current one. An error leaves the switch to the error recovery,
    /// which sets the context again anyway.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: both contexts are alive; the previous one is put back on the normal path.
        let before = unsafe { pg_sys::MemoryContextSwitchTo(self.0) };
        let value = f();
        // SAFETY: as above.
        unsafe { pg_sys::MemoryContextSwitchTo(before) };
        value
    }
}

/// Has this process keep up to some megabytes of freed memory until `give_back`. Otherwise the end of every batch gives it back, and the
/// next one has each page made anew.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: settings of this process's heap.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
    }
}

/// Gives freed memory back to the system. Plans that are made anew whenever statistics change leave it in pieces below what is in
/// use, where it would be kept for good.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: looks at what is free in this process's heap and nothing else.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A datum that was copied into a memory context and stays valid until that context is reset.
#[derive(Clone, Copy)]
pub struct HeldDatum(pub pg_sys::Datum);

impl HeldDatum {
    /// Bytes that the value takes.
    pub fn size(self) -> usize {
        // SAFETY: a held varlena is detoasted and alive.
        unsafe { pgrx::varsize_any(self.0.cast_mut_ptr::<pg_sys::varlena>()) }
    }

    /// The JSON value null.
    pub fn json_null(into: &Context) -> Self {
        into.run(|| Self(crate::pg::call::jsonb_from_text("null").unwrap_or(pg_sys::Datum::from(0))))
    }
}

/// Copies a varlena datum, detoasted, into `into`.
pub fn hold_varlena(datum: pg_sys::Datum, into: &Context) -> HeldDatum {
    into.run(|| {
        // SAFETY: `datum` is a varlena of a live tuple; the detoasted copy is allocated in `into`, so that it
        // depends neither on the tuple's memory nor on a snapshot that protects its TOAST rows.
        HeldDatum(unsafe { pg_sys::Datum::from(pg_sys::pg_detoast_datum_copy(datum.cast_mut_ptr())) })
    })
}

/// The memory context that was current when this was made: that of a function's result, before SPI has its own.
#[derive(Clone, Copy)]
pub struct Current(pg_sys::MemoryContext);

impl Current {
    pub fn get() -> Self {
        // SAFETY: reads the state of this process.
        Self(unsafe { pg_sys::CurrentMemoryContext })
    }

    /// A copy of a varlena datum in that context.
    pub fn keep(self, datum: pg_sys::Datum) -> pg_sys::Datum {
        hold_varlena(datum, &Context(self.0)).0
    }
}
