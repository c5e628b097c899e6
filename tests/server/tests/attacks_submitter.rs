//! A hostile submitter: a role with INSERT on a job table, and in some tests UPDATE (cancelled) or TRIGGER. It can have
//! its jobs fail and its rows ignored; it cannot run what is not registered, nor stop, fill or mislead what others see.

use server_tests::tenant::{Tenant, owner, stranger};
use server_tests::{App, Cluster, Group, Uuid, Value, ident, json, lit};
use std::time::{Duration, Instant};

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "300ms"));

/// A role that may insert into the application's table.
fn submitter(app: &mut App) -> Tenant {
    let submitter = stranger(app, "submitter");
    app.sql(&format!("GRANT INSERT ON background_jobs TO {}", ident(&submitter.role)));
    submitter
}

fn submit(by: &mut Tenant, payload: &Value) -> Uuid {
    let id = Uuid::new_v4();
    let insert = "INSERT INTO background_jobs (id, payload) VALUES ($1, $2)";
    by.client.execute(insert, &[&id, payload]).unwrap_or_else(|e| panic!("{e:?}"));
    id
}

/// Another owner of the same database has its job run, now.
fn assert_others_run(app: &App, victim: &mut Tenant) {
    let id = victim.submit("fine");
    assert_eq!(victim.result_within(app.cluster, Duration::from_secs(10), id), Ok(Some(json!(1))));
}

#[test]
fn names_of_handlers_are_compared_byte_for_byte_whatever_they_hold() {
    let mut app = SHARED.app("names");
    let mut submitter = submitter(&mut app);
    app.sql("CREATE FUNCTION who(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(handler) FROM background_jobs.current_job()'");
    let sixty_three = "ä".repeat(31) + "x";
    let names = [
        sixty_three.as_str(),
        "a\"b'c;--\\",
        "'); DROP TABLE background_jobs; --",
        "\u{1f418}漢字",
        " leading and trailing ",
        "new\nline\ttab",
        "\u{1}\u{7f}\u{200b}\u{202e}",
        "%s%n$1{}$$",
        "Default",
        "NULL",
    ];
    for name in names {
        app.execute("SELECT background_jobs.register_handler($1, 'who(jsonb)')", &[&name]);
    }
    for name in names {
        let id = submit(&mut submitter, &json!({"handler": name}));
        assert_eq!(app.wait_final(id).result, Some(json!(name)));
    }
    // One byte more, one character else, another case or normal form, another JSON type: all of them another name.
    let mut waiting = Vec::new();
    for other in [
        json!(sixty_three.clone() + "x"),
        json!(sixty_three.clone() + "..."),
        json!("ä".repeat(32)),
        json!(sixty_three.replace('x', "y")),
        json!("a\u{308}".repeat(20)),
        json!("default "),
        json!("DEFAULT"),
        json!(""),
        json!(names),
        json!({"name": "Default"}),
        json!(7),
        json!(true),
    ] {
        waiting.push(submit(&mut submitter, &json!({"handler": other})));
    }
    for id in waiting {
        app.wait_state(id, "unhandled");
    }
    app.execute("SELECT background_jobs.register_handler('default', 'who(jsonb)')", &[]);
    for payload in
        [json!({"handler": null}), json!({}), json!([]), json!("Default"), json!(null), json!({"Handler": "NULL"})]
    {
        let id = submit(&mut submitter, &payload);
        assert_eq!(app.wait_final(id).result, Some(json!("default")), "{payload}");
    }
}

