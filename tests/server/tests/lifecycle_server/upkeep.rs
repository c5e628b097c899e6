//! What an operator does: stops the server, checks its files, watches and dumps it.

use crate::{HELD, SHARED, configuration, noting};
use server_tests::{App, Stop, json, run};
use std::time::Duration;

/// `restart` has one that sleeps; these do all they can to go on.
#[test]
fn a_fast_stop_with_handlers_of_600_seconds_that_swallow_every_error_takes_less_than_three() {
    let cluster = configuration().start();
    let mut app = App::with_table(&cluster, "stubborn");
    for (point, name, body) in [
        (1, "sleeps", "PERFORM pg_sleep(600);"),
        (
            2,
            "swallows",
            "LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN OTHERS OR query_canceled THEN NULL; END; END LOOP;",
        ),
        (3, "spins", "WHILE clock_timestamp() < now() + interval '600 s' LOOP END LOOP;"),
        (4, "queries", "PERFORM count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b;"),
    ] {
        app.handler(name, &format!("PERFORM note(); PERFORM reach({point}); {body} RETURN NULL;"));
        app.submit(name, json!({}));
        app.wait_reached(point);
    }
    let took = cluster.stop(Stop::Fast);
    assert!(took < Duration::from_secs(3), "{took:?}");
    cluster.start();
    app.client = app.session();
    app.wait_reached(1);
    let charged: i64 = app.one("SELECT count(*) FROM background_jobs.attempts", &[]);
    assert_eq!(charged, 0, "a stop charges nobody");
    app.sql("UPDATE background_jobs SET cancelled = true");
    app.wait_left(1);
}

#[test]
fn pg_amcheck_finds_nothing_after_all_of_that() {
    let mut app = SHARED.app("amcheck");
    noting(&mut app);
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 3, retry_delay => '1 ms'");
    app.sql(
        "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', CASE n % 5 WHEN 0 THEN 'fails' ELSE 'noted' END)
            FROM generate_series(1, 2000) n",
    );
    app.sql("UPDATE background_jobs SET cancelled = true WHERE id IN (SELECT id FROM background_jobs WHERE NOT completed LIMIT 300)");
    app.wait_drained(Duration::from_secs(60));
    app.cluster.amcheck(&app.database);
}

/// What an operator asks, and what a role needs to be answered for every table.
#[test]
fn whoever_reads_all_data_can_watch_everything_and_dump_it() {
    let mut app = SHARED.app("watched");
    app.handler("held", HELD);
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 1");
    let running = app.submit("held", json!({"point": 1}));
    app.wait_reached(1);
    let failed = app.submit("fails", json!({}));
    app.wait_final(failed);
    let unhandled = app.submit("nobody", json!({}));
    app.wait_state(unhandled, "unhandled");

    let watcher = format!("watcher_{}", app.database);
    app.cluster.create_role(&watcher);
    app.admin().batch_execute(&format!("GRANT pg_read_all_data TO {watcher}")).unwrap();
    let mut client = app.cluster.connect(&app.database, &watcher);
    let mut count = |query: &str| client.query(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}")).len();
    assert_eq!(
        count(
            "SELECT job_table, handler, state, count(*), max(now() - run_at) FILTER (WHERE state = 'available') AS waiting
             FROM background_jobs.queue GROUP BY 1, 2, 3"
        ),
        2
    );
    assert_eq!(
        count("SELECT pid, handler, now() - started_at FROM background_jobs.workers WHERE job_id IS NOT NULL"),
        1
    );
    assert_eq!(
        count(
            "SELECT handler, outcome, error ->> 'sqlstate', count(*) FROM background_jobs.attempts
             WHERE finished_at > now() - interval '1 hour' GROUP BY 1, 2, 3"
        ),
        1
    );
    assert_eq!(
        count(
            "SELECT tgrelid::regclass, tgname FROM pg_trigger
             WHERE tgname LIKE 'background\\_jobs\\_%' AND NOT tgisinternal AND tgenabled <> 'A'"
        ),
        0
    );
    assert_eq!(
        count(
            "SELECT id FROM background_jobs j WHERE NOT completed AND NOT cancelled AND NOT EXISTS (
                SELECT FROM background_jobs.queue q WHERE q.job_table = 'background_jobs'::regclass AND q.job_id = j.id)"
        ),
        0
    );
    drop(client);
    let dump = run(app.cluster.client("pg_dump", &watcher).arg(&app.database));
    assert!(dump.contains("COPY background_jobs.queued_job") && dump.contains(&unhandled.to_string()));
    app.open_gate("go");
    app.wait_final(running);
    app.admin().batch_execute(&format!("DROP ROLE {watcher}")).unwrap();
}
