//! One piece of shared memory, sized when the server starts.

use crate::pg::lwlock;
use pgrx::{pg_guard, pg_sys};
use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

const NAME: &CStr = c"background_jobs";

static BASE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
/// In bytes.
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static SIZE: OnceLock<fn() -> usize> = OnceLock::new();
static STARTED: OnceLock<fn()> = OnceLock::new();
static PREVIOUS_STARTUP: OnceLock<pg_sys::shmem_startup_hook_type> = OnceLock::new();
#[cfg(not(feature = "pg14"))]
static PREVIOUS_REQUEST: OnceLock<pg_sys::shmem_request_hook_type> = OnceLock::new();

/// Installs the hooks. `size` is asked once the settings are known; the memory is zeroed at every start and
/// restart of the server, so that all zeroes has to be the structures' resting state. `started` runs in the postmaster when
/// the memory is there and no other process is.
pub fn install(size: fn() -> usize, started: fn()) {
    SIZE.get_or_init(|| size);
    STARTED.get_or_init(|| started);
    // SAFETY: hooks are chained while the postmaster loads its libraries, which is single-threaded.
    unsafe {
        PREVIOUS_STARTUP.get_or_init(|| pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(startup);
        #[cfg(not(feature = "pg14"))]
        {
            PREVIOUS_REQUEST.get_or_init(|| pg_sys::shmem_request_hook);
            pg_sys::shmem_request_hook = Some(request);
        }
        #[cfg(feature = "pg14")]
        reserve();
    }
}

fn size() -> usize {
    SIZE.get().map_or(0, |size| size())
}

fn reserve() {
    // SAFETY: called in the phase in which the server takes such requests.
    unsafe { pg_sys::RequestAddinShmemSpace(size()) };
    lwlock::request();
}

#[cfg(not(feature = "pg14"))]
#[pg_guard]
unsafe extern "C-unwind" fn request() {
    if let Some(Some(previous)) = PREVIOUS_REQUEST.get() {
        // SAFETY: the hook that was there before us, called the way the server calls it.
        unsafe { previous() };
    }
    reserve();
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    if let Some(Some(previous)) = PREVIOUS_STARTUP.get() {
        // SAFETY: the hook that was there before us, called the way the server calls it.
        unsafe { previous() };
    }
    let (mut found, length) = (false, size());
    // SAFETY: the size was reserved in the request phase; the memory is ours alone until the hook returns,
    // because no other process exists yet (without EXEC_BACKEND it runs in the postmaster only).
    unsafe {
        let base = pg_sys::ShmemInitStruct(NAME.as_ptr(), length, &mut found).cast::<u8>();
        if !found {
            std::ptr::write_bytes(base, 0, length);
        }
        LENGTH.store(length, Ordering::Release);
        BASE.store(base, Ordering::Release);
    }
    lwlock::find();
    if let Some(started) = STARTED.get() {
        started();
    }
}

/// Was the library loaded by shared_preload_libraries, so that the memory is there?
pub fn attached() -> bool {
    !BASE.load(Ordering::Acquire).is_null()
}

/// The array of `len` structures of type `T` at `offset` bytes.
///
/// `T` has to be made of atomics, or of plain data whose writer and lock are named where it is declared, and
/// to be valid when all of its bytes are zero.
pub fn array<T: Shared>(offset: usize, len: usize) -> &'static [T] {
    let base = BASE.load(Ordering::Acquire);
    assert!(!base.is_null(), "background_jobs is not in shared_preload_libraries");
    assert!(offset.is_multiple_of(align_of::<T>()) && offset + len * size_of::<T>() <= LENGTH.load(Ordering::Acquire));
    // SAFETY: inside the reserved piece, aligned, zero-initialised and never freed; `Shared` vouches for the rest.
    unsafe { std::slice::from_raw_parts(base.add(offset).cast::<T>(), len) }
}

/// Structures that may lie in shared memory.
///
/// # Safety
/// All-zero bytes are a valid value, the type holds no pointer into one process, and every field is an atomic
/// or a `Cell` that follows the rule stated at it.
pub unsafe trait Shared {}

/// Vouches for a type as `Shared`; the reason stands where it is used.
macro_rules! shared {
    ($type:ty) => {
        // SAFETY: the promise of the type's author, given beside this line.
        unsafe impl $crate::pg::shmem::Shared for $type {}
    };
}
pub(crate) use shared;

/// A plain field in shared memory. Whoever writes it is its only writer at that moment by a rule stated at the field
/// (a lock, or a state that hands it over); readers keep to the same rule.
#[repr(transparent)]
pub struct Cell<T: Copy>(std::cell::UnsafeCell<T>);

// SAFETY: see the type: the rule at the field orders every access.
unsafe impl<T: Copy> Sync for Cell<T> {}

impl<T: Copy> Cell<T> {
    pub fn get(&self) -> T {
        // SAFETY: by the field's rule nobody writes meanwhile; volatile, because other processes do at other times.
        unsafe { self.0.get().read_volatile() }
    }

    /// Looks at the value where it is, for one that is long.
    pub fn look<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        // SAFETY: by the field's rule nobody writes meanwhile, and `f` keeps no reference.
        f(unsafe { &*self.0.get() })
    }

    pub fn set(&self, value: T) {
        // SAFETY: by the field's rule we are its only writer and nobody reads meanwhile.
        unsafe { self.0.get().write_volatile(value) }
    }
}
