//! Handlers, roles and job tables that change while jobs wait or run. Every test's name is the expected outcome.

use server_tests::{App, Cluster, Group, Job, Uuid, ident, json};

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "200ms"));

const LATER: &str = "now() + interval '1 h'";

/// Says where it is, waits for the gate `go`, and returns `value`, an SQL expression.
fn held(value: &str) -> String {
    format!("PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb({value});")
}

/// An application with one job of the handler `held` in the middle of its run.
fn running(name: &str, options: &str) -> (App<'static>, Uuid) {
    let mut app = SHARED.app(name);
    app.handler_with("held", &held("'old'::text"), options);
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    (app, id)
}

fn scheduled(app: &mut App, handler: &str) -> Uuid {
    app.one(&format!("SELECT background_jobs.enqueue($1, run_at => {LATER})"), &[&handler])
}

fn run_now(app: &mut App, id: Uuid) {
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
}

/// The SQLSTATEs of the attempts that did not succeed.
fn setbacks(app: &mut App, id: Uuid) -> Vec<String> {
    let query = "SELECT error ->> 'sqlstate' FROM background_jobs.attempts WHERE job_id = $1 ORDER BY attempt";
    app.rows(query, &[&id]).iter().map(|row| row.get(0)).collect()
}

fn wait_setback(app: &mut App, id: Uuid) -> String {
    let cluster = app.cluster;
    cluster.wait_until("an attempt to fail", || setbacks(app, id).pop().ok_or_else(|| "none".to_owned()))
}

fn result_of(app: &mut App, handler: &str) -> Job {
    let id = app.submit(handler, json!({}));
    app.wait_final(id)
}

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

