//! Offline clients: two servers that exchange jobs by logical replication, every column with one writer (`pair`).

use server_tests::pair::{CLIENT_PUBLICATION, SKIP_ECHOES};
use server_tests::{Builder, Cluster, Group, Pair, Stop, Uuid, json};
use std::time::{Duration, Instant};

fn logical(builder: Builder) -> Builder {
    builder
        .conf("wal_level", "logical")
        .conf("max_worker_processes", "40")
        .conf("max_logical_replication_workers", "20")
        .conf("max_replication_slots", "30")
        .conf("max_wal_senders", "30")
        .conf("max_prepared_transactions", "10")
        // Logical decoding says so of its own.
        .allow_in_log("saved snapshot")
        // How long an apply worker that has lost its connection waits before it tries again.
        .conf("wal_retrieve_retry_interval", "200ms")
}

static CLIENT: Group = Group::new(|| logical(Cluster::builder().plain()));
static SERVER: Group = Group::new(|| logical(Cluster::builder()));

const HELD: &str =
    "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach((payload ->> 'point')::int);
    PERFORM await_gate(payload ->> 'gate'); RETURN to_jsonb('done'::text);";

/// A pair that is not connected yet.
fn pair(name: &str) -> Pair<'static> {
    let mut pair = Pair::new(CLIENT.cluster(), SERVER.cluster(), name);
    pair.server.handler("noted", "PERFORM note(); RETURN payload - 'handler';");
    pair.server.handler("held", HELD);
    pair
}

fn connected(name: &str) -> Pair<'static> {
    let mut pair = pair(name);
    pair.subscribe("");
    pair
}

