//! A server that is short of something, set up unusually, large, or about to stop. Every test's name is the expected outcome.

use server_tests::{App, Builder, Cluster, Group, Stop, Uuid, give, ident, json, keeper, run, sqlstate};
use std::process::Command;
use std::time::{Duration, Instant};

fn configuration() -> Builder {
    Cluster::builder().conf("background_jobs.poll_interval", "200ms")
}

static SHARED: Group = Group::new(configuration);

const HELD: &str = "PERFORM note(); PERFORM reach((payload ->> 'point')::int); PERFORM await_gate('go');
    RETURN to_jsonb('done'::text);";

fn noting(app: &mut App) {
    app.handler("noted", "PERFORM note(); RETURN NULL;");
}

fn assert_completes(app: &mut App, handler: &str) {
    let id = app.submit(handler, json!({}));
    let job = app.wait_final(id);
    assert!(job.completed && job.error("message").is_none(), "{job:?}");
}

// ---- short of something (`settings.rs` has executors without a worker slot)

#[test]
fn without_a_slot_for_a_dispatcher_it_is_said_once_and_jobs_wait() {
    // Room for our launcher and for that of logical replication.
    let cluster = configuration().conf("max_worker_processes", "2").start();
    let mut app = App::with_table(&cluster, "no_dispatcher");
    noting(&mut app);
    let ids: Vec<Uuid> = (0..20).map(|_| app.submit("noted", json!({}))).collect();
    let hints = || cluster.log().matches("Raise max_worker_processes").count();
    cluster.wait_until("the log to say so", || server_tests::wait::yes(hints() > 0));
    // Each of these wakes the launcher, which finds no slot.
    for n in 0..5 {
        cluster.admin("postgres").batch_execute(&format!("CREATE DATABASE more_{n}")).unwrap();
    }
    assert_eq!(hints(), 1, "a shortage is logged once");
    assert_eq!(app.state(ids[0]), "available");
    cluster.admin("postgres").batch_execute("ALTER SYSTEM SET max_worker_processes = 16").unwrap();
    cluster.restart(Stop::Fast);
    app.client = app.session();
    for id in ids {
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
    }
}

#[test]
fn without_a_slot_for_a_progress_writer_jobs_complete_all_the_same() {
    // The two launchers, a dispatcher and an executor.
    let cluster = configuration().conf("max_worker_processes", "4").conf("background_jobs.max_executors", "1").start();
    let mut app = App::with_table(&cluster, "no_writer");
    app.handler(
        "reports",
        "FOR i IN 1..20 LOOP PERFORM background_jobs.set_progress(i / 20.0); PERFORM pg_sleep(0.02); END LOOP;
         PERFORM note(); RETURN NULL;",
    );
    for _ in 0..3 {
        assert_completes(&mut app, "reports");
    }
    assert!(cluster.log().matches("no background worker slot is free").count() <= 1);
}

#[test]
fn clients_that_take_every_connection_delay_no_job() {
    let cluster = configuration().conf("max_connections", "8").start();
    let mut app = App::with_table(&cluster, "connections");
    noting(&mut app);
    let mut clients = Vec::new();
    while let Ok(client) = cluster.try_connect(&app.database, &app.role) {
        clients.push(client);
    }
    let error = cluster.try_connect(&app.database, &app.role).map(drop).unwrap_err();
    assert_eq!(sqlstate(&error), "53300");
    assert_completes(&mut app, "noted");
}

#[test]
fn limits_of_connections_for_a_role_and_a_database_are_for_clients_not_for_jobs() {
    let mut app = SHARED.app("limits");
    noting(&mut app);
    let limits = format!(
        "ALTER ROLE {} CONNECTION LIMIT 1; ALTER DATABASE {} CONNECTION LIMIT 1",
        ident(&app.role),
        ident(&app.database)
    );
    app.cluster.admin("postgres").batch_execute(&limits).unwrap();
    assert_completes(&mut app, "noted");
    let reset = limits.replace("LIMIT 1", "LIMIT -1");
    app.cluster.admin("postgres").batch_execute(&reset).unwrap();
}

