//! Attaching and detaching tables, registering handlers for them, and what is refused.

use server_tests::{App, Cluster, Group, Uuid, json};

static SHARED: Group = Group::new(Cluster::builder);

fn noting(app: &mut App) {
    app.handler("noted", "PERFORM note(); RETURN payload;");
}

const LATER: &str = "now() + interval '1 h'";

#[test]
fn registration_checks_the_function_and_its_arguments() {
    let mut app = SHARED.app("registration");
    app.sql(
        "CREATE FUNCTION good(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT p';
         CREATE FUNCTION text_argument(p text) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(p)';
         CREATE FUNCTION text_result(p jsonb) RETURNS text LANGUAGE sql AS 'SELECT p::text';
         CREATE FUNCTION a_set(p jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT p';
         CREATE PROCEDURE steps(p jsonb) LANGUAGE plpgsql AS 'BEGIN COMMIT; END';",
    );
    for function in ["text_argument(text)", "text_result(jsonb)", "a_set(jsonb)", "steps(jsonb)"] {
        let call = format!("SELECT background_jobs.register_handler('x', '{function}')");
        let error = app.client.batch_execute(&call).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert!(error.code().code() != "XX000" && !error.message().is_empty(), "{function}: {error:?}");
    }
    for options in [
        "max_attempts => 0",
        "timeout => '-1 s'",
        "retry_delay => '-1 s'",
        "concurrency => 0",
        "synchronous_commit => 'maybe'",
    ] {
        app.sqlstate(&format!("SELECT background_jobs.register_handler('x', 'good(jsonb)', {options})"));
    }
    app.sqlstate(&format!("SELECT background_jobs.register_handler('{}', 'good(jsonb)')", "n".repeat(64)));
    let longest = "ä".repeat(31) + "\"";
    app.register(&longest, "good(jsonb)", "synchronous_commit => 'off', queue => 'q', priority => 3::smallint");
    let id = app.submit(&longest, json!({}));
    assert!(app.wait_final(id).completed);
    let row = app.rows("SELECT name, queue, priority::int, synchronous_commit FROM background_jobs.handlers", &[]);
    let shown: (String, String, i32, String) = (row[0].get(0), row[0].get(1), row[0].get(2), row[0].get(3));
    assert_eq!(shown, (longest, "q".to_owned(), 3, "off".to_owned()));
}

#[test]
fn detach_leaves_the_table_and_its_rows() {
    let mut app = SHARED.app("detach");
    noting(&mut app);
    app.sql(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"));
    app.sql("SELECT background_jobs.detach('background_jobs')");
    let left: bool = app.one(
        "SELECT (SELECT count(*) FROM background_jobs.queue) = 0 AND (SELECT count(*) FROM background_jobs) = 1
            AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'background_jobs'::regclass AND NOT tgisinternal)",
        &[],
    );
    assert!(left);
    let id = app.submit("noted", json!({}));
    assert!(!app.one::<bool>("SELECT EXISTS (SELECT FROM background_jobs.queue)", &[]));
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 2, "the backlog");
    noting(&mut app);
    assert!(app.wait_final(id).completed);
}

#[test]
fn attach_checks_the_table() {
    let mut app = SHARED.app_without_table("attach");
    let columns = "id uuid PRIMARY KEY, timestamp timestamptz, payload jsonb, completed boolean, cancelled boolean,
        progress real, result jsonb";
    let wrong = [
        columns.replace("payload jsonb", "payload json"),
        columns.replace("progress real", "progress numeric"),
        columns.replace(", result jsonb", ""),
        columns.replace(" PRIMARY KEY", ""),
        columns.replace("id uuid", "id text"),
    ];
    for (n, columns) in wrong.iter().enumerate() {
        app.sql(&format!("CREATE TABLE wrong{n} ({columns})"));
        let error = app.client.batch_execute(&format!("SELECT background_jobs.attach('wrong{n}')")).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert!(error.code().code() != "XX000", "{columns}: {error:?}");
    }
    app.sql(&format!(
        "CREATE TABLE good ({columns}, priority smallint, handler int); CREATE VIEW a_view AS SELECT * FROM good"
    ));
    app.sqlstate("SELECT background_jobs.attach('good', '{no_such_column}')");
    app.sqlstate("SELECT background_jobs.attach('good', '{handler}')");
    app.sqlstate("SELECT background_jobs.attach('a_view')");
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('good', '{priority}')", &[]), 0);
    let triggers: bool = app.one(
        "SELECT count(*) > 0 AND bool_and(tgenabled = 'A') FROM pg_trigger WHERE tgrelid = 'good'::regclass AND NOT tgisinternal",
        &[],
    );
    assert!(triggers, "they fire always");
    let owner = server_tests::ident(&app.role);
    app.admin().batch_execute(&format!("CREATE SCHEMA s AUTHORIZATION {owner}")).unwrap();
    app.sql("ALTER TABLE good RENAME TO better; ALTER TABLE better SET SCHEMA s");
    app.sql("CREATE FUNCTION f(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT payload'");
    app.sql("SELECT background_jobs.register_handler('f', 'f(jsonb)', 's.better')");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('f', job_table => 's.better')", &[]);
    let result: serde_json::Value = app.one("SELECT background_jobs.wait($1, job_table => 's.better')", &[&id]);
    assert_eq!(result, json!({"handler": "f"}), "the table may be renamed and moved");
}

