//! A role that nobody has granted anything: what it learns, what it changes, and whom it can hold up. What each function
//! asks of its caller, grant by grant, is in `privileges`.

use server_tests::tenant::{Tenant, owner, stranger, tenant};
use server_tests::{App, Builder, Cluster, Group, Uuid, ident, json};

fn keyed() -> Builder {
    Cluster::builder().conf("background_jobs.poll_interval", "300ms")
}

static SHARED: Group = Group::new(keyed);

const SECRET: &str = "hush-7731";

/// A table with a job in every phase, each with the secret in payload, error and key; and somebody who may see none of it.
struct Scene {
    app: App<'static>,
    stranger: Tenant,
    held: Uuid,
    queued: Uuid,
    failed: Uuid,
}

fn scene(name: &str) -> Scene {
    let mut app = SHARED.app(name);
    app.handler(
        "held",
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';",
    );
    app.handler_with("fails", &format!("RAISE '{SECRET}' USING DETAIL = payload::text;"), "max_attempts => 1");
    app.handler_with("retries", &format!("RAISE '{SECRET}';"), "retry_delay => '1 h', max_retry_delay => '1 h'");
    let failed = app.submit("fails", json!({"secret": SECRET}));
    app.wait_final(failed);
    let retrying = app.submit("retries", json!({"secret": SECRET}));
    app.wait_state(retrying, "retrying");
    let queued: Uuid = app.one(
        &format!("SELECT background_jobs.enqueue('held', '{{\"secret\": \"{SECRET}\"}}', job_key => '{SECRET}', run_at => now() + interval '1 h')"),
        &[],
    );
    let held = app.submit("held", json!({"secret": SECRET}));
    app.wait_reached(1);
    let stranger = stranger(&app, "stranger");
    Scene { app, stranger, held, queued, failed }
}

impl Scene {
    /// All is as it was: the held job ends well and the others are where they were.
    fn assert_untouched(&mut self) {
        self.app.open_gate("go");
        assert_eq!(self.app.wait_final(self.held).result, Some(json!(1)));
        assert_eq!(self.app.state(self.queued), "scheduled");
        assert_eq!(self.app.state(self.failed), "failed");
        let handlers: i64 = self.app.one("SELECT count(*) FROM background_jobs.handlers", &[]);
        assert_eq!(handlers, 3);
    }
}

#[test]
fn private_tables_are_closed_to_every_command() {
    let mut scene = scene("private");
    for table in ["queued_job", "handler", "attempt", "handler_stat"] {
        for command in [
            "SELECT * FROM {}",
            "SELECT job_table FROM {} LIMIT 0",
            "SELECT count(*) FROM {}",
            "TABLE {} FOR UPDATE",
            "INSERT INTO {} DEFAULT VALUES",
            "UPDATE {} SET job_table = job_table",
            "DELETE FROM {}",
            "TRUNCATE {}",
            "BEGIN; LOCK TABLE {}",
            "BEGIN; LOCK TABLE {} IN ACCESS SHARE MODE",
            "COPY {} TO STDOUT",
            "COPY {} (job_table) TO STDOUT",
            "ALTER TABLE {} ADD COLUMN n int",
            "CREATE INDEX ON {} (job_table)",
            "CREATE TRIGGER t AFTER INSERT ON {} FOR EACH ROW EXECUTE FUNCTION background_jobs.submit()",
            "CREATE RULE r AS ON INSERT TO {} DO INSTEAD NOTHING",
            "CREATE TABLE pg_temp.child () INHERITS ({})",
            "CREATE TABLE pg_temp.likewise (LIKE {}); SELECT background_jobs.attach('pg_temp.likewise')",
            "DROP TABLE {}",
            "ANALYZE {}; SELECT * FROM {}",
            "COMMENT ON TABLE {} IS 'mine'",
            "GRANT ALL ON {} TO PUBLIC; SELECT * FROM {}",
        ] {
            let command = command.replace("{}", &format!("background_jobs.{table}"));
            let code = scene.stranger.code(&command);
            assert!(["42501", "42804", "42P16", "22023"].contains(&code.as_str()), "{command}: {code}");
        }
    }
    assert_eq!(scene.stranger.one::<i64>("SELECT count(*) FROM pg_stats WHERE schemaname = 'background_jobs'", &[]), 0);
    scene.assert_untouched();
}

