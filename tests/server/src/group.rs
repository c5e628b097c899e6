//! One server shared by the tests of a program, for one configuration; it is stopped and its log read when the process ends.

use crate::{App, Builder, Cluster, keeper};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

/// Declared as a static in a test program; started by the first test that asks.
pub struct Group {
    configure: fn() -> Builder,
    cluster: OnceLock<Cluster>,
}

/// The running groups, for the end of the process: statics are not dropped.
static RUNNING: Mutex<Vec<&'static Cluster>> = Mutex::new(Vec::new());

impl Group {
    #[must_use]
    pub const fn new(configure: fn() -> Builder) -> Group {
        Group { configure, cluster: OnceLock::new() }
    }

    pub fn cluster(&'static self) -> &'static Cluster {
        self.cluster.get_or_init(|| (self.configure)().start());
        let cluster = self.cluster.get().unwrap_or_else(|| unreachable!("just started"));
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.iter().any(|known| std::ptr::eq(*known, cluster)) {
            running.push(cluster);
        }
        cluster
    }

    /// A database, a role and a job table by `create_table()` for one test, named after it.
    pub fn app(&'static self, name: &str) -> App<'static> {
        App::with_table(self.cluster(), name)
    }

    /// As [`Group::app`], without a job table.
    pub fn app_without_table(&'static self, name: &str) -> App<'static> {
        App::new(self.cluster(), name)
    }

    /// As [`Group::app`], with the recipe's own table, attached.
    pub fn app_with_recipe_table(&'static self, name: &str) -> App<'static> {
        App::with_recipe_table(self.cluster(), name)
    }
}

/// Has the process end with its servers stopped, and with a failure when one of them misbehaved.
pub(crate) fn at_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: atexit only stores the pointer; the function takes nothing and does not unwind (it catches panics).
        unsafe { libc::atexit(end) };
    });
}

extern "C" fn end() {
    let failed = std::panic::catch_unwind(|| {
        let running = std::mem::take(&mut *RUNNING.lock().unwrap_or_else(PoisonError::into_inner));
        let troubles: Vec<String> = running.iter().filter_map(|cluster| cluster.finish().err()).collect();
        troubles.iter().for_each(|trouble| eprintln!("a shared server misbehaved: {trouble}"));
        !troubles.is_empty()
    });
    keeper::finish();
    if failed.unwrap_or(true) {
        // SAFETY: ends the process at once; exit() may not be called again inside an exit handler.
        unsafe { libc::_exit(101) };
    }
}
