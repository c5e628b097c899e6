//! Statements that nobody would write, as the owner of a job table: sqlsmith's, and calls of every function of ours with whatever
//! fits its types. From sessions that commit them, and inside handlers. The server has to stay up, what is ours never raises an
//! internal error, and afterwards jobs run as before.

mod calls;

use calls::Calls;
use server_tests::postgres::Client;
use server_tests::rest::unrest;
use server_tests::{App, Cluster, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const RUN: &str = "EXECUTE payload ->> 'sql'; RETURN '1';";
const CATCH: &str = "BEGIN EXECUTE payload ->> 'sql'; EXCEPTION WHEN OTHERS THEN NULL; END;
    PERFORM background_jobs.set_progress(0.5); RETURN '2';";

/// What came of the statements, by SQLSTATE, and the internal errors with a statement that raised each.
#[derive(Default)]
struct Seen {
    statements: AtomicU64,
    states: Mutex<BTreeMap<String, u64>>,
    internal: Mutex<BTreeMap<String, String>>,
}

impl Seen {
    fn note(&self, sqlstate: &str, message: &str, statement: &str) {
        *self.states.lock().unwrap_or_else(PoisonError::into_inner).entry(sqlstate.to_owned()).or_default() += 1;
        if sqlstate.starts_with("XX") {
            let text = format!("{sqlstate} {message}");
            self.internal.lock().unwrap_or_else(PoisonError::into_inner).entry(text).or_insert(statement.to_owned());
        }
    }

    fn try_in(&self, client: &mut Client, statement: &str) {
        self.statements.fetch_add(1, Ordering::Relaxed);
        let Err(error) = client.batch_execute(statement) else { return };
        if let Some(told) = error.as_db_error() {
            self.note(told.code().code(), told.message(), statement);
        }
        let _ = client.batch_execute("ROLLBACK");
    }
}

/// Returns what was wrong.
pub fn run(seconds: u64, seed: u64) -> Vec<String> {
    println!("sqlsmith: {seconds} s with seed {seed}");
    if Command::new("sqlsmith").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return vec!["sqlsmith is not installed: apt-get install sqlsmith".to_owned()];
    }
    let cluster = Cluster::builder()
        .conf("background_jobs.max_executors", "3")
        .conf("background_jobs.poll_interval", "1s")
        .conf("background_jobs.cancel_grace", "500ms")
        .conf("log_error_verbosity", "verbose")
        .conf("log_line_prefix", "%n [%p] %b %e: ")
        .start();
    let mut app = App::with_table(&cluster, "smith");
    prepare(&mut app);
    let until = Instant::now() + Duration::from_secs(seconds);
    let (ours, theirs) = (Seen::default(), Seen::default());
    let sessions: Vec<Client> = (0..4).map(|_| session(&app)).collect();
    let calls = Calls::of(&mut app.admin());
    println!("{} functions of ours", calls.count());
    let mut smiths = [
        smith(&app, seed, &[]),
        smith(&app, seed + 1, &["--dry-run", "--exclude-catalog"]),
        smith(&app, seed + 2, &["--dry-run"]),
    ];
    let outputs: Vec<_> = smiths.iter_mut().filter_map(|smith| smith.stdout.take()).collect();
    std::thread::scope(|scope| {
        let mut sessions = sessions.into_iter();
        for output in outputs.into_iter().skip(1) {
            let (client, theirs) = (sessions.next(), &theirs);
            scope.spawn(move || client.map(|client| commit_and_submit(client, output, until, theirs)));
        }
        for (number, mut client) in sessions.enumerate() {
            let (calls, ours) = (&calls, &ours);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed + 10 + number as u64);
                while Instant::now() < until && !client.is_closed() {
                    let call = calls.one(&mut rng);
                    ours.try_in(&mut client, &call);
                    if rng.u32(..4) == 0 {
                        submit(&mut client, "runs", &call);
                    }
                }
            });
        }
        // The length of the storm; the smiths would go on for ever.
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        smiths.iter_mut().for_each(|smith| drop(smith.kill()));
    });
    smiths.iter_mut().for_each(|smith| drop(smith.wait()));
    judge(app, &cluster, &ours, &theirs)
}

fn prepare(app: &mut App) {
    app.handler_with("runs", RUN, "max_attempts => 1, timeout => '1 s'");
    app.handler_with("catches", CATCH, "max_attempts => 2, timeout => '1 s', retry_delay => '10 ms'");
    app.sql(
        "CREATE TABLE things (id uuid DEFAULT gen_random_uuid(), n int, t text, j jsonb, at timestamptz);
         CREATE FUNCTION fine(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
         SELECT background_jobs.create_table('others', '{handler,priority,run_at,attempts,finished_at}');
         SELECT background_jobs.register_handler('fine', 'fine(jsonb)', 'others');
         SELECT background_jobs.register_handler('fine', 'fine(jsonb)');",
    );
}

/// A session of the owner that no statement holds up for long; also not one that changes its own settings.
fn session(app: &App) -> Client {
    let mut client = app.session();
    client
        .batch_execute("SET statement_timeout = '1s'; SET lock_timeout = '300ms'")
        .unwrap_or_else(|e| panic!("{e:?}"));
    client
}

fn smith(app: &App, seed: u64, options: &[&str]) -> Child {
    let host = app.cluster.socket_directory().display();
    let target = format!("--target=host={host} dbname={} user={}", app.database, app.role);
    let mut command = Command::new("sqlsmith");
    command.arg(target).arg(format!("--seed={}", seed % 1_000_000_000)).args(options);
    let output = if options.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(output);
    command.spawn().unwrap_or_else(|e| panic!("sqlsmith: {e}"))
}

/// Runs each statement on its own, in this session or inside a handler.
fn commit_and_submit(mut client: Client, output: impl std::io::Read, until: Instant, theirs: &Seen) {
    let mut statement = String::new();
    let mut number = 0;
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        statement.push_str(&line);
        statement.push('\n');
        if !line.ends_with(';') {
            continue;
        }
        number += 1;
        match number % 4 {
            0 => submit(&mut client, "runs", &statement),
            1 => submit(&mut client, "catches", &statement),
            _ => theirs.try_in(&mut client, &statement),
        }
        statement.clear();
        if Instant::now() >= until || client.is_closed() {
            break;
        }
    }
}