#[test]
fn a_huge_name_is_kept_out_of_the_queue_and_the_log() {
    let mut app = SHARED.app("huge");
    let mut submitter = submitter(&mut app);
    let before = app.cluster.log().len();
    let mut last = Uuid::nil();
    for size in [64, 4_000, 1_000_000, 20_000_000] {
        last = submit(&mut submitter, &json!({"handler": "n".repeat(size)}));
        app.wait_state(last, "unhandled");
    }
    assert!(app.one::<i32>("SELECT max(octet_length(handler)) FROM background_jobs.queue", &[]) < 100);
    let log = app.cluster.log();
    let written = &log[before..];
    assert!(!written.contains(&"n".repeat(200)), "no more of a name than can be registered, and a little");
    // Other tests write into the same log; ours are the lines that name this database.
    let own: usize = written.lines().filter(|line| line.contains(&app.database)).map(str::len).sum();
    assert!(own < 20_000, "{own}");
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&last]);
    assert_eq!(app.state(last), "cancelled");
}

/// The server compares: a client's JSON library would round or refuse what PostgreSQL keeps.
#[test]
fn payloads_at_the_limits_of_jsonb_reach_the_handler_and_come_back() {
    let mut app = SHARED.app("limits");
    let mut submitter = submitter(&mut app);
    app.handler("echo", "RETURN payload;");
    app.handler("length", "RETURN to_jsonb(octet_length(payload ->> 'x'));");
    // 10,000 levels are what jsonb takes; they cost a parser some stack.
    let shapes = [
        "('{\"handler\": \"echo\", \"deep\": ' || repeat('[', 9990) || repeat(']', 9990) || '}')::jsonb",
        "('{\"handler\": \"echo\", \"deep\": ' || repeat('{\"a\":', 5000) || '1' || repeat('}', 5000) || '}')::jsonb",
        "jsonb_build_object('handler', 'echo', 'n', '1e131071'::numeric, 'm', '-1e-16383'::numeric, 'p', '1e131071'::numeric - 1)",
        "'{\"handler\": \"echo\", \"z\": [0, -0, 0.0, 1E400, 1e-400, 123456789012345678901234567890]}'",
        "jsonb_build_object('handler', 'echo', repeat('k', 1000000), repeat('v', 1000000))",
        "jsonb_build_object('handler', 'echo', 'weird', e'\\x01\\x7f\\u200b\\u202e\\U0001F418\\uFFFF\"\\\\')",
        "(SELECT jsonb_object_agg('k' || n, n) || '{\"handler\": \"echo\"}' FROM generate_series(1, 50000) n)",
    ];
    for shape in shapes {
        submitter.sql(&format!("INSERT INTO background_jobs (payload) SELECT {shape}"));
    }
    app.wait_drained(Duration::from_secs(60));
    let same: i64 =
        app.one("SELECT count(*) FROM background_jobs WHERE payload::text = result::text AND completed", &[]);
    assert_eq!(same, shapes.len() as i64);
    let begin = Instant::now();
    submitter.sql("INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', 'length', 'x', repeat('x', 100000000))");
    app.wait_drained(Duration::from_secs(60));
    let lengths = "SELECT count(*) FROM background_jobs WHERE result = '100000000'";
    assert_eq!(app.one::<i64>(lengths, &[]), 1, "100 MB in {:?}", begin.elapsed());
}

/// Each name is warned about once, a thousand of them at most, and the warnings name what cannot forge a line of their own.
#[test]
fn unregistered_names_by_the_ten_thousand_neither_flood_the_log_nor_stop_others() {
    let cluster = Cluster::builder().conf("background_jobs.poll_interval", "300ms").start();
    let mut app = App::with_table(&cluster, "unknown");
    let mut victim = owner(&app, "victim");
    victim.handler("fine", "RETURN '1';", "");
    app.handler("known", "RETURN '1';");
    let mut submitter = submitter(&mut app);
    for round in 0..3 {
        submitter.sql(&format!(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', 'n{round}_' || n) FROM generate_series(1, 5000) n"
        ));
        assert_others_run(&app, &mut victim);
    }
    submit(&mut submitter, &json!({"handler": "x\nFATAL:  forged\r\nERROR:  forged too"}));
    let id = submit(&mut submitter, &json!({"handler": "known"}));
    app.wait_final(id);
    assert_others_run(&app, &mut victim);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue WHERE state = 'unhandled'", &[]), 15_001);
    let log = cluster.log();
    let warnings = log.lines().filter(|line| line.contains("no handler named")).count();
    assert!((1..=1000).contains(&warnings), "{warnings} warnings");
    assert!(log.len() < 1_000_000, "{} bytes of log", log.len());
    let forged: Vec<&str> = log.lines().filter(|line| line.starts_with("FATAL") || line.starts_with("ERROR")).collect();
    assert!(forged.is_empty(), "{forged:?}");
}

