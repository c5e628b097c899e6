//! A transaction that submitted one job hands it to the dispatcher with its note. Here nothing else can help: the queue is looked
//! at without being asked once a minute only.

use server_tests::postgres::Client;
use server_tests::wait::yes;
use server_tests::{App, Builder, Cluster, Group, Uuid, json, naps};
use std::time::{Duration, Instant};

fn lazy() -> Builder {
    Cluster::builder()
        .conf("background_jobs.poll_interval", "1min")
        .conf("max_prepared_transactions", "10")
        .conf("max_connections", "60")
}

static SHARED: Group = Group::new(lazy);

/// Well below the poll.
const SOON: Duration = Duration::from_secs(25);

fn scene(name: &str) -> App<'static> {
    let mut app = SHARED.app(name);
    app.handler("noted", "PERFORM note(); RETURN payload -> 'n';");
    awake(&mut app);
    app
}

/// A job that is submitted by itself starts without a poll.
fn awake(app: &mut App) {
    let id = app.submit("noted", json!({"n": 0}));
    soon(app, id);
}

fn soon(app: &mut App, id: Uuid) {
    let cluster = app.cluster;
    cluster.wait_within(SOON, "the job to be completed", || yes(app.row(id).completed));
    assert_eq!(app.noted(id), 1);
}

fn queued(app: &mut App) -> i64 {
    app.one("SELECT count(*) FROM background_jobs.queue", &[])
}

/// Nothing is left, and nothing has run but these many jobs.
fn check(app: &mut App, ran: i64) {
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    app.wait_true(
        "SELECT count(*) = 0 FROM background_jobs.workers WHERE job_id IS NOT NULL AND database = current_database()",
    );
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), ran);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
}

const LONE: &str = "INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"noted\", \"n\": 1}')";

#[test]
fn a_row_that_was_inserted_in_a_savepoint_and_rolled_back_never_starts() {
    let mut app = scene("savepoint");
    // Rows of transactions that were rolled back have left the sequence, which nothing takes back.
    app.sql("CREATE SEQUENCE starts");
    app.handler("counted", "PERFORM nextval('starts'); PERFORM note(); RETURN NULL;");
    let counted = LONE.replace("noted", "counted");
    for _ in 0..20 {
        app.sql(&format!("BEGIN; SAVEPOINT s; {counted}; ROLLBACK TO s; COMMIT"));
        app.sql(&format!("DO $$ BEGIN {counted}; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END $$"));
    }
    awake(&mut app);
    check(&mut app, 2);
    assert!(!app.one::<bool>("SELECT is_called FROM starts", &[]), "its handler was never called");
}

#[test]
fn a_row_that_was_rolled_back_to_a_savepoint_is_counted_nowhere() {
    let mut app = scene("uncounted");
    for _ in 0..3 {
        app.sql(&format!("BEGIN; SAVEPOINT s; {LONE}; ROLLBACK TO s; COMMIT"));
    }
    awake(&mut app);
    app.wait_true("SELECT coalesce(sum(completed), 0) = 2 FROM background_jobs.handler_stats");
    assert_eq!(
        app.one::<i64>("SELECT sum(cancelled + failed + retried)::bigint FROM background_jobs.handler_stats", &[]),
        0
    );
}

