//! Random signals to the launcher, the dispatcher, executors and progress writers while jobs run. None of them is the end of the
//! server, so nothing is charged but what was running in a process that was asked to end or to cancel.

mod starts;

use fastrand::Rng;
use server_tests::postgres::Client;
use server_tests::rest::unrest;
use server_tests::wait::attempt;
use server_tests::{App, Cluster, Signal};
use starts::Start;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// What a process of the server can be sent without ending the server; the first ones are the ones that matter.
const SIGNALS: [Signal; 11] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGURG,
    Signal::SIGPIPE,
    Signal::SIGCHLD,
    Signal::SIGWINCH,
    Signal::SIGCONT,
];

/// A process that is ended again and again is started again later and later, a minute at the most.
const PATIENCE: Duration = Duration::from_secs(150);

/// Lines that the server may log: for a signal, the error and the end of the process; the rest for what comes from nothing.
const LINES_PER_SIGNAL: usize = 4;
const LINES_FREE: usize = 200;

/// Signals that reach a process, for every second: with fewer nothing is proved.
const LEAST_A_SECOND: u64 = 3;

const MAX_ATTEMPTS: i32 = 4;

/// Each writes its effect; only the last one always fails. The start goes to the log, which no rollback takes back.
const HANDLERS: &[(&str, &str)] = &[
    ("quick", ""),
    ("writes", "PERFORM count(*) FROM (SELECT md5(n::text) FROM generate_series(1, 3000) n) hashes;"),
    (
        "reports",
        "FOR step IN 1..10 LOOP
             PERFORM background_jobs.set_progress(step / 20.0); PERFORM pg_sleep(0.01);
         END LOOP;",
    ),
    ("catches", "BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN PERFORM pg_sleep(0.005); END;"),
    ("fails", "RAISE 'no';"),
];

/// A signal that was sent.
pub struct Blow {
    pub at: f64,
    pub pid: u32,
    what: String,
}

/// Seconds since 1970, as the log has them.
fn now() -> f64 {
    UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64())
}

/// Returns what was wrong.
pub fn run(seconds: u64, seed: u64) -> Vec<String> {
    println!("signals: {seconds} s with seed {seed}");
    let cluster = Cluster::builder()
        .conf("background_jobs.max_executors", "4")
        .conf("background_jobs.poll_interval", "1s")
        .conf("background_jobs.retry_delay", "20ms")
        .conf("background_jobs.progress_flush_interval", "20ms")
        .conf("background_jobs.executor_idle_timeout", "2s")
        .conf("log_line_prefix", "%n [%p] %b: ")
        .start();
    let mut apps: Vec<App> = ["one", "two"].iter().map(|name| application(&cluster, name)).collect();
    let stop = AtomicBool::new(false);
    let mut blows = Vec::new();
    let mut rng = Rng::with_seed(seed);
    let stormed = std::thread::scope(|scope| {
        for app in &mut apps {
            scope.spawn(|| submit(app, &stop));
        }
        // Whatever happens here, the submitters end.
        let stormed = catch_unwind(AssertUnwindSafe(|| storm(&cluster, &mut rng, seconds, &mut blows)));
        stop.store(true, Ordering::Relaxed);
        stormed
    });
    let mut wrong: Vec<String> =
        stormed.err().map(|panic| format!("the storm broke off: {}", words(&*panic))).into_iter().collect();
    wrong.extend(weak(blows.len(), seconds));
    let begun = Instant::now();
    for app in &mut apps {
        let drained = attempt(PATIENCE, "all jobs to be final", || {
            let open = "SELECT count(*) FROM background_jobs WHERE NOT completed AND NOT cancelled";
            match app.one::<i64>(open, &[]) {
                0 => Ok(()),
                left => Err(format!("{left} unfinished")),
            }
        });
        wrong.extend(drained.err().map(|report| format!("{report} (I1)\n{}", cluster.log_tail())));
    }
    println!("drained {:.1} s after the storm", begun.elapsed().as_secs_f64());
    let log = cluster.log();
    let starts = starts::read(&log);
    wrong.extend(starts::repeated(&starts, &blows));
    for app in &mut apps {
        wrong.extend(judge(app, &starts));
        wrong.extend(unrest(&mut app.admin(), 2).into_iter().map(|what| format!("{what} (I13)")));
    }
    wrong.extend(flooded(&log, &blows));
    drop(apps);
    wrong.extend(cluster.offences());
    wrong
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word").to_owned()
}