/// Time that one INSERT of that many names takes, which nobody but its own session pays for; it must not be quadratic.
#[test]
fn many_names_in_one_transaction_cost_about_as_much_as_one_name() {
    let mut app = SHARED.app("one_transaction");
    let mut submitter = submitter(&mut app);
    let mut time = |handler: &str| {
        let begin = Instant::now();
        submitter.sql(&format!(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', {handler}) FROM generate_series(1, 30000) n"
        ));
        begin.elapsed()
    };
    let (one, many) = (time("'nobody'"), time("'nobody' || n"));
    assert!(many < one * 6 + Duration::from_secs(1), "one name {one:?}, 30,000 names {many:?}");
}

#[test]
fn forged_values_in_optional_columns_lose_no_job() {
    let mut app = SHARED.app_without_table("optional");
    app.sql("SELECT background_jobs.create_table(columns => '{handler,queue,priority,run_at,job_key,max_attempts,attempts,started_at,finished_at}')");
    app.handler("fine", "RETURN '1';");
    app.sql("CREATE SEQUENCE starts");
    app.handler_with(
        "fails",
        "PERFORM nextval('starts'); RAISE 'no';",
        "max_attempts => 2, retry_delay => '5 ms', max_retry_delay => '5 ms'",
    );
    let mut submitter = submitter(&mut app);
    let forged = [
        "priority => -32768",
        "priority => 32767",
        "priority => NULL",
        "run_at => '-infinity'",
        "run_at => '4713-01-01 BC'",
        "run_at => '1999-12-31'",
        "run_at => NULL",
        "max_attempts => 0",
        "max_attempts => -2147483648",
        "max_attempts => 2147483647",
        "attempts => 2147483647",
        "attempts => -1",
        "started_at => 'infinity'",
        "finished_at => '-infinity'",
        "queue => repeat('q', 1000000)",
        "queue => ''",
        "job_key => ''",
        "job_key => repeat('k', 2000)",
        "id => '00000000-0000-0000-0000-000000000000'",
        "id => 'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        "progress => 'NaN'",
        "progress => '-Infinity'",
        "progress => 17",
        "timestamp => '-infinity'",
        "timestamp => 'infinity'",
        "result => '{\"error\": {\"message\": \"forged\"}}'",
        "id => '00000000-0000-0000-0000-000000000001', run_at => '-infinity'",
    ];
    for set in forged {
        let (columns, values): (Vec<&str>, Vec<&str>) =
            set.split(", ").filter_map(|part| part.split_once(" => ")).unzip();
        let (columns, values) = (columns.join(", "), values.join(", "));
        let columns = columns.replace("timestamp", "\"timestamp\"");
        // A comma inside a value's parentheses was split above; such values stand alone.
        let values = if set.contains("repeat(") { set.split_once(" => ").unwrap().1.to_owned() } else { values };
        let columns = if set.contains("repeat(") { set.split_once(" => ").unwrap().0.to_owned() } else { columns };
        let comma = if columns.is_empty() { "" } else { ", " };
        submitter.sql(&format!("INSERT INTO background_jobs (handler{comma}{columns}) VALUES ('fine'{comma}{values})"));
        let begin = Instant::now();
        app.cluster.wait_until(set, || {
            match app.one::<i64>("SELECT count(*) FROM background_jobs WHERE NOT completed", &[]) {
                0 => Ok(()),
                _ => Err(app
                    .rows("SELECT to_jsonb(q)::text FROM background_jobs.queue q", &[])
                    .iter()
                    .map(|row| row.get::<_, String>(0))
                    .collect()),
            }
        });
        assert!(begin.elapsed() < Duration::from_secs(2), "{set}: {:?}", begin.elapsed());
        assert_eq!(
            app.one::<i64>("SELECT count(*) FROM background_jobs WHERE result <> '1' OR progress <> 1", &[]),
            0,
            "{set}"
        );
        app.sql("DELETE FROM background_jobs");
    }
    submitter.sql("INSERT INTO background_jobs (handler, run_at) VALUES ('fine', 'infinity')");
    app.wait_true("SELECT state = 'scheduled' FROM background_jobs.queue");
    // How often it runs at most is the job's to say, but nobody gets no attempt or a negative number of them.
    for (max, expected) in [("0", 1), ("-5", 1), ("3", 3)] {
        app.sql("ALTER SEQUENCE starts RESTART");
        let id: Uuid = Uuid::new_v4();
        submitter
            .sql(&format!("INSERT INTO background_jobs (id, handler, max_attempts) VALUES ('{id}', 'fails', {max})"));
        assert!(app.wait_final(id).error("message").is_some());
        assert_eq!(app.one::<i64>("SELECT last_value FROM starts", &[]), expected, "max_attempts {max}");
    }
    // What the queue cannot hold is refused with the INSERT, and nothing of it is left.
    let rows: i64 = app.one("SELECT count(*) FROM background_jobs", &[]);
    let code = submitter.code(
        "INSERT INTO background_jobs (handler, job_key) SELECT 'fine', string_agg(md5(n::text), '') FROM generate_series(1, 300) n",
    );
    assert_eq!(code, "54000");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs", &[]), rows);
}

