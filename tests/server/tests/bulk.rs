//! All the ways in which rows come into a table, and out of it again.

use server_tests::{App, Cluster, Group, Uuid, json};
use std::io::Write as _;
use std::time::{Duration, Instant};

static SHARED: Group = Group::new(|| {
    Cluster::builder().conf("max_prepared_transactions", "10").conf("background_jobs.poll_interval", "500ms")
});

/// Without a wake-up: `poll_interval` and a second, and what a busy machine needs.
const UNASKED: Duration = Duration::from_millis(500 + 1000 + 3000);

const DRAIN: Duration = Duration::from_secs(60);

fn noting(app: &mut App) {
    app.handler("noted", "PERFORM note(); RETURN NULL;");
}

fn ledger(app: &mut App) -> i64 {
    assert_eq!(app.one::<i64>("SELECT count(*) - count(DISTINCT job) FROM ledger", &[]), 0, "nothing ran twice");
    app.one("SELECT count(*) FROM ledger", &[])
}

#[test]
fn copy() {
    let mut app = SHARED.app("copied");
    noting(&mut app);
    let mut writer = app.client.copy_in("COPY background_jobs (id, payload, completed) FROM STDIN").unwrap();
    for n in 0..2000 {
        writeln!(writer, "{}\t{{\"handler\": \"noted\"}}\t{}", Uuid::new_v4(), n % 4 == 0).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), 2000);
    app.wait_drained(DRAIN);
    assert_eq!(ledger(&mut app), 1500);
}

#[test]
fn many_rows_in_one_statement() {
    let mut app = SHARED.app("many");
    noting(&mut app);
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"noted\"}' FROM generate_series(1, 10000)");
    app.wait_drained(DRAIN);
    assert_eq!(ledger(&mut app), 10000);
}

/// Whatever ANALYZE has found, every few rows that are handed out are read where the last ones ended, and not all that wait.
#[test]
fn a_queue_that_was_analyzed_while_it_was_empty_is_read_once() {
    const JOBS: i64 = 10_000;
    let cluster = Cluster::builder().conf("background_jobs.enabled", "off").conf("autovacuum", "off").start();
    let mut app = App::with_table(&cluster, "analyzed");
    noting(&mut app);
    let fill = format!(
        "INSERT INTO background_jobs (payload) SELECT '{{\"handler\": \"noted\"}}' FROM generate_series(1, {JOBS})"
    );
    for change in [&fill, "UPDATE background_jobs SET cancelled = true"] {
        app.sql(change);
        app.admin().batch_execute("ANALYZE background_jobs.queued_job").unwrap();
    }
    let empty =
        "SELECT reltuples = 0 AND relpages > 10 FROM pg_class WHERE oid = 'background_jobs.queued_job'::regclass";
    assert!(app.one::<bool>(empty, &[]));
    app.sql(&fill);
    cluster.set("background_jobs.enabled", "on");
    app.wait_drained(DRAIN);
    assert_eq!(ledger(&mut app), JOBS);
    let read = |index: &str| format!("pg_stat_get_tuples_returned('background_jobs.{index}'::regclass)");
    // The dispatcher tells the statistics of what it has read after a while. By their ids the cancelled ones were found.
    let by_order = format!("{} >= {JOBS}", read("queued_job_order"));
    let by_id = format!("{} > 3 * {JOBS}", read("queued_job_pkey"));
    app.wait_true(&format!("SELECT {by_order} OR {by_id}"));
    assert!(app.one::<bool>(&format!("SELECT {by_order} AND NOT {by_id}"), &[]));
}

/// Of a table with a row or two on many pages every plan seems to cost nothing, one that reads all of the other index as well.
#[test]
fn jobs_are_found_by_the_index_of_their_ids_whatever_vacuum_has_found() {
    const CANCELLED: i64 = 50;
    let cluster = Cluster::builder().conf("background_jobs.enabled", "off").conf("autovacuum", "off").start();
    let mut app = App::with_table(&cluster, "by_id");
    noting(&mut app);
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"noted\"}' FROM generate_series(1, 10000)");
    app.admin()
        .batch_execute(
            "ANALYZE background_jobs.queued_job;
             UPDATE pg_class SET reltuples = 1, relpages = 13987 WHERE oid = 'background_jobs.queued_job'::regclass",
        )
        .unwrap();
    let cancel = "UPDATE background_jobs SET cancelled = true WHERE id IN (SELECT id FROM background_jobs LIMIT $1)";
    assert_eq!(app.execute(cancel, &[&CANCELLED]), CANCELLED as u64);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 10_000 - CANCELLED);
    let scans = "SELECT pg_stat_get_numscans('background_jobs.queued_job_pkey'::regclass)";
    app.wait_true(&format!("SELECT ({scans}) >= {CANCELLED}"));
}

