//! One owner floods, another has one job: how long that job waits at most (I12), and what the flood costs the others.
//!
//! The bound that is documented is the run time of one running job plus about a second: an executor's tenure of half a second,
//! and the start of a process. The tests allow `GRACE` for both on a busy machine.

use server_tests::tenant::{Tenant, end_sessions, owner};
use server_tests::{App, Builder, Cluster, Uuid, json};
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(3);

fn two_executors() -> Builder {
    Cluster::builder().conf("background_jobs.max_executors", "2")
}

/// An owner in the application's database whose role is older or younger than the application's own: order by OID, where
/// there is one, must favour nobody.
fn scene(cluster: &Cluster) -> (App<'_>, Tenant, Tenant) {
    let app = App::with_table(cluster, "flooded");
    let (mut older, mut younger) = (owner(&app, "older"), owner(&app, "younger"));
    for tenant in [&mut older, &mut younger] {
        tenant.handler("fine", "RETURN '1';", "");
    }
    (app, older, younger)
}

/// How long the job of somebody who has no executor takes, from its INSERT on.
fn turn(cluster: &Cluster, victim: &mut Tenant) -> Duration {
    let begin = Instant::now();
    let id = victim.submit("fine");
    assert_eq!(victim.result(cluster, id), Some(json!(1)));
    begin.elapsed()
}

fn assert_within(bound: Duration, what: &str, took: &[Duration]) {
    assert!(took.iter().all(|took| *took <= bound), "{what}: {took:?}, and the bound is {bound:?}");
}

/// Jobs that take `run` each, on every executor, with a queue that does not end.
fn flood(owner: &mut Tenant, run: Duration, jobs: u32) {
    owner.handler("floods", &format!("PERFORM pg_sleep({}); RETURN NULL;", run.as_secs_f64()), "");
    owner.sql(&format!(
        "INSERT INTO background_jobs (payload) SELECT '{{\"handler\": \"floods\"}}' FROM generate_series(1, {jobs})"
    ));
    let running = "SELECT count(*) >= 2 FROM background_jobs.workers WHERE handler = 'floods'";
    server_tests::wait_until("the flood to be everywhere", || {
        if owner.one(running, &[]) { Ok(()) } else { Err("not yet".to_owned()) }
    });
}

fn whoever_is_flooded_gets_a_turn(run: Duration, older_floods: bool) {
    let cluster = two_executors().start();
    let (app, mut older, mut younger) = scene(&cluster);
    let (flooder, victim) = if older_floods { (&mut older, &mut younger) } else { (&mut younger, &mut older) };
    flood(flooder, run, 2000);
    let took: Vec<Duration> = (0..3).map(|_| turn(&cluster, victim)).collect();
    flooder.sql("TRUNCATE background_jobs");
    end_sessions(&cluster, &app.database);
    assert_within(run + GRACE, "a job of another owner", &took);
}

#[test]
fn an_older_role_that_fills_every_executor_with_long_jobs_delays_others_by_one_of_them() {
    whoever_is_flooded_gets_a_turn(Duration::from_millis(700), true);
}

#[test]
fn a_younger_role_that_fills_every_executor_with_long_jobs_delays_others_by_one_of_them() {
    whoever_is_flooded_gets_a_turn(Duration::from_millis(700), false);
}

#[test]
fn an_older_role_that_fills_every_executor_with_short_jobs_delays_others_by_its_tenure() {
    whoever_is_flooded_gets_a_turn(Duration::from_millis(20), true);
}

#[test]
fn a_flood_in_one_database_delays_another_database_by_one_job() {
    let cluster = two_executors().start();
    let run = Duration::from_millis(500);
    for flooder_first in [true, false] {
        let first = App::with_table(&cluster, "first");
        let second = App::with_table(&cluster, "second");
        let (flooded, quiet) = if flooder_first { (&first, &second) } else { (&second, &first) };
        let mut flooder = owner(flooded, "flooder");
        let mut victim = owner(quiet, "victim");
        victim.handler("fine", "RETURN '1';", "");
        flood(&mut flooder, run, 2000);
        let took: Vec<Duration> = (0..2).map(|_| turn(&cluster, &mut victim)).collect();
        flooder.sql("TRUNCATE background_jobs");
        for app in [&first, &second] {
            end_sessions(&cluster, &app.database);
        }
        drop((flooder, victim));
        assert_within(run + GRACE, "a job in another database", &took);
    }
}