/// A nil id at the beginning of time stands before every place that a scan of the queue could start from.
#[test]
fn the_very_first_job_that_there_can_be_is_run() {
    let mut app = SHARED.app_without_table("first");
    app.sql("SELECT background_jobs.create_table(columns => '{run_at}')");
    app.handler("default", "RETURN '1';");
    let mut submitter = submitter(&mut app);
    submitter
        .sql("INSERT INTO background_jobs (id, run_at) VALUES ('00000000-0000-0000-0000-000000000000', '-infinity')");
    app.cluster.wait_within(Duration::from_secs(5), "the job", || {
        let row = app.row(Uuid::nil());
        if row.completed { Ok(()) } else { Err(app.state(Uuid::nil())) }
    });
}

#[test]
fn a_job_key_that_is_taken_stays_with_its_job() {
    let mut app = SHARED.app_without_table("keys");
    app.sql("SELECT background_jobs.create_table(columns => '{job_key}')");
    app.handler("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';");
    let mut submitter = submitter(&mut app);
    let insert = "INSERT INTO background_jobs (payload, job_key) VALUES ('{\"handler\": \"held\"}', 'k')";
    submitter.sql(insert);
    app.wait_reached(1);
    for _ in 0..3 {
        assert_eq!(submitter.code(insert), "23505");
        assert_eq!(submitter.code(&format!("{insert}, ('{{}}', 'other')")), "23505");
        // Replacing is a cancel, and INSERT is not the right to cancel.
        assert_eq!(submitter.code("SELECT background_jobs.enqueue('held', job_key => 'k')"), "42501");
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 1);
    app.open_gate("go");
    app.wait_true("SELECT bool_and(completed) FROM background_jobs");
    submitter.sql(insert);
    app.wait_true("SELECT count(*) = 2 AND bool_and(completed AND result = '1') FROM background_jobs");
}

