//! Whom a stranger can hold up.

use crate::{SECRET, SHARED, scene};
use server_tests::tenant::owner;
use server_tests::{Uuid, ident, json};

#[test]
fn enqueue_with_a_key_lets_a_stranger_hold_up_nothing() {
    let mut scene = scene("key_lock");
    let mut transaction = scene.stranger.client.transaction().unwrap();
    let call = format!(
        "SELECT background_jobs.enqueue('held', job_key => '{SECRET}', job_key_mode => 'keep', job_table => 'public.background_jobs')"
    );
    let _ = transaction.batch_execute(&call);
    // Whatever the answer was, the owner's cancel does not wait for the end of the stranger's transaction.
    scene.app.sql("SET lock_timeout = '2 s'");
    let outcome =
        scene.app.client.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&scene.queued]);
    let outcome = outcome.map_err(|error| server_tests::sqlstate(&error));
    transaction.rollback().unwrap();
    scene.app.open_gate("go");
    assert_eq!(outcome, Ok(1));
}

/// `pg_signal_backend` reaches sessions of ordinary roles, which executors are; what it ends there is run again.
#[test]
fn signals_stop_no_scheduler_and_lose_no_job() {
    let mut app = SHARED.app("signals");
    let mut other = owner(&app, "signaller");
    app.admin().batch_execute(&format!("GRANT pg_signal_backend TO {}", ident(&other.role))).unwrap();
    for function in ["pg_cancel_backend", "pg_terminate_backend"] {
        for role in ["dispatcher", "launcher"] {
            let call = format!(
                "SELECT {function}(pid) FROM background_jobs.workers WHERE role = '{role}'
                AND (database IS NULL OR database = current_database())"
            );
            assert_eq!(other.code(&call), "42501", "{function} of the {role}");
        }
    }
    app.handler_with(
        "noted",
        "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(0.05); RETURN to_jsonb(true);",
        "max_attempts => 100, retry_delay => '5 ms', max_retry_delay => '20 ms'",
    );
    let ids: Vec<Uuid> = (0..40).map(|_| app.submit("noted", json!({}))).collect();
    let functions = ["pg_cancel_backend", "pg_terminate_backend"];
    let mut reached = [0; 2];
    let workers = "SELECT pid FROM background_jobs.workers WHERE role IN ('executor', 'progress writer')
        AND database = current_database()";
    for round in 1..=8_i64 {
        app.wait_true(&format!("SELECT count(*) >= {round} * 4 FROM background_jobs WHERE completed"));
        for (function, reached) in functions.iter().zip(&mut reached) {
            let pids: Vec<i32> = other.client.query(workers, &[]).unwrap().iter().map(|row| row.get(0)).collect();
            for pid in pids {
                // One may be gone already, or belong to no role for a moment while it starts; neither is of interest.
                match other.client.query_one(&format!("SELECT {function}($1)"), &[&pid]) {
                    Ok(row) => *reached += i32::from(row.get::<_, bool>(0)),
                    Err(error) => assert_eq!(server_tests::sqlstate(&error), "42501", "{function}"),
                }
            }
        }
    }
    assert!(
        reached.iter().all(|reached| *reached > 0),
        "signals that reached a process, by {functions:?}: {reached:?}"
    );
    for id in ids {
        let job = app.wait_final(id);
        assert_eq!((job.result, job.progress), (Some(json!(true)), 1.0));
        assert_eq!(app.noted(id), 1, "exactly once (I3)");
    }
}

/// ALTER ... DEPENDS ON EXTENSION takes the strongest lock on an extension, and asks for no right to it.
#[test]
fn a_lock_that_a_stranger_has_on_the_extension_holds_up_no_job() {
    let mut app = SHARED.app("extension_lock");
    app.handler("fine", "RETURN '1';");
    let mut other = owner(&app, "locks");
    other.sql(
        "CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1';
         BEGIN; ALTER FUNCTION own() DEPENDS ON EXTENSION background_jobs",
    );
    let held = "SELECT count(*) = 1 FROM pg_locks WHERE classid = 'pg_extension'::regclass AND mode = 'AccessExclusiveLock' AND granted";
    assert!(app.one::<bool>(held, &[]));
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"fine\"}' FROM generate_series(1, 1000)");
    app.wait_true("SELECT bool_and(completed) FROM background_jobs");
    assert!(app.one::<bool>(held, &[]), "the lock is held still");
    other.sql("ROLLBACK");
}

/// INSERT on all tables is INSERT on the registry, too, and a handler runs as the owner of its table.
#[test]
fn who_may_write_all_tables_registers_no_handler() {
    let mut app = SHARED.app("writes_all");
    app.handler("fine", "RETURN '1';");
    let mut other = owner(&app, "writer");
    app.admin().batch_execute(&format!("GRANT pg_write_all_data TO {}", ident(&other.role))).unwrap();
    for statement in [
        "INSERT INTO background_jobs.handler (job_table, name, function_schema, function_name, takes_id, function_owner, owner)
         VALUES ('public.background_jobs'::regclass, 'evil', 'public', 'evil', false, current_user::regrole, current_user::regrole)",
        "UPDATE background_jobs.handler SET function_name = 'evil'",
        "DELETE FROM background_jobs.handler",
    ] {
        assert_eq!(other.code(statement), "42501", "{statement}");
    }
    let id = app.submit("fine", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
}
