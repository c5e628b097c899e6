//! A million jobs, a tenth of them failing in several ways, and the private memory of every process that has to do with them
//! (invariant I16), what the server looks like afterwards (I13), and whether everything was done once.

use server_tests::postgres::Client;
use server_tests::rest::unrest;
use server_tests::wait::attempt;
use server_tests::{App, Cluster};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// Jobs after which caches are full; what comes before does not count.
pub const WARM_UP: u32 = 100_000;

/// What a process may grow by a thousand jobs, in kB.
const BOUND: f64 = 1.0;

/// Submitted at once; about so many wait while others run.
const BATCH: u32 = 2_000;

/// Rows of finished jobs are removed whenever there are so many.
const KEPT: u32 = 100_000;

/// Shorter runs say nothing about memory: a page more or less would be a growth.
const TELLING: u32 = 500_000;

/// Of each hundred jobs ninety succeed; one of those reports progress. The others fail as handlers do: by an error with all its
/// parts, by one from deep inside of one that was caught, by a constraint, by what is no progress, and, rarely since it takes the
/// jobs beside it along, at the commit.
const HANDLERS: &[(&str, &str)] = &[
    ("works", "INSERT INTO effects VALUES (1); RETURN payload;"),
    (
        "reports",
        "INSERT INTO effects VALUES (1); PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(0.001);
         PERFORM background_jobs.set_progress(0.9); RETURN NULL;",
    ),
    (
        "raises",
        "INSERT INTO effects VALUES (0);
         RAISE 'job % fails', payload ->> 'n' USING DETAIL = repeat('detail ', 20), HINT = 'none', ERRCODE = 'P0815';",
    ),
    (
        "nested",
        "INSERT INTO effects VALUES (0);
         BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN EXECUTE 'SELECT nothing FROM nowhere'; END;",
    ),
    ("collides", "INSERT INTO effects VALUES (0); INSERT INTO unique_numbers VALUES (1);"),
    ("overreaches", "INSERT INTO effects VALUES (0); PERFORM background_jobs.set_progress(2);"),
    ("late", "INSERT INTO effects VALUES (0); INSERT INTO late VALUES (1); RETURN NULL;"),
];

const CHOICE: &str = "CASE WHEN n % 100 < 89 THEN 'works' WHEN n % 100 = 89 THEN 'reports' WHEN n % 2000 = 1999 THEN 'late'
    WHEN n % 100 < 93 THEN 'raises' WHEN n % 100 < 95 THEN 'nested' WHEN n % 100 < 98 THEN 'collides' ELSE 'overreaches' END";

const SUPPORT: &str = "
    CREATE TABLE effects (n int);
    CREATE TABLE unique_numbers (n int PRIMARY KEY);
    INSERT INTO unique_numbers VALUES (1);
    CREATE TABLE late (n int);
    CREATE FUNCTION too_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'too late'; END $$;
    CREATE CONSTRAINT TRIGGER too_late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION too_late();";

/// The private memory of the processes, in kB, when `jobs` jobs were final.
struct Sample {
    jobs: u32,
    kb: BTreeMap<(String, u32), u64>,
}

#[derive(Default)]
struct Counts {
    completed: u64,
    failed: u64,
    other: u64,
    /// Results of jobs that were to succeed.
    unexpected: Vec<String>,
}