/// What was committed after the transaction's snapshot was taken is seen all the same: rows and places in the queue.
#[test]
fn tables_are_made_and_attached_at_every_isolation_level() {
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut app = SHARED.app_without_table("isolated");
        app.sql(&format!(
            "BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class; SELECT background_jobs.create_table(); COMMIT"
        ));
        noting(&mut app);
        app.sql("SELECT background_jobs.detach('background_jobs')");
        let mut older = app.session();
        let snapshot = format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM background_jobs");
        let attach = "SELECT background_jobs.attach('background_jobs')";
        older.batch_execute(&snapshot).unwrap();
        let id = app.submit("noted", json!({}));
        assert_eq!(older.query_one(attach, &[]).unwrap().get::<_, i64>(0), 1, "the row that came meanwhile");
        older.batch_execute("COMMIT").unwrap();
        assert!(app.wait_final(id).completed);
        older.batch_execute(&snapshot).unwrap();
        app.sql(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"));
        assert_eq!(older.query_one(attach, &[]).unwrap().get::<_, i64>(0), 0, "it is queued");
        older.batch_execute("COMMIT").unwrap();
    }
}

#[test]
fn several_tables_of_one_owner() {
    let mut app = SHARED.app("tables");
    app.sql(
        "SELECT background_jobs.create_table('mail');
         CREATE FUNCTION f(p jsonb) RETURNS jsonb LANGUAGE sql AS
            'SELECT to_jsonb(job_table::text) FROM background_jobs.current_job()';
         SELECT background_jobs.register_handler('only_mail', 'f(jsonb)', 'mail');",
    );
    let here = app.submit("only_mail", json!({}));
    app.wait_state(here, "unhandled");
    let there: Uuid = app.one("SELECT background_jobs.enqueue('only_mail', job_table => 'mail')", &[]);
    let result: serde_json::Value = app.one("SELECT background_jobs.wait($1, job_table => 'mail')", &[&there]);
    assert_eq!(result, json!("mail"), "a handler is registered for one table");
    app.sql("SET search_path = pg_catalog");
    let error = app.client.batch_execute("SELECT background_jobs.enqueue('x')").unwrap_err();
    assert!(!error.as_db_error().unwrap().message().is_empty(), "no table of that name on the search_path");
}

#[test]
fn unregister_leaves_the_jobs_unhandled() {
    let mut app = SHARED.app("unregister");
    noting(&mut app);
    let id: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    assert!(app.one::<bool>("SELECT background_jobs.unregister_handler('noted')", &[]));
    assert!(!app.one::<bool>("SELECT background_jobs.unregister_handler('noted')", &[]));
    app.wait_state(id, "unhandled");
    app.execute("SELECT background_jobs.run_now($1)", &[&id]);
    app.wait_state(id, "unhandled");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.handlers", &[]), 0);
    noting(&mut app);
    assert!(app.wait_final(id).completed);
}

/// Their rows fire none of our triggers.
#[test]
fn attach_submits_no_rows_of_tables_that_inherit() {
    let mut app = SHARED.app("inherited");
    noting(&mut app);
    app.sql(
        "SELECT background_jobs.detach('background_jobs');
         CREATE TABLE child (LIKE background_jobs INCLUDING DEFAULTS) INHERITS (background_jobs);
         INSERT INTO child (id, payload) VALUES (gen_random_uuid(), '{\"handler\": \"noted\"}')",
    );
    let id = app.submit("noted", json!({}));
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 1);
    assert!(app.wait_final(id).completed);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
    assert!(!app.one::<bool>("SELECT completed FROM child", &[]));
}

/// A restore, or the owner, may have left the triggers disabled: what the table was attached with is known all the same.
#[test]
fn attach_again_keeps_the_columns_of_disabled_triggers() {
    let mut app = SHARED.app_without_table("disabled");
    app.sql("SELECT background_jobs.create_table('background_jobs', '{run_at}'); ALTER TABLE background_jobs DISABLE TRIGGER USER");
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 0);
    noting(&mut app);
    let id: Uuid = app.one(
        "INSERT INTO background_jobs (payload, run_at) VALUES ('{\"handler\": \"noted\"}', 'infinity') RETURNING id",
        &[],
    );
    assert_eq!(app.state(id), "scheduled");
}
