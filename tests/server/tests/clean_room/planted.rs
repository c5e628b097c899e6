//! What a role plants on its table, in its types and on its search_path.

use crate::SHARED;
use server_tests::{App, Uuid, ident, json};

/// Everything that a role can hang on its table, its types and its search_path, each telling in whose session it ran.
const PLANTED: &str = "
    CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM public.seen(TG_NAME || ' ' || TG_OP); RETURN coalesce(NEW, OLD);
    END $$;
    CREATE TRIGGER before_row BEFORE INSERT OR UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_row();
    CREATE TRIGGER after_row AFTER INSERT OR UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_row();
    CREATE TRIGGER after_statement AFTER UPDATE ON background_jobs FOR EACH STATEMENT EXECUTE FUNCTION on_row();
    CREATE CONSTRAINT TRIGGER deferred_row AFTER INSERT OR UPDATE ON background_jobs
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION on_row();
    CREATE FUNCTION in_index(p real) RETURNS real IMMUTABLE LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('index'); RETURN p; END $$;
    CREATE INDEX planted ON background_jobs (in_index(progress));
    CREATE FUNCTION in_check(r jsonb) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('check'); RETURN true; END $$;
    ALTER TABLE background_jobs ADD CHECK (in_check(result));
    CREATE FUNCTION in_policy() RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('policy'); RETURN true; END $$;
    ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY planted ON background_jobs USING (in_policy()) WITH CHECK (in_policy());
    CREATE FUNCTION in_domain(p jsonb) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('domain'); RETURN true; END $$;
    CREATE DOMAIN checked AS jsonb CHECK (in_domain(VALUE));
    CREATE FUNCTION on_table() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM public.seen('deferred in handler');
        EXECUTE 'DECLARE held_at_commit CURSOR WITH HOLD FOR SELECT public.seen(''held cursor'')';
        RETURN NULL;
    END $$;
    CREATE TABLE touched (n int DEFAULT 1, c checked);
    CREATE CONSTRAINT TRIGGER deferred_touched AFTER INSERT ON touched
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION on_table();
    CREATE FUNCTION public.planted_uuid(a uuid, b uuid) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('operator uuid'); RETURN a OPERATOR(pg_catalog.=) b; END $$;
    CREATE OPERATOR public.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = public.planted_uuid);
    CREATE FUNCTION public.planted_real(a real, b double precision) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('operator real'); RETURN a OPERATOR(pg_catalog.<) b; END $$;
    CREATE OPERATOR public.< (LEFTARG = real, RIGHTARG = double precision, FUNCTION = public.planted_real);
    CREATE FUNCTION public.planted_oid(a oid, b oid) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('operator oid'); RETURN a OPERATOR(pg_catalog.=) b; END $$;
    CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = public.planted_oid);
    CREATE FUNCTION public.planted_text(a text, b text) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('operator text'); RETURN a OPERATOR(pg_catalog.=) b; END $$;
    CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.planted_text);
    CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
        $$ BEGIN PERFORM public.seen('function'); RETURN pg_catalog.clock_timestamp(); END $$;
";

fn plant(app: &mut App) {
    app.create_witness();
    app.sql(PLANTED);
    app.handler_with(
        "touches",
        "INSERT INTO public.touched (c) VALUES (payload);
         EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT public.seen(''held cursor'')';
         PERFORM background_jobs.set_progress(0.5); PERFORM public.await_gate('go');
         RETURN payload;",
        "",
    );
    app.handler_with(
        "fails",
        "INSERT INTO public.touched (c) VALUES (payload); RAISE 'no';",
        "max_attempts => 2, retry_delay => '5 ms'",
    );
}

