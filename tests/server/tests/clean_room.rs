//! Every job starts in a clean session (I14) of the owner, and no user code ever sees a superuser's (I15).

use server_tests::{App, Builder, Cluster, Group, Uuid, ident, json};

/// One executor, so that the next job meets what the one before has left.
fn one_executor() -> Builder {
    Cluster::builder().conf("background_jobs.max_executors", "1")
}

static SHARED: Group = Group::new(one_executor);

/// The same for one test: in a shared server the only executor gives way to other owners' jobs, and with it goes the session.
fn one_session() -> Cluster {
    one_executor().conf("background_jobs.cancel_grace", "60s").start()
}

/// What a session looks like from inside a handler.
const INSPECT: &str = "RETURN jsonb_build_object(
    'pid', pg_backend_pid(),
    'work_mem', current_setting('work_mem'), 'path', current_setting('search_path'),
    'own', coalesce(current_setting('bgj.test', true), ''), 'role', current_setting('role'),
    'isolation', current_setting('transaction_isolation'), 'read_only', current_setting('transaction_read_only'),
    'replication', current_setting('session_replication_role'),
    'temp', (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind IN ('r', 'S', 'v')),
    'temp_functions', (SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()),
    'prepared', (SELECT count(*) FROM pg_prepared_statements),
    'cursors', (SELECT count(*) FROM pg_cursors WHERE is_holdable OR name LIKE 'left%'),
    'locks', (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
    'channels', (SELECT count(*) FROM pg_listening_channels()),
    'user', current_user, 'session', session_user, 'superuser', current_setting('is_superuser'));";

const DIRTY: &str = "
    PERFORM set_config('search_path', 'evil, public', false);
    EXECUTE 'SET work_mem = ''77MB''';
    EXECUTE 'SET bgj.test = ''left behind''';
    EXECUTE 'SET default_transaction_read_only = on';
    EXECUTE 'SET default_transaction_isolation = ''serializable''';
    EXECUTE 'CREATE TEMP TABLE left_table (n int)';
    EXECUTE 'CREATE TEMP SEQUENCE left_sequence';
    EXECUTE 'CREATE FUNCTION pg_temp.left_function() RETURNS int LANGUAGE sql AS ''SELECT 1''';
    EXECUTE 'PREPARE left_statement AS SELECT 1';
    EXECUTE 'DECLARE left_cursor CURSOR WITH HOLD FOR SELECT 1';
    BEGIN
        EXECUTE 'LISTEN left_channel';
    EXCEPTION WHEN feature_not_supported THEN
        NULL; -- the server allows it in a client's session only
    END;
    PERFORM pg_advisory_lock(815);
    PERFORM pg_advisory_lock_shared(816);";

#[test]
fn nothing_is_left_for_the_next_job() {
    let cluster = one_session();
    let mut app = App::with_table(&cluster, "clean");
    let role = ident(&app.role);
    app.admin()
        .batch_execute(&format!(
            "ALTER ROLE {role} SET work_mem = '7MB'; ALTER ROLE {role} SET bgj.test = 'of the role'"
        ))
        .unwrap();
    app.handler("inspect", INSPECT);
    app.handler("dirty", &format!("{DIRTY} RETURN to_jsonb(pg_backend_pid());"));
    app.handler_with("dirty_fails", &format!("{DIRTY} RAISE 'no';"), "max_attempts => 1");
    app.handler_with("dirty_cancelled", &format!("{DIRTY} PERFORM reach(1); PERFORM pg_sleep(600); RETURN NULL;"), "");

    let first = app.submit("inspect", json!({}));
    let clean = app.wait_final(first).result.unwrap();
    let mut expected = clean.clone();
    for (name, value) in [
        ("work_mem", json!("7MB")),
        ("own", json!("of the role")),
        ("role", json!("none")),
        ("isolation", json!("read committed")),
        ("read_only", json!("off")),
        ("replication", json!("origin")),
        ("path", json!("\"$user\", public")),
        ("user", json!(app.role)),
        ("session", json!(app.role)),
        ("superuser", json!("off")),
    ] {
        expected[name] = value;
    }
    for name in ["temp", "temp_functions", "prepared", "cursors", "locks", "channels"] {
        expected[name] = json!(0);
    }
    assert_eq!(clean, expected);

    for handler in ["dirty", "dirty_fails", "dirty_cancelled"] {
        let id = app.submit(handler, json!({}));
        if handler == "dirty_cancelled" {
            app.wait_reached(1);
            app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]);
        }
        let job = app.wait_final(id);
        if handler == "dirty" {
            assert_eq!(job.result, Some(clean["pid"].clone()), "the same session, or this proves nothing");
        }
        let id = app.submit("inspect", json!({}));
        assert_eq!(app.wait_final(id).result.unwrap(), clean, "after {handler}");
    }
}

