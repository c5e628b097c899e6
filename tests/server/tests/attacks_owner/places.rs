//! Every place of a table, and in front of pg_catalog, where code of the owner's can stand.

use crate::SHARED;
use server_tests::{Uuid, ident, json, lit};
use std::time::Duration;

/// What `clean_room` does not plant: defaults, generated columns, index predicates, rules, typed columns, and the
/// places that are reached only by DELETE and TRUNCATE.
const PLANTED: &str = "
    CREATE FUNCTION in_default() RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.seen('default'); RETURN 'd'; END $$;
    CREATE FUNCTION in_generated(p real) RETURNS real IMMUTABLE LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('generated'); RETURN p; END $$;
    CREATE FUNCTION in_predicate(c boolean) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('predicate'); RETURN true; END $$;
    CREATE FUNCTION in_type(v text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.seen('type'); RETURN true; END $$;
    CREATE DOMAIN typed AS text CHECK (in_type(VALUE));
    ALTER TABLE background_jobs ADD COLUMN d text DEFAULT in_default(), ADD COLUMN t typed DEFAULT 't',
        ADD COLUMN g real GENERATED ALWAYS AS (in_generated(progress)) STORED;
    CREATE INDEX ON background_jobs (timestamp) WHERE in_predicate(completed);
    CREATE RULE also AS ON UPDATE TO background_jobs DO ALSO
        INSERT INTO seen SELECT 'rule', session_user, current_user, current_setting('is_superuser'),
            (SELECT a.backend_type FROM pg_stat_activity a WHERE a.pid = pg_backend_pid());
    CREATE FUNCTION on_event() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM public.seen(TG_WHEN || ' ' || TG_OP || ' ' || TG_LEVEL); RETURN coalesce(NEW, OLD);
    END $$;
    CREATE TRIGGER a_row BEFORE DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_event();
    CREATE TRIGGER a_statement BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON background_jobs
        FOR EACH STATEMENT EXECUTE FUNCTION on_event();
    CREATE CONSTRAINT TRIGGER zz_deferred AFTER UPDATE OR DELETE ON background_jobs
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION on_event();
    ALTER TABLE background_jobs ENABLE ALWAYS TRIGGER zz_deferred;
    CREATE FUNCTION in_policy(place text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.seen(place); RETURN true; END $$;
    ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY reading ON background_jobs FOR SELECT USING (in_policy('select policy'));
    CREATE POLICY adding ON background_jobs FOR INSERT WITH CHECK (in_policy('insert policy'));
    CREATE POLICY changing ON background_jobs FOR UPDATE USING (in_policy('update policy'));
    CREATE POLICY removing ON background_jobs FOR DELETE USING (in_policy('delete policy'));";

/// Operators, functions and types that the extension's own statements use, to be found in front of pg_catalog.
fn in_front_of_pg_catalog() -> String {
    let mut sql = String::new();
    let operators = [
        ("=", "boolean", "boolean"),
        ("=", "smallint", "smallint"),
        ("=", "integer", "integer"),
        ("=", "name", "name"),
        ("=", "regclass", "oid"),
        ("=", "timestamptz", "timestamptz"),
        ("<>", "real", "real"),
        ("<>", "text", "text"),
        ("<>", "uuid", "uuid"),
        ("<", "real", "real"),
        ("<", "timestamptz", "timestamptz"),
        (">", "uuid", "uuid"),
        (">", "timestamptz", "timestamptz"),
    ];
    for (n, (operator, left, right)) in operators.into_iter().enumerate() {
        let compare = if right == "oid" {
            "a::oid OPERATOR(pg_catalog.=) b".to_owned()
        } else {
            format!("a OPERATOR(pg_catalog.{operator}) b")
        };
        sql += &format!(
            "CREATE FUNCTION public.planted_{n}(a {left}, b {right}) RETURNS boolean LANGUAGE plpgsql AS
                $$ BEGIN PERFORM public.seen('operator {operator} of {left}'); RETURN {compare}; END $$;
             CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.planted_{n});"
        );
    }
    for (n, (operator, left, right, result)) in [
        ("||", "jsonb", "jsonb", "jsonb"),
        ("-", "jsonb", "text", "jsonb"),
        ("->", "jsonb", "text", "jsonb"),
        ("->>", "jsonb", "text", "text"),
        ("#>>", "jsonb", "text[]", "text"),
        ("+", "integer", "integer", "integer"),
        ("+", "smallint", "integer", "integer"),
        ("-", "timestamptz", "interval", "timestamptz"),
    ]
    .into_iter()
    .enumerate()
    {
        sql += &format!(
            "CREATE FUNCTION public.planted_op_{n}(a {left}, b {right}) RETURNS {result} LANGUAGE plpgsql AS
                $$ BEGIN PERFORM public.seen('operator {operator} of {left}'); RETURN a OPERATOR(pg_catalog.{operator}) b; END $$;
             CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.planted_op_{n});"
        );
    }
    for (signature, result, call) in [
        ("now()", "timestamptz", "now()"),
        ("clock_timestamp()", "timestamptz", "clock_timestamp()"),
        ("gen_random_uuid()", "uuid", "gen_random_uuid()"),
        ("to_regclass(a text)", "regclass", "to_regclass(a)"),
        ("jsonb_typeof(a jsonb)", "text", "jsonb_typeof(a)"),
        ("has_table_privilege(a regclass, b text)", "boolean", "has_table_privilege(a, b)"),
        ("max(a integer)", "integer", "abs(a)"),
        ("extract(a text, b interval)", "numeric", "extract(a, b)"),
        ("make_interval(years integer, secs double precision)", "interval", "make_interval(secs => secs)"),
    ] {
        sql += &format!(
            "CREATE FUNCTION public.{signature} RETURNS {result} LANGUAGE plpgsql AS
                $$ BEGIN PERFORM public.seen({}); RETURN pg_catalog.{call}; END $$;",
            lit(&format!("function {signature}")).replace('$', "")
        );
    }
    // Last: from here on these names mean something else in a session that finds them first.
    for name in ["oid", "regclass", "regrole", "uuid", "jsonb", "text", "float4", "int2", "int4", "int8", "timestamptz"]
    {
        sql += &format!("CREATE DOMAIN public.{name} AS pg_catalog.{name} CHECK (public.in_name());");
    }
    format!(
        "CREATE FUNCTION public.in_name() RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN PERFORM public.seen('type of a known name'); RETURN true; END $$; {sql}"
    )
}

