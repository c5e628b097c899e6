//! Sessions between jobs that share a commit.

use crate::{SEQUENCE, one_session};
use server_tests::wait::yes;
use server_tests::{App, Value, json};
use std::time::Duration;

/// As in `main.rs`, but quick: handlers share a commit only as long as they take less than a millisecond.
const INSPECT: &str = "INSERT INTO public.ran (kind) VALUES ('inspect');
    RETURN jsonb_build_object(
    'work_mem', current_setting('work_mem'), 'path', current_setting('search_path'),
    'own', coalesce(current_setting('bgj.test', true), ''),
    'isolation', current_setting('default_transaction_isolation'),
    'read_only', current_setting('default_transaction_read_only'),
    'table', to_regclass('pg_temp.left_table'), 'function', to_regprocedure('pg_temp.left_function()'),
    'prepared', (SELECT count(*) FROM pg_prepared_statements),
    'cursors', (SELECT count(*) FROM pg_cursors WHERE name LIKE 'left%'),
    'locks', (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
    'sequence', public.remembered());";

/// Now and then a table, which takes longer than everything else.
const DIRTY: &str = "
    IF payload ? 'table' THEN
        INSERT INTO public.ran (kind) VALUES ('table');
        EXECUTE 'CREATE TEMP TABLE left_table (n int)';
    ELSE
        INSERT INTO public.ran (kind) VALUES ('dirty');
    END IF;
    PERFORM set_config('search_path', 'evil, public', false);
    EXECUTE 'SET work_mem = ''77MB''';
    EXECUTE 'SET bgj.test = ''left behind''';
    EXECUTE 'SET default_transaction_read_only = on';
    EXECUTE 'SET default_transaction_isolation = ''serializable''';
    EXECUTE 'CREATE FUNCTION pg_temp.left_function() RETURNS int LANGUAGE sql AS ''SELECT 1''';
    EXECUTE 'PREPARE left_statement AS SELECT 1';
    EXECUTE 'DECLARE left_cursor CURSOR WITH HOLD FOR SELECT 1';
    PERFORM nextval('public.kept');
    PERFORM pg_advisory_lock(815);
    PERFORM pg_advisory_lock_shared(816);
    RETURN NULL;";

/// Kinds of jobs that an inspection has followed at once, in the transaction that committed both.
const FOLLOWED: &str = "SELECT coalesce(string_agg(DISTINCT before, ' ' ORDER BY before), '') FROM (
        SELECT kind, lag(kind) OVER (PARTITION BY xact ORDER BY at) AS before FROM ran) r
     WHERE kind = 'inspect' AND before <> 'inspect'";

/// Jobs that share a commit have their sessions cleaned in between all the same.
#[test]
fn nothing_is_left_for_the_next_job_of_a_batch() {
    let cluster = one_session();
    let mut app = App::with_table(&cluster, "batch");
    app.sql(SEQUENCE);
    app.sql(
        "CREATE TABLE ran (xact xid8 DEFAULT pg_current_xact_id(), at timestamptz DEFAULT clock_timestamp(), kind text)",
    );
    app.handler("inspect", INSPECT);
    app.handler("dirty", DIRTY);
    let first = app.submit("inspect", json!({}));
    let clean = app.wait_final(first).result.unwrap();
    let (nothing, zero) = (Value::Null, json!(0));
    let expected = [&nothing, &nothing, &zero, &zero, &zero, &json!("nothing")];
    assert_eq!(["table", "function", "prepared", "cursors", "locks", "sequence"].map(|name| &clean[name]), expected);

    let mut rounds = 0;
    cluster.wait_within(Duration::from_secs(60), "a look at what a job of the same commit has left", || {
        app.sql(
            "INSERT INTO background_jobs (payload)
             SELECT CASE WHEN n % 2 = 0 THEN '{\"handler\": \"inspect\"}' WHEN n % 10 = 5 THEN '{\"handler\": \"dirty\", \"table\": 1}'
                    ELSE '{\"handler\": \"dirty\"}' END::jsonb FROM generate_series(1, 60) n",
        );
        rounds += 1;
        app.wait_drained(Duration::from_secs(30));
        let results = app.rows("SELECT result FROM background_jobs WHERE payload ->> 'handler' = 'inspect'", &[]);
        assert_eq!(results.len(), 1 + rounds * 30);
        for row in results {
            assert_eq!(row.get::<_, Value>(0), clean);
        }
        let failed = "SELECT count(*) FROM background_jobs WHERE result ? 'error'";
        assert_eq!(app.one::<i64>(failed, &[]), 0);
        yes(app.one::<String>(FOLLOWED, &[]) == "dirty table")
    });
}