#[test]
fn whatever_a_role_plants_runs_as_that_role() {
    let mut app = SHARED.app("planted");
    plant(&mut app);
    // From here on the role's own operators come first, in its sessions and in its executors'.
    let path = format!("ALTER ROLE {} SET search_path = public, pg_catalog", ident(&app.role));
    app.admin().batch_execute(&path).unwrap();
    app.end_executors();

    let done = app.submit("touches", json!({}));
    app.wait_true("SELECT progress::text = '0.5' FROM background_jobs");
    app.open_gate("go");
    assert!(app.wait_final(done).completed);
    let failed = app.submit("fails", json!({}));
    assert!(app.wait_final(failed).error("message").is_some());
    app.execute("SELECT background_jobs.retry($1)", &[&failed]);
    app.wait_final(failed);
    let cancelled: Uuid = app.one("SELECT background_jobs.enqueue('touches', run_at => now() + interval '1 h')", &[]);
    app.execute("SELECT background_jobs.run_now($1)", &[&cancelled]);
    app.wait_final(cancelled);
    let cancelled: Uuid = app.one("SELECT background_jobs.enqueue('touches', run_at => now() + interval '1 h')", &[]);
    app.execute("SELECT background_jobs.cancel($1)", &[&cancelled]);
    app.execute("DELETE FROM background_jobs WHERE id = $1", &[&cancelled]);
    app.sql("SELECT background_jobs.attach('background_jobs'); SELECT * FROM background_jobs.queue; SELECT * FROM background_jobs.workers");

    let foreign = app.foreign();
    assert!(foreign.is_empty(), "{foreign:#?}");
    let places = app.places_in_workers();
    for place in [
        "after_row UPDATE",
        "before_row UPDATE",
        "deferred_row UPDATE",
        "deferred in handler",
        "index",
        "check",
        "policy",
        "domain",
        "held cursor",
    ] {
        assert!(places.iter().any(|p| p == place), "{place} did not run in a worker: {places:?}");
    }
}

/// A cursor WITH HOLD is read at commit, which must not happen in anybody else's name. One that is declared before the commit
/// is closed with the rest of what the handler has left.
#[test]
fn a_held_cursor_reads_nothing_that_the_role_may_not() {
    let mut app = SHARED.app("cursor");
    app.admin()
        .batch_execute("CREATE TABLE secrets AS SELECT 'secret' AS s; REVOKE ALL ON secrets FROM PUBLIC")
        .unwrap();
    app.sql(
        "CREATE TABLE leaked (s text); CREATE TABLE refused (query text);
         CREATE FUNCTION read_secrets() RETURNS int LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.leaked SELECT s FROM public.secrets; RETURN 1; END $$;
         CREATE FUNCTION try_secrets() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            RETURN public.read_secrets();
         EXCEPTION WHEN insufficient_privilege THEN
            INSERT INTO public.refused VALUES (current_query()); RETURN 0;
         END $$;
         CREATE TABLE held (query text);
         CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN EXECUTE 'DECLARE c CURSOR WITH HOLD FOR ' || NEW.query; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON held DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold();",
    );
    let declare = "EXECUTE 'DECLARE c CURSOR WITH HOLD FOR ' || (payload ->> 'query'); RETURN to_jsonb(true);";
    app.handler_with("before", declare, "max_attempts => 1");
    app.handler_with(
        "at_commit",
        "INSERT INTO held VALUES (payload ->> 'query'); RETURN to_jsonb(true);",
        "max_attempts => 1",
    );
    let (reads, tries) = ("SELECT public.read_secrets()", "SELECT public.try_secrets()");
    for (handler, query, refused) in [("before", tries, 0), ("at_commit", tries, 1), ("at_commit", reads, 1)] {
        let id = app.submit(handler, json!({"query": query}));
        let job = app.wait_final(id);
        if query == tries {
            assert_eq!(job.result, Some(json!(true)), "{handler}");
        } else {
            assert_eq!(job.error("sqlstate"), Some(&json!("42501")), "{handler}: {job:?}");
        }
        assert_eq!(app.one::<i64>("SELECT count(*) FROM refused", &[]), refused, "{handler}: {query}");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM leaked", &[]), 0, "{handler}: {query}");
    }
}

/// The names that an application may well use itself.
#[test]
fn a_role_may_shadow_the_extensions_own_names() {
    let mut app = SHARED.app("shadow");
    app.sql(
        "CREATE TABLE queued_job (job_table text, job_id text); CREATE TABLE handler (name text); CREATE TABLE attempt (n text);
         CREATE TABLE queue (n text); CREATE TABLE workers (n text);",
    );
    app.handler("fine", "PERFORM set_config('search_path', 'pg_temp, public', false); RETURN to_jsonb(true);");
    for _ in 0..3 {
        let id = app.submit("fine", json!({}));
        assert_eq!(app.wait_final(id).result, Some(json!(true)));
    }
}
