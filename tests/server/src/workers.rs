//! The extension's processes in an application's database, for tests that wait for them or end them.

use crate::wait::yes;
use crate::{App, Cluster, Signal};

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

    /// Those of a kind ("executor", "dispatcher") in this database.
    #[must_use]
    pub fn pids(&self, kind: &str) -> Vec<u32> {
        let query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background_jobs ' || $1 AND datname = current_database()";
        let rows = self.admin().query(query, &[&kind]);
        rows.unwrap_or_else(|e| panic!("{query}: {e:?}")).iter().map(|row| row.get::<_, i32>(0) as u32).collect()
    }

    /// Waits until these processes have nothing to do. They sleep for a moment between two steps, too, so one look is not enough.
    pub fn wait_asleep(&self, pids: &[u32]) {
        let mut times = 0;
        self.cluster.wait_until("the processes to have nothing to do", || {
            times = if pids.iter().all(sleeps) { times + 1 } else { 0 };
            yes(times == 30)
        });
    }

    fn count_activity(&self, which: &str) -> i64 {
        let query = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND {which}");
        let row = self.cluster.admin("postgres").query_one(&query, &[&self.database]);
        row.unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0)
    }
}

fn sleeps(pid: &u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// How often a process has gone to sleep so far.
#[must_use]
pub fn naps(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("process {pid} is gone: {status}"))
}

/// A process that stands still until this is dropped.
pub struct Still<'a>(&'a Cluster, u32);

impl<'a> Still<'a> {
    #[must_use]
    pub fn new(cluster: &'a Cluster, pid: u32) -> Self {
        cluster.kill(pid, Signal::SIGSTOP);
        Self(cluster, pid)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.kill(self.1, Signal::SIGCONT);
    }
}
