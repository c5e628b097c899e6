//! The functions, called for relations that are not the stranger's, or hung on a table that is.

use crate::{SHARED, scene};
use server_tests::tenant::tenant;
use server_tests::{Uuid, json};

/// Anything that has an OID, and numbers that are nobody's OID.
#[test]
fn every_function_answers_any_relation_with_an_ordinary_error() {
    let mut app = SHARED.app("relations");
    let mut tenant = tenant(&app, "curious");
    tenant.sql(
        "CREATE TABLE plain (id int); CREATE INDEX plain_index ON plain (id); CREATE VIEW a_view AS SELECT 1 AS id;
         CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS id; CREATE SEQUENCE a_sequence; CREATE TYPE a_type AS (id uuid);
         CREATE TABLE parent (id uuid, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
         CREATE TABLE a_partition PARTITION OF parent DEFAULT; CREATE TEMP TABLE a_temp (id uuid PRIMARY KEY);
         CREATE TABLE lookalike (id uuid PRIMARY KEY, timestamp timestamptz, payload jsonb, completed boolean, cancelled boolean,
            progress real, result text);
         CREATE FUNCTION fine(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT p';",
    );
    let id = Uuid::new_v4();
    let relations = [
        "plain",
        "plain_index",
        "a_view",
        "a_matview",
        "a_sequence",
        "a_type",
        "parent",
        "a_partition",
        "a_temp",
        "lookalike",
        "pg_catalog.pg_class",
        "pg_catalog.pg_authid",
        "pg_catalog.pg_class_oid_index",
        "pg_catalog.pg_stat_activity",
        "information_schema.tables",
        "pg_toast.pg_toast_1255",
        "public.background_jobs",
        "background_jobs.queued_job",
        "background_jobs.queue",
        "0",
        "1",
        "4294967295",
        "2200",
    ];
    for relation in relations {
        for call in [
            format!("attach('{relation}')"),
            format!(
                "attach('{relation}', columns => '{{handler,attempts}}', handler_key => '''; DROP TABLE plain; --')"
            ),
            format!("detach('{relation}')"),
            format!("register_handler('fine', 'fine(jsonb)', '{relation}')"),
            format!("unregister_handler('fine', '{relation}')"),
            format!("enqueue('fine', job_table => '{relation}')"),
            format!("enqueue('fine', job_table => '{relation}', job_key => 'k', job_key_mode => 'keep')"),
            format!("cancel('{id}', '{relation}')"),
            format!("retry('{id}', '{relation}')"),
            format!("run_now('{id}', '{relation}')"),
            format!("wait('{id}', '10 ms', '{relation}')"),
            format!("status('{id}', '{relation}')"),
        ] {
            let code = tenant.code(&format!("SELECT * FROM background_jobs.{call}"));
            // On tables of its own, whatever their shape, these find nothing to do.
            let nothing_to_do = ["detach", "unregister", "cancel", "run_now"].iter().any(|name| call.starts_with(name));
            assert!(code != "XX000" && (code != "none" || nothing_to_do), "{call}: {code}");
        }
    }
    assert_eq!(tenant.code("SELECT count(*) FROM plain"), "none");
    for call in [
        "attach(NULL)",
        "detach(NULL)",
        "create_table(NULL)",
        "create_table('')",
        "create_table('a.b.c.d')",
        "create_table('pg_catalog.x')",
        "create_table('x', NULL)",
        "create_table('y', '{nothing}')",
        "register_handler(NULL, NULL)",
        "unregister_handler(NULL)",
        "enqueue(NULL)",
        "cancel(NULL)",
        "retry(NULL)",
        "run_now(NULL)",
        "wait(NULL)",
        "wait(gen_random_uuid(), NULL)",
        "status(NULL)",
        "set_progress(NULL::real)",
        "current_job()",
        "check_cancelled()",
        "announce()",
        "submit()",
        "withdraw()",
    ] {
        let code = tenant.code(&format!("SELECT * FROM background_jobs.{call}"));
        assert!(code != "XX000" && (code != "none" || call.starts_with("create_table('x'")), "{call}: {code}");
    }
    let job = app.submit("nobody", json!({}));
    app.wait_state(job, "unhandled");
}

/// The trigger functions can be hung on any table of one's own. They touch the queue of that table alone.
#[test]
fn the_trigger_functions_on_a_strangers_own_table_reach_nobody_elses_jobs() {
    let mut scene = scene("triggers");
    let mut tenant = tenant(&scene.app, "planter");
    let (queued, held) = (scene.queued, scene.held);
    tenant.sql(
        "CREATE TABLE shaped (id uuid, timestamp timestamptz DEFAULT now(), payload jsonb DEFAULT '{\"handler\": \"held\"}', completed boolean DEFAULT false,
            cancelled boolean DEFAULT false, progress real DEFAULT 0, result jsonb, job_key text, run_at timestamptz);
         CREATE TABLE bare (n int); CREATE TABLE odd (id text, payload text, completed int, cancelled int);
         CREATE TABLE top (LIKE shaped) PARTITION BY LIST (cancelled); CREATE TABLE part PARTITION OF top DEFAULT;
         CREATE VIEW seen AS SELECT * FROM shaped;",
    );
    for (n, table) in ["shaped", "bare", "odd", "top", "part"].into_iter().enumerate() {
        for function in ["submit", "withdraw"] {
            for arguments in [
                "",
                "'handler'",
                "'handler', 'job_key,run_at,nonsense,,'",
                "'x', 'handler,queue,priority,run_at,job_key,max_attempts', 'y', 'z'",
            ] {
                for (event, level) in [
                    ("INSERT", "ROW"),
                    ("UPDATE", "ROW"),
                    ("DELETE", "ROW"),
                    ("INSERT OR UPDATE OR DELETE", "STATEMENT"),
                    ("TRUNCATE", "STATEMENT"),
                ] {
                    for timing in ["AFTER", "BEFORE"] {
                        tenant.sql(&format!(
                            "CREATE TRIGGER planted {timing} {event} ON {table} FOR EACH {level} EXECUTE FUNCTION background_jobs.{function}({arguments})"
                        ));
                        let insert = match n {
                            0 | 3 | 4 => format!(
                                "INSERT INTO {table} (id, payload, completed, cancelled) VALUES ('{queued}', '{{\"handler\": \"held\"}}', false, false), ('{held}', NULL, false, false)"
                            ),
                            1 => "INSERT INTO bare VALUES (1)".to_owned(),
                            _ => format!("INSERT INTO odd VALUES ('{queued}', 'x', 0, 0)"),
                        };
                        for statement in [
                            insert,
                            format!(
                                "UPDATE {table} SET {} WHERE true",
                                if n == 1 { "n = 2" } else { "completed = completed" }
                            ),
                            format!("DELETE FROM {table}"),
                            format!("TRUNCATE {table}"),
                        ] {
                            let code = tenant.code(&statement);
                            assert!(
                                ["none", "39P01", "42703", "23505"].contains(&code.as_str()),
                                "{function}({arguments}) {timing} {event} {level} on {table}: {statement}: {code}"
                            );
                        }
                        tenant.sql(&format!("DROP TRIGGER planted ON {table}"));
                    }
                }
            }
        }
    }
    let code = tenant.code(
        "CREATE TRIGGER planted INSTEAD OF INSERT ON seen FOR EACH ROW EXECUTE FUNCTION background_jobs.submit();
         INSERT INTO seen (id) VALUES (gen_random_uuid())",
    );
    assert_eq!(code, "39P01");
    assert_eq!(tenant.one::<i64>("SELECT count(*) FROM background_jobs.queue q WHERE q.job_id IS NULL", &[]), 0);
    scene.assert_untouched();
}