/// Were there fewer signals than prove anything?
fn weak(signals: usize, seconds: u64) -> Option<String> {
    let least = LEAST_A_SECOND * seconds;
    ((signals as u64) < least).then(|| format!("{signals} signals in {seconds} s, and at least {least} are due"))
}

fn application<'a>(cluster: &'a Cluster, name: &str) -> App<'a> {
    let mut app = App::with_table(cluster, name);
    app.sql("CREATE TABLE effects (job uuid NOT NULL, attempt int NOT NULL)");
    for (name, body) in HANDLERS {
        let body = format!(
            "SELECT * INTO STRICT job FROM background_jobs.current_job();
             RAISE LOG 'storm start % % %', job.id, job.attempt, job.handler;
             INSERT INTO effects VALUES (job.id, job.attempt);
             {body}
             RETURN jsonb_build_object('n', payload -> 'n');"
        );
        app.sql(&format!(
            "CREATE FUNCTION {name}(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $handler$
             DECLARE job record; BEGIN {body} END $handler$"
        ));
        app.register(name, &format!("{name}(jsonb)"), &format!("max_attempts => {MAX_ATTEMPTS}"));
    }
    app
}

/// Keeps the queue filled: with a few jobs of every kind, but not with many.
fn submit(app: &mut App, stop: &AtomicBool) {
    let insert = "INSERT INTO background_jobs (payload)
        SELECT jsonb_build_object('n', n, 'handler', CASE WHEN n % 20 = 0 THEN 'fails' WHEN n % 20 < 4 THEN 'reports'
            WHEN n % 20 < 7 THEN 'writes' WHEN n % 20 < 9 THEN 'catches' ELSE 'quick' END)
          FROM generate_series(1, 40) AS n";
    while !stop.load(Ordering::Relaxed) {
        if app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]) < 100 {
            app.sql(insert);
        }
        // A count without a pause would take from the jobs a processor that they need.
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn storm(cluster: &Cluster, rng: &mut Rng, seconds: u64, blows: &mut Vec<Blow>) {
    let mut admin = cluster.admin("postgres");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        // Bursts and pauses: a process that is hit at its start, and one that has come to work.
        std::thread::sleep(Duration::from_millis(if rng.u32(..20) == 0 { rng.u64(100..1500) } else { rng.u64(1..30) }));
        let ours: Vec<(u32, String)> = cluster
            .processes()
            .into_iter()
            .filter_map(|(pid, title)| Some((pid, title.strip_prefix("background_jobs ")?.to_owned())))
            .collect();
        if ours.is_empty() {
            continue;
        }
        // A role first, or executors would get them all.
        let roles = ["executor", "executor", "executor", "progress writer", "dispatcher", "launcher"];
        let role = roles[rng.usize(..roles.len())];
        let some: Vec<_> = ours.iter().filter(|(_, title)| title.starts_with(role)).collect();
        if some.is_empty() {
            continue;
        }
        let (pid, _) = some[rng.usize(..some.len())];
        let at = now();
        if let Some(what) = send(cluster, &mut admin, rng, *pid, role) {
            blows.push(Blow { at, pid: *pid, what: format!("{what} {role}") });
        }
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    blows.iter().for_each(|blow| *kinds.entry(&blow.what).or_default() += 1);
    let list: Vec<String> = kinds.iter().map(|(what, count)| format!("{what} {count}")).collect();
    println!("{} signals: {}", blows.len(), list.join(", "));
}

/// Returns what reached the process; it may have ended this very moment.
fn send(cluster: &Cluster, admin: &mut Client, rng: &mut Rng, pid: u32, role: &str) -> Option<&'static str> {
    // The launcher and the dispatcher come back a second later at the soonest: not too often, or no job runs at all.
    let gentle = matches!(role, "launcher" | "dispatcher") && rng.u32(..4) > 0;
    let call = match rng.u32(..10) {
        0 if !gentle => "pg_terminate_backend",
        1 => "pg_cancel_backend",
        _ => {
            let signal = loop {
                let number = if rng.bool() { rng.usize(..5) } else { rng.usize(..SIGNALS.len()) };
                if !(gentle && SIGNALS[number] == Signal::SIGTERM) {
                    break SIGNALS[number];
                }
            };
            let sent = || catch_unwind(AssertUnwindSafe(|| cluster.kill(pid, signal))).is_ok();
            return (cluster.title(pid).is_some() && sent()).then(|| signal.as_str());
        }
    };
    let sent = admin.query_one(&format!("SELECT {call}($1)"), &[&pid.cast_signed()]);
    sent.is_ok_and(|row| row.get(0)).then_some(call)
}