#[test]
fn savepoints() {
    let mut app = SHARED.app("savepoints");
    noting(&mut app);
    app.sql(
        "BEGIN;
         SELECT background_jobs.enqueue('noted', '{\"n\": 1}');
         SAVEPOINT a;
         SELECT background_jobs.enqueue('noted', '{\"n\": 2}');
         SAVEPOINT b;
         SELECT background_jobs.enqueue('noted', '{\"n\": 3}');
         ROLLBACK TO b;
         SELECT background_jobs.enqueue('noted', '{\"n\": 4}');
         RELEASE a;
         SAVEPOINT c;
         SELECT background_jobs.enqueue('noted', '{\"n\": 5}');
         ROLLBACK TO c;
         COMMIT;
         BEGIN;
         SELECT background_jobs.enqueue('noted', '{\"n\": 6}');
         ROLLBACK;",
    );
    app.wait_drained(DRAIN);
    let ran: Vec<i32> = app
        .rows("SELECT (payload ->> 'n')::int FROM ledger l JOIN background_jobs j ON j.id = l.job ORDER BY 1", &[])
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(ran, [1, 2, 4]);
    assert_eq!(ledger(&mut app), 3, "a rolled-back insert never starts");
}

#[test]
fn upserts() {
    let mut app = SHARED.app("upserts");
    noting(&mut app);
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    let upsert = "INSERT INTO background_jobs (id, payload, cancelled) VALUES ($1, $2, $3)
        ON CONFLICT (id) DO UPDATE SET payload = EXCLUDED.payload, cancelled = EXCLUDED.cancelled";
    let nothing = "INSERT INTO background_jobs (id, payload) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let (quick, long) = (json!({"handler": "noted"}), json!({"handler": "held"}));

    let new = Uuid::new_v4();
    app.execute(upsert, &[&new, &quick, &false]);
    app.wait_final(new);
    for _ in 0..3 {
        app.execute(upsert, &[&new, &quick, &false]);
        app.execute(nothing, &[&new, &quick]);
    }

    let running = Uuid::new_v4();
    app.execute(nothing, &[&running, &long]);
    app.wait_reached(1);
    app.execute(upsert, &[&running, &long, &false]);
    app.execute(upsert, &[&running, &long, &true]);
    app.wait_left(1);
    assert!(app.row(running).cancelled);

    let later = app.submit("noted", json!({}));
    app.wait_final(later);
    assert_eq!((app.noted(new), app.noted(running)), (1, 0));
    assert_eq!(ledger(&mut app), 2);
}

/// As in the apply worker of logical replication: no ordinary trigger fires and nothing is on the search_path.
#[test]
fn as_a_replica_with_an_empty_search_path() {
    let mut app = SHARED.app_with_recipe_table("replica");
    noting(&mut app);
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    let mut apply = app.admin();
    apply.batch_execute("SET session_replication_role = replica; SET search_path = ''").unwrap();
    let insert = "INSERT INTO public.background_jobs VALUES ($1, now(), $2, false, false, 0)";
    let (quick, long) = (Uuid::new_v4(), Uuid::new_v4());
    apply.execute(insert, &[&quick, &json!({"handler": "noted"})]).unwrap();
    assert!(app.wait_final(quick).completed);
    apply.execute(insert, &[&long, &json!({"handler": "held"})]).unwrap();
    app.wait_reached(1);
    apply.execute("UPDATE public.background_jobs SET cancelled = true WHERE id = $1", &[&long]).unwrap();
    app.wait_left(1);
    assert!(app.row(long).cancelled);
    let gone = Uuid::new_v4();
    apply.execute(insert, &[&gone, &json!({"handler": "held"})]).unwrap();
    app.wait_reached(1);
    apply.execute("DELETE FROM public.background_jobs WHERE id = $1", &[&gone]).unwrap();
    app.wait_left(1);
    assert_eq!(ledger(&mut app), 1);
}

#[test]
fn as_the_owner_with_an_empty_search_path() {
    let mut app = SHARED.app("path");
    noting(&mut app);
    app.sql("SET search_path = ''");
    let id: Uuid =
        app.one("INSERT INTO public.background_jobs (payload) VALUES ('{\"handler\": \"noted\"}') RETURNING id", &[]);
    app.sql("RESET search_path");
    assert!(app.wait_final(id).completed);
    assert_eq!(ledger(&mut app), 1);
}

