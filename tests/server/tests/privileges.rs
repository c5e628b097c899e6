//! Who may call what, and what an ordinary role sees of other people's jobs.

use postgres::Client;
use server_tests::{App, Cluster, Group, Uuid, ident, json};

static SHARED: Group = Group::new(Cluster::builder);

/// A table with one finished job, one queued far ahead, a registered handler; and a stranger's session.
struct Scene {
    app: App<'static>,
    stranger: String,
    client: Client,
    finished: Uuid,
    queued: Uuid,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let mut app = SHARED.app(name);
        app.handler_with("noted", "PERFORM note(); RETURN to_jsonb(session_user::text);", "max_attempts => 1");
        app.handler_with("fails", "RAISE 'secret trouble';", "max_attempts => 1");
        let finished = app.submit("fails", json!({}));
        app.wait_final(finished);
        let queued: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
        let stranger = format!("stranger_{}", app.database);
        app.cluster.create_role(&stranger);
        let client = app.cluster.connect(&app.database, &stranger);
        Scene { app, stranger, client, finished, queued }
    }

    fn code(&mut self, call: &str) -> String {
        match self.client.batch_execute(&format!("SELECT * FROM background_jobs.{call}")) {
            Ok(()) => "none".to_owned(),
            Err(error) => server_tests::sqlstate(&error),
        }
    }

    fn grant(&mut self, privilege: &str) {
        let statement = format!("GRANT {privilege} ON background_jobs TO {}", ident(&self.stranger));
        self.app.sql(&statement);
    }

    fn calls(&self) -> [(&'static str, String); 10] {
        let (finished, queued) = (self.finished, self.queued);
        [
            ("attach", "attach('background_jobs')".to_owned()),
            ("detach", "detach('background_jobs')".to_owned()),
            ("register", "register_handler('mine', 'mine(jsonb)')".to_owned()),
            ("unregister", "unregister_handler('noted')".to_owned()),
            ("retry", format!("retry('{finished}')")),
            ("run_now", format!("run_now('{queued}')")),
            ("enqueue", "enqueue('noted')".to_owned()),
            ("cancel", format!("cancel('{queued}')")),
            ("wait", format!("wait('{queued}', '10 ms')")),
            ("status", format!("status('{queued}')")),
        ]
    }

    /// The calls that are refused for want of a privilege.
    fn refused(&mut self) -> Vec<&'static str> {
        let calls = self.calls();
        calls.into_iter().filter(|(_, call)| self.code(call) == "42501").map(|(name, _)| name).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let drop = format!("DROP OWNED BY {0}; DROP ROLE {0}", ident(&self.stranger));
        let outcome = self.app.admin().batch_execute(&drop);
        if let (Err(error), false) = (outcome, std::thread::panicking()) {
            panic!("{drop}: {error:?}");
        }
    }
}

#[test]
fn every_function_checks_its_caller() {
    let mut scene = Scene::new("checks");
    let create = format!("GRANT CREATE ON SCHEMA public TO {}", ident(&scene.stranger));
    scene.app.admin().batch_execute(&create).unwrap();
    let function = "CREATE FUNCTION mine(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT p'";
    scene.client.batch_execute(function).unwrap();
    let owner_only = ["attach", "detach", "register", "unregister", "retry", "run_now"];
    let all: Vec<&str> = owner_only.into_iter().chain(["enqueue", "cancel", "wait", "status"]).collect();
    assert_eq!(scene.refused(), all, "with nothing granted");

    scene.grant("SELECT");
    assert_eq!(scene.refused(), [&owner_only[..], &["enqueue", "cancel"]].concat(), "SELECT is for wait and status");
    scene.grant("UPDATE (cancelled)");
    assert_eq!(scene.refused(), [&owner_only[..], &["enqueue"]].concat(), "UPDATE (cancelled) is for cancel");
    scene.grant("INSERT");
    assert_eq!(scene.refused(), owner_only, "INSERT is for enqueue");
    scene.grant("ALL");
    assert_eq!(scene.refused(), owner_only, "the rest is the owner's");
}