/// In every way in which a reader can get its own code to see a row before the view's filter has.
#[test]
fn no_function_of_a_reader_sees_a_row_that_the_views_hide() {
    let mut scene = scene("leaky");
    scene.stranger.sql(
        "CREATE FUNCTION pg_temp.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
            $$ BEGIN IF $1 IS NOT NULL THEN RAISE EXCEPTION 'leaked %', $1 USING ERRCODE = 'LEAKY'; END IF; RETURN true; END $$;
         CREATE FUNCTION pg_temp.leak_text(a text, b text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
            $$ BEGIN IF $1 IS NOT NULL THEN RAISE EXCEPTION 'leaked %', $1 USING ERRCODE = 'LEAKY'; END IF; RETURN true; END $$;
         CREATE OPERATOR pg_temp.~~~ (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.leak_text);
         CREATE FUNCTION pg_temp.state(int, text) RETURNS int LANGUAGE plpgsql AS
            $$ BEGIN IF $2 IS NOT NULL THEN RAISE EXCEPTION 'leaked %', $2 USING ERRCODE = 'LEAKY'; END IF; RETURN 1; END $$;
         CREATE AGGREGATE pg_temp.gather(text) (SFUNC = pg_temp.state, STYPE = int);
         SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off;",
    );
    let columns = [
        ("queue", "handler"),
        ("queue", "last_error::text"),
        ("queue", "job_id::text"),
        ("workers", "handler"),
        ("workers", "job_id::text"),
        ("handlers", "name"),
        ("handlers", "function"),
        ("handler_stats", "handler"),
        ("attempts", "error::text"),
        ("attempts", "handler"),
    ];
    for (view, column) in columns {
        for query in [
            format!("SELECT * FROM background_jobs.{view} WHERE {column} IS NOT NULL AND pg_temp.leak({column})"),
            format!("SELECT * FROM background_jobs.{view} WHERE {column} OPERATOR(pg_temp.~~~) 'x'"),
            format!(
                "SELECT * FROM background_jobs.{view} WHERE CASE WHEN {column} IS NULL THEN false ELSE pg_temp.leak({column}) END"
            ),
            format!(
                "SELECT * FROM background_jobs.{view} a JOIN background_jobs.{view} b ON pg_temp.leak(a.{column}) WHERE a.{column} IS NOT NULL"
            ),
            format!("SELECT pg_temp.gather({column}) FROM background_jobs.{view} HAVING count({column}) > 0"),
            format!("SELECT * FROM background_jobs.{view} WHERE ('0' || {column})::int > 0 AND {column} IS NOT NULL"),
            format!("SELECT * FROM background_jobs.{view} WHERE {column} IS NOT NULL ORDER BY pg_temp.leak({column})"),
            format!(
                "SELECT * FROM background_jobs.{view}, LATERAL (SELECT pg_temp.leak({column}) OFFSET 0) l WHERE {column} IS NOT NULL"
            ),
            format!(
                "SELECT * FROM background_jobs.{view} WHERE {column} IN (SELECT x FROM unnest(ARRAY['{SECRET}']) x WHERE pg_temp.leak(x || {column}))"
            ),
            format!(
                "SELECT 1 / (1 - count(*)) FROM background_jobs.{view} WHERE {column} IS NOT NULL HAVING count(*) > 0"
            ),
        ] {
            assert_eq!(scene.stranger.code(&query), "none", "{query}");
        }
    }
    scene.stranger.code("SELECT * FROM background_jobs.queue WHERE pg_temp.leak(job_table)");
    let state: i64 = scene.stranger.one(
        "SELECT count(*) FROM background_jobs.worker_state() WHERE job_id IS NOT NULL OR job_table IS NOT NULL
        OR handler IS NOT NULL OR progress IS NOT NULL",
        &[],
    );
    assert_eq!(state, 0, "worker_state() itself");
    let shown: i64 = scene.stranger.one(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%background job %' AND pid <> pg_backend_pid()",
        &[],
    );
    assert_eq!(shown, 0, "what an executor is at");
    scene.assert_untouched();
}

/// Row security is part of what SQL grants: a reader under a policy has no right to the errors of rows that it hides.
#[test]
fn the_views_tell_a_reader_under_a_policy_nothing_of_hidden_rows() {
    let mut scene = scene("policy");
    let reader = ident(&scene.stranger.role);
    scene.app.sql(&format!(
        "ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON background_jobs FOR SELECT TO {reader} USING (payload ->> 'owner' = current_user);
         GRANT SELECT ON background_jobs TO {reader};"
    ));
    assert_eq!(scene.stranger.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 0);
    let (held, failed) = (scene.held, scene.failed);
    for id in [held, failed] {
        let shown: i64 = scene.stranger.one("SELECT count(*) FROM background_jobs.status($1)", &[&id]);
        assert_eq!(shown, 0, "status() reads the row as its caller");
    }
    for (what, query) in [
        (
            "errors of finished jobs",
            format!("SELECT count(*) FROM background_jobs.attempts a WHERE a.error::text LIKE '%{SECRET}%'"),
        ),
        (
            "errors of waiting jobs",
            format!("SELECT count(*) FROM background_jobs.queue q WHERE q.last_error::text LIKE '%{SECRET}%'"),
        ),
        ("ids of waiting jobs", "SELECT count(*) FROM background_jobs.queue q WHERE job_id IS NOT NULL".to_owned()),
        ("ids of running jobs", "SELECT count(*) FROM background_jobs.workers w WHERE job_id IS NOT NULL".to_owned()),
    ] {
        let shown: i64 = scene.stranger.one(&query, &[]);
        assert_eq!(shown, 0, "{what}");
    }
    scene.assert_untouched();
}

/// `job_key_mode => 'keep'` answers with the job that has the key, and only to somebody who may submit.
#[test]
fn enqueue_with_a_key_tells_a_stranger_nothing() {
    let mut scene = scene("key");
    for mode in ["keep", "replace"] {
        let call = format!(
            "SELECT background_jobs.enqueue('held', job_key => '{SECRET}', job_key_mode => '{mode}', job_table => 'public.background_jobs')"
        );
        assert_eq!(scene.stranger.code(&call), "42501", "{mode}");
    }
    scene.assert_untouched();
}

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
    for round in 1..=8_i64 {
        app.wait_true(&format!("SELECT count(*) >= {round} * 4 FROM background_jobs WHERE completed"));
        for function in ["pg_cancel_backend", "pg_terminate_backend"] {
            // One may be gone already, or belong to no role for a moment while it starts; neither is of interest.
            let call = format!(
                "SELECT {function}(pid) FROM background_jobs.workers WHERE role IN ('executor', 'progress writer')
                AND database = current_database()"
            );
            let code = other.code(&call);
            assert!(code == "none" || code == "42501", "{code}");
        }
    }
    for id in ids {
        let job = app.wait_final(id);
        assert_eq!((job.result, job.progress), (Some(json!(true)), 1.0));
        assert_eq!(app.noted(id), 1, "exactly once (I3)");
    }
}