#[test]
fn two_phase_commit() {
    let mut app = SHARED.app("prepared");
    noting(&mut app);
    let name = |what: &str| format!("'{}_{what}'", app.database);
    let (submit, dropped, cancel) = (name("submit"), name("dropped"), name("cancel"));
    let insert = "INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"noted\"}')";
    app.sql(&format!("BEGIN; {insert}; PREPARE TRANSACTION {submit}"));
    app.sql(&format!("BEGIN; {insert}; PREPARE TRANSACTION {dropped}"));
    let witness = app.submit("noted", json!({}));
    app.wait_final(witness);
    assert_eq!(ledger(&mut app), 1, "what is only prepared does not start");
    // From another session, as a transaction manager does.
    app.session().batch_execute(&format!("ROLLBACK PREPARED {dropped}")).unwrap();
    app.session().batch_execute(&format!("COMMIT PREPARED {submit}")).unwrap();
    let begin = Instant::now();
    app.wait_true("SELECT count(*) = 2 FROM ledger");
    let started = begin.elapsed();
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 2);

    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    app.sql(&format!(
        "BEGIN; UPDATE background_jobs SET cancelled = true WHERE id = '{id}'; PREPARE TRANSACTION {cancel}"
    ));
    app.session().batch_execute(&format!("COMMIT PREPARED {cancel}")).unwrap();
    let begin = Instant::now();
    app.wait_left(1);
    let interrupted = begin.elapsed();
    assert!(app.row(id).cancelled);
    assert_eq!(app.noted(id), 0);
    assert!(started < UNASKED && interrupted < UNASKED, "started {started:?}, interrupted {interrupted:?}");
}

/// A handler may write rows that refer to its own job.
#[test]
fn a_foreign_key_to_the_job() {
    let mut app = SHARED.app("foreign_key");
    app.sql("CREATE TABLE thumbnails (job uuid NOT NULL REFERENCES background_jobs, n int)");
    app.handler(
        "draws",
        "INSERT INTO thumbnails SELECT id, 1 FROM background_jobs.current_job();
         PERFORM reach(1); PERFORM await_gate('go');
         RETURN NULL;",
    );
    let id = app.submit("draws", json!({}));
    app.wait_reached(1);
    app.sql("SET lock_timeout = '5 s'");
    app.execute("UPDATE background_jobs SET timestamp = now() WHERE id = $1", &[&id]);
    app.open_gate("go");
    assert!(app.wait_final(id).completed);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM thumbnails", &[]), 1);
}

#[test]
fn partitions() {
    let mut app = SHARED.app_without_table("partitions");
    app.partitioned_by_time();
    app.sql(
        "CREATE TABLE old_jobs PARTITION OF background_jobs FOR VALUES FROM (MINVALUE) TO ('2000-01-01');
         CREATE TABLE new_jobs PARTITION OF background_jobs FOR VALUES FROM ('2000-01-01') TO (MAXVALUE);
         SELECT background_jobs.attach('background_jobs');",
    );
    noting(&mut app);
    let old: Uuid = app.one(
        "INSERT INTO background_jobs VALUES (gen_random_uuid(), '1999-01-01', '{\"handler\": \"noted\"}', false, false, 0)
         RETURNING id",
        &[],
    );
    let new = app.submit("noted", json!({}));
    assert!(app.wait_final(old).completed && app.wait_final(new).completed);
    assert_eq!((app.noted(old), app.noted(new)), (1, 1));
}