/// Unless many wait already. It may fail: somebody may have taken the table away.
fn submit(client: &mut Client, handler: &str, statement: &str) {
    let insert = "INSERT INTO public.background_jobs (payload)
        SELECT $1 WHERE (SELECT count(*) FROM background_jobs.queue) < 50";
    let statement = statement.trim_end().trim_end_matches(';');
    let _ = client.execute(insert, &[&json!({ "handler": handler, "sql": statement })]);
}

fn judge(mut app: App, cluster: &Cluster, ours: &Seen, theirs: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    // Errors of jobs are in the attempts.
    let mut admin = app.admin();
    let attempts = "SELECT outcome, coalesce(error ->> 'sqlstate', ''), coalesce(error ->> 'message', ''), count(*),
            min(error ->> 'context') FROM background_jobs.attempts GROUP BY 1, 2, 3";
    let mut jobs = 0;
    let in_jobs = Seen::default();
    for row in admin.query(attempts, &[]).unwrap_or_else(|e| panic!("{attempts}: {e:?}")) {
        jobs += row.get::<_, i64>(3);
        in_jobs.note(row.get(1), row.get(2), &row.get::<_, Option<String>>(4).unwrap_or_default());
    }
    for (what, seen) in [("calls of ours", ours), ("statements of sqlsmith", theirs), ("errors in jobs", &in_jobs)] {
        let states = seen.states.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{what}: {} run; by SQLSTATE {states:?}", seen.statements.load(Ordering::Relaxed));
        for (error, statement) in &*seen.internal.lock().unwrap_or_else(PoisonError::into_inner) {
            println!("INTERNAL ERROR in {what}: {error}\n    {}", statement.trim().replace('\n', "\n    "));
        }
    }
    let internal = ours.internal.lock().unwrap_or_else(PoisonError::into_inner);
    wrong.extend(internal.iter().map(|(error, statement)| format!("an internal error of ours: {error}: {statement}")));
    // An error that was raised by our own code says so: the others are PostgreSQL's.
    let log = cluster.log();
    let lines: Vec<&str> = log.lines().collect();
    let raised =
        |at: &usize| lines[*at].contains(" XX") && lines[*at..].iter().take(12).any(|line| is_place_of_ours(line));
    let raised: Vec<usize> = (0..lines.len()).filter(raised).collect();
    if let Some(first) = raised.first() {
        let around = lines[*first..lines.len().min(first + 14)].join("\n");
        wrong.push(format!("{} internal errors in the log are ours; the first:\n{around}", raised.len()));
    }
    let executed = ours.statements.load(Ordering::Relaxed).min(theirs.statements.load(Ordering::Relaxed));
    let direct = log.lines().filter(|line| line.contains(" client backend ") && line.contains("ERROR:")).count();
    println!("{direct} errors of sessions in the log, {jobs} attempts without success, {} MB of log", log.len() >> 20);
    if executed < 100 || jobs < 10 {
        wrong.push(format!("only {executed} statements and {jobs} failing jobs: nothing is proved"));
    }
    // Whatever was done to them, the tables can be used again.
    app.client = app.session();
    app.sql(
        "DO $$
         DECLARE job_table regclass;
         BEGIN
             FOR job_table IN SELECT DISTINCT q.job_table FROM background_jobs.queue q LOOP
                 EXECUTE format('DELETE FROM %s', job_table);
             END LOOP;
             DELETE FROM background_jobs;
         END $$;
         SELECT background_jobs.attach('background_jobs'), background_jobs.attach('others', '{handler}')",
    );
    app.handler("quick", "PERFORM note(); RETURN payload;");
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"quick\"}' FROM generate_series(1, 100)");
    app.wait_drained(Duration::from_secs(60));
    let completed: i64 = app.one("SELECT count(*) FROM background_jobs WHERE completed AND result = payload", &[]);
    let noted: i64 = app.one("SELECT count(*) FROM ledger JOIN background_jobs ON id = job", &[]);
    if (completed, noted) != (100, 100) {
        wrong.push(format!("of 100 jobs afterwards {completed} were completed, with {noted} effects"));
    }
    let left = "SELECT q::text FROM background_jobs.queued_job q LIMIT 3";
    let left = admin.query(left, &[]).unwrap_or_else(|e| panic!("{left}: {e:?}"));
    left.iter().for_each(|row| println!("queued: {}", row.get::<_, String>(0)));
    wrong.extend(unrest(&mut admin, 1).into_iter().map(|what| format!("{what} (I13)")));
    drop((admin, app));
    wrong.extend(cluster.offences());
    wrong
}

fn is_place_of_ours(line: &str) -> bool {
    line.contains("LOCATION:") && line.contains(".rs:")
}