/// Both sides say the same about every job that the client knows, and nothing ran twice.
fn assert_converged(pair: &mut Pair) {
    pair.round_trip();
    pair.round_trip();
    let query =
        "SELECT coalesce(jsonb_agg(to_jsonb(j) ORDER BY id), '[]') FROM (SELECT id, timestamp, payload, completed,
        cancelled, progress, result FROM background_jobs) j";
    let client: serde_json::Value = pair.client.query_one(query, &[]).unwrap().get(0);
    let server: serde_json::Value = pair.server.one(query, &[]);
    assert_eq!(client, server);
    assert_eq!(pair.server.one::<i64>("SELECT count(*) - count(DISTINCT job) FROM ledger", &[]), 0);
    assert_eq!(pair.server.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

#[test]
fn an_insert_on_the_client_runs_on_the_server_and_its_result_comes_back() {
    let mut pair = connected("insert");
    let ids: Vec<Uuid> = (0..20).map(|n| pair.submit("noted", json!({"n": n}))).collect();
    for (n, id) in ids.into_iter().enumerate() {
        let job = pair.wait_final(id);
        assert_eq!((job.completed, job.cancelled, job.result), (true, false, Some(json!({"n": n}))));
        assert!((job.progress - 1.0).abs() < f32::EPSILON);
        assert_eq!(pair.server.noted(id), 1);
    }
    assert_converged(&mut pair);
}

#[test]
fn progress_reaches_the_client_while_the_handler_runs() {
    let mut pair = connected("progress");
    let id = pair.submit("held", json!({"point": 1, "gate": "go"}));
    pair.client_cluster.wait_until("progress on the client", || {
        let row = pair.row(id);
        if (row.progress - 0.5).abs() < f32::EPSILON && !row.is_final() { Ok(()) } else { Err(format!("{row:?}")) }
    });
    assert_eq!(pair.server.state(id), "running");
    pair.server.open_gate("go");
    assert_eq!(pair.wait_final(id).result, Some(json!("done")));
    assert_converged(&mut pair);
}

#[test]
fn the_initial_copy_runs_what_is_unfinished_and_nothing_that_was_cancelled() {
    let mut pair = pair("initial");
    let open: Vec<Uuid> = (0..50).map(|n| pair.submit("noted", json!({"n": n}))).collect();
    let cancelled: Vec<Uuid> = (0..5).map(|_| pair.submit("noted", json!({}))).collect();
    cancelled.iter().for_each(|id| pair.cancel(*id));
    pair.subscribe("");
    for id in open {
        assert!(pair.wait_final(id).completed);
        assert_eq!(pair.server.noted(id), 1);
    }
    let later = pair.submit("noted", json!({}));
    pair.wait_final(later);
    for id in cancelled {
        assert_eq!(pair.server.state(id), "cancelled");
        assert_eq!(pair.server.noted(id), 0);
    }
    assert_converged(&mut pair);
}

#[test]
fn a_cancel_stops_a_run_while_another_job_arrives_within_a_second() {
    let mut pair = connected("cancel");
    let running = pair.submit("held", json!({"point": 1, "gate": "never"}));
    pair.server.wait_reached(1);
    let begin = Instant::now();
    pair.cancel(running);
    let other = pair.submit("noted", json!({}));
    assert!(pair.wait_final(other).completed);
    pair.server.wait_left(1);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let row = pair.server.row(running);
    assert!(row.cancelled && !row.completed && row.result.is_none(), "{row:?}");
    assert_eq!(pair.server.noted(running), 0);
    assert_converged(&mut pair);
}

#[test]
fn an_offline_batch_runs_once_the_client_is_back() {
    let mut pair = connected("offline");
    let running = pair.submit("held", json!({"point": 1, "gate": "go"}));
    let doomed = pair.submit("held", json!({"point": 2, "gate": "never"}));
    pair.server.wait_reached(1);
    pair.server.wait_reached(2);
    pair.set_online(false);

    // On the client: a batch in one transaction, some of it cancelled before anybody saw it, and a cancel of what runs.
    let insert = "INSERT INTO background_jobs
        SELECT gen_random_uuid(), now(), '{\"handler\": \"noted\"}', false, n % 10 = 0, 0 FROM generate_series(1, 500) n";
    assert_eq!(pair.client.execute(insert, &[]).unwrap(), 500);
    let regretted = pair.submit("noted", json!({}));
    pair.cancel(regretted);
    pair.cancel(doomed);
    // On the server, meanwhile: the job that was running completes.
    pair.server.open_gate("go");
    assert!(pair.server.wait_final(running).completed);
    assert_eq!(pair.server.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 2);
    assert!(!pair.row(running).completed);

    pair.set_online(true);
    assert_eq!(pair.wait_final(running).result, Some(json!("done")));
    pair.server_cluster.wait_until("the batch to be done", || {
        let query = "SELECT count(*) FROM background_jobs WHERE completed AND payload ->> 'handler' = 'noted'";
        let done: i64 = pair.client.query_one(query, &[]).unwrap().get(0);
        if done == 450 { Ok(()) } else { Err(format!("{done} done")) }
    });
    pair.server.wait_left(2);
    let noted: i64 = pair.server.one("SELECT count(*) FROM ledger", &[]);
    assert_eq!(noted, 451, "the batch and the job that was running, and nothing that was cancelled");
    assert_eq!((pair.server.noted(regretted), pair.server.noted(doomed)), (0, 0));
    assert_converged(&mut pair);
}

/// Payload and result of nine kilobytes, once random (stored apart from its row) and once repetitive (stored compressed).
#[test]
fn large_payloads_and_results_arrive_whole_and_end_no_worse_than_small_ones() {
    let mut pair = connected("large");
    let random: String = pair
        .client
        .query_one("SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) n", &[])
        .unwrap()
        .get(0);
    for text in [random, "x".repeat(9600)] {
        let payload = json!({"text": text});
        let id = pair.submit("noted", payload.clone());
        assert_eq!(pair.wait_final(id).result, Some(payload));
        assert_eq!(pair.server.noted(id), 1);
    }
    assert_converged(&mut pair);
}

#[test]
fn at_rest_nothing_goes_to_and_fro() {
    let mut pair = connected("quiet");
    let long = "x".repeat(9600);
    let mut ids: Vec<Uuid> = (0..10).map(|_| pair.submit("noted", json!({"text": long}))).collect();
    ids.extend((0..10).map(|_| pair.submit("held", json!({"point": 1, "gate": "go"}))));
    pair.server.open_gate("go");
    ids.iter().for_each(|id| drop(pair.wait_final(*id)));
    let cancelled = pair.submit("nobody", json!({"text": long}));
    pair.cancel(cancelled);
    assert_converged(&mut pair);
    // An echo that is not skipped comes back with every round.
    let before = pair.updates();
    for _ in 0..3 {
        pair.round_trip();
    }
    assert_eq!(pair.updates(), before);
}

#[test]
fn prepared_transactions_start_when_they_are_committed_and_only_then() {
    let mut pair = pair("two_phase");
    pair.subscribe("two_phase = true");
    // Two-phase is on once the initial copy is done.
    let first = pair.submit("noted", json!({}));
    pair.wait_final(first);
    pair.server_cluster.wait_until("two-phase to be on", || {
        let query = "SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
            WHERE d.datname = current_database() AND s.subtwophasestate = 'e'";
        let on: i64 = pair.server.admin().query_one(query, &[]).unwrap().get(0);
        if on == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    });

    let name = |what: &str| format!("'{}_{what}'", pair.server.database);
    let (kept, dropped) = (name("kept"), name("dropped"));
    let insert = |id: Uuid| {
        format!("INSERT INTO background_jobs VALUES ('{id}', now(), '{{\"handler\": \"noted\"}}', false, false, 0)")
    };
    let (yes, no) = (Uuid::new_v4(), Uuid::new_v4());
    for (id, name) in [(yes, &kept), (no, &dropped)] {
        pair.client.batch_execute(&format!("BEGIN; {}; PREPARE TRANSACTION {name}", insert(id))).unwrap();
    }
    pair.server.wait_true("SELECT count(*) = 2 FROM pg_prepared_xacts WHERE database = current_database()");
    let witness = pair.submit("noted", json!({}));
    pair.wait_final(witness);
    assert!(
        pair.server.find(yes).is_none() && pair.server.find(no).is_none(),
        "what is only prepared is not there yet"
    );
    pair.client.batch_execute(&format!("ROLLBACK PREPARED {dropped}")).unwrap();
    let begin = Instant::now();
    pair.client.batch_execute(&format!("COMMIT PREPARED {kept}")).unwrap();
    assert!(pair.wait_final(yes).completed);
    assert!(begin.elapsed() < Duration::from_secs(6), "poll_interval and a second: {:?}", begin.elapsed());
    assert!(pair.server.find(no).is_none());
    assert_converged(&mut pair);
}

#[test]
fn a_stale_cancel_after_completion_changes_nothing_but_the_flag() {
    let mut pair = connected("stale");
    let id = pair.submit("held", json!({"point": 1, "gate": "go"}));
    pair.server.wait_reached(1);
    pair.set_online(false);
    pair.server.open_gate("go");
    let before = pair.server.wait_final(id);
    assert!(before.completed);
    pair.cancel(id);
    pair.set_online(true);
    assert_converged(&mut pair);
    let row = pair.row(id);
    assert!(row.completed && row.cancelled);
    assert_eq!((row.result, row.progress), (before.result, before.progress));
    assert_eq!(pair.server.state(id), "completed");
    assert_eq!(pair.server.noted(id), 1);
}

#[test]
fn row_level_security_on_the_server_keeps_no_job_from_running() {
    let mut pair = pair("rls");
    let other = format!("other_{}", pair.server.database);
    pair.server_cluster.create_role(&other);
    pair.server.sql(&format!(
        "ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY theirs ON background_jobs TO {other} USING (payload ->> 'tenant' = current_user);
         GRANT SELECT ON background_jobs TO {other};"
    ));
    pair.subscribe("");
    let (hidden, theirs) = (pair.submit("noted", json!({})), pair.submit("noted", json!({"tenant": other})));
    assert!(pair.wait_final(hidden).completed && pair.wait_final(theirs).completed);
    let mut reader = pair.server_cluster.connect(&pair.server.database, &other);
    let seen: Vec<Uuid> =
        reader.query("SELECT id FROM background_jobs", &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(seen, [theirs]);
    drop(reader);
    assert_converged(&mut pair);
    pair.server.admin().batch_execute(&format!("DROP OWNED BY {other}; DROP ROLE {other}")).unwrap();
}

/// The apply worker locks the row that it updates for itself alone, which a foreign key's lock keeps it from. Checked at
/// commit, the foreign key takes its lock when the handler is done.
#[test]
fn a_handler_with_a_deferred_foreign_key_to_its_row_holds_up_no_replication() {
    let mut pair = connected("deferred_key");
    pair.server
        .sql("CREATE TABLE pages (job uuid NOT NULL REFERENCES background_jobs DEFERRABLE INITIALLY DEFERRED, n int)");
    let body = format!("INSERT INTO pages SELECT id, 1 FROM background_jobs.current_job(); {HELD}");
    pair.server.handler("pages", &body);
    let kept = pair.submit("pages", json!({"point": 1, "gate": "go"}));
    let stopped = pair.submit("pages", json!({"point": 2, "gate": "never"}));
    pair.server.wait_reached(1);
    pair.server.wait_reached(2);
    let begin = Instant::now();
    pair.cancel(stopped);
    let other = pair.submit("noted", json!({}));
    assert!(pair.wait_final(other).completed);
    pair.server.wait_left(2);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!(pair.server.state(kept), "running");
    pair.server.open_gate("go");
    assert!(pair.wait_final(kept).completed);
    assert_eq!(pair.server.one::<i64>("SELECT count(*) FROM pages", &[]), 1);
    assert_converged(&mut pair);
}

/// With a foreign key that is checked at once, replication waits for the end of the run, and then everything ends well.
#[test]
fn a_handler_with_an_immediate_foreign_key_to_its_row_delays_replication_until_it_ends() {
    let mut pair = connected("immediate_key");
    pair.server.sql("CREATE TABLE pages (job uuid NOT NULL REFERENCES background_jobs, n int)");
    let body = format!("INSERT INTO pages SELECT id, 1 FROM background_jobs.current_job(); {HELD}");
    pair.server.handler("pages", &body);
    let running = pair.submit("pages", json!({"point": 1, "gate": "go"}));
    pair.server.wait_reached(1);
    pair.cancel(running);
    let other = pair.submit("noted", json!({}));
    let mut admin = pair.server.admin();
    pair.server_cluster.wait_until("the apply worker to wait for the handler", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND backend_type = 'logical replication worker' AND wait_event_type = 'Lock'";
        let waiting: i64 = admin.query_one(query, &[]).unwrap().get(0);
        if waiting == 1 { Ok(()) } else { Err(format!("{waiting} waiting")) }
    });
    drop(admin);
    pair.server.open_gate("go");
    assert!(pair.wait_final(other).completed);
    // The handler was done before anybody here knew of the cancel.
    assert!(pair.wait_final(running).is_final());
    assert_converged(&mut pair);
    assert_eq!(pair.server.state(running), "completed");
    assert_eq!(pair.server.noted(running), 1);
}

/// What a subscription has applied is part of the transaction that applied it, so nothing arrives twice, and nothing runs twice.
#[test]
fn crashes_and_restarts_of_either_side_lose_nothing_and_run_nothing_twice() {
    let client = logical(Cluster::builder().plain()).start();
    let server = logical(Cluster::builder()).conf("background_jobs.crash_quarantine", "100ms").start();
    let mut pair = Pair::new(&client, &server, "crashes");
    pair.server.handler("noted", "PERFORM note(); RETURN payload -> 'n';");
    pair.subscribe("");
    pair.wait_copied();
    let submit = |pair: &mut Pair| -> Vec<Uuid> { (0..100).map(|n| pair.submit("noted", json!({"n": n}))).collect() };
    let mut ids = submit(&mut pair);
    server.crash();
    pair.reconnect();
    ids.extend(submit(&mut pair));
    client.crash();
    pair.reconnect();
    ids.extend(submit(&mut pair));
    server.stop(Stop::Fast);
    ids.extend(submit(&mut pair));
    server.start();
    client.restart(Stop::Immediate);
    pair.reconnect();
    for id in ids {
        assert!(pair.wait_final(id).completed);
        assert_eq!(pair.server.noted(id), 1);
    }
    assert_converged(&mut pair);
}

/// A table that was made for clients that send every column has no defaults.
#[test]
fn a_column_without_a_default_on_the_server_holds_replication_up_until_it_has_one_and_loses_nothing() {
    let mut pair = connected("defaults");
    pair.server.sql("ALTER TABLE background_jobs ALTER completed DROP DEFAULT");
    let ids: Vec<Uuid> = (0..5).map(|n| pair.submit("noted", json!({"n": n}))).collect();
    let (cluster, database) = (pair.server_cluster, pair.server.database.clone());
    cluster.wait_until("the log to say so", || {
        let said = |line: &str| line.contains("null value in column \"completed\"");
        server_tests::wait::yes(cluster.log().lines().any(said))
    });
    assert_eq!(pair.server.one::<i64>("SELECT count(*) FROM background_jobs", &[]), 0, "{database}");
    pair.server.sql("ALTER TABLE background_jobs ALTER completed SET DEFAULT false");
    for id in ids {
        assert!(pair.wait_final(id).completed);
        assert_eq!(pair.server.noted(id), 1);
    }
    assert_converged(&mut pair);
}

/// The server tells every client about every job; a client has no row for the jobs of others, and takes no notice.
#[test]
fn two_clients_of_one_server_get_the_results_of_their_own_jobs() {
    let mut pair = connected("first_client");
    let second = format!("{}_second", pair.server.database);
    let create = format!("CREATE DATABASE {second}");
    pair.client_cluster.admin("postgres").batch_execute(&create).unwrap();
    let mut client = pair.client_cluster.admin(&second);
    for statement in [server_tests::app::RECIPE_TABLE, SKIP_ECHOES, CLIENT_PUBLICATION] {
        client.batch_execute(statement).unwrap();
    }
    let connection = |from: &Cluster, database: &str| {
        format!("host={} user=postgres dbname={database}", from.socket_directory().display())
    };
    let to_client = connection(pair.server_cluster, &pair.server.database);
    let to_server = connection(pair.client_cluster, &second);
    client
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION {second}_down CONNECTION '{to_client}' PUBLICATION jobs_to_clients WITH (copy_data = false)"
        ))
        .unwrap();
    let mut server = pair.server.admin();
    server
        .batch_execute(&format!("CREATE SUBSCRIPTION {second}_up CONNECTION '{to_server}' PUBLICATION jobs_to_server"))
        .unwrap();

    let ids: Vec<(Uuid, Uuid)> = (0..10)
        .map(|n| {
            let ours = pair.submit("noted", json!({"n": n}));
            let theirs = Uuid::new_v4();
            let payload = json!({"handler": "noted", "n": n});
            client.execute(&server_tests::app::submission(), &[&theirs, &payload]).unwrap();
            (ours, theirs)
        })
        .collect();
    for (ours, theirs) in &ids {
        assert!(pair.wait_final(*ours).completed);
        pair.client_cluster.wait_until("the second client's job", || {
            let query = "SELECT completed FROM background_jobs WHERE id = $1";
            server_tests::wait::yes(client.query_one(query, &[theirs]).unwrap().get(0))
        });
        assert_eq!((pair.server.noted(*ours), pair.server.noted(*theirs)), (1, 1));
    }
    for known in [&mut client, &mut pair.client] {
        assert_eq!(known.query_one("SELECT count(*) FROM background_jobs", &[]).unwrap().get::<_, i64>(0), 10);
    }
    client.batch_execute(&format!("DROP SUBSCRIPTION {second}_down")).unwrap();
    server.batch_execute(&format!("DROP SUBSCRIPTION {second}_up")).unwrap();
}