#[test]
fn a_row_that_is_inserted_again_after_its_savepoint_was_rolled_back_runs_once() {
    let mut app = scene("again");
    let insert = |id: Uuid, n: i32| {
        format!("INSERT INTO background_jobs (id, payload) VALUES ('{id}', '{{\"handler\": \"noted\", \"n\": {n}}}')")
    };
    for _ in 0..10 {
        let (within, after) = (Uuid::new_v4(), Uuid::new_v4());
        app.sql(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; {}; COMMIT", insert(within, 1), insert(within, 2)));
        app.sql(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; COMMIT", insert(after, 1)));
        app.sql(&insert(after, 2));
        for id in [within, after] {
            soon(&mut app, id);
            assert_eq!(app.row(id).result, Some(json!(2)));
        }
    }
    check(&mut app, 21);
}

#[test]
fn a_job_that_is_cancelled_or_deleted_where_it_was_inserted_never_starts() {
    let mut app = scene("undone");
    let id = Uuid::new_v4();
    let insert = format!("INSERT INTO background_jobs (id, payload) VALUES ('{id}', '{{\"handler\": \"noted\"}}')");
    app.sql(&format!("BEGIN; {insert}; DELETE FROM background_jobs WHERE id = '{id}'; COMMIT"));
    app.sql(&format!("BEGIN; {insert}; UPDATE background_jobs SET completed = true WHERE id = '{id}'; COMMIT"));
    app.sql(&format!("DELETE FROM background_jobs WHERE id = '{id}'"));
    app.sql(&format!("BEGIN; {insert}; UPDATE background_jobs SET cancelled = true WHERE id = '{id}'; COMMIT"));
    awake(&mut app);
    assert!(app.row(id).cancelled);
    check(&mut app, 2);
}

#[test]
fn a_scheduled_job_is_not_started_early() {
    let mut app = scene("scheduled");
    app.sql("CREATE TABLE starts (job uuid, at timestamptz)");
    app.handler("timed", "PERFORM note(); INSERT INTO starts SELECT id, clock_timestamp() FROM background_jobs.current_job(); RETURN NULL;");
    let late: Uuid =
        app.one("SELECT background_jobs.enqueue('timed', run_at => clock_timestamp() + interval '2 s')", &[]);
    let never: Uuid = app.one("SELECT background_jobs.enqueue('timed', run_at => now() + interval '1 h')", &[]);
    let now: Uuid = app.one("SELECT background_jobs.enqueue('timed', run_at => now() - interval '1 h')", &[]);
    let due: std::time::SystemTime = app.one("SELECT run_at FROM background_jobs.queue WHERE job_id = $1", &[&late]);
    soon(&mut app, now);
    soon(&mut app, late);
    assert!(app.one::<bool>("SELECT at >= $2 FROM starts WHERE job = $1", &[&late, &due]));
    assert_eq!((app.state(never), app.noted(never)), ("scheduled".to_owned(), 0));
}

/// The only executor is at work; what is handed over meanwhile starts in the order of its priorities.
#[test]
fn jobs_that_are_handed_over_start_by_priority() {
    let cluster = lazy().conf("background_jobs.max_executors", "1").start();
    let mut app = App::with_table(&cluster, "priority");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    awake(&mut app);
    let first = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut ids = Vec::new();
    for priority in [0i32, 5, -5, 3, -7, 0] {
        ids.push(app.one::<Uuid>("SELECT background_jobs.enqueue('noted', priority => $1)", &[&priority]));
    }
    app.open_gate("go");
    app.wait_drained(SOON);
    assert!(app.row(first).completed);
    let order: Vec<Uuid> =
        app.rows("SELECT job FROM ledger ORDER BY entry OFFSET 1", &[]).iter().map(|row| row.get(0)).collect();
    assert_eq!(order, [ids[4], ids[2], ids[0], ids[5], ids[3], ids[1]]);
}

#[test]
fn a_job_that_is_hurried_or_retried_or_replaced_where_it_was_inserted_runs_once() {
    let mut app = scene("hurried");
    for _ in 0..5 {
        let (hurried, retried, replaced) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        app.sql(&format!(
            "BEGIN;
             SELECT background_jobs.enqueue('noted', id => '{hurried}', run_at => now() + interval '1 h');
             SELECT background_jobs.run_now('{hurried}');
             COMMIT"
        ));
        app.sql(&format!(
            "BEGIN;
             INSERT INTO background_jobs (id, payload, cancelled) VALUES ('{retried}', '{{\"handler\": \"noted\"}}', true);
             SELECT background_jobs.retry('{retried}');
             COMMIT"
        ));
        app.sql(&format!(
            "SELECT background_jobs.enqueue('noted', id => '{replaced}', run_at => now() + interval '1 h')"
        ));
        app.sql(&format!(
            "BEGIN;
             DELETE FROM background_jobs WHERE id = '{replaced}';
             INSERT INTO background_jobs (id, payload) VALUES ('{replaced}', '{{\"handler\": \"noted\", \"n\": 7}}');
             COMMIT"
        ));
        for id in [hurried, retried, replaced] {
            soon(&mut app, id);
        }
        assert_eq!(app.row(replaced).result, Some(json!(7)));
    }
    check(&mut app, 16);
}

#[test]
fn a_lone_job_that_is_prepared_starts_with_the_poll_after_its_commit_and_never_before() {
    let cluster =
        Cluster::builder().conf("max_prepared_transactions", "10").conf("background_jobs.poll_interval", "1s").start();
    let mut app = App::with_table(&cluster, "prepared");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    awake(&mut app);
    app.sql(&format!("BEGIN; {LONE}; PREPARE TRANSACTION 'kept'"));
    app.sql(&format!("BEGIN; {LONE}; PREPARE TRANSACTION 'dropped'"));
    // Later ones do not bring it along, or hide it.
    awake(&mut app);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 2);
    app.sql("ROLLBACK PREPARED 'dropped'");
    app.sql("COMMIT PREPARED 'kept'");
    let begin = Instant::now();
    app.wait_drained(SOON);
    let took = begin.elapsed();
    awake(&mut app);
    check(&mut app, 4);
    // The poll, a second, and what a busy machine needs.
    assert!(took < Duration::from_secs(1 + 1 + 3), "{took:?}");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 4);
}