/// Every job has the end that its handler and the signals allow, and its effect if and only if it is completed.
fn judge(app: &mut App, starts: &[Start]) -> Vec<String> {
    let mut wrong = Vec::new();
    let states =
        "SELECT payload ->> 'handler', CASE WHEN result ? 'error' THEN 'failed ' || (result -> 'error' ->> 'sqlstate')
            ELSE 'completed' END, count(*) FROM background_jobs GROUP BY 1, 2 ORDER BY 1, 2";
    let rows = app.rows(states, &[]);
    let all: Vec<String> = rows
        .iter()
        .map(|row| format!("{} {} {}", row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, i64>(2)))
        .collect();
    println!("jobs: {}", all.join(", "));
    let bad: &[(&str, &str)] = &[
        (
            "jobs whose effects are not those of their end (I3)",
            "SELECT id::text FROM background_jobs LEFT JOIN effects ON job = id GROUP BY id
              HAVING count(job) <> CASE WHEN result ? 'error' THEN 0 ELSE 1 END",
        ),
        (
            "effects without a job (I2)",
            "SELECT job::text FROM effects WHERE NOT EXISTS (SELECT FROM background_jobs WHERE id = job)",
        ),
        (
            "completed jobs that always fail, or with another's result (I3)",
            "SELECT id::text FROM background_jobs WHERE NOT result ? 'error'
                AND (payload ->> 'handler' = 'fails' OR result -> 'n' <> payload -> 'n')",
        ),
        (
            "jobs that failed with what neither their handler nor a signal does (I3)",
            "SELECT id || result::text FROM background_jobs WHERE result ? 'error' AND NOT (
                result -> 'error' ->> 'sqlstate' IN ('57014', '57P01')
                OR payload ->> 'handler' = 'fails' AND result -> 'error' ->> 'sqlstate' = 'P0001')",
        ),
        (
            "jobs that failed before their last attempt, or after it (I5)",
            "SELECT id || result::text FROM background_jobs WHERE result ? 'error' AND result -> 'error' -> 'attempts' <> '4'",
        ),
        (
            "jobs with more attempts than they may have (I5)",
            "SELECT job_id::text FROM background_jobs.attempts GROUP BY job_id HAVING count(*) > 4 OR max(attempt) > 4",
        ),
        ("jobs that were cancelled, and nobody did (I9)", "SELECT id::text FROM background_jobs WHERE cancelled"),
        (
            "progress that does not fit (I8)",
            "SELECT id::text FROM background_jobs WHERE (progress = 1) = (result ? 'error') OR NOT progress BETWEEN 0 AND 1",
        ),
    ];
    for (what, query) in bad {
        let rows = app.rows(query, &[]);
        let some: Vec<String> = rows.iter().take(5).map(|row| row.get(0)).collect();
        if !some.is_empty() {
            wrong.push(format!("{} {what}: {}", rows.len(), some.join(", ")));
        }
    }
    let over = starts.iter().filter(|start| start.attempt > MAX_ATTEMPTS).count();
    if over > 0 {
        wrong.push(format!("{over} starts of an attempt beyond the last one (I5)"));
    }
    let jobs: i64 = app.one("SELECT count(*) FROM background_jobs", &[]);
    let reported: i64 = app.one("SELECT count(*) FROM background_jobs WHERE payload ->> 'handler' = 'reports'", &[]);
    if jobs < 100 || reported == 0 || starts.len() < jobs.unsigned_abs() as usize / 2 {
        wrong.push(format!("only {jobs} jobs and {} starts: nothing is proved", starts.len()));
    }
    wrong
}

/// Is there more in the log than the signals are worth?
fn flooded(log: &str, blows: &[Blow]) -> Option<String> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    // A line of the witness takes the lines of its context along, which begin with another word or with a tab.
    let mut witness = false;
    for line in log.lines() {
        let is_context = line.starts_with('\t') || line.contains(": CONTEXT:  ");
        witness = if is_context { witness } else { line.contains(": LOG:  storm start ") };
        if witness {
            continue;
        }
        let said = line.split_once("]").map_or(line, |(_, said)| said);
        *kinds.entry(said.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()).or_default() += 1;
    }
    let count: usize = kinds.values().sum();
    let mut most: Vec<_> = kinds.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    println!("{count} lines in the log beside the starts; most of all:");
    most.iter().take(12).for_each(|(line, count)| println!("  {count:>6} {line}"));
    let bound = LINES_FREE + LINES_PER_SIGNAL * blows.len();
    (count > bound).then(|| format!("{count} lines in the log, and {} signals allow {bound}", blows.len()))
}
