//! Every setting, with its unit, range and default. All but `max_executors` follow a reload.

use crate::pg::encoding::from_server;
use crate::planted::{self, Bug};
use crate::retry::Policy;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString};
use std::time::Duration;

/// The upper limit of background_jobs.max_executors.
pub const MAX_MAX_EXECUTORS: usize = 1000;

pub static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
pub static ALLOW_SUPERUSER_JOBS: GucSetting<bool> = GucSetting::<bool>::new(false);
static DATABASES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"*"));
static MAX_EXECUTORS: GucSetting<i32> = GucSetting::<i32>::new(4);
static EXECUTOR_IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);
static POLL_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static PROGRESS_FLUSH_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(250);
static MAX_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(5);
static RETRY_DELAY: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static MAX_RETRY_DELAY: GucSetting<i32> = GucSetting::<i32>::new(3_600_000);
static HANDLER_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(3_600_000);
static CANCEL_GRACE: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static CRASH_QUARANTINE: GucSetting<i32> = GucSetting::<i32>::new(300_000);
static ATTEMPTS_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(43_200);

fn millis(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(0) as u64)
}

fn unless_zero(setting: &GucSetting<i32>) -> Option<Duration> {
    (setting.get() > 0).then(|| millis(setting))
}

/// May jobs run in the database of this name?
pub fn database_allowed(name: &str) -> bool {
    let list = DATABASES.get();
    let list = from_server(list.as_deref().unwrap_or(c"").to_bytes());
    list.split(',').map(str::trim).any(|entry| entry == "*" || entry == name)
}

pub fn max_executors() -> usize {
    MAX_EXECUTORS.get().max(1) as usize
}

pub fn executor_idle_timeout() -> Option<Duration> {
    unless_zero(&EXECUTOR_IDLE_TIMEOUT)
}

pub fn poll_interval() -> Duration {
    if planted::is(Bug::NoPoll) { Duration::from_secs(3600) } else { millis(&POLL_INTERVAL) }
}

pub fn progress_flush_interval() -> Duration {
    millis(&PROGRESS_FLUSH_INTERVAL)
}

/// What applies to a handler that was registered without values of its own.
pub fn retry_policy() -> Policy {
    Policy { max_attempts: MAX_ATTEMPTS.get(), delay: millis(&RETRY_DELAY), max_delay: millis(&MAX_RETRY_DELAY) }
}

pub fn handler_timeout() -> Option<Duration> {
    unless_zero(&HANDLER_TIMEOUT)
}

pub fn cancel_grace() -> Duration {
    millis(&CANCEL_GRACE)
}

pub fn crash_quarantine() -> Duration {
    millis(&CRASH_QUARANTINE)
}

pub fn attempts_retention() -> Duration {
    Duration::from_secs(ATTEMPTS_RETENTION.get().max(0) as u64 * 60)
}

struct Int {
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<i32>,
    min: i32,
    max: i32,
    context: GucContext,
    flags: GucFlags,
}

pub fn define() {
    GucRegistry::define_bool_guc(
        c"background_jobs.enabled",
        c"Runs background jobs.",
        c"When off nothing is started; running jobs finish, and submissions still queue.",
        &ENABLED,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"background_jobs.allow_superuser_jobs",
        c"Allows job tables that belong to a superuser.",
        c"Their handlers run in a superuser session.",
        &ALLOW_SUPERUSER_JOBS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"background_jobs.databases",
        c"Names the databases that may run background jobs, separated by commas.",
        c"An asterisk stands for all. Leave a restored copy out to keep it from running jobs.",
        &DATABASES,
        GucContext::Sighup,
        GucFlags::default(),
    );
    for int in ints() {
        GucRegistry::define_int_guc(
            int.name,
            int.short,
            int.long,
            int.setting,
            int.min,
            int.max,
            int.context,
            int.flags,
        );
    }
    #[cfg(feature = "planted_bugs")]
    crate::planted::define();
    crate::pg::guc::reserve_prefix(c"background_jobs");
}

fn ints() -> Vec<Int> {
    let duration = |name, short, long, setting, min| Int {
        name,
        short,
        long,
        setting,
        min,
        max: i32::MAX,
        context: GucContext::Sighup,
        flags: GucFlags::UNIT_MS,
    };
    vec![
        Int {
            name: c"background_jobs.max_executors",
            short: c"Sets how many jobs may run at the same time in the whole server.",
            long: c"Each executor takes one of max_worker_processes.",
            setting: &MAX_EXECUTORS,
            min: 1,
            max: MAX_MAX_EXECUTORS as i32,
            context: GucContext::Postmaster,
            flags: GucFlags::default(),
        },
        Int {
            name: c"background_jobs.max_attempts",
            short: c"Sets how often a failing job is tried in all.",
            long: c"A handler or a job may have its own value.",
            setting: &MAX_ATTEMPTS,
            min: 1,
            max: 1_000_000,
            context: GucContext::Sighup,
            flags: GucFlags::default(),
        },
        Int {
            name: c"background_jobs.attempts_retention",
            short: c"Sets how long unsuccessful attempts are kept.",
            long: c"",
            setting: &ATTEMPTS_RETENTION,
            min: 0,
            max: i32::MAX,
            context: GucContext::Sighup,
            flags: GucFlags::UNIT_MIN,
        },
        duration(
            c"background_jobs.executor_idle_timeout",
            c"Sets how long an idle executor keeps its session.",
            c"Zero keeps it for ever.",
            &EXECUTOR_IDLE_TIMEOUT,
            0,
        ),
        duration(
            c"background_jobs.poll_interval",
            c"Sets how often the queue is looked through without being asked.",
            c"The safety net behind the wake-ups that come with every commit.",
            &POLL_INTERVAL,
            10,
        ),
        duration(
            c"background_jobs.progress_flush_interval",
            c"Sets how often at most a running job's progress is written to its row.",
            c"",
            &PROGRESS_FLUSH_INTERVAL,
            10,
        ),
        duration(
            c"background_jobs.retry_delay",
            c"Sets the delay before the second attempt of a failed job.",
            c"It doubles with every further attempt.",
            &RETRY_DELAY,
            0,
        ),
        duration(
            c"background_jobs.max_retry_delay",
            c"Sets the longest delay between two attempts.",
            c"",
            &MAX_RETRY_DELAY,
            0,
        ),
        duration(
            c"background_jobs.handler_timeout",
            c"Sets how long a handler may run.",
            c"Zero means no limit. A handler may have its own value.",
            &HANDLER_TIMEOUT,
            0,
        ),
        duration(
            c"background_jobs.cancel_grace",
            c"Sets how long a handler that was interrupted may go on before its executor is terminated.",
            c"",
            &CANCEL_GRACE,
            0,
        ),
        duration(
            c"background_jobs.crash_quarantine",
            c"Sets how long jobs wait that were running when the server crashed.",
            c"They then run one at a time.",
            &CRASH_QUARANTINE,
            0,
        ),
    ]
}
