//! Every job starts in a clean session (I14) of the owner, and no user code ever sees a superuser's (I15).

mod batch;
mod planted;

use server_tests::{App, Builder, Cluster, Group, ident, json};

/// One executor, so that the next job meets what the one before has left.
fn one_executor() -> Builder {
    Cluster::builder().conf("background_jobs.max_executors", "1")
}

static SHARED: Group = Group::new(one_executor);

/// The same for one test: in a shared server the only executor gives way to other owners' jobs, and with it goes the session.
fn one_session() -> Cluster {
    one_executor().conf("background_jobs.cancel_grace", "60s").start()
}

/// A sequence of the role's own, and the value that a session remembers of it.
const SEQUENCE: &str = "CREATE SEQUENCE kept;
    CREATE FUNCTION remembered() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
        RETURN currval('public.kept');
    EXCEPTION WHEN object_not_in_prerequisite_state THEN
        RETURN 'nothing';
    END $$;";

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
    'sequence', public.remembered(),
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
    PERFORM nextval('public.kept');
    PERFORM pg_advisory_lock(815);
    PERFORM pg_advisory_lock_shared(816);";

#[test]
fn nothing_is_left_for_the_next_job() {
    let cluster = one_session();
    let mut app = App::with_table(&cluster, "clean");
    app.sql(SEQUENCE);
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
        ("sequence", json!("nothing")),
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
