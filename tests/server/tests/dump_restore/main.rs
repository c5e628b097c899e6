//! Logical dumps: what is in them, what runs during and after their restore, and what does not.

mod held_back;

use server_tests::postgres::Client;
use server_tests::{App, Cluster, Group, Uuid, ident, json, keeper, run};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

// The copies are in the same server as their originals and may run jobs at once.
static SHARED: Group = Group::new(|| {
    Cluster::builder().conf("background_jobs.poll_interval", "100ms").conf("background_jobs.crash_quarantine", "0")
});

const NOTED: &str = "PERFORM note(); RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));";

/// The application that is dumped: jobs in every state, and what will have become of them when they have run.
struct Original {
    app: App<'static>,
    finished: Uuid,
    cancelled: Uuid,
    scheduled: Uuid,
    retrying: Uuid,
    unhandled: Uuid,
    keyed: Uuid,
    running: Uuid,
}

fn original(name: &str) -> Original {
    let mut app = SHARED.app(name);
    app.handler("noted", NOTED);
    app.handler_with(
        "flaky",
        &format!("IF NOT EXISTS (SELECT FROM gates WHERE name = 'mended') THEN RAISE 'not yet'; END IF; {NOTED}"),
        "max_attempts => 7, retry_delay => '1 h', max_retry_delay => '1 h'",
    );
    app.handler("held", &format!("PERFORM reach(1); PERFORM await_gate('go'); {NOTED}"));
    let finished = app.submit("noted", json!({"text": "äöü 🐘 \\ ' \" \n"}));
    app.wait_final(finished);
    let later = |app: &mut App, more: &str| -> Uuid {
        app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => '2099-12-31 12:00+00'{more})"), &[])
    };
    let cancelled = later(&mut app, "");
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&cancelled]);
    let scheduled = later(&mut app, ", priority => -7::smallint, max_attempts => 3");
    let keyed = later(&mut app, ", job_key => 'key', queue => 'mail'");
    let retrying = app.submit("flaky", json!({}));
    app.wait_state(retrying, "retrying");
    let unhandled = app.submit("later", json!({}));
    let running = app.submit("held", json!({}));
    app.wait_reached(1);
    Original { app, finished, cancelled, scheduled, retrying, unhandled, keyed, running }
}

/// What the extension knows of its jobs, as rows of text that mean the same in every database.
fn knowledge(client: &mut Client) -> Vec<String> {
    let query = "
        SELECT concat_ws(' | ', 'job', q.job_table, q.job_id, q.handler, q.priority, q.timing, q.run_at, q.attempts,
            q.max_attempts, q.conflicts, q.queue, q.job_key, q.last_error) FROM background_jobs.queued_job q
        UNION ALL
        SELECT concat_ws(' | ', 'handler', h.job_table, h.name, h.function_schema, h.function_name, h.takes_id, h.owner,
            h.max_attempts, h.timeout, h.retry_delay, h.max_retry_delay) FROM background_jobs.handler h
        UNION ALL
        SELECT concat_ws(' | ', 'attempt', a.job_table, a.job_id, a.attempt, a.handler, a.outcome, a.error, a.started_at,
            a.finished_at) FROM background_jobs.attempt a
        UNION ALL
        SELECT concat_ws(' | ', 'row', j.*) FROM background_jobs j
        ORDER BY 1";
    client.query(query, &[]).unwrap_or_else(|e| panic!("{e:?}")).iter().map(|row| row.get(0)).collect()
}

fn dump(cluster: &Cluster, database: &str, options: &[&str]) -> PathBuf {
    let file = keeper::root().join(format!("{database}{}.dump", options.join("")));
    run(cluster.client("pg_dump", "postgres").args(options).arg("-f").arg(&file).arg(database));
    file
}

impl Original {
    fn dump(&self, options: &[&str]) -> PathBuf {
        dump(self.app.cluster, &self.app.database, options)
    }

    /// An empty database for a copy.
    fn database(&self, prefix: &str) -> String {
        let name = format!("{prefix}_{}", self.app.database);
        let create = format!("CREATE DATABASE {} TEMPLATE template0", ident(&name));
        self.app.cluster.admin("postgres").batch_execute(&create).unwrap();
        name
    }

    /// Drops the original and goes on with the copy.
    fn move_to(mut self, copy: String) -> Original {
        let old = std::mem::replace(&mut self.app.database, copy);
        self.app.client = self.app.session();
        let mut admin = self.app.cluster.admin("postgres");
        admin.batch_execute(&format!("DROP DATABASE {} (FORCE)", ident(&old))).unwrap();
        self
    }

