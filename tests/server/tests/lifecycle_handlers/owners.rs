//! Roles that are renamed or dropped, and tables that are given away.

use crate::{LATER, SHARED, held, result_of, run_now, running, scheduled, setbacks, wait_setback};
use server_tests::{ident, json};

#[test]
fn a_renamed_role_keeps_its_running_and_waiting_jobs() {
    let (mut app, id) = running("renamed_role", "");
    let queued = scheduled(&mut app, "held");
    let new = format!("{}_new", app.role);
    let rename = format!("ALTER ROLE {} RENAME TO {}", ident(&app.role), ident(&new));
    app.admin().batch_execute(&rename).unwrap();
    app.role = new;
    app.client = app.session();
    app.handler("who", "RETURN to_jsonb(session_user::text);");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    run_now(&mut app, queued);
    assert_eq!(app.wait_final(queued).result, Some(json!("old")));
    assert_eq!(result_of(&mut app, "who").result, Some(json!(app.role)));
    assert_eq!(setbacks(&mut app, id).len(), 0);
}

/// As an administrator does who removes a role: first what it owns, then the role itself.
#[test]
fn a_dropped_role_takes_its_running_job_with_it_and_disturbs_nobody_else() {
    let mut app = SHARED.app("dropped_role");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let other = format!("other_{}", app.database);
    app.cluster.create_role(&other);
    let mut admin = app.admin();
    admin
        .batch_execute(&format!("CREATE SCHEMA {0} AUTHORIZATION {0}; GRANT SELECT ON gates TO {0}", ident(&other)))
        .unwrap();
    let mut client = app.cluster.connect(&app.database, &other);
    client
        .batch_execute(&format!(
            "SELECT background_jobs.create_table();
             CREATE TABLE mine (n int);
             CREATE FUNCTION held(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
                PERFORM reach(2); PERFORM await_gate('never'); RETURN NULL; END $$;
             SELECT background_jobs.register_handler('held', 'held(jsonb)');
             SELECT background_jobs.enqueue('held'), background_jobs.enqueue('held', run_at => {LATER});"
        ))
        .unwrap();
    app.wait_reached(2);
    drop(client);
    // Refused while it owns something, and nothing happens.
    let error = admin.batch_execute(&format!("DROP ROLE {}", ident(&other))).unwrap_err();
    assert_eq!(server_tests::sqlstate(&error), "2BP01");
    app.wait_reached(2);
    admin.batch_execute(&format!("DROP OWNED BY {0} CASCADE; DROP ROLE {0}", ident(&other))).unwrap();
    app.wait_left(2);
    let left = "SELECT count(*) FROM background_jobs.queued_job q";
    app.cluster.wait_until("its jobs to be gone", || match admin.query_one(left, &[]).unwrap().get::<_, i64>(0) {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    });
    let id = app.submit("noted", json!({}));
    assert!(app.wait_final(id).completed);
    assert_eq!(app.noted(id), 1);
}

/// What a former owner registered is not for the new one to run, and what ran for the former one does not count.
#[test]
fn a_table_given_to_another_role_while_a_job_runs_waits_for_the_new_owners_handlers() {
    let (mut app, id) = running("given", "retry_delay => '100 ms'");
    let other = format!("other_{}", app.database);
    app.cluster.create_role(&other);
    let mut admin = app.admin();
    admin
        .batch_execute(&format!(
            "ALTER TABLE background_jobs OWNER TO {0}; GRANT CREATE ON SCHEMA public TO {0};
             GRANT SELECT ON gates TO {0}; GRANT INSERT ON ledger TO {0}; GRANT ALL ON SEQUENCE ledger_entry_seq TO {0};
             GRANT SELECT ON background_jobs TO {1}",
            ident(&other),
            ident(&app.role)
        ))
        .unwrap();
    app.open_gate("go");
    app.wait_left(1);
    assert_eq!(wait_setback(&mut app, id), "55000");
    assert_eq!(app.noted(id), 0, "the effects of the former owner's run are gone");
    let mut client = app.cluster.connect(&app.database, &other);
    client
        .batch_execute(
            "CREATE FUNCTION theirs(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS
                $$ BEGIN PERFORM note(); RETURN to_jsonb(session_user::text); END $$;
             SELECT background_jobs.register_handler('held', 'theirs(jsonb)')",
        )
        .unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!(other)));
    assert_eq!(app.noted(id), 1);
    drop(client);
    admin
        .batch_execute(&format!(
            "REASSIGN OWNED BY {0} TO {1}; DROP OWNED BY {0}; DROP ROLE {0}",
            ident(&other),
            ident(&app.role)
        ))
        .unwrap();
}

/// Or nobody would know why its jobs do not run: no error comes up anywhere.
#[test]
fn jobs_whose_handler_a_former_owner_registered_are_shown_as_unhandled_and_warned_about() {
    let mut app = SHARED.app("former_owner");
    app.handler("of_former_owner", &held("'old'::text"));
    let id = scheduled(&mut app, "of_former_owner");
    let other = format!("other_{}", app.database);
    app.cluster.create_role(&other);
    let mut admin = app.admin();
    admin.batch_execute(&format!("ALTER TABLE background_jobs OWNER TO {}", ident(&other))).unwrap();
    let state = "SELECT state FROM background_jobs.queue WHERE job_id = $1";
    let state: String = admin.query_one(state, &[&id]).unwrap().get(0);
    let cluster = app.cluster;
    let warned = server_tests::wait::attempt(std::time::Duration::from_secs(3), "the warning", || {
        server_tests::wait::yes(cluster.log().contains("no handler named \"of_former_owner\""))
    });
    admin.batch_execute(&format!("DROP OWNED BY {0}; DROP ROLE {0}", ident(&other))).unwrap();
    assert_eq!((state.as_str(), warned), ("unhandled", Ok(())));
}

#[test]
fn an_owner_whose_jobs_may_not_run_once_more_is_warned_about_once_more() {
    let mut app = SHARED.app("once_more");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let cluster = app.cluster;
    let role = ident(&app.role);
    let mut admin = app.admin();
    // PostgreSQL 17 opens background sessions of roles without LOGIN, too.
    let (obstacle, warning, end) = if server_tests::major() > 16 {
        ("SUPERUSER", format!("job tables may not belong to superuser \"{}\"", app.role), "NOSUPERUSER")
    } else {
        ("NOLOGIN", format!("role \"{}\" cannot log in, so its jobs cannot run", app.role), "LOGIN")
    };
    for times in 1..=3 {
        admin.batch_execute(&format!("ALTER ROLE {role} {obstacle}")).unwrap();
        cluster.wait_until("the warning", || match cluster.log().matches(&warning).count() {
            seen if seen == times => Ok(()),
            seen => Err(format!("{seen} of {times}")),
        });
        let id = app.submit("noted", json!({}));
        admin.batch_execute(&format!("ALTER ROLE {role} {end}")).unwrap();
        assert!(app.wait_final(id).completed);
        app.end_executors();
    }
}