#[test]
fn insert_is_the_right_to_run_the_registered_handlers() {
    let mut scene = Scene::new("insert");
    scene.grant("INSERT");
    let insert = "INSERT INTO background_jobs (id, payload) VALUES ($1, $2)";
    let (good, bad) = (Uuid::new_v4(), Uuid::new_v4());
    scene.client.execute(insert, &[&good, &json!({"handler": "noted"})]).unwrap();
    scene.client.execute(insert, &[&bad, &json!({"handler": "note"})]).unwrap();
    let job = scene.app.wait_final(good);
    assert_eq!(job.result, Some(json!(scene.app.role)), "it runs as the owner of the table");
    scene.app.wait_state(bad, "unhandled");
    assert!(scene.client.execute("SELECT FROM background_jobs", &[]).is_err(), "INSERT does not show anything");
}

#[test]
fn views_show_the_jobs_of_tables_that_the_reader_may_select_from() {
    let mut scene = Scene::new("views");
    scene.app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    scene.app.submit("held", json!({}));
    scene.app.wait_reached(1);
    let counts = "SELECT (SELECT count(*) FROM background_jobs.queue), (SELECT count(*) FROM background_jobs.handlers),
        (SELECT count(*) FROM background_jobs.attempts), (SELECT count(*) FROM background_jobs.workers WHERE job_id IS NOT NULL),
        (SELECT count(*) FROM background_jobs.handler_stats)";
    let count = |client: &mut Client| -> Vec<i64> {
        let row = client.query_one(counts, &[]).unwrap();
        (0..5).map(|n| row.get(n)).collect()
    };
    assert_eq!(count(&mut scene.client), [0, 0, 0, 0, 0]);
    assert_eq!(count(&mut scene.app.client)[..4], [2, 3, 1, 1]);
    scene.grant("SELECT");
    assert_eq!(count(&mut scene.client)[..4], [2, 3, 1, 1]);
    // A reader's own function gets no row before the filter has.
    let leak = "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
        $$ BEGIN RAISE EXCEPTION 'leaked %', $1; END $$";
    let revoke = format!("REVOKE SELECT ON background_jobs FROM {}", ident(&scene.stranger));
    scene.app.sql(&revoke);
    scene.client.batch_execute(leak).unwrap();
    for view in ["queue", "handlers", "attempts", "handler_stats"] {
        let peek = format!("SELECT count(*) FROM background_jobs.{view} v WHERE pg_temp.leak(v::text)");
        assert_eq!(scene.client.query_one(&peek, &[]).unwrap().get::<_, i64>(0), 0, "{view}");
    }
    scene.app.open_gate("go");
}

#[test]
fn nothing_of_the_extension_is_open_to_the_public() {
    let mut app = SHARED.app("public");
    let open: Vec<String> = app
        .rows(
            "SELECT c.oid::regclass::text || ' ' || p FROM pg_class c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
             WHERE c.relnamespace = 'background_jobs'::regnamespace AND c.relkind IN ('r', 'v', 'p', 'm')
               AND has_table_privilege(c.oid, p)
               AND NOT (c.relkind = 'v' AND p = 'SELECT' AND c.relname IN ('queue', 'workers', 'handlers', 'handler_stats', 'attempts'))
             UNION ALL
             SELECT oid::regclass::text FROM pg_class
             WHERE relnamespace = 'background_jobs'::regnamespace
               AND CASE WHEN relkind = 'S' THEN has_sequence_privilege(oid, 'USAGE, SELECT, UPDATE') END
             UNION ALL
             SELECT oid::regprocedure::text || ' is SECURITY DEFINER' FROM pg_proc
             WHERE pronamespace = 'background_jobs'::regnamespace AND prosecdef
             UNION ALL
             SELECT 'CREATE on the schema' WHERE has_schema_privilege('background_jobs', 'CREATE')",
            &[],
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(open.is_empty(), "{open:#?}");
}

#[test]
fn a_superusers_table_is_refused() {
    let app = SHARED.app_without_table("superuser");
    let mut admin = app.admin();
    let table = server_tests::app::RECIPE_TABLE.replace("background_jobs", "admin_jobs");
    admin.batch_execute(&table).unwrap();
    for call in ["attach('admin_jobs')", "create_table('more_admin_jobs')"] {
        let error = admin.batch_execute(&format!("SELECT background_jobs.{call}")).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert!(error.hint().unwrap_or("").contains("background_jobs.allow_superuser_jobs"), "{error:?}");
        assert!(error.code().code() != "XX000", "{error:?}");
    }
}

/// The check at attach() would not help alone: the table, or the role, can change afterwards.
#[test]
fn a_table_that_comes_to_belong_to_a_superuser_runs_nothing() {
    let mut app = SHARED.app("becomes");
    app.handler("who", "RETURN to_jsonb(current_setting('is_superuser'));");
    let id = app.submit("who", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!("off")));
    let mut admin = app.admin();
    let role = ident(&app.role);
    admin.batch_execute(&format!("ALTER ROLE {role} SUPERUSER")).unwrap();
    let id = app.submit("who", json!({}));
    let (cluster, database) = (app.cluster, app.database.clone());
    cluster.wait_until("the log to say why nothing runs", || {
        let log = cluster.log();
        let said = log.lines().any(|line| line.contains(&database) && line.contains("superuser"));
        if said { Ok(()) } else { Err(server_tests::log::tail(&log, 3)) }
    });
    assert!(!app.row(id).is_final());
    assert_eq!(app.noted(id), 0);
    admin.batch_execute(&format!("ALTER ROLE {role} NOSUPERUSER")).unwrap();
    let result = app.wait_final(id).result;
    assert_eq!(result, Some(json!("off")), "the job was kept, and its session is no superuser's");
}