    /// Everything unfinished runs in this database, once, and counts its attempts from where they stood.
    fn runs_everything_once(mut self) {
        let app = &mut self.app;
        app.open_gate("go");
        app.open_gate("mended");
        app.handler("later", NOTED);
        for id in [self.scheduled, self.retrying, self.keyed] {
            assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
        }
        for (id, attempt) in
            [(self.scheduled, 1), (self.keyed, 1), (self.unhandled, 1), (self.running, 1), (self.retrying, 2)]
        {
            let job = app.wait_final(id);
            assert_eq!(job.result, Some(json!(attempt)), "{job:?}");
            assert_eq!(app.noted(id), 1);
        }
        assert_eq!((app.noted(self.finished), app.noted(self.cancelled)), (1, 0));
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
        app.cluster.amcheck(&app.database);
    }
}

fn restore(original: &Original, database: &str, options: &[&str], file: &PathBuf) {
    let mut command = original.app.cluster.client("pg_restore", "postgres");
    run(command.args(options).args(["--exit-on-error", "-d", database]).arg(file));
}

#[test]
fn pg_restore_brings_jobs_attempts_and_handlers_back_and_everything_runs_once() {
    let original = original("custom");
    let file = original.dump(&["-Fc"]);
    let copy = original.database("copy");
    restore(&original, &copy, &["--single-transaction"], &file);
    original.move_to(copy).runs_everything_once();
}

#[test]
fn psql_brings_jobs_attempts_and_handlers_back_and_everything_runs_once() {
    let original = original("plain");
    let file = original.dump(&[]);
    let copy = original.database("copy");
    let input = File::open(&file).unwrap();
    run(original.app.cluster.psql(&copy, "postgres").arg("-q").stdin(input));
    original.move_to(copy).runs_everything_once();
}

#[test]
fn a_restore_by_several_processes_brings_everything_back_and_everything_runs_once() {
    let original = original("parallel");
    let directory = original.dump(&["-Fd"]);
    let copy = original.database("copy");
    restore(&original, &copy, &["--jobs=3"], &directory);
    original.move_to(copy).runs_everything_once();
}