#[test]
fn no_place_on_a_table_or_in_front_of_pg_catalog_is_reached_in_anybody_elses_name() {
    let mut app = SHARED.app("places");
    app.create_witness();
    app.sql(PLANTED);
    app.handler_with(
        "works",
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN payload;",
        "",
    );
    app.handler_with("fails", "RAISE 'no' USING DETAIL = payload::text;", "max_attempts => 2");
    app.handler_with("conflicts", "RAISE 'again' USING ERRCODE = 'serialization_failure';", "max_attempts => 1");
    app.handler_with("dies", "PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL;", "max_attempts => 1");
    app.sql(&in_front_of_pg_catalog());
    let path = format!("ALTER ROLE {} SET search_path = public, pg_catalog", ident(&app.role));
    app.admin().batch_execute(&path).unwrap();
    app.end_executors();

    let done = app.submit("works", json!({}));
    app.wait_reached(1);
    app.wait_true("SELECT pg_catalog.bool_and(progress::pg_catalog.text = '0.5') FROM public.background_jobs");
    app.open_gate("go");
    assert!(app.wait_final(done).completed);
    for handler in ["fails", "conflicts", "dies"] {
        let id = app.submit(handler, json!({}));
        let job = app.wait_final(id);
        assert!(job.error("sqlstate").is_some(), "{handler}: {job:?}");
    }
    // The functions, in a session that finds the owner's names first.
    let mut session = app.session();
    for statement in [
        "SELECT background_jobs.enqueue('works', '{}', run_at => pg_catalog.now() + pg_catalog.make_interval(hours => 1), job_key => 'k')",
        "SELECT background_jobs.enqueue('works', '{}', run_at => pg_catalog.now() + pg_catalog.make_interval(hours => 1), job_key => 'k')",
        "SELECT background_jobs.run_now(job_id) FROM background_jobs.queue",
        "SELECT background_jobs.attach('public.background_jobs'::pg_catalog.regclass)",
        "SELECT background_jobs.retry(id) FROM public.background_jobs WHERE completed",
        "SELECT s.* FROM public.background_jobs j, background_jobs.status(j.id) s",
        "SELECT * FROM background_jobs.queue",
        "SELECT * FROM background_jobs.workers",
        "SELECT * FROM background_jobs.attempts",
        "SELECT * FROM background_jobs.handlers",
        "SELECT * FROM background_jobs.handler_stats",
    ] {
        session.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    app.wait_drained(Duration::from_secs(30));
    let last: Uuid = app.one("SELECT background_jobs.enqueue('works', run_at => now() + interval '1 h')", &[]);
    app.execute("SELECT background_jobs.cancel($1)", &[&last]);
    app.execute("DELETE FROM background_jobs WHERE id = $1", &[&last]);
    app.sql("SELECT background_jobs.unregister_handler('conflicts')");
    app.sql("TRUNCATE background_jobs; SELECT background_jobs.detach('background_jobs')");

    assert_eq!(app.foreign(), Vec::<String>::new());
    let places = app.places_in_workers();
    for place in [
        "generated",
        "predicate",
        "select policy",
        "update policy",
        "AFTER UPDATE ROW",
        "BEFORE UPDATE STATEMENT",
        "rule",
    ] {
        assert!(places.iter().any(|seen| seen == place), "{place} was not reached in a worker: {places:?}");
    }
}
