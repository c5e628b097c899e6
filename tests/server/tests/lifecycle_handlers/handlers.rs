//! Functions and registrations that change.

use crate::{SHARED, held, result_of, run_now, running, scheduled, wait_setback};
use server_tests::{ident, json};
use std::time::Duration;

#[test]
fn a_handler_replaced_while_it_runs_ends_as_it_began_and_the_next_job_runs_the_new_one() {
    let (mut app, id) = running("replaced", "");
    let queued = scheduled(&mut app, "held");
    app.handler("held", &held("'new'::text"));
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    run_now(&mut app, queued);
    assert_eq!(app.wait_final(queued).result, Some(json!("new")));
    assert_eq!((app.noted(id), app.noted(queued)), (1, 1));
}

#[test]
fn a_name_registered_for_another_function_means_that_one_from_the_next_job_on() {
    let (mut app, id) = running("reregistered", "");
    let queued = scheduled(&mut app, "held");
    app.sql("CREATE FUNCTION other(id uuid, payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(id)'");
    app.register("held", "other(uuid, jsonb)", "");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    run_now(&mut app, queued);
    assert_eq!(app.wait_final(queued).result, Some(json!(queued.to_string())));
}

#[test]
fn a_function_dropped_while_it_runs_ends_its_run_and_the_next_attempts_wait_for_its_return() {
    let (mut app, id) =
        running("dropped", "retry_delay => '100 ms', max_retry_delay => '100 ms', max_attempts => 1000");
    app.sql("DROP FUNCTION held(jsonb)");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    let next = app.submit("held", json!({}));
    assert_eq!(wait_setback(&mut app, next), "42883");
    assert_eq!(app.state(next), "retrying");
    app.sql("CREATE FUNCTION held(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(1)'");
    assert_eq!(app.wait_final(next).result, Some(json!(1)), "it is the name that is registered");
}

#[test]
fn a_function_that_comes_back_with_another_result_type_fails_with_an_error_that_says_so() {
    let (mut app, id) = running("retyped", "max_attempts => 1");
    app.sql("DROP FUNCTION held(jsonb)");
    app.sql("CREATE FUNCTION held(payload jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'text' $$");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    let job = result_of(&mut app, "held");
    assert_eq!(job.error("sqlstate"), Some(&json!("42804")), "{job:?}");
    assert!(job.error("hint").is_some(), "{job:?}");
    app.sql("DROP FUNCTION held(jsonb)");
    app.sql("CREATE FUNCTION held(payload jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT to_jsonb(n) FROM generate_series(1, 3) n'");
    let job = result_of(&mut app, "held");
    assert_eq!(job.error("sqlstate"), Some(&json!("42804")), "{job:?}");
}

#[test]
fn execute_revoked_lets_a_run_end_and_fails_the_next_until_it_is_granted() {
    let (mut app, id) =
        running("revoked", "retry_delay => '100 ms', max_retry_delay => '100 ms', max_attempts => 1000");
    let queued = scheduled(&mut app, "held");
    let mut admin = app.admin();
    admin.batch_execute(&format!("REVOKE EXECUTE ON FUNCTION held(jsonb) FROM PUBLIC, {}", ident(&app.role))).unwrap();
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    run_now(&mut app, queued);
    assert_eq!(wait_setback(&mut app, queued), "42501");
    assert_eq!(app.noted(queued), 0);
    admin.batch_execute(&format!("GRANT EXECUTE ON FUNCTION held(jsonb) TO {}", ident(&app.role))).unwrap();
    assert_eq!(app.wait_final(queued).result, Some(json!("old")));
    assert_eq!(app.noted(queued), 1);
    admin.batch_execute("DROP FUNCTION held(jsonb)").unwrap();
}