#[test]
fn the_owner_of_a_table_has_to_be_able_to_log_in() {
    let app = SHARED.app_without_table("nologin");
    let mut admin = app.admin();
    let role = ident(&format!("nologin_{}", app.database));
    admin
        .batch_execute(&format!(
            "CREATE ROLE {role} NOLOGIN; {}; ALTER TABLE background_jobs OWNER TO {role}; SET ROLE {role}",
            server_tests::app::RECIPE_TABLE
        ))
        .unwrap();
    let attached = admin.batch_execute("SELECT background_jobs.attach('background_jobs')");
    // PostgreSQL 17 opens background sessions of any role.
    if server_tests::major() > 16 {
        let job = "INSERT INTO background_jobs VALUES (gen_random_uuid(), now(), '{}', false, false, 0)";
        let handler = format!(
            "RESET ROLE; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role};
             CREATE FUNCTION who(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(session_user::text)';
             SELECT background_jobs.register_handler('default', 'who(jsonb)')"
        );
        attached.and_then(|()| admin.batch_execute(&format!("{handler}; {job}"))).unwrap();
        app.cluster.wait_until("the job to run as its owner", || {
            let query = "SELECT result = to_jsonb(current_user::text) IS TRUE FROM background_jobs";
            server_tests::wait::yes(admin.query_one(query, &[]).unwrap().get(0))
        });
        admin.batch_execute("DROP FUNCTION who").unwrap();
    } else {
        let error = attached.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "28000", "{error:?}");
        assert!(format!("{} {:?} {:?}", error.message(), error.detail(), error.hint()).contains("LOGIN"), "{error:?}");
    }
    let drop = format!("RESET ROLE; DROP TABLE background_jobs; DROP OWNED BY {role}; DROP ROLE {role}");
    admin.batch_execute(&drop).unwrap();
}

#[test]
fn a_handler_needs_the_owners_right_to_execute_it() {
    let mut scene = Scene::new("execute");
    let create = format!("GRANT CREATE ON SCHEMA public TO {}", ident(&scene.stranger));
    scene.app.admin().batch_execute(&create).unwrap();
    scene
        .client
        .batch_execute(
            "CREATE FUNCTION theirs(p jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(current_user::text) $$;
             CREATE FUNCTION definer(p jsonb) RETURNS jsonb LANGUAGE sql SECURITY DEFINER AS $$ SELECT to_jsonb(current_user::text) $$;",
        )
        .unwrap();
    scene.app.register("theirs", "theirs(jsonb)", "max_attempts => 1");
    scene.app.register("definer", "definer(jsonb)", "max_attempts => 1");
    let id = scene.app.submit("theirs", json!({}));
    assert_eq!(scene.app.wait_final(id).result, Some(json!(scene.app.role)));
    let id = scene.app.submit("definer", json!({}));
    assert_eq!(
        scene.app.wait_final(id).result,
        Some(json!(scene.stranger)),
        "another role by SECURITY DEFINER, as everywhere"
    );

    scene.client.batch_execute("REVOKE EXECUTE ON FUNCTION theirs(jsonb) FROM PUBLIC").unwrap();
    let id = scene.app.submit("theirs", json!({}));
    let job = scene.app.wait_final(id);
    assert_eq!(job.error("sqlstate"), Some(&json!("42501")), "{job:?}");
    scene.app.sqlstate("SELECT background_jobs.register_handler('again', 'theirs(jsonb)')");
}
