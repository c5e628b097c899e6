//! The extension's processes in an application's database, for tests that wait for them or end them.

use crate::App;

impl App<'_> {
    /// How many processes of the extension work in this database. Asked from another one: this may just be locked or dropped.
    #[must_use]
    pub fn workers(&self) -> i64 {
        self.count_activity("backend_type LIKE 'background_jobs%'")
    }

    /// Waits until the number of [`App::workers`] is such.
    pub fn wait_workers(&self, what: &str, test: impl Fn(i64) -> bool) {
        self.cluster.wait_until(what, || {
            let count = self.workers();
            if test(count) { Ok(()) } else { Err(format!("{count} workers")) }
        });
    }

    /// Waits until an executor waits for a lock.
    pub fn wait_executor_blocked(&self) {
        self.cluster.wait_until("an executor to wait for a lock", || {
            let waiting = self.count_activity("wait_event_type = 'Lock' AND backend_type = 'background_jobs executor'");
            if waiting > 0 { Ok(()) } else { Err("none does".to_owned()) }
        });
    }

    /// Ends the executors, so that the next jobs run in sessions that begin now.
    pub fn end_executors(&self) {
        let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'background_jobs executor'";
        self.admin().batch_execute(end).unwrap_or_else(|e| panic!("{end}: {e:?}"));
    }

    fn count_activity(&self, which: &str) -> i64 {
        let query = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND {which}");
        let row = self.cluster.admin("postgres").query_one(&query, &[&self.database]);
        row.unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0)
    }
}
