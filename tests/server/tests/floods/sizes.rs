//! Much of something: many jobs, large payloads, many handlers.

use crate::{GRACE, assert_within, scene, turn, two_executors};
use server_tests::tenant::end_sessions;
use std::time::Duration;

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