/// Set-based, as an import would do it. Nobody waits for the INSERT, and its jobs are no wall before the others'.
#[test]
fn two_hundred_thousand_jobs_of_one_owner_delay_another_by_its_tenure() {
    let cluster = two_executors().start();
    let (app, mut older, mut younger) = scene(&cluster);
    older.handler("counts", "RETURN payload;", "");
    let role = older.role.clone();
    let mut session = cluster.connect(&app.database, &role);
    let importer = std::thread::spawn(move || {
        session.batch_execute(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', 'counts', 'n', n) FROM generate_series(1, 200000) n",
        )
    });
    let mut took = vec![turn(&cluster, &mut younger)];
    importer.join().unwrap().unwrap();
    for _ in 0..5 {
        took.push(turn(&cluster, &mut younger));
    }
    let left: i64 = older.one("SELECT count(*) FROM background_jobs.queue", &[]);
    // An owner of many jobs who changes its mind: the withdrawal of them all holds up nobody either.
    older.sql("DELETE FROM background_jobs WHERE NOT completed");
    took.push(turn(&cluster, &mut younger));
    let lost: i64 =
        older.one("SELECT count(*) FROM background_jobs WHERE NOT completed OR result IS DISTINCT FROM payload", &[]);
    end_sessions(&cluster, &app.database);
    assert_eq!(lost, 0);
    assert_within(GRACE, &format!("beside 200,000 jobs, {left} of them left at the end"), &took);
}

/// Every registration has the dispatcher look at all handlers again. One who registers and unregisters without end, with ten
/// thousand handlers each with a job of its own, keeps it busy; others' jobs go on.
#[test]
fn ten_thousand_handlers_delay_others_by_seconds_at_most() {
    let cluster = two_executors().start();
    let (app, mut older, mut younger) = scene(&cluster);
    older.sql(
        "CREATE FUNCTION whatever(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT p';
         SELECT count(background_jobs.register_handler('h' || n, 'whatever(jsonb)')) FROM generate_series(1, 10000) n;",
    );
    let mut took = vec![turn(&cluster, &mut younger)];
    older.sql("INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', 'h' || n) FROM generate_series(1, 10000) n");
    took.push(turn(&cluster, &mut younger));
    let mut session = cluster.connect(&app.database, &older.role);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = session.batch_execute("SELECT background_jobs.register_handler('h1', 'whatever(jsonb)')");
            }
        });
        for _ in 0..4 {
            took.push(turn(&cluster, &mut younger));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    // Its own go on until there are none, at the pace of the machine.
    let mut left = i64::MAX;
    while left > 0 {
        let not_run = "SELECT count(*) FROM background_jobs WHERE NOT completed";
        left = cluster.wait_until("its own jobs to go on", || match older.one::<i64>(not_run, &[]) {
            fewer if fewer < left => Ok(fewer),
            same => Err(format!("{same} left")),
        });
    }
    end_sessions(&cluster, &app.database);
    assert_within(GRACE + GRACE, "beside 10,000 handlers", &took);
}