/// A session that is open goes on, as everywhere; a new one is not to be had until the right is back.
#[test]
fn a_role_that_may_not_connect_keeps_its_jobs_until_it_may() {
    let cluster = configuration().conf("background_jobs.executor_idle_timeout", "100ms").start();
    for (name, take, give) in [
        ("nologin", "ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN"),
        (
            "no_connect",
            "REVOKE CONNECT ON DATABASE {database} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {database} TO PUBLIC",
        ),
    ] {
        let mut app = App::with_table(&cluster, name);
        noting(&mut app);
        app.handler("held", HELD);
        let running = app.submit("held", json!({"point": 1}));
        app.wait_reached(1);
        let fill = |text: &str| text.replace("{role}", &ident(&app.role)).replace("{database}", &ident(&app.database));
        let (take, give) = (fill(take), fill(give));
        let mut admin = app.cluster.admin("postgres");
        admin.batch_execute(&take).unwrap();
        app.open_gate("go");
        assert!(app.wait_final(running).completed);
        app.wait_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'background_jobs executor'");
        let id = app.submit("noted", json!({}));
        cluster.wait_until("the log to say why", || {
            let said = ["cannot log in", "is not permitted to log in", "permission denied for database"];
            server_tests::wait::yes(said.iter().any(|part| cluster.log().contains(part)))
        });
        assert!(!app.row(id).is_final());
        admin.batch_execute(&give).unwrap();
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
        let charged: i64 = app.one("SELECT count(*) FROM background_jobs.attempts", &[]);
        assert_eq!(charged, 0);
    }
}

/// A file system of a few megabytes; gone with the value.
struct Tiny(std::path::PathBuf);