#[test]
fn a_submitter_changes_nothing_of_others_jobs() {
    let mut app = SHARED.app("others");
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';");
    let mut submitter = submitter(&mut app);
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    for statement in [
        format!("UPDATE background_jobs SET cancelled = true WHERE id = '{id}'"),
        "UPDATE background_jobs SET cancelled = true".to_owned(),
        "UPDATE background_jobs SET completed = true".to_owned(),
        "DELETE FROM background_jobs".to_owned(),
        "TRUNCATE background_jobs".to_owned(),
        "SELECT id FROM background_jobs FOR UPDATE".to_owned(),
        "INSERT INTO background_jobs (id) SELECT job_id FROM background_jobs.workers WHERE job_id IS NOT NULL RETURNING id".to_owned(),
        format!("INSERT INTO background_jobs (id) VALUES ('{id}') ON CONFLICT (id) DO UPDATE SET cancelled = true"),
        format!("SELECT background_jobs.cancel('{id}')"),
        format!("SELECT background_jobs.retry('{id}')"),
        format!("SELECT background_jobs.run_now('{id}')"),
        format!("SELECT background_jobs.wait('{id}', '10 ms')"),
        format!("SELECT * FROM background_jobs.status('{id}')"),
        "SELECT background_jobs.detach('background_jobs')".to_owned(),
        "SELECT background_jobs.attach('background_jobs', handler_key => 'mine')".to_owned(),
        "SELECT background_jobs.unregister_handler('held')".to_owned(),
    ] {
        assert_eq!(submitter.code(&statement), "42501", "{statement}");
    }
    for statement in [
        format!("INSERT INTO background_jobs (id) VALUES ('{id}')"),
        format!("INSERT INTO background_jobs (id, cancelled) VALUES ('{id}', true)"),
    ] {
        assert_eq!(submitter.code(&statement), "23505", "{statement}");
    }
    // UPDATE (cancelled) is the right to cancel, and only that.
    app.sql(&format!("GRANT UPDATE (cancelled) ON background_jobs TO {}", ident(&submitter.role)));
    for statement in [
        "UPDATE background_jobs SET completed = true",
        "UPDATE background_jobs SET cancelled = true, result = '7'",
        "UPDATE background_jobs SET progress = 1",
        "UPDATE background_jobs SET id = gen_random_uuid()",
        "UPDATE background_jobs SET payload = '{}'",
    ] {
        assert_eq!(submitter.code(statement), "42501", "{statement}");
    }
    submitter.sql("UPDATE background_jobs SET cancelled = false");
    assert_eq!(app.state(id), "running", "that was no cancel");
    let done = app.submit("held", json!({"done": true}));
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.wait_final(done).result, Some(json!(1)));
    // To and fro on finished jobs: they stay finished and run no more.
    for value in ["true", "false", "true", "false"] {
        submitter.sql(&format!("UPDATE background_jobs SET cancelled = {value}"));
    }
    let next = app.submit("held", json!({}));
    app.wait_final(next);
    assert_eq!((app.state(id), app.noted(id)), ("completed".to_owned(), 1));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

