//! A hostile owner of one job table. Whatever is hung on the table runs, but in the owner's name only (I15), for a bounded time,
//! and at nobody else's expense. What an honest role leaves behind or plants is in `clean_room`.

use server_tests::tenant::{end_sessions, owner, tenant};
use server_tests::{App, Builder, Cluster, Group, Uuid, ident, json, lit};
use std::time::Duration;

fn lively() -> Builder {
    Cluster::builder()
        .conf("background_jobs.poll_interval", "300ms")
        .conf("background_jobs.retry_delay", "10ms")
        .conf("max_prepared_transactions", "4")
}

static SHARED: Group = Group::new(lively);

/// Everything that a witness sees goes into `seen`; the argument says where it stood.
const WITNESS: &str = "
    CREATE TABLE seen (place text, session_role text, user_role text, superuser text, kind text);
    CREATE FUNCTION public.seen(place text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.seen SELECT place, session_user, current_user, pg_catalog.current_setting('is_superuser'),
            (SELECT a.backend_type FROM pg_catalog.pg_stat_activity a
             WHERE a.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid());
    END $$;";

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
    CREATE TABLE seen_by_rule (session_role text, user_role text, superuser text);
    CREATE RULE also AS ON UPDATE TO background_jobs DO ALSO
        INSERT INTO seen_by_rule VALUES (session_user, current_user, current_setting('is_superuser'));
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

/// Whoever the witnesses saw but the role itself.
fn foreign(app: &mut App) -> Vec<String> {
    let role = app.role.clone();
    let query = "SELECT DISTINCT format('%s: session %s, user %s, superuser %s, %s', place, session_role, user_role, superuser, kind)
        FROM public.seen WHERE (session_role, user_role, superuser) IS DISTINCT FROM ($1, $1, 'off')";
    app.rows(query, &[&role]).iter().map(|row| row.get(0)).collect()
}

fn restart_executors(app: &App) {
    app.admin()
        .batch_execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
             WHERE datname = current_database() AND backend_type = 'background_jobs executor'",
        )
        .unwrap();
}

#[test]
fn no_place_on_a_table_or_in_front_of_pg_catalog_is_reached_in_anybody_elses_name() {
    let mut app = SHARED.app("places");
    app.sql(WITNESS);
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
    restart_executors(&app);

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

    assert_eq!(foreign(&mut app), Vec::<String>::new());
    let by_rule: i64 =
        app.one("SELECT count(*) FROM seen_by_rule WHERE superuser <> 'off' OR user_role <> session_role", &[]);
    assert_eq!(by_rule, 0);
    let places: Vec<String> = app
        .rows("SELECT DISTINCT place FROM public.seen WHERE kind LIKE 'background_jobs%' ORDER BY 1", &[])
        .iter()
        .map(|row| row.get(0))
        .collect();
    for place in
        ["generated", "predicate", "select policy", "update policy", "AFTER UPDATE ROW", "BEFORE UPDATE STATEMENT"]
    {
        assert!(places.iter().any(|seen| seen == place), "{place} was not reached in a worker: {places:?}");
    }
}

