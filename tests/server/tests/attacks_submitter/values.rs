//! Payloads and optional columns with any value that can be.

use crate::{SHARED, submitter};
use server_tests::Uuid;
use std::time::{Duration, Instant};

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
