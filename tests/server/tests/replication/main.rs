//! Offline clients: two servers that exchange jobs by logical replication, every column with one writer (`pair`).

mod flow;
mod offline;
mod schema;
mod topology;

use server_tests::{Builder, Cluster, Group, Pair};

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