/// Tries everything that makes more of a role than it is, and notes what was let through.
const ESCALATE: &str = "
    CREATE TABLE escaped (place text, statement text);
    CREATE FUNCTION public.escalate(place text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE attempt text;
    BEGIN
        PERFORM public.seen(place);
        FOREACH attempt IN ARRAY ARRAY[
            'SET ROLE postgres', 'SET LOCAL ROLE postgres', 'SET SESSION AUTHORIZATION postgres',
            'SET LOCAL SESSION AUTHORIZATION postgres', 'SET session_replication_role = replica',
            'SELECT pg_catalog.set_config(''role'', ''postgres'', false)',
            'SELECT pg_catalog.set_config(''session_authorization'', ''postgres'', false)',
            'ALTER ROLE ' || pg_catalog.quote_ident(session_user) || ' SUPERUSER', 'CREATE ROLE planted SUPERUSER',
            'CREATE EVENT TRIGGER planted ON ddl_command_start EXECUTE FUNCTION public.on_escalation()',
            'COPY (SELECT 1) TO PROGRAM ''true''', 'COPY public.escaped FROM ''/etc/passwd''',
            'SELECT pg_catalog.pg_read_file(''postgresql.conf'')', 'SELECT pg_catalog.pg_reload_conf()',
            'ALTER SYSTEM SET background_jobs.allow_superuser_jobs = on', 'LOAD ''background_jobs''',
            'CREATE FUNCTION planted() RETURNS void LANGUAGE c AS ''background_jobs'', ''background_jobs_announce''',
            'SELECT background_jobs.announce()', 'SELECT * FROM public.secrets',
            'SELECT * FROM background_jobs.queued_job', 'DELETE FROM background_jobs.queued_job',
            'UPDATE background_jobs.handler SET function_name = ''planted''', 'SELECT * FROM background_jobs.attempt',
            'INSERT INTO background_jobs.handler_stat (job_table, handler) VALUES (0, ''planted'')',
            'CREATE TABLE background_jobs.planted (n int)', 'CREATE OR REPLACE VIEW background_jobs.queue AS SELECT 1',
            'ALTER FUNCTION background_jobs.announce() OWNER TO ' || pg_catalog.quote_ident(session_user),
            'DROP EXTENSION background_jobs', 'ALTER TABLE public.secrets OWNER TO ' || pg_catalog.quote_ident(session_user),
            'SELECT pg_catalog.pg_terminate_backend(pid) FROM background_jobs.workers WHERE role = ''dispatcher''',
            'SELECT pg_catalog.pg_cancel_backend(pid) FROM background_jobs.workers WHERE role = ''launcher''']
        LOOP
            BEGIN
                EXECUTE attempt;
                INSERT INTO public.escaped VALUES (place, attempt);
            EXCEPTION WHEN insufficient_privilege OR invalid_parameter_value OR cant_change_runtime_param
                OR feature_not_supported OR active_sql_transaction OR undefined_file THEN NULL;
            END;
        END LOOP;
        EXECUTE 'RESET ROLE'; EXECUTE 'RESET SESSION AUTHORIZATION';
        PERFORM public.seen(place || ', reset');
    END $$;
    CREATE FUNCTION on_escalation() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM public.escalate(TG_NAME || ' ' || TG_OP); RETURN coalesce(NEW, OLD);
    END $$;
    CREATE TABLE touched (n int);
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON touched DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION on_escalation();
    CREATE TRIGGER at_finish BEFORE UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_escalation();
    CREATE CONSTRAINT TRIGGER after_finish AFTER UPDATE ON background_jobs DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION on_escalation();
    CREATE FUNCTION while_loading() RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.escalate('policy'); RETURN true; END $$;
    CREATE FUNCTION at_fetch() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.escalate('held cursor'); RETURN 1; END $$;";

#[test]
fn every_way_up_is_closed_in_every_place() {
    let mut app = SHARED.app("ways_up");
    app.admin().batch_execute("CREATE TABLE secrets AS SELECT 'secret' s; REVOKE ALL ON secrets FROM PUBLIC").unwrap();
    app.sql(WITNESS);
    app.sql(ESCALATE);
    app.handler(
        "tries",
        "PERFORM public.escalate('handler'); INSERT INTO touched VALUES (1);
         EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT public.at_fetch()';
         EXECUTE 'SET LOCAL search_path = pg_temp, public'; EXECUTE 'CREATE TEMP TABLE queued_job (job_table int)';
         EXECUTE 'CREATE TEMP TABLE background_jobs (id int)';
         RETURN to_jsonb(true);",
    );
    app.handler_with("fails", "PERFORM public.escalate('failing handler'); RAISE 'no';", "max_attempts => 1");
    app.sql(
        "ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             CREATE POLICY p ON background_jobs USING (while_loading()) WITH CHECK (while_loading())",
    );
    let good = app.submit("tries", json!({}));
    assert_eq!(app.wait_final(good).result, Some(json!(true)));
    let bad = app.submit("fails", json!({}));
    assert!(app.wait_final(bad).error("message").is_some());
    let escaped: Vec<String> =
        app.rows("SELECT DISTINCT place || ': ' || statement FROM escaped", &[]).iter().map(|row| row.get(0)).collect();
    assert_eq!(escaped, Vec::<String>::new());
    assert_eq!(foreign(&mut app), Vec::<String>::new());
    let places: i64 = app.one(
        "SELECT count(DISTINCT place) FROM seen WHERE kind = 'background_jobs executor'
           AND place IN ('handler', 'policy', 'at_commit INSERT', 'at_finish UPDATE', 'after_finish UPDATE')",
        &[],
    );
    assert_eq!(places, 5, "each was reached in an executor");
}

/// Settings of the role are the role's business, and break nothing of ours.
#[test]
fn the_strangest_settings_of_a_role_change_nothing() {
    let mut app = SHARED.app("settings");
    app.handler("echo", "PERFORM background_jobs.set_progress(0.25); RETURN payload;");
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 3, retry_delay => '10 ms', timeout => '1 min'");
    let mut admin = app.admin();
    for setting in [
        "search_path = ''",
        "row_security = off",
        "lock_timeout = '1ms'",
        "statement_timeout = '1ms'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "force_parallel_mode = regress",
        "transform_null_equals = on",
        "standard_conforming_strings = off",
        "IntervalStyle = 'sql_standard'",
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "extra_float_digits = -15",
        "bytea_output = 'escape'",
        "quote_all_identifiers = on",
        "array_nulls = off",
        "plan_cache_mode = force_generic_plan",
        "enable_indexscan = off",
        "enable_seqscan = off",
        "enable_nestloop = off",
        "work_mem = '64kB'",
        "client_min_messages = 'debug5'",
        "check_function_bodies = off",
        "backslash_quote = off",
    ] {
        admin.batch_execute(&format!("ALTER ROLE {} SET {setting}", ident(&app.role))).unwrap();
    }
    restart_executors(&app);
    let payload = json!({"n": 1.234_567_890_123_456_7, "t": "2026-01-01"});
    let ids: Vec<Uuid> = (0..20).map(|_| app.submit("echo", payload.clone())).collect();
    let failing = app.submit("fails", json!({}));
    for id in ids {
        let job = app.wait_final(id);
        assert_eq!(job.result.as_ref(), Some(&job.payload), "{job:?}");
    }
    assert_eq!(app.wait_final(failing).error("attempts"), Some(&json!(3)));
}

/// A server with one executor, where whoever keeps it keeps it from everybody.
fn one_executor() -> Builder {
    lively()
        .conf("background_jobs.max_executors", "1")
        .conf("background_jobs.handler_timeout", "500ms")
        .conf("background_jobs.cancel_grace", "500ms")
        .conf("background_jobs.progress_flush_interval", "20ms")
        .conf("background_jobs.max_attempts", "2")
}

/// The owner's `attack` (statements) is in place and its job is being worked on; another owner's job gets its turn within the
/// timeout, the grace, the tenure of half a second and the time it takes to start processes.
const TURN: Duration = Duration::from_secs(8);

fn others_get_their_turn(name: &str, attack: &str, started: &str) {
    let cluster = one_executor().start();
    let mut app = App::with_table(&cluster, name);
    let mut victim = owner(&app, "victim");
    victim.handler("fine", "RETURN '1';", "");
    app.sql("CREATE SEQUENCE starts");
    app.sql(attack);
    app.register("hostile", "hostile(jsonb)", "max_attempts => 1");
    app.submit("hostile", json!({}));
    app.wait_true(started);
    let id = victim.submit("fine");
    let outcome = victim.result_within(&cluster, TURN, id);
    end_sessions(&cluster, &app.database);
    assert_eq!(outcome, Ok(Some(json!(1))));
}

const STARTED: &str = "SELECT is_called FROM starts";

/// What the others below are measured against.
#[test]
fn a_handler_that_never_ends_holds_its_executor_no_longer_than_a_handler_may() {
    others_get_their_turn(
        "handler",
        "CREATE FUNCTION hostile(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS
            $$ BEGIN
                PERFORM nextval('starts');
                LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;
            END $$;",
        STARTED,
    );
}

#[test]
fn a_deferred_trigger_that_never_ends_holds_its_executor_no_longer_than_a_handler_may() {
    others_get_their_turn(
        "deferred",
        "CREATE TABLE touched (n int);
         CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM nextval('starts'); PERFORM pg_sleep(600); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER endless AFTER INSERT ON touched DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION endless();
         CREATE FUNCTION hostile(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO touched VALUES (1); RETURN p; END $$;",
        STARTED,
    );
}

#[test]
fn a_policy_that_never_ends_holds_its_executor_no_longer_than_a_handler_may() {
    others_get_their_turn(
        "policy",
        "CREATE FUNCTION endless() RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN
                IF (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'background_jobs executor' THEN
                    PERFORM nextval('starts'); PERFORM pg_sleep(600);
                END IF; RETURN true;
            END $$;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (endless()) WITH CHECK (true);
         CREATE FUNCTION hostile(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT p';",
        STARTED,
    );
}

#[test]
fn a_trigger_on_the_completion_that_never_ends_holds_its_executor_no_longer_than_a_handler_may() {
    others_get_their_turn(
        "completion",
        "CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM nextval('starts'); PERFORM pg_sleep(600); RETURN NEW; END $$;
         CREATE TRIGGER endless BEFORE UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION endless();
         CREATE FUNCTION hostile(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT p';",
        STARTED,
    );
}

#[test]
fn a_trigger_on_the_failure_that_never_ends_holds_its_executor_no_longer_than_a_handler_may() {
    others_get_their_turn(
        "failure",
        "CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM nextval('starts'); PERFORM pg_sleep(600); RETURN NEW; END $$;
         CREATE TRIGGER endless BEFORE UPDATE ON background_jobs FOR EACH ROW WHEN (NEW.result ? 'error') EXECUTE FUNCTION endless();
         CREATE FUNCTION hostile(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;",
        STARTED,
    );
}

#[test]
fn a_trigger_that_stops_the_progress_writer_holds_the_executor_no_longer_than_a_handler_may() {
    others_get_their_turn(
        "writer",
        "CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN
                IF (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'background_jobs progress writer' THEN
                    PERFORM nextval('starts'); PERFORM pg_sleep(600);
                END IF; RETURN NEW;
            END $$;
         CREATE TRIGGER endless BEFORE UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION endless();
         CREATE FUNCTION hostile(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS
            $$ BEGIN PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(0.3); RETURN p; END $$;",
        STARTED,
    );
}

/// The dispatcher serves every owner of the database, so it may not wait for a lock that one of them holds.
#[test]
fn an_open_transaction_of_one_owner_does_not_stop_the_dispatcher() {
    let cluster = lively().start();
    let mut app = App::with_table(&cluster, "open");
    let mut victim = owner(&app, "victim");
    victim.handler("fine", "RETURN '1';", "");
    app.handler("held", "PERFORM reach(1); PERFORM pg_sleep(600); RETURN NULL;");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut session = app.session();
    let mut transaction = session.transaction().unwrap();
    transaction.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]).unwrap();
    // Its own executor's end is one that the owner may bring about; a crash of the handler would do as well.
    app.sql(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
         WHERE usename = current_user AND backend_type = 'background_jobs executor'",
    );
    let job = victim.submit("fine");
    let outcome = victim.result_within(&cluster, Duration::from_secs(8), job);
    transaction.rollback().unwrap();
    drop(session);
    app.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]);
    assert_eq!(outcome, Ok(Some(json!(1))));
}

/// A policy that hides a row from its owner's own executor hides it for now: the job is not gone.
#[test]
fn a_job_that_a_forced_policy_hides_is_kept_until_it_can_be_seen() {
    let mut app = SHARED.app("hidden");
    app.sql(
        "CREATE TABLE open_for (who text);
         CREATE FUNCTION is_open() RETURNS boolean LANGUAGE sql STABLE AS
            $$ SELECT (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'client backend'
                   OR EXISTS (SELECT FROM public.open_for) $$;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (is_open()) WITH CHECK (true);",
    );
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let id = app.submit("noted", json!({}));
    // An executor has met it by the time it has met a job of another table that came later.
    app.sql("SELECT background_jobs.create_table('other_jobs')");
    app.sql("SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'other_jobs')");
    app.sql("INSERT INTO other_jobs (payload) VALUES ('{\"handler\": \"noted\"}')");
    app.wait_true("SELECT bool_and(completed) FROM other_jobs");
    app.wait_true("SELECT count(*) >= 1 FROM background_jobs.workers WHERE role = 'executor'");
    assert!(!app.row(id).is_final());
    assert_eq!(
        app.one::<i64>("SELECT count(*) FROM background_jobs.queue WHERE job_id = $1", &[&id]),
        1,
        "it is queued still (I10)"
    );
    app.sql("INSERT INTO open_for VALUES ('all')");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn jobs_wait_while_a_column_has_another_type_and_run_when_it_is_back() {
    let mut app = SHARED.app("retyped");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    for (column, away, back) in [
        ("payload", "text USING payload::text", "jsonb USING payload::jsonb"),
        ("result", "json USING result::json", "jsonb USING result::jsonb"),
        ("progress", "numeric", "real"),
    ] {
        let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
        let drop_default =
            format!("ALTER TABLE background_jobs ALTER {column} DROP DEFAULT, ALTER {column} TYPE {away}");
        app.sql(&drop_default);
        app.execute("SELECT background_jobs.run_now($1)", &[&id]);
        app.wait_true("SELECT count(*) = 1 FROM background_jobs.queue WHERE state = 'available'");
        app.sql(&format!("ALTER TABLE background_jobs ALTER {column} TYPE {back}"));
        let end = format!("SELECT completed FROM background_jobs WHERE id = '{id}'");
        let done = server_tests::wait::attempt(Duration::from_secs(8), column, || {
            if app.one(&end, &[]) {
                return Ok(());
            }
            Err(app.rows("SELECT to_jsonb(j)::text || coalesce(to_jsonb(q)::text, ' is not queued ') || coalesce(to_jsonb(s)::text, 'no status')
                FROM background_jobs j LEFT JOIN background_jobs.queue q ON q.job_id = j.id LEFT JOIN LATERAL background_jobs.status(j.id) s ON true
                WHERE NOT completed", &[]).iter().map(|row| row.get::<_, String>(0)).collect::<String>())
        });
        assert_eq!(done, Ok(()), "{column}\n{}", app.cluster.log_tail());
        assert_eq!(app.row(id).result, Some(json!(1)), "{column}");
        assert_eq!(app.noted(id), 1, "{column}");
    }
    let busy = app.sqlstate("ALTER TABLE background_jobs ALTER completed TYPE text");
    assert_eq!(busy, "0A000", "what the triggers look at cannot be retyped below them");
}

#[test]
fn a_view_under_the_tables_name_gets_nothing_of_its_jobs() {
    let mut app = SHARED.app("view");
    app.sql(WITNESS);
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
    app.sql(
        "ALTER TABLE background_jobs RENAME TO real_jobs;
         CREATE FUNCTION in_view() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.seen('view'); RETURN false; END $$;
         CREATE VIEW background_jobs AS SELECT * FROM real_jobs WHERE in_view();
         CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.seen('instead'); RETURN NULL; END $$;
         CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION instead();
         CREATE RULE instead AS ON UPDATE TO background_jobs DO INSTEAD NOTHING;",
    );
    app.execute("SELECT background_jobs.run_now($1, 'real_jobs')", &[&id]);
    app.wait_true("SELECT completed FROM real_jobs");
    assert_eq!(app.noted(id), 1);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen WHERE kind LIKE 'background_jobs%'", &[]), 0);
    for call in ["attach('background_jobs')", "enqueue('noted')", "register_handler('noted', 'noted(jsonb)')"] {
        let code = app.sqlstate(&format!("SELECT background_jobs.{call}"));
        assert!(["42809", "55000"].contains(&code.as_str()), "{call}: {code}");
    }
    // What PostgreSQL 15 still allows: an empty table becomes a view, with the OID that the queue knows.
    app.sql("DROP VIEW background_jobs; ALTER TABLE real_jobs RENAME TO background_jobs");
    app.sql(
        "INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"later\"}');
         DROP TRIGGER background_jobs_submit ON background_jobs; DROP TRIGGER background_jobs_update ON background_jobs;
         DROP TRIGGER background_jobs_delete ON background_jobs; DROP TRIGGER background_jobs_truncate ON background_jobs;
         DELETE FROM background_jobs; ALTER TABLE background_jobs DROP CONSTRAINT background_jobs_pkey;",
    );
    app.sql("VACUUM background_jobs");
    app.sql(
        "CREATE RULE \"_RETURN\" AS ON SELECT TO background_jobs DO INSTEAD
            SELECT gen_random_uuid() AS id, now() AS timestamp, '{}'::jsonb AS payload, false AS completed, false AS cancelled,
                   0::real AS progress, NULL::jsonb AS result WHERE in_view()",
    );
    app.sql(
        "SELECT background_jobs.create_table('other_jobs');
         SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'other_jobs');
         SELECT background_jobs.register_handler('later', 'noted(jsonb)', 'other_jobs');
         INSERT INTO other_jobs (payload) VALUES ('{\"handler\": \"later\"}'), ('{\"handler\": \"noted\"}');",
    );
    app.wait_true("SELECT bool_and(completed) FROM other_jobs");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen WHERE kind LIKE 'background_jobs%'", &[]), 0);
}

/// The handler began for one owner and would end for another: it ends for nobody, and the new owner runs only what it has
/// registered itself.
#[test]
fn a_table_given_to_another_owner_while_a_job_runs_keeps_none_of_its_effects() {
    let mut app = SHARED.app("given");
    let mut heir = tenant(&app, "heir");
    app.handler(
        "held",
        "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb(current_user::text);",
    );
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let (table, heir_name) = (format!("public.{}", ident("background_jobs")), heir.role.clone());
    app.admin().batch_execute(&format!("ALTER TABLE {table} OWNER TO {}", ident(&heir_name))).unwrap();
    app.open_gate("go");
    app.wait_left(1);
    assert_eq!(app.noted(id), 0, "rolled back");
    let query = "SELECT completed, cancelled FROM public.background_jobs WHERE id = $1";
    let row = heir.client.query_one(query, &[&id]).unwrap();
    assert_eq!((row.get(0), row.get(1)), (false, false), "kept, and not run for the new owner");
    heir.sql(
        "CREATE FUNCTION held(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(session_user || '' '' || current_user)';
         SELECT background_jobs.register_handler('held', 'held(jsonb)', 'public.background_jobs');",
    );
    let both = json!(format!("{heir_name} {heir_name}"));
    app.cluster.wait_until("the heir's handler to run the job", || {
        let row =
            heir.client.query_one("SELECT result, result::text FROM public.background_jobs WHERE id = $1", &[&id]);
        match row.map(|row| (row.get::<_, Option<server_tests::Value>>(0), row.get::<_, Option<String>>(1))) {
            Ok((Some(result), _)) if result == both => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Nobody may wonder why such a job does not run.
#[test]
fn a_job_whose_handler_a_former_owner_registered_is_shown_as_unhandled_and_complained_about() {
    let mut app = SHARED.app("former");
    let heir = tenant(&app, "heir");
    app.handler("theirs", "RETURN '1';");
    let give = |to: &str| format!("ALTER TABLE public.{} OWNER TO {}", ident("background_jobs"), ident(to));
    app.admin().batch_execute(&give(&heir.role)).unwrap();
    app.admin()
        .batch_execute(&format!("GRANT INSERT, SELECT ON public.background_jobs TO {}", ident(&app.role)))
        .unwrap();
    let id = app.submit("theirs", json!({}));
    let cluster = app.cluster;
    cluster.wait_within(Duration::from_secs(5), "the log to say why nothing runs", || {
        let log = cluster.log();
        let said = log.contains("no handler named \"theirs\"");
        if said { Ok(()) } else { Err(app.state(id)) }
    });
    assert_eq!(app.state(id), "unhandled");
}

#[test]
fn a_table_moved_to_another_schema_while_a_job_runs_gets_its_result() {
    let mut app = SHARED.app("moved");
    let (database, role) = (ident(&app.database), ident(&app.role));
    app.admin().batch_execute(&format!("GRANT CREATE ON DATABASE {database} TO {role}")).unwrap();
    app.sql("CREATE SCHEMA elsewhere");
    app.handler("held", "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    // In its old place stands another table with a row of the same id, for whoever goes by the name.
    app.sql(
        "ALTER TABLE background_jobs SET SCHEMA elsewhere; ALTER SCHEMA elsewhere RENAME TO \"else \"\"where\"\"\";
         CREATE TABLE background_jobs AS SELECT * FROM \"else \"\"where\"\"\".background_jobs;",
    );
    app.open_gate("go");
    app.wait_true("SELECT bool_and(completed AND result = '1') FROM \"else \"\"where\"\"\".background_jobs");
    assert!(!app.row(id).is_final(), "the table in its old place was not touched");
    assert_eq!(app.noted(id), 1);
}

/// A rule, trigger or policy that turns the engine's own UPDATE away makes the job fail; it does not make it run for ever.
#[test]
fn a_table_that_turns_completions_away_does_not_run_its_jobs_for_ever() {
    let mut app = SHARED.app("turned_away");
    let mut victim = owner(&app, "victim");
    victim.handler("fine", "RETURN '1';", "");
    app.sql("CREATE SEQUENCE starts; CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'");
    app.handler_with(
        "counted",
        "PERFORM nextval('starts'); PERFORM note(); RETURN '1';",
        "max_attempts => 3, retry_delay => '10 ms', max_retry_delay => '20 ms'",
    );
    let mut failures = Vec::new();
    for (place, undo) in [
        (
            "CREATE TRIGGER away BEFORE UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION nothing()",
            "DROP TRIGGER away ON background_jobs",
        ),
        (
            "ALTER TABLE background_jobs ADD CONSTRAINT away CHECK (NOT completed) NOT VALID",
            "ALTER TABLE background_jobs DROP CONSTRAINT away",
        ),
        // Last: a plan that a rule has made empty depends on no table, so nothing tells the server that it is stale.
        ("CREATE RULE away AS ON UPDATE TO background_jobs DO INSTEAD NOTHING", "DROP RULE away ON background_jobs"),
    ] {
        app.sql("ALTER SEQUENCE starts RESTART");
        app.sql(place);
        let id = app.submit("counted", json!({}));
        app.wait_true(&format!("SELECT count(*) >= 3 FROM background_jobs.attempts WHERE job_id = '{id}'"));
        // Its attempts are used up; the executors are free for somebody else while only its row is still to be written.
        for _ in 0..5 {
            let job = victim.submit("fine");
            assert_eq!(victim.result(app.cluster, job), Some(json!(1)), "{place}");
        }
        assert_eq!(app.one::<i64>("SELECT last_value FROM starts", &[]), 3, "{place}: attempts are bounded (I5)");
        assert_eq!(app.noted(id), 0, "{place}");
        app.sql(undo);
        let errors = "SELECT count(*) || ' times: ' || (error ->> 'message') FROM background_jobs.attempts
            WHERE job_id = $1 GROUP BY error ->> 'message' ORDER BY 1";
        let done =
            server_tests::wait::attempt(Duration::from_secs(5), "the job to fail, nothing being in its way", || {
                if app.row(id).error("message").is_some() {
                    return Ok(());
                }
                Err(app.rows(errors, &[&id]).iter().map(|row| row.get::<_, String>(0) + ", ").collect())
            });
        if let Err(report) = done {
            failures.push(format!("{place}: {report}"));
        }
        app.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Handlers that take their own job away while it runs hurt themselves at most. Those that write a result themselves,
/// as the recipe's service did, are an honest mistake.
#[test]
fn a_handler_that_pulls_the_ground_from_under_itself_runs_a_bounded_number_of_times_and_harms_no_other_job() {
    let mut app = SHARED.app("ground");
    app.sql("CREATE SEQUENCE starts");
    app.handler("fine", "PERFORM note(); RETURN '1';");
    let own = "(SELECT id FROM background_jobs.current_job())";
    let acts = [
        format!("UPDATE background_jobs SET completed = true, progress = 1, result = '2' WHERE id = {own}"),
        format!("UPDATE background_jobs SET cancelled = true WHERE id = {own}"),
        format!("UPDATE background_jobs SET id = gen_random_uuid() WHERE id = {own}"),
        format!("DELETE FROM background_jobs WHERE id = {own}"),
        format!("SELECT background_jobs.cancel({own})"),
        format!("SELECT background_jobs.run_now({own})"),
        format!("SELECT background_jobs.retry({own})"),
        format!("SELECT background_jobs.wait({own}, '50 ms')"),
        format!("UPDATE background_jobs SET cancelled = true WHERE id = {own}; SELECT background_jobs.retry({own})"),
        format!(
            "WITH gone AS (DELETE FROM background_jobs WHERE id = {own} RETURNING *) INSERT INTO background_jobs SELECT * FROM gone"
        ),
        "SELECT background_jobs.unregister_handler('acts')".to_owned(),
        "SELECT background_jobs.attach('background_jobs')".to_owned(),
        "ALTER TABLE background_jobs ADD COLUMN IF NOT EXISTS extra int".to_owned(),
        "LOCK TABLE background_jobs".to_owned(),
        "SELECT background_jobs.detach('background_jobs'); SELECT background_jobs.attach('background_jobs')".to_owned(),
        "TRUNCATE background_jobs".to_owned(),
        "DROP TABLE background_jobs".to_owned(),
    ];
    let mut failures = Vec::new();
    for act in acts {
        app.sql("ALTER SEQUENCE starts RESTART");
        let steps: String = act.split("; ").map(|step| format!("EXECUTE {};", lit(step))).collect();
        let options = "max_attempts => 2, retry_delay => '10 ms', max_retry_delay => '10 ms'";
        app.handler_with(
            "acts",
            &format!("PERFORM nextval('public.starts'); PERFORM note(); {steps} RETURN '1';"),
            options,
        );
        let id = app.submit("acts", json!({}));
        let quiet = "SELECT NOT EXISTS (SELECT FROM background_jobs.queue WHERE job_id = $1 AND state <> 'unhandled')
            AND NOT EXISTS (SELECT FROM background_jobs.workers WHERE job_id = $1) AND (SELECT is_called FROM public.starts)";
        // Long enough for its two attempts and for several polls.
        let done = server_tests::wait::attempt(Duration::from_secs(4), &act, || {
            if app.one(quiet, &[&id]) { Ok(()) } else { Err(app.state(id)) }
        });
        let starts: i64 = app.one("SELECT last_value FROM starts", &[]);
        if done.is_err() || starts > 2 {
            failures.push(format!("{act}: {done:?}, {starts} starts for 2 attempts"));
        }
        if app.one("SELECT to_regclass('background_jobs') IS NULL", &[]) {
            app.sql("SELECT background_jobs.create_table()");
            app.register("fine", "fine(jsonb)", "");
        }
        let (row, noted) = (app.find(id), app.noted(id));
        let completed = row.as_ref().is_some_and(|job| job.completed && job.error("sqlstate").is_none());
        if row.is_some() && noted != i64::from(completed) || noted > 1 {
            failures.push(format!("{act}: {noted} effects (I3), {row:?}"));
        }
        app.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]);
        let next = app.submit("fine", json!({}));
        assert_eq!(app.wait_final(next).result, Some(json!(1)), "after {act}");
        assert_eq!(app.noted(next), 1, "after {act}");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// A registration binds the function that its owner saw, not whatever comes to bear its name.
#[test]
fn a_name_that_a_dropped_function_leaves_is_not_for_another_role_to_fill() {
    let mut app = SHARED.app("left_free");
    let mut thief = tenant(&app, "thief");
    app.admin().batch_execute(&format!("GRANT CREATE ON SCHEMA public TO {}", ident(&thief.role))).unwrap();
    app.handler_with("useful", "RETURN '1';", "max_attempts => 1");
    app.sql("DROP FUNCTION public.useful(jsonb)");
    thief.sql(
        "CREATE FUNCTION public.useful(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(current_user::text)'",
    );
    let id = app.submit("useful", json!({}));
    app.cluster.wait_until("the job to fail or to wait", || match (app.row(id), app.state(id)) {
        (row, _) if row.is_final() => Ok(()),
        (_, state) if state == "unhandled" => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    let job = app.row(id);
    assert!(job.result.is_none() || job.error("sqlstate").is_some(), "the thief's function ran as the owner: {job:?}");
}

/// Attempts end even for a handler that forges the errors which cost none.
#[test]
fn forged_sqlstates_buy_no_endless_attempts() {
    let mut app = SHARED.app("forged");
    app.sql("CREATE SEQUENCE starts");
    for code in
        ["40001", "40P01", "57014", "57P01", "57P02", "XX000", "XX001", "53200", "53100", "00001", "ZZZZZ", "P0004"]
    {
        app.sql("ALTER SEQUENCE starts RESTART");
        app.handler_with(
            "forges",
            &format!("PERFORM nextval('starts'); PERFORM note(); RAISE 'forged' USING ERRCODE = '{code}';"),
            "max_attempts => 2, retry_delay => '5 ms', max_retry_delay => '5 ms'",
        );
        let id = app.submit("forges", json!({}));
        let job = app.wait_final(id);
        assert_eq!(job.error("sqlstate"), Some(&json!(code)), "{job:?}");
        let starts: i64 = app.one("SELECT last_value FROM starts", &[]);
        assert!(starts <= 2 + 10 + 2, "{code}: {starts} starts for 2 attempts and 10 free conflicts");
        assert_eq!(app.noted(id), 0);
    }
}
