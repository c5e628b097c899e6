//! Code of the owner's that never ends, wherever it stands, keeps others waiting for a bounded time only.

use crate::lively;
use server_tests::tenant::{end_sessions, owner};
use server_tests::{App, Builder, json};
use std::time::Duration;

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
            $$ BEGIN
                PERFORM background_jobs.set_progress(0.5);
                WHILE NOT (SELECT is_called FROM starts) LOOP PERFORM pg_sleep(0.005); END LOOP;
                RETURN p;
            END $$;",
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