#[test]
fn single_rows_from_many_sessions_at_once_all_run_once_without_a_poll() {
    let mut app = scene("sessions");
    let sessions: Vec<Client> = (0..8).map(|_| app.session()).collect();
    std::thread::scope(|scope| {
        for (n, mut session) in sessions.into_iter().enumerate() {
            scope.spawn(move || {
                for i in 0..250 {
                    // Now and then something else that the dispatcher has to look at.
                    let statement = match (n * 250 + i) % 17 {
                        0 => format!("BEGIN; {LONE}; {LONE}; COMMIT"),
                        1 => format!("BEGIN; SAVEPOINT s; {LONE}; ROLLBACK TO s; {LONE}; COMMIT"),
                        2 => format!("BEGIN; {LONE}; ROLLBACK; {LONE}"),
                        3 => format!("BEGIN; SAVEPOINT s; {LONE}; ROLLBACK TO s; COMMIT; {LONE}"),
                        _ => LONE.to_owned(),
                    };
                    session.batch_execute(&statement).unwrap();
                }
            });
        }
    });
    app.wait_drained(SOON);
    let jobs: i64 = app.one("SELECT count(*) FROM background_jobs", &[]);
    assert!(jobs >= 2001);
    assert_eq!(app.one::<i64>("SELECT count(DISTINCT job) FROM ledger", &[]), jobs);
    check(&mut app, jobs);
}

fn with_priorities(name: &str) -> App<'static> {
    let mut app = scene(name);
    app.sql(
        "SELECT background_jobs.detach('background_jobs'); ALTER TABLE background_jobs ADD priority smallint;
         SELECT background_jobs.attach('background_jobs', columns => '{priority}')",
    );
    app
}

/// Two jobs of each priority.
fn of_priorities(first: i32, last: i32) -> String {
    format!(
        "INSERT INTO background_jobs (payload, priority)
         SELECT '{{\"handler\": \"noted\"}}', n FROM generate_series({first}, {last}) n, generate_series(1, 2)"
    )
}

/// The dispatcher is told that there is something everywhere, finds the lanes piece by piece, and is told of more of them, and of cancelled
/// jobs, while it does.
#[test]
fn jobs_of_thousands_of_priorities_all_run_without_a_poll() {
    let mut app = with_priorities("priorities");
    app.sql(&of_priorities(-1000, 3000));
    let cancelled = app.execute(
        "UPDATE background_jobs SET cancelled = true WHERE priority > 2500 AND NOT completed AND priority % 2 = 0",
        &[],
    );
    app.sql(&of_priorities(2000, 4000));
    app.wait_drained(SOON);
    let jobs = 1 + 2 * 4001 + 2 * 2001 - i64::try_from(cancelled).unwrap();
    assert_eq!(app.one::<i64>("SELECT count(DISTINCT job) FROM ledger", &[]), jobs);
    check(&mut app, jobs);
}

#[test]
fn a_job_that_comes_before_its_lane_was_found_does_not_hide_those_that_wait_there() {
    let mut app = with_priorities("found");
    app.sql(&of_priorities(-1000, 3000));
    for priority in (2951..=3000).rev() {
        app.execute(
            "INSERT INTO background_jobs (payload, priority) VALUES ('{\"handler\": \"noted\"}', $1::int)",
            &[&priority],
        );
    }
    app.wait_drained(SOON);
    check(&mut app, 1 + 2 * 4001 + 50);
}

/// The lanes of retries and schedules are read while others are handed over.
#[test]
fn jobs_are_handed_over_while_others_are_retried() {
    let mut app = scene("retried");
    app.handler_with(
        "fails",
        "IF (SELECT attempt FROM background_jobs.current_job()) < 3 THEN RAISE 'not yet'; END IF; PERFORM note(); RETURN '1';",
        "max_attempts => 3, retry_delay => '20 ms', max_retry_delay => '40 ms'",
    );
    for n in 0..200 {
        match n % 4 {
            0 => {
                app.submit("fails", json!({}));
            }
            1 => app.sql("SELECT background_jobs.enqueue('noted', run_at => clock_timestamp() + interval '20 ms')"),
            _ => {
                app.submit("noted", json!({}));
            }
        }
    }
    app.wait_drained(SOON);
    assert_eq!(queued(&mut app), 0);
    assert_eq!(app.one::<i64>("SELECT count(DISTINCT job) FROM ledger", &[]), 201);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 201);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 100, "two for each that fails");
}