/// Returns what was wrong.
pub fn run(jobs: u32, warm_up: u32) -> Vec<String> {
    let cluster = Cluster::builder()
        .conf("background_jobs.max_executors", "3")
        .conf("background_jobs.executor_idle_timeout", "0")
        .conf("jit", "off")
        // What each round of it does to caches and plans shall be there often.
        .conf("autovacuum_naptime", "2s")
        // What is freed goes back to the system: else a peak of a megabyte, once, stays for good and looks like growth.
        .env("MALLOC_MMAP_THRESHOLD_", "16384")
        .env("MALLOC_TRIM_THRESHOLD_", "0")
        .env("MALLOC_TOP_PAD_", "0")
        .start();
    let mut app = App::with_table(&cluster, "memory");
    app.sql(SUPPORT);
    for (name, body) in HANDLERS {
        app.handler_with(name, body, "max_attempts => 1");
    }
    let mut admin = app.admin();
    let submitter: i32 = app.one("SELECT pg_backend_pid()", &[]);
    let mut counts = Counts::default();
    let mut samples: Vec<Sample> = Vec::new();
    let (mut submitted, mut kept) = (0, 0);
    let begun = Instant::now();
    let submission = format!(
        "INSERT INTO background_jobs (payload)
         SELECT jsonb_build_object('handler', {CHOICE}, 'n', n) FROM generate_series($1::int, $2::int) AS n"
    );
    while submitted < jobs {
        let some = BATCH.min(jobs - submitted).min(KEPT - kept);
        let (first, last) = (submitted.cast_signed(), (submitted + some).cast_signed() - 1);
        app.execute(&submission, &[&first, &last]);
        submitted += some;
        kept += some;
        let empties = kept == KEPT || submitted == jobs;
        let left = match queued_at_most(&mut admin, if empties { 0 } else { BATCH }) {
            Ok(left) => left,
            Err(report) => return vec![format!("{report}\n{}", cluster.log_tail())],
        };
        if samples.last().is_none_or(|last| submitted - left >= last.jobs + jobs / 100) {
            samples.push(Sample { jobs: submitted - left, kb: measure(&cluster, submitter.cast_unsigned()) });
        }
        if submitted <= warm_up {
            // A round throws plans and caches away. The first ones leave the heap with gaps that later ones fill.
            admin.batch_execute("VACUUM (ANALYZE)").unwrap_or_else(|e| panic!("vacuum: {e:?}"));
        }
        if empties {
            count(&mut app, &mut counts);
            app.sql("TRUNCATE background_jobs");
            kept = 0;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{submitted} jobs in {seconds:.0} s: {} completed, {} failed", counts.completed, counts.failed);

    let mut wrong = Vec::new();
    let expected = u64::from(jobs) * 9 / 10;
    if (counts.completed, counts.failed, counts.other) != (expected, u64::from(jobs) - expected, 0) {
        let Counts { completed, failed, other, .. } = counts;
        wrong.push(format!("of {jobs} jobs {completed} are completed, {failed} have failed, {other} are neither (I1)"));
        wrong.append(&mut counts.unexpected);
    }
    let (effects, others): (i64, i64) = (
        app.one("SELECT count(*) FROM effects WHERE n = 1", &[]),
        app.one("SELECT count(*) FROM effects WHERE n = 0", &[]),
    );
    if (effects.cast_unsigned(), others) != (expected, 0) {
        wrong.push(format!("{effects} effects of {expected} completed jobs, {others} of failed ones (I3)"));
    }
    let attempts: i64 = app.one("SELECT count(*) FROM background_jobs.attempts", &[]);
    if attempts.cast_unsigned() != counts.failed {
        wrong.push(format!("{attempts} attempts without success of {} failed jobs", counts.failed));
    }
    wrong.extend(unrest(&mut admin, 1).into_iter().map(|what| format!("{what} (I13)")));
    wrong.extend(grown(&samples, warm_up, jobs >= TELLING));
    drop(admin);
    drop(app);
    wrong.extend(cluster.offences());
    wrong
}

fn queued_at_most(admin: &mut Client, most: u32) -> Result<u32, String> {
    attempt(Duration::from_secs(120), "the queue to run low", || {
        let row = admin.query_one("SELECT count(*) FROM background_jobs.queued_job", &[]);
        let left: i64 = row.map_err(|error| format!("{error:?}"))?.get(0);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        if left <= most { Ok(left) } else { Err(format!("{left} jobs are queued")) }
    })
}

fn count(app: &mut App, counts: &mut Counts) {
    let query = "SELECT count(*) FILTER (WHERE completed AND NOT cancelled AND NOT coalesce(result ? 'error', false)),
            count(*) FILTER (WHERE completed AND NOT cancelled AND result ? 'error'), count(*) FROM background_jobs";
    let row = &app.rows(query, &[])[0];
    let [completed, failed, all] = [0, 1, 2].map(|column| row.get::<_, i64>(column).cast_unsigned());
    counts.completed += completed;
    counts.failed += failed;
    counts.other += all - completed - failed;
    let unexpected = "SELECT j.payload::text || ' ' || coalesce(a.error, j.result)::text
        FROM background_jobs j LEFT JOIN background_jobs.attempts a ON a.job_id = j.id
        WHERE j.result ? 'error' AND j.payload ->> 'handler' IN ('works', 'reports') LIMIT 5";
    counts.unexpected.extend(app.rows(unexpected, &[]).iter().map(|row| row.get::<_, String>(0)));
}

/// The extension's processes and the session that submits.
fn measure(cluster: &Cluster, submitter: u32) -> BTreeMap<(String, u32), u64> {
    let mut all = BTreeMap::new();
    for (pid, title) in cluster.processes() {
        let name = match title.strip_prefix("background_jobs ") {
            Some(rest) => rest.split(" for ").next().unwrap_or(rest).to_owned(),
            None if pid == submitter => "submitting session".to_owned(),
            None => continue,
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        if let Some(kb) = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()) {
            all.insert((name, pid), kb);
        }
    }
    all
}

/// Prints what each process had, and judges those that were there from the warm-up to the end, as all have to be.
fn grown(samples: &[Sample], warm_up: u32, telling: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let counted: Vec<&Sample> = samples.iter().filter(|sample| sample.jobs >= warm_up).collect();
    let quarter = (counted.len() / 4).max(1);
    let (Some(first), Some(last)) = (counted.get(..quarter), counted.get(counted.len().saturating_sub(quarter)..))
    else {
        return vec!["there are no samples after the warm-up".to_owned()];
    };
    println!("private memory in kB         first quarter   last quarter     most   kB per 1000 jobs   on the way");
    let mut processes: Vec<&(String, u32)> = samples.iter().flat_map(|sample| sample.kb.keys()).collect();
    processes.sort();
    processes.dedup();
    for process in &processes {
        let of = |some: &[&Sample]| -> Vec<u64> { some.iter().filter_map(|s| s.kb.get(*process).copied()).collect() };
        let (name, pid) = process;
        let all = of(&counted);
        if all.len() < counted.len() {
            let text = format!("{name} {pid} was there in {} of {} samples", all.len(), counted.len());
            println!("  {text}");
            if telling {
                wrong.push(format!("{text}, so nothing can be said about its memory (I16)"));
            }
            continue;
        }
        let (before, after) = (median(of(first)), median(of(last)));
        let thousands = (middle(last) - middle(first)) / 1000.0;
        let growth = if thousands > 0.0 { (after - before) / thousands } else { 0.0 };
        let most = all.iter().max().copied().unwrap_or(0);
        let way: Vec<String> = (0..10).map(|tenth| all[all.len() * tenth / 10].to_string()).collect();
        let way = way.join(" ");
        println!("  {name:<18} {pid:>7} {before:>13} {after:>14} {most:>8} {growth:>18.3}   {way}");
        if telling && growth >= BOUND {
            wrong.push(format!("{name} {pid} grew by {growth:.2} kB with every thousand jobs (I16)"));
        }
    }
    for role in ["launcher", "dispatcher", "executor", "progress writer", "submitting session"] {
        if telling && !processes.iter().any(|(name, _)| name == role) {
            wrong.push(format!("there was no {role} to be measured"));
        }
    }
    wrong
}

fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values[values.len() / 2] as f64
}

/// The number of jobs in the middle of these samples.
fn middle(samples: &[&Sample]) -> f64 {
    samples.iter().map(|sample| f64::from(sample.jobs)).sum::<f64>() / samples.len() as f64
}
