//! A small file that all processes of the server have mapped: what is written into it outlives the crash of any process,
//! because the operating system keeps it, at the price of a store to memory. It is never synced.

use crate::pg::shmem::Shared;
use std::ffi::CStr;
use std::io;
use std::sync::atomic::{AtomicPtr, Ordering};

/// One mapped value of type `T`, shared by all processes forked after `open`.
pub struct MappedFile<T: Shared>(AtomicPtr<T>);

impl<T: Shared> MappedFile<T> {
    pub const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Maps the file, relative to the data directory; creates it or brings it to its size. By the postmaster, before any
    /// other process is there; a second call keeps the mapping.
    pub fn open(&self, path: &CStr) -> io::Result<&'static T> {
        if let Some(mapped) = self.get() {
            return Ok(mapped);
        }
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: plain system calls on a descriptor of our own. posix_fallocate makes sure that the blocks are there, so
        // that a full disk cannot turn a store into a SIGBUS later.
        unsafe {
            let file = libc::open(path.as_ptr(), flags, 0o600);
            if file < 0 {
                return Err(io::Error::last_os_error());
            }
            let size = size_of::<T>();
            let allocated = libc::posix_fallocate(file, 0, size as i64);
            let address = if allocated == 0 {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file, 0)
            } else {
                libc::MAP_FAILED
            };
            let error = io::Error::last_os_error();
            libc::close(file);
            if allocated != 0 {
                return Err(io::Error::from_raw_os_error(allocated));
            }
            if address == libc::MAP_FAILED {
                return Err(error);
            }
            self.0.store(address.cast::<T>(), Ordering::Release);
        }
        self.get().ok_or_else(|| io::Error::other("not mapped"))
    }

    /// The mapped value, or none if the file could not be opened.
    pub fn get(&self) -> Option<&'static T> {
        // SAFETY: null, or the address of a mapping of at least the type's size that is never removed; `Shared` vouches
        // for the rest.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}
