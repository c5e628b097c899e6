//! Tables and names that pass to another role: nothing of the one is run for the other.

use crate::SHARED;
use server_tests::tenant::tenant;
use server_tests::{ident, json};
use std::time::Duration;

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