/// Jobs that share a commit have their sessions cleaned in between all the same.
#[test]
fn nothing_is_left_for_the_next_job_of_a_batch() {
    let cluster = one_session();
    let mut app = App::with_table(&cluster, "batch");
    app.handler("inspect", INSPECT);
    app.handler("dirty", &format!("{DIRTY} RETURN NULL;"));
    let first = app.submit("inspect", json!({}));
    let clean = app.wait_final(first).result.unwrap();
    app.sql(
        "INSERT INTO background_jobs (payload)
         SELECT jsonb_build_object('handler', CASE n % 2 WHEN 0 THEN 'inspect' ELSE 'dirty' END) FROM generate_series(1, 60) n",
    );
    app.wait_drained(std::time::Duration::from_secs(30));
    let results = app.rows("SELECT result FROM background_jobs WHERE payload ->> 'handler' = 'inspect'", &[]);
    assert_eq!(results.len(), 31);
    for row in results {
        assert_eq!(row.get::<_, serde_json::Value>(0), clean);
    }
}

#[test]
fn a_handler_cannot_become_somebody_else() {
    let mut app = SHARED.app("escape");
    for (name, statement, sqlstate) in [
        ("role", "SET ROLE postgres", "42501"),
        ("session", "SET SESSION AUTHORIZATION postgres", "42501"),
        ("replica", "SET session_replication_role = replica", "42501"),
        ("library", "LOAD 'plpgsql_nothing'", "42501"),
    ] {
        app.handler_with(name, &format!("EXECUTE $s$ {statement} $s$; RETURN NULL;"), "max_attempts => 1");
        let id = app.submit(name, json!({}));
        let job = app.wait_final(id);
        let code = job.error("sqlstate").and_then(|code| code.as_str()).unwrap_or("none");
        assert!(code == sqlstate || (name == "library" && code == "58P01"), "{statement}: {job:?}");
    }
    app.handler(
        "reset",
        "EXECUTE 'RESET ROLE'; EXECUTE 'RESET SESSION AUTHORIZATION';
         RETURN to_jsonb(session_user || ' ' || current_user || ' ' || current_setting('is_superuser'));",
    );
    let id = app.submit("reset", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!(format!("{0} {0} off", app.role))));
}

/// Transaction control belongs to the executor.
#[test]
fn a_handler_cannot_end_the_transaction() {
    let mut app = SHARED.app("commit");
    app.handler_with("plain", "PERFORM note(); COMMIT; RETURN to_jsonb(true);", "max_attempts => 1");
    app.handler_with("dynamic", "PERFORM note(); EXECUTE 'COMMIT'; RETURN to_jsonb(true);", "max_attempts => 1");
    app.handler_with("rolls_back", "PERFORM note(); ROLLBACK; RETURN to_jsonb(true);", "max_attempts => 1");
    for handler in ["plain", "dynamic", "rolls_back"] {
        let id = app.submit(handler, json!({}));
        let job = app.wait_final(id);
        assert!(job.error("sqlstate").is_some(), "{handler}: {job:?}");
        assert_eq!(app.noted(id), 0, "{handler}");
    }
}

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
        PERFORM public.seen('deferred in handler'); RETURN NULL;
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
    ] {
        assert!(places.iter().any(|p| p == place), "{place} did not run in a worker: {places:?}");
    }
}

/// A cursor WITH HOLD is read at commit, which must not happen in anybody else's name.
#[test]
fn a_held_cursor_reads_nothing_that_the_role_may_not() {
    let mut app = SHARED.app("cursor");
    app.admin()
        .batch_execute("CREATE TABLE secrets AS SELECT 'secret' AS s; REVOKE ALL ON secrets FROM PUBLIC")
        .unwrap();
    app.sql(
        "CREATE FUNCTION read_secrets() RETURNS text LANGUAGE plpgsql AS
            $$ BEGIN RETURN (SELECT s FROM public.secrets); END $$;",
    );
    app.handler_with(
        "holds",
        "EXECUTE 'DECLARE c CURSOR WITH HOLD FOR SELECT public.read_secrets()'; RETURN to_jsonb(true);",
        "max_attempts => 1",
    );
    let id = app.submit("holds", json!({}));
    let job = app.wait_final(id);
    assert!(job.result == Some(json!(true)) || job.error("sqlstate") == Some(&json!("42501")), "{job:?}");
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
