//! What a stranger learns of others' jobs.

use crate::{SECRET, scene};
use server_tests::ident;

#[test]
fn private_tables_are_closed_to_every_command() {
    let mut scene = scene("private");
    for table in ["queued_job", "handler", "attempt", "handler_stat"] {
        for command in [
            "SELECT * FROM {}",
            "SELECT job_table FROM {} LIMIT 0",
            "SELECT count(*) FROM {}",
            "TABLE {} FOR UPDATE",
            "INSERT INTO {} DEFAULT VALUES",
            "UPDATE {} SET job_table = job_table",
            "DELETE FROM {}",
            "TRUNCATE {}",
            "BEGIN; LOCK TABLE {}",
            "BEGIN; LOCK TABLE {} IN ACCESS SHARE MODE",
            "COPY {} TO STDOUT",
            "COPY {} (job_table) TO STDOUT",
            "ALTER TABLE {} ADD COLUMN n int",
            "CREATE INDEX ON {} (job_table)",
            "CREATE TRIGGER t AFTER INSERT ON {} FOR EACH ROW EXECUTE FUNCTION background_jobs.submit()",
            "CREATE RULE r AS ON INSERT TO {} DO INSTEAD NOTHING",
            "CREATE TABLE pg_temp.child () INHERITS ({})",
            "CREATE TABLE pg_temp.likewise (LIKE {}); SELECT background_jobs.attach('pg_temp.likewise')",
            "DROP TABLE {}",
            "ANALYZE {}; SELECT * FROM {}",
            "COMMENT ON TABLE {} IS 'mine'",
            "GRANT ALL ON {} TO PUBLIC; SELECT * FROM {}",
        ] {
            let command = command.replace("{}", &format!("background_jobs.{table}"));
            let code = scene.stranger.code(&command);
            assert!(["42501", "42804", "42P16", "22023"].contains(&code.as_str()), "{command}: {code}");
        }
    }
    assert_eq!(scene.stranger.one::<i64>("SELECT count(*) FROM pg_stats WHERE schemaname = 'background_jobs'", &[]), 0);
    scene.assert_untouched();
}