/// A server of its own whose jobs are switched off for all databases but one, as in a rehearsal of a recovery.
#[test]
fn a_copy_in_a_database_that_may_not_run_jobs_knows_what_the_original_knows_and_runs_nothing() {
    let mut original = original("left_out");
    let file = original.dump(&["-Fc"]);
    let before = knowledge(&mut original.app.admin());
    let other = Cluster::builder()
        .conf("background_jobs.databases", "production")
        .conf("background_jobs.poll_interval", "100ms")
        .start();
    other.create_role(&original.app.role);
    for name in ["copy", "production"] {
        other.admin("postgres").batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
    }
    run(other.client("pg_restore", "postgres").args(["--exit-on-error", "-d", "copy"]).arg(&file));
    let mut admin = other.admin("copy");
    assert_eq!(knowledge(&mut admin), before);
    // The launcher has looked at every database once another one's dispatcher is there.
    let mut production = other.admin("production");
    production.batch_execute("CREATE EXTENSION background_jobs").unwrap();
    let query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%' AND datname = $1";
    other.wait_until("a dispatcher", || {
        match production.query_one(query, &[&"production"]).unwrap().get::<_, i64>(0) {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(production.query_one(query, &[&"copy"]).unwrap().get::<_, i64>(0), 0);
    assert_eq!(knowledge(&mut admin), before);
    drop((admin, production));
    original.app.open_gate("go");
    let id = original.running;
    original.app.wait_final(id);
}

/// The end of a restore are privileges and materialized views: a job that ran before would not find them.
#[test]
fn nothing_runs_before_the_restore_is_over() {
    let cluster = Cluster::builder().conf("background_jobs.enabled", "off").start();
    let mut app = App::with_table(&cluster, "during");
    app.sql("CREATE MATERIALIZED VIEW slow AS SELECT pg_sleep(1)::text AS nothing");
    app.handler(
        "looks",
        "RETURN (SELECT to_jsonb(m.ispopulated) FROM pg_catalog.pg_matviews m WHERE m.matviewname = 'slow');",
    );
    let id = app.submit("looks", json!({}));
    let file = keeper::root().join("during.dump");
    run(cluster.client("pg_dump", "postgres").arg("-Fc").arg("-f").arg(&file).arg(&app.database));

    let other = Cluster::builder().conf("background_jobs.poll_interval", "50ms").start();
    other.create_role(&app.role);
    other.admin("postgres").batch_execute("CREATE DATABASE copy").unwrap();
    run(other.client("pg_restore", "postgres").args(["--exit-on-error", "-d", "copy"]).arg(&file));
    let mut client = other.connect("copy", &app.role);
    let result: serde_json::Value = client.query_one("SELECT background_jobs.wait($1)", &[&id]).unwrap().get(0);
    assert_eq!(result, json!(true), "the materialized view was there when the job ran");
}

/// The extension is not in such a dump, nor is the queue: attach() finds the rows that are unfinished.
#[test]
fn a_dump_of_one_schema_runs_its_unfinished_rows_after_attach() {
    let original = original("public");
    let file = original.dump(&["-Fc", "-n", "public"]);
    let copy = original.database("copy");
    // Such a dump creates the schema, and without the privileges that a new database's has.
    let mut admin = original.app.cluster.admin(&copy);
    admin.batch_execute("DROP SCHEMA public; CREATE EXTENSION background_jobs").unwrap();
    restore(&original, &copy, &[], &file);
    admin.batch_execute("GRANT USAGE ON SCHEMA public TO PUBLIC").unwrap();
    drop(admin);
    let Original { mut app, finished, cancelled, scheduled, retrying, unhandled, keyed, running } =
        original.move_to(copy);
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 5);
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 0);
    for handler in ["noted", "flaky", "held", "later"] {
        app.register(handler, "noted(jsonb)", "");
    }
    for id in [scheduled, retrying, unhandled, keyed, running] {
        assert_eq!(app.wait_final(id).result, Some(json!(1)));
        assert_eq!(app.noted(id), 1);
    }
    assert_eq!((app.noted(finished), app.noted(cancelled)), (1, 0));
}

const SCHEMA: &[&str] = &["--section=pre-data", "--section=post-data"];
/// The queue's rows come before the rows that they are about.
const DATA: &[&str] = &["--data-only", "--disable-triggers"];

fn copy_section(from: (&Cluster, &str), to: (&Cluster, &str), section: &[&str]) {
    let (cluster, copy) = to;
    let file = dump(from.0, from.1, &[&["-Fc"], section].concat());
    run(cluster.client("pg_restore", "postgres").args(["--exit-on-error", "--disable-triggers", "-d", copy]).arg(file));
}

#[test]
fn data_only_into_a_live_database_keeps_every_job_and_everything_runs_once() {
    let original = original("data_live");
    let copy = original.database("copy");
    let (cluster, name) = (original.app.cluster, original.app.database.clone());
    copy_section((cluster, &name), (cluster, &copy), SCHEMA);
    let mut locker = cluster.admin(&copy);
    let mut transaction = locker.transaction().unwrap();
    // The rows of the table take their time, which is long enough for the queue to be looked through.
    transaction.batch_execute("LOCK TABLE public.background_jobs IN EXCLUSIVE MODE").unwrap();
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| copy_section((cluster, &name), (cluster, &copy), DATA));
        let mut admin = cluster.admin(&copy);
        cluster.wait_until("the restore to wait for the table", || {
            let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND application_name = 'pg_restore' AND wait_event_type = 'Lock'";
            server_tests::wait::yes(admin.query_one(query, &[]).unwrap().get::<_, i64>(0) == 1)
        });
        let query = "SELECT count(*) FROM background_jobs.queued_job WHERE job_id = $1";
        let kept = server_tests::wait::attempt(Duration::from_secs(1), "the job to be taken out of the queue", || {
            server_tests::wait::yes(admin.query_one(query, &[&original.running]).unwrap().get::<_, i64>(0) == 0)
        });
        transaction.rollback().unwrap();
        restore.join().unwrap();
        assert!(kept.is_err(), "a job whose row has not come yet was forgotten");
    });
    drop(locker);
    let mut original = original.move_to(copy);
    // The restore has left the triggers as ordinary ones, which replication does not fire.
    let attached: i64 = original.app.one("SELECT background_jobs.attach('background_jobs')", &[]);
    let always: bool = original.app.one(
        "SELECT bool_and(tgenabled = 'A') FROM pg_trigger WHERE tgrelid = 'background_jobs'::regclass AND NOT tgisinternal",
        &[],
    );
    assert!(always);
    assert_eq!(attached, 0, "no unfinished row was without its place in the queue");
    original.runs_everything_once();
}

