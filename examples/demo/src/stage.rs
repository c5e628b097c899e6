//! The server, the role, the table, the handlers and the jobs of the demo.

use server_tests::postgres::Client;
use server_tests::{Cluster, Uuid};

pub const DATABASE: &str = "demo";
pub const ROLE: &str = "app";

/// The handler whose job is cancelled while it runs.
pub const CANCELLED: &str = "report";

pub const HINTS: &str = r#"
You are the role "app", the owner of the table background_jobs. Try:

    INSERT INTO background_jobs (payload) VALUES ('{"handler": "resize"}');
    SELECT id, completed, cancelled, progress, result FROM background_jobs;
    UPDATE background_jobs SET cancelled = true WHERE NOT completed;
    SELECT background_jobs.wait(background_jobs.enqueue('sum', '{"upto": 100}'));
    TABLE background_jobs.queue;   TABLE background_jobs.workers;   TABLE background_jobs.attempts;

Handlers: resize, call_api, import, report, sum. Write your own, and register it:

    CREATE FUNCTION hello(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb('hello'::text) $$;
    SELECT background_jobs.register_handler('hello', 'hello(jsonb)');

\q ends the prompt and the server with it.
"#;

/// Name, what `register_handler` is told beside it, and the body of the PL/pgSQL function.
const HANDLERS: &[(&str, &str, &str)] = &[
    (
        "resize",
        "",
        "FOR step IN 1..40 LOOP
        PERFORM background_jobs.set_progress(step / 41.0::real);
        PERFORM pg_sleep(0.1);   -- stands for work
    END LOOP;
    RETURN jsonb_build_object('thumbnails', 40);",
    ),
    (
        "call_api",
        "retry_delay => '900 ms'",
        "IF (SELECT attempt FROM background_jobs.current_job()) < 3 THEN
        RAISE EXCEPTION 'service unavailable';
    END IF;
    RETURN jsonb_build_object('status', 200);",
    ),
    (
        "import",
        "max_attempts => 2, retry_delay => '1500 ms'",
        "PERFORM background_jobs.set_progress(0.6);
    RETURN to_jsonb((payload ->> 'amount')::int);",
    ),
    (
        CANCELLED,
        "",
        "FOR step IN 1..99 LOOP
        PERFORM background_jobs.set_progress(step / 100.0::real);
        PERFORM pg_sleep(0.1);
    END LOOP;
    RETURN NULL;",
    ),
    (
        "sum",
        "",
        "RETURN jsonb_build_object('sum', (SELECT sum(n) FROM generate_series(1, (payload ->> 'upto')::int) n));",
    ),
];

const JOBS: &[(&str, &str)] = &[
    ("resize", r#"{"handler": "resize", "image": 42}"#),
    ("call_api", r#"{"handler": "call_api"}"#),
    ("import", r#"{"handler": "import", "amount": "a lot"}"#),
    (CANCELLED, r#"{"handler": "report", "year": 2025}"#),
    ("sum", r#"{"handler": "sum", "upto": 100}"#),
];

pub fn start() -> Cluster {
    println!("Starting a PostgreSQL with shared_preload_libraries = 'background_jobs' ...");
    Cluster::builder().conf("background_jobs.progress_flush_interval", "100ms").start()
}

/// Runs statements, and shows them if asked, so that the demo can be done again by hand.
fn run(client: &mut Client, echo: bool, statements: &str) {
    if echo {
        println!("{statements}");
    }
    client.batch_execute(statements).unwrap_or_else(|e| panic!("{statements}: {e:?}"));
}

/// As the superuser: a database with the extension, an ordinary role. As that role: its table and its handlers.
pub fn set_up(cluster: &Cluster, echo: bool) {
    cluster.create_role(ROLE);
    run(&mut cluster.admin("postgres"), false, &format!("CREATE DATABASE {DATABASE}"));
    let mut admin = cluster.admin(DATABASE);
    if echo {
        println!("\n-- once, by a superuser:");
    }
    run(&mut admin, echo, "CREATE EXTENSION background_jobs;");
    run(&mut admin, echo, &format!("GRANT CREATE ON SCHEMA public TO {ROLE};"));
    if echo {
        println!("\n-- as the role \"{ROLE}\":");
    }
    let mut client = cluster.connect(DATABASE, ROLE);
    run(&mut client, echo, "SELECT background_jobs.create_table();");
    for (n, (name, options, body)) in HANDLERS.iter().enumerate() {
        let comma = if options.is_empty() { "" } else { ", " };
        let create = format!(
            "CREATE FUNCTION {name}(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$\nBEGIN\n    {body}\nEND $$;"
        );
        let register = format!("SELECT background_jobs.register_handler('{name}', '{name}(jsonb)'{comma}{options});");
        // One is enough to see how it is done.
        run(&mut client, echo && n == 0, &create);
        run(&mut client, echo, &register);
    }
}

/// Submits the jobs as any client does, each with an INSERT of its own.
pub fn submit(client: &mut Client) -> Vec<(&'static str, Uuid)> {
    let insert = "INSERT INTO background_jobs (payload) VALUES ($1::text::jsonb) RETURNING id";
    let jobs = JOBS.iter().map(|(handler, payload)| {
        println!("INSERT INTO background_jobs (payload) VALUES ('{payload}');");
        let row = client.query_one(insert, &[payload]);
        (*handler, row.unwrap_or_else(|e| panic!("{insert}: {e:?}")).get(0))
    });
    jobs.collect()
}
