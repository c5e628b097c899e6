//! A side that is away, and transactions that are not committed yet.

use crate::{assert_converged, connected, logical, pair};
use server_tests::{Cluster, Pair, Stop, Uuid, json};
use std::time::{Duration, Instant};

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
    // In one transaction: the server may begin a job as soon as it has its row, however soon the next transaction takes it back.
    pair.client.batch_execute("BEGIN").unwrap();
    let regretted = pair.submit("noted", json!({}));
    pair.cancel(regretted);
    pair.client.batch_execute("COMMIT").unwrap();
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