/// Whoever publishes everything publishes the extension's own tables, too. Its own work must not need more than they have.
#[test]
fn a_publication_for_all_tables_keeps_nothing_from_running() {
    let mut app = SERVER.app("all_tables");
    app.admin().batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").unwrap();
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    app.handler_with(
        "flaky",
        "IF NOT EXISTS (SELECT FROM gates WHERE name = 'mended') THEN RAISE 'no'; END IF; PERFORM note(); RETURN NULL;",
        "max_attempts => 2, retry_delay => '1 ms'",
    );
    // A dispatcher that starts does all that it does now and then.
    let restart = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE backend_type = 'background_jobs dispatcher' AND datname = current_database()";
    app.admin().batch_execute(restart).unwrap();
    let id = app.submit("noted", json!({}));
    assert!(app.wait_final(id).completed);
    let failed = app.submit("flaky", json!({}));
    assert_eq!(app.wait_final(failed).error("attempts"), Some(&json!(2)));
    let log = app.cluster.log();
    let troubles: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("background_jobs dispatcher") && line.contains("replica identity"))
        .collect();
    assert_eq!(troubles, Vec::<&str>::new(), "the dispatcher's own work");
    app.open_gate("mended");
    assert!(app.one::<bool>("SELECT background_jobs.retry($1)", &[&failed]));
    let job = app.wait_final(failed);
    assert_eq!((job.completed, job.result), (true, None));
    app.handler("noted", "RETURN to_jsonb(1);");
    assert!(app.one::<bool>("SELECT background_jobs.unregister_handler('noted')", &[]));
}