#[test]
fn a_handler_unregistered_while_it_runs_completes_its_job_and_leaves_the_next_unhandled() {
    let (mut app, id) = running("unregistered", "");
    assert!(app.one::<bool>("SELECT background_jobs.unregister_handler('held')", &[]));
    let next = app.submit("held", json!({}));
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    app.wait_state(next, "unhandled");
    app.handler("held", &held("'new'::text"));
    assert_eq!(app.wait_final(next).result, Some(json!("new")));
}

#[test]
fn a_function_altered_between_two_jobs_is_called_as_it_is_now() {
    let mut app = SHARED.app("altered");
    app.handler("altered", "RETURN to_jsonb(current_setting('work_mem'));");
    let usual: String = app.one("SELECT current_setting('work_mem')", &[]);
    let create = |language: &str, body: &str| {
        format!("CREATE OR REPLACE FUNCTION altered(payload jsonb) RETURNS jsonb LANGUAGE {language} AS $$ {body} $$")
    };
    for (change, expected) in [
        ("SELECT", json!(usual)),
        ("ALTER FUNCTION altered(jsonb) SET work_mem = '3MB'", json!("3MB")),
        ("ALTER FUNCTION altered(jsonb) SET work_mem = '5MB'", json!("5MB")),
        ("ALTER FUNCTION altered(jsonb) RESET work_mem", json!(usual)),
        (&create("sql", "SELECT '\"in SQL\"'::jsonb"), json!("in SQL")),
        (&create("sql", "SELECT NULL::jsonb"), json!(null)),
        (&create("plpgsql", "BEGIN RETURN '[]'; END"), json!([])),
        ("ALTER FUNCTION altered(jsonb) STRICT SECURITY DEFINER SET work_mem = '7MB'", json!([])),
        (&create("plpgsql", "BEGIN RETURN to_jsonb(current_setting('work_mem')); END"), json!(usual)),
    ] {
        app.sql(change);
        let job = result_of(&mut app, "altered");
        assert_eq!(job.result.unwrap_or(json!(null)), expected, "{change}");
    }
}

/// What a function of the language SQL keeps between its calls belongs to a subtransaction, and a call that fails leaves it as it may be.
#[test]
fn jobs_in_sql_that_share_a_batch_with_some_that_fail_have_their_own_results() {
    let mut app = SHARED.app("in_sql");
    app.sql(
        "CREATE FUNCTION in_sql(id uuid, payload jsonb) RETURNS jsonb LANGUAGE sql AS $$
        SELECT to_jsonb(720 / (payload ->> 'n')::int) FROM generate_series(1, 2) ORDER BY 1 LIMIT 1 $$",
    );
    app.register("in_sql", "in_sql(uuid, jsonb)", "max_attempts => 1");
    app.sql(
        "INSERT INTO background_jobs (payload)
        SELECT jsonb_build_object('handler', 'in_sql', 'n', n % 7) FROM generate_series(1, 700) n",
    );
    app.wait_drained(Duration::from_secs(60));
    let outcome =
        "SELECT (payload ->> 'n')::int, count(*), min(COALESCE(result #>> '{error,sqlstate}', result #>> '{}')),
               max(COALESCE(result #>> '{error,sqlstate}', result #>> '{}'))
          FROM background_jobs WHERE completed GROUP BY 1 ORDER BY 1";
    for row in app.rows(outcome, &[]) {
        let n: i32 = row.get(0);
        let expected = if n == 0 { "22012".to_owned() } else { (720 / n).to_string() };
        assert_eq!((row.get::<_, i64>(1), row.get(2), row.get(3)), (100, expected.clone(), expected), "{n}");
    }
}

#[test]
fn calls_of_handlers_are_counted_by_the_server() {
    let mut app = SHARED.app("counted");
    app.handler_with("counted", "RETURN NULL;", "");
    app.admin().batch_execute(&format!("ALTER ROLE {} SET track_functions = 'all'", ident(&app.role))).unwrap();
    app.end_executors();
    result_of(&mut app, "counted");
    app.wait_true("SELECT count(*) > 0 FROM pg_stat_user_functions WHERE funcname = 'counted' AND calls > 0");
}