/// A job that a job submits is handed over by the executor.
#[test]
fn a_chain_of_jobs_needs_no_poll() {
    let mut app = scene("chain");
    app.handler(
        "chain",
        "PERFORM note();
         IF (payload ->> 'n')::int > 0 THEN
            PERFORM background_jobs.enqueue('chain', jsonb_build_object('n', (payload ->> 'n')::int - 1));
         END IF;
         RETURN payload -> 'n';",
    );
    app.submit("chain", json!({"n": 300}));
    app.cluster.wait_within(SOON, "the chain to end", || {
        let ran: i64 = app.one("SELECT count(*) FROM ledger", &[]);
        if ran == 302 { Ok(()) } else { Err(format!("{ran} ran")) }
    });
    check(&mut app, 302);
}

fn priority_of_next(app: &mut App, statements: &str) -> i16 {
    app.sql(statements);
    let id: Uuid = app.one("SELECT background_jobs.enqueue('prior', run_at => now() + interval '1 h')", &[]);
    app.one("SELECT priority FROM background_jobs.queue WHERE job_id = $1", &[&id])
}

const PRIOR: &str = "SELECT background_jobs.register_handler('prior', 'noted(jsonb)', priority => 5::smallint)";
const SUBMIT_PRIOR: &str = "SELECT background_jobs.enqueue('prior', run_at => now() + interval '1 h')";

#[test]
fn a_priority_whose_registration_was_rolled_back_is_not_used() {
    let mut app = scene("rolled");
    app.sql("SELECT background_jobs.register_handler('prior', 'noted(jsonb)', priority => 1::smallint)");
    assert_eq!(priority_of_next(&mut app, "SELECT 1"), 1);
    assert_eq!(priority_of_next(&mut app, &format!("BEGIN; {PRIOR}; {SUBMIT_PRIOR}; ROLLBACK")), 1);
}

#[test]
fn a_priority_whose_registration_was_rolled_back_to_a_savepoint_is_not_used() {
    let mut app = scene("rolled_to");
    app.sql("SELECT background_jobs.register_handler('prior', 'noted(jsonb)', priority => 1::smallint)");
    let id = Uuid::new_v4();
    app.sql(&format!(
        "BEGIN; SAVEPOINT s; {PRIOR}; {SUBMIT_PRIOR}; ROLLBACK TO s;
         SELECT background_jobs.enqueue('prior', run_at => now() + interval '1 h', id => '{id}'); COMMIT"
    ));
    assert_eq!(app.one::<i16>("SELECT priority FROM background_jobs.queue WHERE job_id = $1", &[&id]), 1);
}

#[test]
fn a_priority_that_an_older_snapshot_saw_is_not_used_by_later_transactions() {
    let mut app = scene("older");
    app.sql("SELECT background_jobs.register_handler('prior', 'noted(jsonb)', priority => 1::smallint)");
    let mut other = app.session();
    app.sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM background_jobs");
    other.batch_execute(PRIOR).unwrap();
    assert_eq!(priority_of_next(&mut app, &format!("{SUBMIT_PRIOR}; COMMIT")), 5);
}

/// Anybody may try to drop what is not there, as often as they like. A drop that finds something is told.
#[test]
fn a_drop_that_finds_nothing_wakes_no_dispatcher() {
    let mut app = scene("nothing_dropped");
    let dispatcher = app.pids("dispatcher");
    let mut naps_of_twenty = |statement: &str| {
        app.wait_asleep(&dispatcher);
        let before = naps(dispatcher[0]);
        for _ in 0..20 {
            app.sql(statement);
            app.wait_asleep(&dispatcher);
        }
        naps(dispatcher[0]) - before
    };
    let told = naps_of_twenty("CREATE TABLE there (); DROP TABLE there");
    assert!(told >= 20, "{told} naps");
    // It may wake for another reason in between, but not for each of them.
    let untold = naps_of_twenty("DROP TABLE IF EXISTS nowhere");
    assert!(untold < 10, "{untold} naps");
}
