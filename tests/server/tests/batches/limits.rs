//! A handler with a limit of its own: its jobs share commits like any others, and are never more at once than they may be.

use crate::scene::{DRAIN, shared};
use server_tests::{App, Cluster};

/// Each job holds one of two places until its commit, unless a job that shares the commit holds one already.
const PLACES: &str = "RETURN coalesce(
        (SELECT to_jsonb(objid::bigint) FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711 AND pid = pg_backend_pid()),
        (SELECT to_jsonb(place) FROM generate_series(1, 2) place WHERE pg_try_advisory_xact_lock(4711, place) LIMIT 1));";

#[test]
fn jobs_of_a_handler_with_a_limit_share_commits_and_keep_the_limit() {
    let cluster = Cluster::builder().conf("background_jobs.max_executors", "4").start();
    let mut app = App::with_table(&cluster, "limits");
    app.handler_with("limited", PLACES, "concurrency => 2");
    app.handler("free", "RETURN NULL;");
    app.handler("held", "PERFORM await_gate('go'); RETURN NULL;");
    let insert = |handlers: &str, n: u32| {
        format!(
            "INSERT INTO background_jobs (payload)
             SELECT jsonb_build_object('handler', h) FROM generate_series(1, {n}), unnest('{{{handlers}}}'::text[]) h"
        )
    };
    // All executors are there when the queue is full.
    app.sql(&insert("held", 4));
    app.wait_true("SELECT count(*) = 4 FROM background_jobs.workers WHERE handler = 'held'");
    app.sql(&insert("limited,free", 2000));
    app.open_gate("go");
    app.wait_drained(DRAIN);
    app.sql("DELETE FROM background_jobs WHERE payload ->> 'handler' <> 'limited'");
    let a_third_one = "SELECT count(*) FROM background_jobs WHERE result IS NULL";
    assert_eq!(app.one::<i64>(a_third_one, &[]), 0);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
    assert_eq!(app.one::<i64>("SELECT count(DISTINCT result) FROM background_jobs", &[]), 2, "two at once, too");
    assert!(shared(&mut app));
}
