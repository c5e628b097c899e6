//! Transactions that fail as a whole: before the first job of a batch, or with its commit.

use crate::SHARED;
use crate::scene::{
    DRAIN, N, NOTED, alone, check_others, id_of, in_one_batch, insert, on_completion, scene, shared, warm,
};
use server_tests::json;
use server_tests::wait::yes;

/// Somebody has written into the registry what is no setting, so that the transactions of two handlers fail before a job is begun: at
/// the head of a batch, and at its end.
#[test]
fn a_job_whose_transaction_cannot_begin_fails_alone() {
    let _alone = alone();
    let mut app = scene("unbegun");
    let (head, end) = ([1, 2, 3], [23, 24]);
    for (handler, priority) in [("head", -1), ("end", 1)] {
        let options = format!(
            "priority => {priority}::smallint, max_attempts => 2, retry_delay => '10 ms', synchronous_commit => 'off'"
        );
        app.handler_with(handler, NOTED, &options);
        warm(&mut app, handler);
    }
    in_one_batch(&mut app, |app| {
        let spoil =
            "UPDATE background_jobs.handler SET synchronous_commit = 'perhaps' WHERE synchronous_commit = 'off'";
        assert_eq!(app.admin().execute(spoil, &[]).unwrap(), 2);
        // A registration has the registry read again.
        app.register("noted", "noted(jsonb)", "");
        app.execute(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('n', n, 'handler',
                CASE WHEN n = ANY ($1) THEN 'head' WHEN n = ANY ($2) THEN 'end' ELSE 'noted' END)
               FROM generate_series(1::bigint, $3) n",
            &[&head.as_slice(), &end.as_slice(), &N],
        );
    });
    app.wait_drained(DRAIN);
    for n in head.into_iter().chain(end) {
        let id = id_of(&mut app, n);
        let job = app.row(id);
        assert_eq!(job.error("sqlstate"), Some(&json!("22023")), "{job:?}");
        assert_eq!(app.noted(id), 0);
        let charged =
            "SELECT count(*) FILTER (WHERE outcome = 'error' AND started_at BETWEEN timestamp AND finished_at)
               FROM background_jobs.attempts JOIN background_jobs ON id = job_id WHERE job_id = $1";
        assert_eq!(app.one::<i64>(charged, &[&id]), 2);
    }
    check_others(&mut app, &[1, 2, 3, 23, 24]);
}

/// Neither the alarm of the commit nor the timeout of the last job ends it.
#[test]
fn a_commit_that_swallows_every_interrupt_is_ended_with_its_executor_and_its_jobs_run_again() {
    let _alone = alone();
    let mut app = SHARED.app("deaf");
    app.handler_with("noted", NOTED, "timeout => '6 s', retry_delay => '10 ms'");
    warm(&mut app, "noted");
    // It says how many jobs are in the commit.
    on_completion(
        &mut app,
        "AFTER",
        "DEFERRABLE INITIALLY DEFERRED",
        "PERFORM reach(100 + (SELECT count(*)::int FROM ledger));
         WHILE NOT EXISTS (SELECT FROM gates WHERE name = 'go') LOOP
            BEGIN PERFORM pg_sleep(0.05); EXCEPTION WHEN query_canceled THEN NULL; END;
         END LOOP;",
    );
    let executor = "SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'background_jobs executor' AND datname = current_database()";
    let in_commit =
        "SELECT objid::int - 100 FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711 AND objid > 100
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let cluster = app.cluster;
    // On a busy machine the first job may have taken so long that it waits for no other.
    let pid = cluster.wait_within(DRAIN, "a commit of several jobs", || {
        let pid: i32 = app.one(executor, &[]);
        in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
        let jobs = cluster.wait_until("the commit", || {
            let rows = app.rows(in_commit, &[]);
            rows.first().map(|row| row.get::<_, i32>(0)).ok_or_else(|| "not yet".to_owned())
        });
        if jobs > 1 {
            return Ok(pid);
        }
        app.open_gate("go");
        app.wait_drained(DRAIN);
        app.sql(
            "INSERT INTO warmed SELECT count(*) FROM background_jobs;
             DELETE FROM background_jobs; DELETE FROM ledger; DELETE FROM gates",
        );
        Err("it was one job's".to_owned())
    });
    cluster.wait_until("the executor to be gone", || yes(cluster.title(pid.cast_unsigned()).is_none()));
    app.open_gate("go");
    app.wait_drained(DRAIN);
    let charged: Vec<(i64, i32, String)> = app
        .rows(
            "SELECT (payload ->> 'n')::bigint, attempt, outcome::text
               FROM background_jobs.attempts JOIN background_jobs ON id = job_id",
            &[],
        )
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let [(n, 1, outcome)] = charged.as_slice() else { panic!("{charged:?}") };
    assert_eq!(outcome, "timeout");
    let id = id_of(&mut app, *n);
    assert_eq!((app.row(id).result, app.noted(id)), (Some(json!({"n": n})), 1));
    check_others(&mut app, &[*n]);
}

/// The server keeps 64 subtransactions of a transaction in shared memory; with more, every snapshot has to look for them on disk.
#[test]
fn no_more_jobs_that_write_share_a_commit_than_shared_memory_keeps_subtransactions_of() {
    let _alone = alone();
    let mut app = scene("many");
    in_one_batch(&mut app, |app| (0..8).for_each(|_| app.sql(&insert("noted", ""))));
    app.wait_drained(DRAIN);
    assert!(shared(&mut app), "they shared commits");
    let commits = "SELECT count(*) FROM background_jobs WHERE completed GROUP BY xmin::text ORDER BY 1 DESC LIMIT 1";
    let largest: i64 = app.one(commits, &[]);
    assert!(largest <= 64, "{largest} jobs in one commit");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 8 * N);
}