#[test]
fn a_table_renamed_and_moved_while_a_job_runs_gets_its_result_though_another_took_its_name() {
    let (mut app, id) = running("renamed", "");
    let queued = scheduled(&mut app, "held");
    let owner = ident(&app.role);
    app.admin().batch_execute(&format!("CREATE SCHEMA archive AUTHORIZATION {owner}")).unwrap();
    app.sql(
        "ALTER TABLE background_jobs SET SCHEMA archive;
         ALTER TABLE archive.background_jobs RENAME TO jobs;
         SELECT background_jobs.create_table();
         INSERT INTO background_jobs (id, payload) SELECT id, '{\"handler\": \"nobody\"}' FROM archive.jobs;",
    );
    app.open_gate("go");
    run_now_in(&mut app, queued, "archive.jobs");
    app.wait_true("SELECT bool_and(completed AND result = '\"old\"') FROM archive.jobs");
    assert_eq!((app.noted(id), app.noted(queued)), (1, 1));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE completed OR progress <> 0", &[]), 0);
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

fn run_now_in(app: &mut App, id: Uuid, table: &str) {
    assert!(app.one::<bool>(&format!("SELECT background_jobs.run_now($1, '{table}')"), &[&id]));
}

#[test]
fn a_table_dropped_and_created_anew_runs_nothing_of_the_old_one() {
    let (mut app, id) = running("recreated", "");
    let queued = scheduled(&mut app, "held");
    app.sql("DROP TABLE background_jobs; SELECT background_jobs.create_table()");
    app.wait_left(1);
    app.open_gate("go");
    app.handler("held", &held("'new'::text"));
    let next = app.submit("held", json!({}));
    assert_eq!(app.wait_final(next).result, Some(json!("new")));
    assert_eq!((app.noted(id), app.noted(queued), app.noted(next)), (0, 0, 1));
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
}

#[test]
fn a_truncate_that_is_rolled_back_disturbs_no_run() {
    let (mut app, id) = running("truncated", "");
    app.sql("BEGIN; TRUNCATE background_jobs; ROLLBACK");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(setbacks(&mut app, id).len(), 0);
}

#[test]
fn a_column_dropped_while_a_job_runs_keeps_the_job_until_the_table_is_mended() {
    let (mut app, id) = running("column", "retry_delay => '100 ms', max_attempts => 1000");
    app.sql("ALTER TABLE background_jobs RENAME result TO outcome");
    app.open_gate("go");
    assert_eq!(wait_setback(&mut app, id), "55000");
    assert_eq!(app.noted(id), 0, "no effects without a result");
    app.sql("ALTER TABLE background_jobs RENAME outcome TO result");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn a_column_whose_type_changes_while_jobs_wait_keeps_them_until_it_is_what_it_was() {
    let mut app = SHARED.app("retyped_column");
    app.handler("held", &held("'old'::text"));
    app.open_gate("go");
    let id = scheduled(&mut app, "held");
    app.sql("ALTER TABLE background_jobs ALTER result TYPE text");
    run_now(&mut app, id);
    // Another table's jobs run meanwhile; several of them, so that this one has had its turn.
    app.sql("SELECT background_jobs.create_table('other')");
    app.sql("SELECT background_jobs.register_handler('held', 'held(jsonb)', 'other')");
    for _ in 0..3 {
        let other: Uuid = app.one("SELECT background_jobs.enqueue('held', job_table => 'other')", &[]);
        app.one::<serde_json::Value>("SELECT background_jobs.wait($1, job_table => 'other')", &[&other]);
    }
    assert_eq!(app.noted(id), 0);
    app.sql("ALTER TABLE background_jobs ALTER result TYPE jsonb USING result::jsonb");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn columns_added_and_constraints_that_refuse_the_result_fail_the_job_and_not_its_row() {
    let (mut app, id) = running("constraint", "max_attempts => 1");
    app.sql(
        "ALTER TABLE background_jobs ADD tenant int NOT NULL DEFAULT 7, ADD note text,
            ADD CHECK (result IS NULL OR jsonb_typeof(result) = 'object')",
    );
    app.open_gate("go");
    let job = app.wait_final(id);
    assert_eq!(job.error("sqlstate"), Some(&json!("23514")), "{job:?}");
    assert_eq!(app.noted(id), 0);
    assert_eq!(app.one::<i32>("SELECT tenant FROM background_jobs", &[]), 7);
}

#[test]
fn a_used_column_that_is_dropped_keeps_the_jobs_until_attach_is_told() {
    let mut app = SHARED.app_without_table("used_column");
    app.sql("SELECT background_jobs.create_table('background_jobs', '{finished_at}')");
    app.handler("held", &held("'old'::text"));
    app.open_gate("go");
    let id = scheduled(&mut app, "held");
    app.sql("ALTER TABLE background_jobs DROP COLUMN finished_at");
    run_now(&mut app, id);
    app.sql("SELECT background_jobs.attach('background_jobs')");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn detach_stops_a_run_and_attach_runs_it_again_once() {
    let (mut app, id) = running("detached", "");
    app.sql("SELECT background_jobs.detach('background_jobs')");
    app.wait_left(1);
    assert_eq!(app.noted(id), 0);
    assert!(!app.row(id).is_final());
    app.open_gate("go");
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 1);
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn detach_and_attach_in_one_transaction_while_a_job_runs_run_it_once() {
    let (mut app, id) = running("reattached", "");
    app.sql("BEGIN; SELECT background_jobs.detach('background_jobs'); SELECT background_jobs.attach('background_jobs'); COMMIT");
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    assert_eq!(app.noted(id), 1);
}

/// A row that its owner does not see any more (row-level security without exception) is not lost.
#[test]
fn a_row_hidden_from_its_owner_waits_until_it_is_seen_again() {
    let mut app = SHARED.app("hidden");
    app.handler("held", &held("'old'::text"));
    app.open_gate("go");
    let id = scheduled(&mut app, "held");
    app.sql(
        "CREATE POLICY visible ON background_jobs USING (payload ? 'seen');
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;",
    );
    run_now(&mut app, id);
    // A job that came later tells that this one has had its turn.
    let seen = app.submit("held", json!({"seen": true}));
    assert!(app.wait_final(seen).completed);
    let queued: i64 = app.one("SELECT count(*) FROM background_jobs.queue WHERE job_id = $1", &[&id]);
    assert_eq!(queued, 1, "a row that is not seen is not finished");
    app.sql("ALTER TABLE background_jobs NO FORCE ROW LEVEL SECURITY");
    assert_eq!(app.wait_final(id).result, Some(json!("old")));
    assert_eq!(app.noted(id), 1);
}