const TWO_PARTITIONS: &str = "
    CREATE TABLE background_jobs (region text NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid(),
        timestamp timestamptz NOT NULL DEFAULT now(), payload jsonb NOT NULL DEFAULT '{}', completed boolean NOT NULL DEFAULT false,
        cancelled boolean NOT NULL DEFAULT false, progress real NOT NULL DEFAULT 0, result jsonb,
        PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE north PARTITION OF background_jobs FOR VALUES IN ('north');
    CREATE TABLE south PARTITION OF background_jobs FOR VALUES IN ('south');
    SELECT background_jobs.attach('background_jobs')";

#[test]
fn an_unfinished_jobs_id_is_refused_in_another_partition_and_free_when_it_is_finished() {
    let mut app = SHARED.app_without_table("same_id");
    app.sql(TWO_PARTITIONS);
    noting(&mut app);
    let insert = "INSERT INTO background_jobs (region, id, payload) VALUES ($1, $2, '{\"handler\": \"noted\"}')";
    let id = Uuid::new_v4();
    let mut open = app.client.transaction().unwrap();
    open.execute(insert, &[&"north", &id]).unwrap();
    let error = open.execute(insert, &[&"south", &id]).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23505", "{error:?}");
    open.rollback().unwrap();
    app.execute(insert, &[&"north", &id]);
    assert!(app.wait_final(id).completed);
    app.execute(insert, &[&"south", &id]);
    app.wait_drained(DRAIN);
    assert_eq!(app.noted(id), 2);
}

#[test]
fn a_job_that_moves_to_another_partition_while_it_waits_runs_once() {
    let mut app = SHARED.app_without_table("moved");
    app.sql(TWO_PARTITIONS);
    let id: Uuid = app.one(
        "INSERT INTO background_jobs (region, payload) VALUES ('north', '{\"handler\": \"noted\"}') RETURNING id",
        &[],
    );
    app.wait_state(id, "unhandled");
    app.execute("UPDATE background_jobs SET region = 'south' WHERE id = $1", &[&id]);
    noting(&mut app);
    assert!(app.wait_final(id).completed);
    assert_eq!(app.noted(id), 1);
}

#[test]
fn rows_of_any_shape_come_back_byte_for_byte() {
    let mut app = SHARED.app("bytes");
    app.handler("echo", "RETURN payload;");
    app.sql(
        "CREATE TABLE shapes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), payload jsonb);
         INSERT INTO shapes (payload) VALUES
            (jsonb_build_object('handler', 'echo', 'big', 1e1000::numeric, 'tiny', 1e-1000::numeric)),
            (jsonb_build_object('handler', 'echo', 'long', repeat('x', 1000000))),
            (('{\"handler\": \"echo\", \"deep\": ' || repeat('[', 3000) || repeat(']', 3000) || '}')::jsonb),
            ('{\"handler\": \"echo\", \"number\": 12345678901234567890.12345678901234567890}');
         INSERT INTO background_jobs (id, payload) SELECT id, payload FROM shapes;",
    );
    app.wait_drained(DRAIN);
    let same: i64 = app.one(
        "SELECT count(*) FROM shapes s JOIN background_jobs j USING (id)
         WHERE s.payload::text = j.payload::text AND s.payload::text = j.result::text AND j.completed",
        &[],
    );
    assert_eq!(same, 4);
}

/// ANALYZE may come by while the queue has a single job of a table, from which it would conclude that there never are more.
#[test]
fn jobs_are_found_by_their_ids_whatever_analyze_has_seen_of_the_queue() {
    let mut app = SHARED.app("analyzed");
    app.sql("SELECT background_jobs.enqueue('nobody', run_at => 'infinity')");
    app.admin().batch_execute("ANALYZE background_jobs.queued_job").unwrap();
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"nobody\"}' FROM generate_series(1, 2000)");
    let scans = "SELECT sum(idx_scan)::bigint FROM pg_stat_all_indexes WHERE indexrelname = 'queued_job_pkey'";
    let before: i64 = app.admin().query_one(scans, &[]).unwrap().get(0);
    let mut session = app.session();
    session.batch_execute("UPDATE background_jobs SET cancelled = true WHERE NOT cancelled").unwrap();
    // It tells its statistics when it ends.
    drop(session);
    let mut admin = app.admin();
    app.cluster.wait_until("the cancels to be counted", || {
        let scans: i64 = admin.query_one(scans, &[]).unwrap().get(0);
        if scans - before >= 2001 { Ok(()) } else { Err(format!("{} scans of the key", scans - before)) }
    });
}

/// What a row trigger writes below SQL is what the column would generate: a job in another lane would be found by nobody.
#[test]
fn jobs_that_enter_without_sql_are_in_the_lane_that_the_column_generates() {
    let mut app = SHARED.app_without_table("lanes");
    app.sql("SELECT background_jobs.create_table(columns => '{handler,priority,run_at}')");
    app.sql(
        r"INSERT INTO background_jobs (handler, priority, run_at)
          SELECT h, p, r FROM unnest(ARRAY['plain', 'gänse', 'back\slash', 'quote''d', repeat('n', 63)]) h,
                 unnest(ARRAY[-32768, -1, 0, 1, 32767]::smallint[]) p, unnest(ARRAY[NULL, 'infinity']::timestamptz[]) r",
    );
    let query = "SELECT count(*), count(*) FILTER (WHERE lane = background_jobs.lane_of(handler, priority, timing)),
                        count(*) FILTER (WHERE row_tid IS NOT NULL) FROM background_jobs.queued_job";
    let row = app.admin().query_one(query, &[]).unwrap();
    let counts: [i64; 3] = std::array::from_fn(|column| row.get(column));
    assert_eq!(counts, [50; 3], "all, in their lane, without SQL");
}