/// In every way in which a reader can get its own code to see a row before the view's filter has.
#[test]
fn no_function_of_a_reader_sees_a_row_that_the_views_hide() {
    let mut scene = scene("leaky");
    scene.stranger.sql(
        "CREATE FUNCTION pg_temp.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
            $$ BEGIN IF $1 IS NOT NULL THEN RAISE EXCEPTION 'leaked %', $1 USING ERRCODE = 'LEAKY'; END IF; RETURN true; END $$;
         CREATE FUNCTION pg_temp.leak_text(a text, b text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
            $$ BEGIN IF $1 IS NOT NULL THEN RAISE EXCEPTION 'leaked %', $1 USING ERRCODE = 'LEAKY'; END IF; RETURN true; END $$;
         CREATE OPERATOR pg_temp.~~~ (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.leak_text);
         CREATE FUNCTION pg_temp.state(int, text) RETURNS int LANGUAGE plpgsql AS
            $$ BEGIN IF $2 IS NOT NULL THEN RAISE EXCEPTION 'leaked %', $2 USING ERRCODE = 'LEAKY'; END IF; RETURN 1; END $$;
         CREATE AGGREGATE pg_temp.gather(text) (SFUNC = pg_temp.state, STYPE = int);
         SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off;",
    );
    let columns = [
        ("queue", "handler"),
        ("queue", "last_error::text"),
        ("queue", "job_id::text"),
        ("workers", "handler"),
        ("workers", "job_id::text"),
        ("handlers", "name"),
        ("handlers", "function"),
        ("handler_stats", "handler"),
        ("attempts", "error::text"),
        ("attempts", "handler"),
    ];
    for (view, column) in columns {
        for query in [
            format!("SELECT * FROM background_jobs.{view} WHERE {column} IS NOT NULL AND pg_temp.leak({column})"),
            format!("SELECT * FROM background_jobs.{view} WHERE {column} OPERATOR(pg_temp.~~~) 'x'"),
            format!(
                "SELECT * FROM background_jobs.{view} WHERE CASE WHEN {column} IS NULL THEN false ELSE pg_temp.leak({column}) END"
            ),
            format!(
                "SELECT * FROM background_jobs.{view} a JOIN background_jobs.{view} b ON pg_temp.leak(a.{column}) WHERE a.{column} IS NOT NULL"
            ),
            format!("SELECT pg_temp.gather({column}) FROM background_jobs.{view} HAVING count({column}) > 0"),
            format!("SELECT * FROM background_jobs.{view} WHERE ('0' || {column})::int > 0 AND {column} IS NOT NULL"),
            format!("SELECT * FROM background_jobs.{view} WHERE {column} IS NOT NULL ORDER BY pg_temp.leak({column})"),
            format!(
                "SELECT * FROM background_jobs.{view}, LATERAL (SELECT pg_temp.leak({column}) OFFSET 0) l WHERE {column} IS NOT NULL"
            ),
            format!(
                "SELECT * FROM background_jobs.{view} WHERE {column} IN (SELECT x FROM unnest(ARRAY['{SECRET}']) x WHERE pg_temp.leak(x || {column}))"
            ),
            format!(
                "SELECT 1 / (1 - count(*)) FROM background_jobs.{view} WHERE {column} IS NOT NULL HAVING count(*) > 0"
            ),
        ] {
            assert_eq!(scene.stranger.code(&query), "none", "{query}");
        }
    }
    scene.stranger.code("SELECT * FROM background_jobs.queue WHERE pg_temp.leak(job_table)");
    let state: i64 = scene.stranger.one(
        "SELECT count(*) FROM background_jobs.worker_state() WHERE job_id IS NOT NULL OR job_table IS NOT NULL
        OR handler IS NOT NULL OR progress IS NOT NULL",
        &[],
    );
    assert_eq!(state, 0, "worker_state() itself");
    let shown: i64 = scene.stranger.one(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%background job %' AND pid <> pg_backend_pid()",
        &[],
    );
    assert_eq!(shown, 0, "what an executor is at");
    scene.assert_untouched();
}

/// Row security is part of what SQL grants: a reader under a policy has no right to the errors of rows that it hides.
#[test]
fn the_views_tell_a_reader_under_a_policy_nothing_of_hidden_rows() {
    let mut scene = scene("policy");
    let reader = ident(&scene.stranger.role);
    scene.app.sql(&format!(
        "ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON background_jobs FOR SELECT TO {reader} USING (payload ->> 'owner' = current_user);
         GRANT SELECT ON background_jobs TO {reader};"
    ));
    assert_eq!(scene.stranger.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 0);
    let (held, failed) = (scene.held, scene.failed);
    for id in [held, failed] {
        let shown: i64 = scene.stranger.one("SELECT count(*) FROM background_jobs.status($1)", &[&id]);
        assert_eq!(shown, 0, "status() reads the row as its caller");
    }
    for (what, query) in [
        (
            "errors of finished jobs",
            format!("SELECT count(*) FROM background_jobs.attempts a WHERE a.error::text LIKE '%{SECRET}%'"),
        ),
        (
            "errors of waiting jobs",
            format!("SELECT count(*) FROM background_jobs.queue q WHERE q.last_error::text LIKE '%{SECRET}%'"),
        ),
        ("ids of waiting jobs", "SELECT count(*) FROM background_jobs.queue q WHERE job_id IS NOT NULL".to_owned()),
        ("ids of running jobs", "SELECT count(*) FROM background_jobs.workers w WHERE job_id IS NOT NULL".to_owned()),
    ] {
        let shown: i64 = scene.stranger.one(&query, &[]);
        assert_eq!(shown, 0, "{what}");
    }
    scene.assert_untouched();
}

/// `job_key_mode => 'keep'` answers with the job that has the key, and only to somebody who may submit.
#[test]
fn enqueue_with_a_key_tells_a_stranger_nothing() {
    let mut scene = scene("key");
    for mode in ["keep", "replace"] {
        let call = format!(
            "SELECT background_jobs.enqueue('held', job_key => '{SECRET}', job_key_mode => '{mode}', job_table => 'public.background_jobs')"
        );
        assert_eq!(scene.stranger.code(&call), "42501", "{mode}");
    }
    scene.assert_untouched();
}