#[test]
fn data_only_into_a_database_that_may_not_run_jobs_keeps_every_job_and_everything_runs_once() {
    let original = original("data_asleep");
    let other = Cluster::builder().conf("background_jobs.databases", "").start();
    other.create_role(&original.app.role);
    let name = original.app.database.clone();
    other.admin("postgres").batch_execute(&format!("CREATE DATABASE {}", ident(&name))).unwrap();
    for section in [SCHEMA, DATA] {
        copy_section((original.app.cluster, &name), (&other, &name), section);
    }
    let before = knowledge(&mut original.app.admin());
    assert_eq!(knowledge(&mut other.admin(&name)), before);
    let mut client = other.connect(&name, &original.app.role);
    let attached: i64 = client.query_one("SELECT background_jobs.attach('background_jobs')", &[]).unwrap().get(0);
    assert_eq!(attached, 0);
    other.set("background_jobs.databases", "*");
    client.batch_execute("INSERT INTO gates VALUES ('go'), ('mended')").unwrap();
    for (id, attempt) in [(original.running, 1), (original.scheduled, 1), (original.retrying, 2)] {
        client.execute("SELECT background_jobs.run_now($1)", &[&id]).unwrap();
        let result: serde_json::Value = client.query_one("SELECT background_jobs.wait($1)", &[&id]).unwrap().get(0);
        assert_eq!(result, json!(attempt));
    }
}

/// I18: all that the queue knows is in the table, as far as the table has columns for it.
#[test]
fn a_queue_rebuilt_from_the_table_equals_the_queue() {
    let mut app = SHARED.app_without_table("rebuilt");
    app.sql(
        "SELECT background_jobs.create_table('background_jobs', '{handler, queue, priority, run_at, job_key, max_attempts}');
         INSERT INTO background_jobs (id, timestamp, handler, queue, priority, run_at, job_key, max_attempts, completed, cancelled)
         SELECT gen_random_uuid(), now() + n * interval '1 ms', 'h' || n % 7, CASE WHEN n % 3 = 0 THEN 'q' || n % 2 END,
                CASE WHEN n % 4 = 0 THEN n % 5 - 2 END, CASE WHEN n % 5 = 0 THEN now() + n * interval '1 h' END,
                CASE WHEN n % 6 = 0 THEN 'k' || n END, CASE WHEN n % 8 = 0 THEN n END, n % 11 = 0, n % 13 = 0
           FROM generate_series(1, 2000) n;",
    );
    let mut admin = app.admin();
    let mut queue = || -> Vec<String> {
        let query = "SELECT concat_ws(' | ', job_id, handler, priority, timing, CASE WHEN timing = 1 THEN run_at END, attempts,
                max_attempts, queue, job_key, row_number() OVER (PARTITION BY handler, priority, timing ORDER BY run_at, job_id))
            FROM background_jobs.queued_job ORDER BY job_id";
        admin.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
    };
    let before = queue();
    app.sql("SELECT background_jobs.detach('background_jobs')");
    assert_eq!(queue(), Vec::<String>::new());
    let options = "'background_jobs', '{handler, queue, priority, run_at, job_key, max_attempts}'";
    let attached: i64 = app.one(&format!("SELECT background_jobs.attach({options})"), &[]);
    assert_eq!(attached, i64::try_from(before.len()).unwrap());
    assert_eq!(queue(), before);
    let unfinished = "SELECT count(*) FROM background_jobs WHERE NOT completed AND NOT cancelled";
    assert_eq!(app.one::<i64>(unfinished, &[]), attached);
    app.cluster.amcheck(&app.database);
}

/// What a data-only restore leaves behind: the triggers fire for ordinary sessions, and not when replication applies.
#[test]
fn triggers_that_are_no_longer_always_enabled_are_warned_about_and_attach_mends_them() {
    let mut app = SHARED.app("ordinary_triggers");
    app.handler("noted", NOTED);
    app.sql("ALTER TABLE background_jobs DISABLE TRIGGER USER");
    app.sql("ALTER TABLE background_jobs ENABLE TRIGGER USER");
    let id = app.submit("noted", json!({}));
    assert!(app.wait_final(id).completed);
    let cluster = app.cluster;
    let warned = server_tests::wait::attempt(Duration::from_secs(3), "a warning", || {
        let about = |line: &str| line.contains("background_jobs executor") && line.contains("trigger");
        server_tests::wait::yes(cluster.log().lines().any(about))
    });
    app.sql("SELECT background_jobs.attach('background_jobs')");
    let mut apply = app.admin();
    apply.batch_execute("SET session_replication_role = replica; SET search_path = ''").unwrap();
    let id = Uuid::new_v4();
    let insert = "INSERT INTO public.background_jobs (id, payload) VALUES ($1, '{\"handler\": \"noted\"}')";
    apply.execute(insert, &[&id]).unwrap();
    assert!(app.wait_final(id).completed);
    assert_eq!(warned, Ok(()));
}