/// Jobs that fail, whose tables cannot be read, and whose rows cannot be written: as many as one likes, without the server's
/// log growing by the job or telling what was in them.
#[test]
fn no_kind_of_failure_floods_the_log_or_tells_a_payload() {
    let cluster = two_executors().conf("background_jobs.poll_interval", "300ms").start();
    let (app, mut older, mut younger) = scene(&cluster);
    let canary = "hush-5150";
    older.handler(
        "fails",
        "RAISE '%', payload USING DETAIL = payload::text, HINT = payload::text;",
        "max_attempts => 2, retry_delay => '5 ms', max_retry_delay => '5 ms'",
    );
    older.handler("works", "RETURN payload;", "max_attempts => 1");
    let insert = |handler: &str, jobs: u32| {
        format!(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', '{handler}', 'secret', '{canary}', 'n', n) FROM generate_series(1, {jobs}) n"
        )
    };
    let before = cluster.log().len();
    older.sql(&insert("fails", 3000));
    cluster.wait_within(Duration::from_secs(60), "3,000 failures", || {
        match older.one::<i64>("SELECT count(*) FROM background_jobs WHERE NOT completed", &[]) {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    });
    let failing = cluster.log().len() - before;

    let before = cluster.log().len();
    older.sql(
        "CREATE FUNCTION refuses(p jsonb) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) <> 'client backend' THEN
                RAISE 'cannot read %', p USING DETAIL = p::text;
            END IF; RETURN true; END $$;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (refuses(payload)) WITH CHECK (true);",
    );
    // Several lanes of one handler: by priority, and one that waits for its time.
    older.sql(&insert("works", 3000));
    older.sql("SELECT count(background_jobs.enqueue('works', priority => (n % 5)::smallint, run_at => now() + interval '1 h' * (n % 2))) FROM generate_series(1, 100) n");
    let took: Vec<Duration> = (0..10).map(|_| turn(&cluster, &mut younger)).collect();
    let watched = Instant::now();
    cluster.wait_within(Duration::from_secs(10), "three seconds of refusals", || {
        if watched.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let refusing = cluster.log().len() - before;
    let rows: i64 = older.one("SELECT count(*) FROM background_jobs.queue", &[]);
    older.sql("DROP POLICY p ON background_jobs; ALTER TABLE background_jobs DISABLE ROW LEVEL SECURITY; TRUNCATE background_jobs");
    let log = cluster.log();
    let told = log.lines().filter(|line| line.contains(canary)).count();
    end_sessions(&cluster, &app.database);
    assert_within(GRACE, "beside refusals", &took);
    assert_eq!(rows, 3100, "jobs whose rows cannot be read are kept");
    assert!(failing < 20_000, "{failing} bytes of log for 3,000 failures");
    assert!(
        refusing < 50_000 && told == 0,
        "{refusing} bytes of log for refusals, and {told} lines of the log tell a payload: {:?}",
        log.lines().find(|line| line.contains(canary))
    );
}

/// Many sessions that wait, and many that cancel and submit, are so many sessions and no more.
#[test]
fn sessions_that_wait_by_the_dozen_delay_nobody() {
    let cluster = two_executors().conf("max_connections", "200").start();
    let (app, mut older, mut younger) = scene(&cluster);
    older.handler("held", "PERFORM pg_sleep(600); RETURN NULL;", "");
    let id = older.submit("held");
    let id: Uuid = id;
    let role = older.role.clone();
    std::thread::scope(|scope| {
        for _ in 0..140 {
            let (cluster, database, role) = (&cluster, &app.database, &role);
            scope.spawn(move || {
                let mut session = cluster.connect(database, role);
                let error = session.query("SELECT background_jobs.wait($1, '20 s')", &[&id]).unwrap_err();
                assert_eq!(server_tests::sqlstate(&error), "57014", "it is cancelled in the end");
            });
        }
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT background_jobs.wait(%' AND wait_event IS NOT NULL";
        cluster.wait_until("all of them to wait", || match older.one::<i64>(waiting, &[]) {
            140.. => Ok(()),
            some => Err(format!("{some}")),
        });
        let took: Vec<Duration> = (0..5).map(|_| turn(&cluster, &mut younger)).collect();
        let begin = Instant::now();
        older.client.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]).unwrap();
        let gone = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT background_jobs.wait(%' AND state = 'active'";
        cluster.wait_within(Duration::from_secs(10), "all of them to be told", || match older.one::<i64>(gone, &[]) {
            0 => Ok(()),
            some => Err(format!("{some}")),
        });
        let told = begin.elapsed();
        assert_within(GRACE, "beside 140 waiting sessions", &took);
        assert!(told < GRACE, "the cancel reached them after {told:?}");
    });
    end_sessions(&cluster, &app.database);
}
