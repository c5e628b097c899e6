//! What the owner's role may make of itself and of its settings: nothing more than it is.

use crate::SHARED;
use server_tests::{Uuid, ident, json};

/// Tries everything that makes more of a role than it is, and notes what was let through. The sequences say what a rollback takes
/// out of the tables.
const ESCALATE: &str = "
    CREATE TABLE escaped (place text, statement text);
    CREATE SEQUENCE escapes; CREATE SEQUENCE in_failing_handler; CREATE SEQUENCE as_others;
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
                PERFORM pg_catalog.nextval('public.escapes');
            EXCEPTION WHEN insufficient_privilege OR invalid_parameter_value OR cant_change_runtime_param
                OR feature_not_supported OR active_sql_transaction OR undefined_file THEN NULL;
            END;
        END LOOP;
        EXECUTE 'RESET ROLE'; EXECUTE 'RESET SESSION AUTHORIZATION';
        PERFORM public.seen(place || ', reset');
        IF pg_catalog.current_setting('is_superuser')::boolean OR EXISTS (
            SELECT FROM pg_catalog.pg_tables WHERE tablename OPERATOR(pg_catalog.=) 'escaped'
               AND (tableowner OPERATOR(pg_catalog.<>) session_user OR tableowner OPERATOR(pg_catalog.<>) current_user)) THEN
            PERFORM pg_catalog.nextval('public.as_others');
        END IF;
        IF place OPERATOR(pg_catalog.=) 'failing handler' THEN
            PERFORM pg_catalog.nextval('public.in_failing_handler');
        END IF;
    END $$;
    CREATE FUNCTION on_escalation() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM public.escalate(TG_NAME || ' ' || TG_OP); RETURN coalesce(NEW, OLD);
    END $$;
    CREATE TABLE touched (n int);
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON touched DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION on_escalation();
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE 'DECLARE held_at_commit CURSOR WITH HOLD FOR SELECT public.at_fetch()'; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER holds_at_commit AFTER INSERT ON touched DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION hold();
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
    app.create_witness();
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
    assert_eq!(app.foreign(), Vec::<String>::new());
    let places: i64 = app.one(
        "SELECT count(DISTINCT place) FROM seen WHERE kind = 'background_jobs executor'
           AND place IN ('handler', 'policy', 'at_commit INSERT', 'at_finish UPDATE', 'after_finish UPDATE', 'held cursor')",
        &[],
    );
    assert_eq!(places, 6, "each was reached in an executor");
    assert!(app.one::<bool>("SELECT is_called FROM in_failing_handler", &[]), "what is rolled back was tried, too");
    for sequence in ["escapes", "as_others"] {
        assert!(!app.one::<bool>(&format!("SELECT is_called FROM {sequence}"), &[]), "{sequence}");
    }
}

/// Settings of the role are the role's business, and break nothing of ours.
#[test]
fn the_strangest_settings_of_a_role_change_nothing() {
    let mut app = SHARED.app("settings");
    app.handler("echo", "PERFORM background_jobs.set_progress(0.25); RETURN payload;");
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 3, retry_delay => '10 ms', timeout => '1 min'");
    let mut admin = app.admin();
    let parallel = if server_tests::major() > 15 { "debug_parallel_query" } else { "force_parallel_mode" };
    for setting in [
        "search_path = ''",
        "row_security = off",
        "lock_timeout = '1ms'",
        "statement_timeout = '1ms'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        &format!("{parallel} = regress"),
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
    app.end_executors();
    let payload = json!({"n": 1.234_567_890_123_456_7, "t": "2026-01-01"});
    let ids: Vec<Uuid> = (0..20).map(|_| app.submit("echo", payload.clone())).collect();
    let failing = app.submit("fails", json!({}));
    for id in ids {
        let job = app.wait_final(id);
        assert_eq!(job.result.as_ref(), Some(&job.payload), "{job:?}");
    }
    assert_eq!(app.wait_final(failing).error("attempts"), Some(&json!(3)));
}
