//! Much of something: many jobs, large payloads, many handlers.

use crate::{GRACE, assert_within, everywhere, scene, turn, two_executors};
use server_tests::Cluster;
use server_tests::tenant::{Tenant, end_sessions};
use server_tests::wait::yes;
use std::time::Instant;

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
    let for_each = |times: u32| {
        format!(
            "INSERT INTO background_jobs (payload)
             SELECT jsonb_build_object('handler', 'h' || n) FROM generate_series(1, 10000) n, generate_series(1, {times})"
        )
    };
    older.sql(&for_each(1));
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
    // All of them are known to be short now: executors are as quick as whoever hands out, who has to look around all the same.
    older.sql(&for_each(3));
    took.extend((0..3).map(|_| turn(&cluster, &mut younger)));
    end_sessions(&cluster, &app.database);
    assert_within(GRACE, "beside 10,000 handlers", &took);
}

/// What is read, handed to the handler and written back takes its time; that is one job's, as any other's.
#[test]
fn large_payloads_of_one_owner_delay_another_by_one_of_them() {
    let cluster = Cluster::builder().conf("background_jobs.max_executors", "1").start();
    let (app, mut older, mut younger) = scene(&cluster);
    older.handler("echo", "RETURN payload;", "");
    let insert = |owner: &mut Tenant, jobs: u32| {
        owner.sql(&format!(
            "INSERT INTO background_jobs (payload)
             SELECT jsonb_build_object('handler', 'echo', 'blob', repeat(md5(n::text), 100 * 32768)) FROM generate_series(1, {jobs}) n"
        ));
        Instant::now()
    };
    let unfinished = "SELECT count(*) FROM background_jobs WHERE NOT completed";
    let begin = insert(&mut older, 1);
    cluster.wait_until("one of them", || yes(older.one::<i64>(unfinished, &[]) == 0));
    let one = begin.elapsed();

    insert(&mut older, 4);
    let mut took = Vec::new();
    while older.one::<i64>(unfinished, &[]) > 0 {
        took.push(turn(&cluster, &mut younger));
    }
    let right =
        "SELECT count(*) FROM background_jobs WHERE result = payload AND length(result ->> 'blob') = 100 * 1048576";
    assert_eq!(older.one::<i64>(right, &[]), 5);
    end_sessions(&cluster, &app.database);
    assert_within(one + GRACE, "beside payloads of 100 MB", &took);
}

/// A million waiting jobs are no wall either.
#[test]
#[ignore = "takes more than a minute"]
fn a_million_jobs_of_one_owner_delay_another_by_its_tenure() {
    // Whoever has no job keeps no executor from the flood.
    let cluster = two_executors().conf("background_jobs.executor_idle_timeout", "200ms").start();
    let (app, mut older, mut younger) = scene(&cluster);
    older.handler("floods", "PERFORM pg_sleep(0.02); RETURN NULL;", "");
    let role = older.role.clone();
    let mut session = cluster.connect(&app.database, &role);
    let importer = std::thread::spawn(move || {
        session.batch_execute(
            "SET statement_timeout = 0;
             INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"floods\"}' FROM generate_series(1, 1000000)",
        )
    });
    let mut took = Vec::new();
    while !importer.is_finished() {
        took.push(turn(&cluster, &mut younger));
    }
    importer.join().unwrap().unwrap();
    for _ in 0..3 {
        everywhere(&mut older);
        took.push(turn(&cluster, &mut younger));
    }
    let left: i64 = older.one("SELECT count(*) FROM background_jobs.queue", &[]);
    older.sql("TRUNCATE background_jobs");
    took.push(turn(&cluster, &mut younger));
    end_sessions(&cluster, &app.database);
    assert!(left > 900_000, "{left} are left");
    took.sort_unstable();
    assert_within(GRACE, "beside a million jobs", took.last_chunk::<5>().expect("as many turns"));
}