impl Tiny {
    fn mount(name: &str, megabytes: u32) -> Result<Tiny, String> {
        let path = keeper::root().join(name);
        std::fs::create_dir(&path).map_err(|e| e.to_string())?;
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(&path).output();
        match output.map_err(|e| e.to_string())? {
            output if output.status.success() => {
                give(&path);
                Ok(Tiny(path))
            }
            output => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

impl Tiny {
    fn grow(&self, megabytes: u32) {
        run(Command::new("mount").args(["-o", &format!("remount,size={megabytes}m")]).arg(&self.0));
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_tablespace_fails_the_attempts_that_need_it_and_jobs_go_on_when_there_is_room() {
    let tiny = match Tiny::mount("tiny", 6) {
        Ok(tiny) => tiny,
        Err(reason) => return eprintln!("SKIPPED, no small file system can be mounted here: {reason}"),
    };
    let cluster = configuration().start();
    let mut app = App::with_table(&cluster, "full");
    let directory = tiny.0.display();
    app.cluster.admin("postgres").batch_execute(&format!("CREATE TABLESPACE tiny LOCATION '{directory}'")).unwrap();
    app.admin().batch_execute(&format!("GRANT CREATE ON TABLESPACE tiny TO {}", ident(&app.role))).unwrap();
    // The job table, too, is in there: not even a failure can be written.
    app.sql("CREATE TABLE filling (v text) TABLESPACE tiny; ALTER TABLE background_jobs SET TABLESPACE tiny");
    noting(&mut app);
    app.handler_with(
        "fills",
        "PERFORM note(); INSERT INTO filling SELECT repeat(md5(n::text), 30) FROM generate_series(1, 2000) n; RETURN NULL;",
        "retry_delay => '200 ms', max_retry_delay => '200 ms', max_attempts => 1000",
    );
    let ids: Vec<Uuid> = (0..6).map(|_| app.submit("fills", json!({}))).collect();
    cluster.wait_until("the tablespace to be full", || {
        let query = "SELECT count(*) FROM background_jobs.attempts WHERE error ->> 'sqlstate' = '53100'";
        match app.one::<i64>(query, &[]) {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    // Whoever needs no room there is not held up.
    app.sql("SELECT background_jobs.create_table('elsewhere')");
    app.sql("SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'elsewhere')");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', job_table => 'elsewhere')", &[]);
    app.execute("SELECT background_jobs.wait($1, job_table => 'elsewhere')", &[&id]);

    app.sql("ALTER TABLE filling SET TABLESPACE pg_default");
    for id in ids {
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM filling", &[]), 6 * 2000);
    app.sql("ALTER TABLE background_jobs SET TABLESPACE pg_default");
    app.cluster.admin("postgres").batch_execute("DROP TABLESPACE tiny").unwrap();
}

/// Everything of this database is in there, the queue and the attempts, too.
#[test]
fn a_database_on_a_full_disk_loses_no_job_and_does_not_flood_the_log() {
    let disk = match Tiny::mount("disk", 16) {
        Ok(disk) => disk,
        Err(reason) => return eprintln!("SKIPPED, no small file system can be mounted here: {reason}"),
    };
    let cluster = configuration().start();
    let create = format!("CREATE TABLESPACE disk LOCATION '{}'", disk.0.display());
    cluster.admin("postgres").batch_execute(&create).unwrap();
    let mut app = App::new_with(&cluster, "disk", "TABLESPACE disk");
    app.sql("SELECT background_jobs.create_table(); CREATE TABLE filling (v text)");
    app.handler_with(
        "fills",
        "PERFORM note(); INSERT INTO filling SELECT repeat(md5(n::text), 30) FROM generate_series(1, 1000) n; RETURN NULL;",
        "retry_delay => '100 ms', max_retry_delay => '100 ms', max_attempts => 1000",
    );
    let mut ids = Vec::new();
    let submission = server_tests::app::submission();
    let refused = cluster.wait_until("the disk to be full for clients, too", || {
        let payload = json!({"handler": "fills", "text": "x".repeat(1000)});
        match app.client.query_one(&submission, &[&Uuid::new_v4(), &payload]) {
            Ok(row) => {
                ids.push(row.get::<_, Uuid>(0));
                Err(format!("{} accepted", ids.len()))
            }
            Err(error) => Ok(sqlstate(&error)),
        }
    });
    assert_eq!(refused, "53100");
    let lines = || cluster.log().lines().count();
    let before = lines();
    let begin = Instant::now();
    cluster.wait_until("failures at every place", || match lines() - before {
        0..20 => Err("not yet".to_owned()),
        _ => Ok(()),
    });
    let a_second = (lines() - before) as f64 / begin.elapsed().as_secs_f64();
    assert!(a_second < 200.0, "{a_second} lines a second: {}", server_tests::log::tail(&cluster.log(), 20));
    disk.grow(400);
    app.wait_drained(Duration::from_secs(60));
    for id in &ids {
        assert!(app.row(*id).completed);
        assert_eq!(app.noted(*id), 1);
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM filling", &[]), 1000 * i64::try_from(ids.len()).unwrap());
}

#[test]
fn a_handler_that_exceeds_temp_file_limit_fails_with_that_error() {
    let mut app = SHARED.app("temp_file");
    let limit = format!("ALTER ROLE {} SET temp_file_limit = '1MB'", ident(&app.role));
    app.admin().batch_execute(&limit).unwrap();
    app.handler_with(
        "sorts",
        "RETURN to_jsonb((SELECT max(v) FROM (SELECT md5(n::text) v FROM generate_series(1, 300000) n ORDER BY 1 OFFSET 1) s));",
        "max_attempts => 1",
    );
    let id = app.submit("sorts", json!({}));
    assert_eq!(app.wait_final(id).error("sqlstate"), Some(&json!("53400")));
}

// ---- locks

#[test]
fn a_client_that_holds_a_jobs_row_delays_its_end_and_nobody_elses() {
    let mut app = SHARED.app("row_lock");
    app.handler("held", HELD);
    noting(&mut app);
    let id = app.submit("held", json!({"point": 1}));
    app.wait_reached(1);
    let mut holder = app.session();
    let mut transaction = holder.transaction().unwrap();
    transaction.query_one("SELECT FROM background_jobs WHERE id = $1 FOR UPDATE", &[&id]).unwrap();
    app.open_gate("go");
    wait_for_executor_lock(&app);
    for _ in 0..5 {
        assert_completes(&mut app, "noted");
    }
    assert!(!app.row(id).is_final());
    transaction.commit().unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!("done")));
    assert_eq!(app.noted(id), 1);
}

fn wait_for_executor_lock(app: &App) {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'
        AND backend_type = 'background_jobs executor'";
    app.cluster.wait_until("an executor to wait", || {
        let waiting: i64 = app.cluster.admin("postgres").query_one(query, &[&app.database]).unwrap().get(0);
        if waiting > 0 { Ok(()) } else { Err("none does".to_owned()) }
    });
}

#[test]
fn a_locked_job_table_delays_its_own_jobs_and_no_other_tables() {
    let mut app = SHARED.app("table_lock");
    noting(&mut app);
    app.sql("SELECT background_jobs.create_table('other')");
    app.sql("SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'other')");
    let ids: Vec<Uuid> = (0..10)
        .map(|_| app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]))
        .collect();
    let mut holder = app.session();
    let mut transaction = holder.transaction().unwrap();
    transaction.batch_execute("LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE").unwrap();
    let admin = app.admin().batch_execute("UPDATE background_jobs.queued_job SET timing = 0, run_at = now()");
    admin.unwrap();
    for _ in 0..5 {
        let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', job_table => 'other')", &[]);
        app.execute("SELECT background_jobs.wait($1, job_table => 'other')", &[&id]);
    }
    transaction.rollback().unwrap();
    for id in ids {
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
    }
}

/// The client has the job's row and wants what the handler has; the handler is done and wants its row.
#[test]
fn a_deadlock_with_a_client_over_the_jobs_own_row_ends_and_the_job_completes_once() {
    let mut app = SHARED.app("deadlock");
    app.sql("CREATE TABLE accounts (n int PRIMARY KEY, balance int); INSERT INTO accounts VALUES (1, 0)");
    app.handler("pays", &format!("UPDATE accounts SET balance = balance + 1; {HELD}"));
    let id = app.submit("pays", json!({"point": 1}));
    app.wait_reached(1);
    let mut client = app.session();
    let mut transaction = client.transaction().unwrap();
    transaction.execute("UPDATE background_jobs SET timestamp = now() WHERE id = $1", &[&id]).unwrap();
    app.open_gate("go");
    wait_for_executor_lock(&app);
    let outcome = transaction.execute("UPDATE accounts SET balance = balance + 10", &[]);
    let paid = match outcome {
        Ok(_) => transaction.commit().is_ok(),
        Err(error) => {
            assert_eq!(sqlstate(&error), "40P01");
            transaction.rollback().unwrap();
            false
        }
    };
    assert_eq!(app.wait_final(id).result, Some(json!("done")));
    assert_eq!(app.noted(id), 1);
    assert_eq!(app.one::<i32>("SELECT balance FROM accounts", &[]), if paid { 11 } else { 1 });
}

// ---- unusual defaults

#[test]
fn read_only_by_default_runs_jobs_as_ever_for_a_database_a_role_and_the_server() {
    for place in ["DATABASE {database}", "ROLE {role}", "SYSTEM"] {
        let own;
        let mut app = if place == "SYSTEM" {
            own = configuration().conf("default_transaction_read_only", "off").start();
            App::with_table(&own, "read_only")
        } else {
            SHARED.app("read_only")
        };
        app.handler("noted", "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
        app.handler_with("fails", "RAISE 'no';", "max_attempts => 2, retry_delay => '1 ms'");
        let place = place.replace("{database}", &ident(&app.database)).replace("{role}", &ident(&app.role));
        let cluster = app.cluster;
        let admin = |statement: String| {
            let mut admin = cluster.admin("postgres");
            admin.batch_execute("SET default_transaction_read_only = off").unwrap();
            admin.batch_execute(&statement).unwrap();
            cluster.reload_conf();
        };
        admin(format!("ALTER {place} SET default_transaction_read_only = on"));
        // New workers, which find the setting when they start.
        let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%' AND datname = $1";
        app.cluster.admin("postgres").query(query, &[&app.database]).unwrap();
        app.client = app.session();
        assert_eq!(app.sqlstate("CREATE TABLE t ()"), "25006", "the test is about something");
        app.sql("SET default_transaction_read_only = off");
        let id = app.submit("noted", json!({}));
        app.wait_reached(1);
        app.wait_true("SELECT bool_or(progress = 0.5) FROM background_jobs");
        app.open_gate("go");
        assert!(app.wait_final(id).completed);
        let id = app.submit("fails", json!({}));
        assert_eq!(app.wait_final(id).error("attempts"), Some(&json!(2)));
        admin(format!("ALTER {place} RESET default_transaction_read_only"));
    }
}

#[test]
fn serializable_by_default_completes_every_job_once() {
    let mut app = SHARED.app("serializable");
    for place in ["DATABASE", "ROLE"] {
        let name = ident(if place == "ROLE" { &app.role } else { &app.database });
        let set = format!("ALTER {place} {name} SET default_transaction_isolation = serializable");
        app.cluster.admin("postgres").batch_execute(&set).unwrap();
    }
    let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%' AND datname = $1";
    app.cluster.admin("postgres").query(query, &[&app.database]).unwrap();
    app.sql("CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)");
    app.handler("isolation", "RETURN to_jsonb(current_setting('transaction_isolation'));");
    app.handler_with("noted", "PERFORM background_jobs.set_progress(0.5); PERFORM note(); RETURN NULL;", "");
    // Every job of this handler is in conflict with every other; one at a time is what its owner has to say then.
    app.handler_with("counts", "UPDATE counter SET n = n + 1; PERFORM note(); RETURN NULL;", "concurrency => 1");
    let id = app.submit("isolation", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!("serializable")));
    // The client that submits is serializable, too, and tries again as such a client has to. The one that watches was here
    // before the default and is not: at that level a mere look at rows that change may be refused.
    let mut writer = app.session();
    let submission =
        "INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"noted\"}' FROM generate_series(1, 400);
        INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"counts\"}' FROM generate_series(1, 50);
        WITH new AS (INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"nobody\"}') RETURNING id)
            SELECT set_config('app.cancelled', id::text, false) FROM new;
        UPDATE background_jobs SET cancelled = true WHERE id = current_setting('app.cancelled')::uuid;";
    app.cluster.wait_until("the submission to serialize", || match writer.batch_execute(submission) {
        Err(error) if sqlstate(&error) == "40001" => Err(error.to_string()),
        other => Ok(other.unwrap()),
    });
    app.wait_drained(Duration::from_secs(60));
    let outcome = app.rows(
        "SELECT count(*) FILTER (WHERE completed AND result IS NULL), (SELECT count(*) FROM ledger),
            (SELECT count(DISTINCT job) FROM ledger), (SELECT n::bigint FROM counter) FROM background_jobs",
        &[],
    );
    let seen: [i64; 4] = [0, 1, 2, 3].map(|n| outcome[0].get(n));
    assert_eq!(seen, [450, 450, 450, 50]);
}

/// Names, payloads and errors are text of the database's encoding; a client sees them in its own.
fn speaks_its_encoding(encoding: &str, letters: &str) {
    let cluster = SHARED.cluster();
    let options = format!("TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
    let mut app = App::new_with(cluster, &encoding.to_lowercase(), &options);
    app.sql("SELECT background_jobs.create_table('background_jobs', '{queue, job_key}')");
    let handler = format!("größe {letters}");
    app.handler(&handler, "PERFORM note(); RETURN jsonb_build_object('echo', payload -> 'text', 'key', payload);");
    app.handler_with(
        &format!("fällt {letters}"),
        &format!("RAISE 'Übergröße {letters}: %', payload ->> 'text' USING DETAIL = 'näher', HINT = 'früher';"),
        "max_attempts => 2, retry_delay => '1 ms'",
    );
    let text = format!("äöüß {letters}");
    let id = app.submit(&handler, json!({"text": text}));
    assert_eq!(app.wait_final(id).result.unwrap()["echo"], json!(text));
    assert_eq!(app.noted(id), 1);

    let id = app.submit(&format!("fällt {letters}"), json!({"text": text}));
    let job = app.wait_final(id);
    assert_eq!(job.error("message"), Some(&json!(format!("Übergröße {letters}: {text}"))));
    assert_eq!((job.error("detail"), job.error("hint")), (Some(&json!("näher")), Some(&json!("früher"))));
    let kept: String = app.one("SELECT error ->> 'message' FROM background_jobs.attempts WHERE attempt = 1", &[]);
    assert_eq!(kept, format!("Übergröße {letters}: {text}"));

    let nobody = format!("niemand für {letters}");
    let id = app.submit(&nobody, json!({}));
    app.wait_state(id, "unhandled");
    assert_eq!(app.one::<String>("SELECT handler FROM background_jobs.queue", &[]), nobody);
    let error = app.client.query_one("SELECT background_jobs.wait($1, '10 ms')", &[&id]).unwrap_err();
    assert!(error.as_db_error().is_some(), "{error:?}");
    let id: Uuid = app.one(
        "SELECT background_jobs.enqueue($1, job_key => $2, queue => $2, run_at => now() + interval '1 h')",
        &[&handler, &text],
    );
    let shown: String = app.one("SELECT queue FROM background_jobs.status($1)", &[&id]);
    assert_eq!(shown, text);
    let again: Uuid =
        app.one("SELECT background_jobs.enqueue($1, job_key => $2, job_key_mode => 'keep')", &[&handler, &text]);
    assert_eq!(again, id);
    for n in 60..66 {
        let id = app.submit(&format!("{}{letters}{letters}", "x".repeat(n)), json!({}));
        app.wait_state(id, "unhandled");
    }
    let shown: i64 = app.one("SELECT count(*) FROM background_jobs.queue WHERE handler LIKE 'xxx%'", &[]);
    assert_eq!(shown, 6);
    // A table of such a name.
    let table = format!("aufträge {letters}");
    app.sql(&format!("SELECT background_jobs.create_table('{}')", ident(&table)));
    let register = "SELECT background_jobs.register_handler($1, $2::text::regprocedure, $3::text::regclass)";
    app.execute(register, &[&"größe", &format!("{}(jsonb)", ident(&handler)), &ident(&table)]);
    let id: Uuid =
        app.one("SELECT background_jobs.enqueue('größe', job_table => $1::text::regclass)", &[&ident(&table)]);
    app.execute("SELECT background_jobs.wait($1, job_table => $2::text::regclass)", &[&id, &ident(&table)]);
}

#[test]
fn utf8_databases_keep_every_letter() {
    speaks_its_encoding("UTF8", "漢字 🐘");
}

#[test]
fn latin1_databases_keep_every_letter() {
    speaks_its_encoding("LATIN1", "ñ÷ÿ");
}

/// Characters of two and three bytes, which a name that is too long must not be cut inside of.
#[test]
fn euc_jp_databases_keep_every_letter() {
    speaks_its_encoding("EUC_JP", "漢字");
}

#[test]
fn sql_ascii_databases_keep_every_byte() {
    speaks_its_encoding("SQL_ASCII", "漢字 🐘");
}

/// Bytes that are no text in any other encoding.
#[test]
fn sql_ascii_databases_survive_bytes_that_are_not_utf8() {
    let options = "TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'";
    let mut app = App::new_with(SHARED.cluster(), "bytes", options);
    app.sql("SELECT background_jobs.create_table()");
    noting(&mut app);
    // Written by the server itself: the client's library sends UTF-8 only.
    let name = "E'gr\\xf6\\xdfe'";
    app.sql(&format!(
        "DO $$ BEGIN EXECUTE format('CREATE FUNCTION %I(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS %L', {name},
            'BEGIN PERFORM note(); RETURN NULL; END'); END $$"
    ));
    app.sql(&format!(
        "SELECT background_jobs.register_handler({name}, (quote_ident({name}) || '(jsonb)')::regprocedure);
         INSERT INTO background_jobs (payload) VALUES (jsonb_build_object('handler', {name}, 'text', E'\\xe4\\xff'));
         INSERT INTO background_jobs (payload) VALUES (jsonb_build_object('handler', E'nobody \\xff'));
         INSERT INTO background_jobs (payload) VALUES (jsonb_build_object('handler', 'raises', 'text', E'\\xe4\\xff'));"
    ));
    app.handler_with("raises", "RAISE '%', payload ->> 'text';", "max_attempts => 1");
    app.wait_true("SELECT count(*) = 2 FROM background_jobs WHERE completed");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 1);
    let kept: bool = app.one(
        "SELECT (result -> 'error' ->> 'message')::bytea = '\\xe4ff' FROM background_jobs WHERE payload ->> 'handler' = 'raises'",
        &[],
    );
    assert!(kept, "the error's text byte for byte");
    assert_completes(&mut app, "noted");
}

// ---- large, and about to stop

#[test]
fn a_hundred_databases_have_a_dispatcher_each_and_run_their_jobs() {
    const COUNT: i64 = 100;
    let cluster = Cluster::builder()
        .conf("max_worker_processes", "140")
        .conf("max_connections", "40")
        .conf("shared_buffers", "64MB")
        .conf("background_jobs.enabled", "off")
        .start();
    let mut app = App::with_table(&cluster, "many");
    noting(&mut app);
    let original = app.database.clone();
    let id = app.submit("noted", json!({}));
    app.client = cluster.connect("postgres", &app.role);
    let mut admin = cluster.admin("postgres");
    cluster.wait_until("the client to be gone", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
        server_tests::wait::yes(admin.query_one(query, &[&original]).unwrap().get::<_, i64>(0) == 0)
    });
    for n in 1..COUNT {
        let create = format!("CREATE DATABASE many_copy_{n} TEMPLATE {} STRATEGY file_copy", ident(&original));
        admin.batch_execute(&create).unwrap();
    }
    let begin = Instant::now();
    cluster.set("background_jobs.enabled", "on");
    let dispatchers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'background_jobs dispatcher'";
    cluster.wait_within(Duration::from_secs(60), "the dispatchers", || {
        let count: i64 = admin.query_one(dispatchers, &[]).unwrap().get(0);
        if count >= COUNT { Ok(()) } else { Err(count.to_string()) }
    });
    let up = begin.elapsed();
    let databases: Vec<String> = (1..COUNT).map(|n| format!("many_copy_{n}")).chain([original.clone()]).collect();
    for database in &databases {
        let mut client = cluster.connect(database, &app.role);
        client.execute("SELECT background_jobs.wait($1, '60 s')", &[&id]).unwrap();
        let noted: i64 = client.query_one("SELECT count(*) FROM ledger", &[]).unwrap().get(0);
        assert_eq!(noted, 1, "{database}");
    }
    eprintln!("{COUNT} databases: dispatchers after {up:?}, a job in each after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    let took = cluster.stop(Stop::Fast);
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Its end would drop one of a hundred databases; they all go with the server.
    std::mem::forget(app);
}

/// `restart.rs` has one that sleeps; these do all they can to go on.
#[test]
fn a_fast_stop_with_handlers_of_600_seconds_that_swallow_every_error_takes_less_than_three() {
    let cluster = configuration().start();
    let mut app = App::with_table(&cluster, "stubborn");
    for (point, name, body) in [
        (1, "sleeps", "PERFORM pg_sleep(600);"),
        (
            2,
            "swallows",
            "LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN OTHERS OR query_canceled THEN NULL; END; END LOOP;",
        ),
        (3, "spins", "WHILE clock_timestamp() < now() + interval '600 s' LOOP END LOOP;"),
        (4, "queries", "PERFORM count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b;"),
    ] {
        app.handler(name, &format!("PERFORM note(); PERFORM reach({point}); {body} RETURN NULL;"));
        app.submit(name, json!({}));
        app.wait_reached(point);
    }
    let took = cluster.stop(Stop::Fast);
    assert!(took < Duration::from_secs(3), "{took:?}");
    cluster.start();
    app.client = app.session();
    app.wait_reached(1);
    let charged: i64 = app.one("SELECT count(*) FROM background_jobs.attempts", &[]);
    assert_eq!(charged, 0, "a stop charges nobody");
    app.sql("UPDATE background_jobs SET cancelled = true");
    app.wait_left(1);
}

#[test]
fn pg_amcheck_finds_nothing_after_all_of_that() {
    let mut app = SHARED.app("amcheck");
    noting(&mut app);
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 3, retry_delay => '1 ms'");
    app.sql(
        "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', CASE n % 5 WHEN 0 THEN 'fails' ELSE 'noted' END)
            FROM generate_series(1, 2000) n",
    );
    app.sql("UPDATE background_jobs SET cancelled = true WHERE id IN (SELECT id FROM background_jobs WHERE NOT completed LIMIT 300)");
    app.wait_drained(Duration::from_secs(60));
    run(app.cluster.client("pg_amcheck", "postgres").args([
        "--install-missing",
        "--heapallindexed",
        "-d",
        &app.database,
    ]));
}

/// What an operator asks, and what a role needs to be answered for every table.
#[test]
fn whoever_reads_all_data_can_watch_everything_and_dump_it() {
    let mut app = SHARED.app("watched");
    app.handler("held", HELD);
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 1");
    let running = app.submit("held", json!({"point": 1}));
    app.wait_reached(1);
    let failed = app.submit("fails", json!({}));
    app.wait_final(failed);
    let unhandled = app.submit("nobody", json!({}));
    app.wait_state(unhandled, "unhandled");

    let watcher = format!("watcher_{}", app.database);
    app.cluster.create_role(&watcher);
    app.admin().batch_execute(&format!("GRANT pg_read_all_data TO {watcher}")).unwrap();
    let mut client = app.cluster.connect(&app.database, &watcher);
    let mut count = |query: &str| client.query(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}")).len();
    assert_eq!(
        count(
            "SELECT job_table, handler, state, count(*), max(now() - run_at) FILTER (WHERE state = 'available') AS waiting
             FROM background_jobs.queue GROUP BY 1, 2, 3"
        ),
        2
    );
    assert_eq!(
        count("SELECT pid, handler, now() - started_at FROM background_jobs.workers WHERE job_id IS NOT NULL"),
        1
    );
    assert_eq!(
        count(
            "SELECT handler, outcome, error ->> 'sqlstate', count(*) FROM background_jobs.attempts
             WHERE finished_at > now() - interval '1 hour' GROUP BY 1, 2, 3"
        ),
        1
    );
    assert_eq!(
        count(
            "SELECT tgrelid::regclass, tgname FROM pg_trigger
             WHERE tgname LIKE 'background\\_jobs\\_%' AND NOT tgisinternal AND tgenabled <> 'A'"
        ),
        0
    );
    assert_eq!(
        count(
            "SELECT id FROM background_jobs j WHERE NOT completed AND NOT cancelled AND NOT EXISTS (
                SELECT FROM background_jobs.queue q WHERE q.job_table = 'background_jobs'::regclass AND q.job_id = j.id)"
        ),
        0
    );
    drop(client);
    let dump = run(app.cluster.client("pg_dump", &watcher).arg(&app.database));
    assert!(dump.contains("COPY background_jobs.queued_job") && dump.contains(&unhandled.to_string()));
    app.open_gate("go");
    app.wait_final(running);
    app.admin().batch_execute(&format!("DROP ROLE {watcher}")).unwrap();
}