/// Rows that say they are final already, with whatever result, are never run and harm nobody.
#[test]
fn rows_that_come_with_their_end_are_only_rows() {
    let mut app = SHARED.app("ended");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let mut submitter = submitter(&mut app);
    for columns in ["completed", "cancelled", "completed, cancelled"] {
        let values = columns.replace("completed", "true").replace("cancelled", "true");
        submitter.sql(&format!(
            "INSERT INTO background_jobs (payload, progress, result, {columns}) VALUES
                ('{{\"handler\": \"noted\"}}', 0.3, '{{\"error\": {{\"attempts\": \"many\", \"sqlstate\": 5, \"message\": []}}}}', {values}),
                ('{{\"handler\": \"noted\"}}', 'NaN', '{{\"error\": {{\"attempts\": 1e400, \"sqlstate\": \"\\u0001ABCD\"}}}}', {values}),
                ('{{\"handler\": \"noted\"}}', '-Infinity', '{{\"error\": \"\"}}', {values}),
                ('{{\"handler\": \"noted\"}}', 7, '[]', {values})"
        ));
    }
    let next = app.submit("noted", json!({}));
    app.wait_final(next);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 1);
    // Reading them is safe, whatever they say about themselves.
    let ids: Vec<Uuid> = app.rows("SELECT id FROM background_jobs", &[]).iter().map(|row| row.get(0)).collect();
    for id in ids {
        let state = app.state(id);
        assert!(["completed", "failed", "cancelled"].contains(&state.as_str()), "{state}");
        let waited = app.client.query("SELECT background_jobs.wait($1, '1 s')", &[&id]);
        if let Err(error) = waited {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
            assert!(
                !error.code().code().starts_with("XX")
                    || error.code().code() == "XX000" && !error.message().contains("panic"),
                "{error:?}"
            );
        }
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

/// TRIGGER is the right to run functions as whoever writes the table. That is the owner in the owner's worker, as in any
/// session of the owner's, and never anybody above.
#[test]
fn a_planted_trigger_sees_the_owner_and_nobody_above() {
    let mut app = SHARED.app("planted");
    let mut submitter = submitter(&mut app);
    let role = ident(&submitter.role);
    app.sql(&format!("GRANT TRIGGER ON background_jobs TO {role}"));
    app.admin()
        .batch_execute(&format!("CREATE SCHEMA AUTHORIZATION {role}; GRANT USAGE ON SCHEMA {role} TO PUBLIC"))
        .unwrap();
    app.handler("works", "PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(0.4); RETURN '1';");
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 2, retry_delay => '5 ms'");
    submitter.sql(
        "CREATE TABLE seen (who text, kind text); GRANT INSERT ON seen TO PUBLIC;
         CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            BEGIN EXECUTE 'SET ROLE postgres'; EXCEPTION WHEN insufficient_privilege OR invalid_parameter_value THEN NULL; END;
            BEGIN EXECUTE 'DELETE FROM background_jobs.queued_job'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            RETURN coalesce(NEW, OLD);
         END $$;",
    );
    let schema = lit(&submitter.role);
    submitter.sql(&format!(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
            EXECUTE format('INSERT INTO %I.seen VALUES ($1, $2)', {schema})
              USING session_user || ' ' || current_user || ' ' || current_setting('is_superuser'),
                    (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid());
            RETURN NULL;
         END $f$;
         CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_row();
         CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION tell();
         CREATE CONSTRAINT TRIGGER c AFTER INSERT OR UPDATE ON background_jobs DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION tell();"
    ));
    for handler in ["works", "fails"] {
        let id = submit(&mut submitter, &json!({"handler": handler}));
        assert!(app.wait_final(id).completed);
    }
    let id: Uuid = app.one("SELECT background_jobs.enqueue('works', run_at => now() + interval '1 h')", &[]);
    app.execute("SELECT background_jobs.cancel($1)", &[&id]);
    let (owner, own) = (format!("{0} {0} off", app.role), format!("{0} {0} off", submitter.role));
    let foreign: i64 = submitter.one("SELECT count(*) FROM seen WHERE who NOT IN ($1, $2)", &[&owner, &own]);
    assert_eq!(foreign, 0);
    let kinds: i64 = submitter
        .one("SELECT count(DISTINCT kind) FROM seen WHERE who = $1 AND kind LIKE 'background_jobs %'", &[&owner]);
    assert_eq!(kinds, 2, "executor and progress writer were reached");
    // Our own trigger replaced by one that reads another key chooses among the registered handlers, no more.
    submitter.sql(
        "CREATE OR REPLACE TRIGGER background_jobs_submit AFTER INSERT ON background_jobs FOR EACH ROW
            EXECUTE FUNCTION background_jobs.submit('other', 'handler,priority,nonsense')",
    );
    let id = submit(&mut submitter, &json!({"other": "pg_sleep", "handler": "works"}));
    app.wait_true(&format!("SELECT state = 'unhandled' FROM background_jobs.queue WHERE job_id = '{id}'"));
}
