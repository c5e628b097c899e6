//! Sessions inside wait(): each names the one job whose end is to wake it.

use crate::job::JobRef;
use crate::pg::latch::{Process, own_pid};
use crate::pg::lwlock;
use crate::pg::shmem::{Cell, shared};
use crate::shmem::{header, waiters};
use std::sync::atomic::{AtomicU32, Ordering};

#[repr(C)]
pub struct WaiterSlot {
    /// The waiting session. Written by itself under the lock.
    process: Process,
    database: AtomicU32,
    /// Written and read under the lock.
    job: Cell<JobRef>,
}

// Atomics, and a cell that is used under the lock only; all zeroes is a free slot.
shared!(WaiterSlot);

impl WaiterSlot {
    /// Has the calling session woken when the job ends, and for nothing else: it has one slot at most. None: too many wait already,
    /// so look now and then.
    pub fn register(database: u32, job: JobRef) -> Option<&'static Self> {
        lwlock::with(true, || {
            if let Some(own) = waiters().iter().find(|slot| slot.process.pid() == own_pid()) {
                own.job.set(job);
                return Some(own);
            }
            let free = waiters().iter().find(|slot| slot.process.pid() == 0)?;
            free.database.store(database, Ordering::Release);
            free.job.set(job);
            free.process.announce();
            header().waiters.fetch_add(1, Ordering::AcqRel);
            Some(free)
        })
    }

    /// Frees whatever slots the calling session still holds; after an error, too.
    pub fn release_own() {
        if header().waiters.load(Ordering::Acquire) == 0 {
            return;
        }
        lwlock::with(true, || {
            for slot in waiters().iter().filter(|slot| slot.process.pid() == own_pid()) {
                slot.process.clear();
                header().waiters.fetch_sub(1, Ordering::AcqRel);
            }
        });
    }

    /// Wakes those who wait for one of these jobs. After a commit: cheap when nobody waits.
    pub fn wake(database: u32, ended: &[JobRef]) {
        if header().waiters.load(Ordering::Acquire) == 0 || ended.is_empty() {
            return;
        }
        lwlock::with(false, || {
            waiters()
                .iter()
                .filter(|slot| slot.process.pid() != 0)
                .filter(|slot| slot.database.load(Ordering::Acquire) == database)
                .filter(|slot| ended.contains(&slot.job.get()))
                .for_each(|slot| slot.process.wake());
        });
    }

    /// Wakes all who wait in this database: something ended, and it is not known what.
    pub fn wake_all(database: u32) {
        if header().waiters.load(Ordering::Acquire) == 0 {
            return;
        }
        let waiting = |slot: &&Self| slot.database.load(Ordering::Acquire) == database;
        waiters().iter().filter(waiting).for_each(|slot| slot.process.wake());
    }
}
