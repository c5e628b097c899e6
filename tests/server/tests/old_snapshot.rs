//! While somebody's old snapshot lasts, the queue's index has an entry for each job that has passed: the others are found among them.
//! Nobody finds them by a poll.

use server_tests::{App, Cluster, Group};
use std::time::Duration;

static SHARED: Group = Group::new(|| {
    Cluster::builder().conf("max_prepared_transactions", "10").conf("background_jobs.poll_interval", "1h")
});

/// Entries of the queue's index that one look goes over at most; the job lies behind more of them, and more lie behind it.
const ENTRIES: i64 = 2000;

#[test]
fn jobs_that_nobody_tells_of_are_found_among_thousands_of_dead_entries() {
    let mut app = SHARED.app("among");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    app.handler("quick", "RETURN NULL;");
    let mut elsewhere = app.session();
    elsewhere.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM background_jobs").unwrap();
    // All due at the same moment, as those of a statement can be.
    let quick = "background_jobs.enqueue('quick', run_at => '2020-01-01')";
    let pass = |app: &mut App| {
        app.sql(&format!("SELECT {quick} FROM generate_series(0, {ENTRIES})"));
        app.wait_drained(Duration::from_secs(60));
    };
    pass(&mut app);
    let name = format!("'{}'", app.database);
    app.sql(&format!(
        "BEGIN; SELECT {quick}, background_jobs.enqueue('quick', priority => 5::smallint), background_jobs.enqueue('noted');
         PREPARE TRANSACTION {name}"
    ));
    // Another dispatcher has not been told which lanes there will be.
    let dispatcher =
        "SELECT pid FROM background_jobs.workers WHERE role = 'dispatcher' AND database = current_database()";
    app.admin().batch_execute(&format!("SELECT pg_terminate_backend(pid, 10000) FROM ({dispatcher}) d")).unwrap();
    pass(&mut app);
    let count = |app: &mut App| app.one::<i64>("SELECT count(*) FROM background_jobs WHERE completed", &[]);
    assert_eq!(count(&mut app), 2 * (ENTRIES + 1));
    app.sql(&format!("COMMIT PREPARED {name}"));
    app.wait_drained(Duration::from_secs(60));
    assert_eq!(count(&mut app), 2 * (ENTRIES + 1) + 3);
    elsewhere.batch_execute("COMMIT").unwrap();
}

/// The dispatcher is told of the first one only, which lies before all that has passed since.
#[test]
fn jobs_of_a_transaction_that_took_long_are_found_among_thousands_of_dead_entries() {
    let mut app = SHARED.app("took_long");
    app.handler("quick", "RETURN NULL;");
    let mut elsewhere = app.session();
    elsewhere.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM background_jobs").unwrap();
    let mut long = app.session();
    long.batch_execute("BEGIN").unwrap();
    for _ in 0..2 {
        long.batch_execute("SELECT background_jobs.enqueue('quick')").unwrap();
        app.sql(&format!("SELECT background_jobs.enqueue('quick') FROM generate_series(0, {ENTRIES})"));
        app.wait_drained(Duration::from_secs(60));
    }
    long.batch_execute("COMMIT").unwrap();
    app.wait_drained(Duration::from_secs(60));
    let completed: i64 = app.one("SELECT count(*) FROM background_jobs WHERE completed", &[]);
    assert_eq!(completed, 2 * (ENTRIES + 1) + 2);
    elsewhere.batch_execute("COMMIT").unwrap();
}
