//! Jobs go to the server, and progress, results and cancels come through.

use crate::{assert_converged, connected, pair};
use server_tests::wait::once_within;
use server_tests::{Uuid, json};
use std::time::{Duration, Instant};

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
    once_within(Duration::from_secs(1), "the cancel and the other job", |point| {
        let running = pair.submit("held", json!({"point": point, "gate": "never"}));
        pair.server.wait_reached(point);
        let begin = Instant::now();
        pair.cancel(running);
        let other = pair.submit("noted", json!({}));
        assert!(pair.wait_final(other).completed);
        pair.server.wait_left(point);
        let took = begin.elapsed();
        let row = pair.server.row(running);
        assert!(row.cancelled && !row.completed && row.result.is_none(), "{row:?}");
        assert_eq!(pair.server.noted(running), 0);
        took
    });
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

/// Rows that come by replication belong to no statement, and so not to one that has failed before them.
#[test]
fn a_statement_that_fails_in_a_trigger_of_the_row_keeps_no_job_from_the_queue() {
    let mut pair = pair("trigger_fails");
    pair.server.sql(
        "CREATE TABLE audit (job uuid);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
         CREATE TRIGGER refuse AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION refuse();
         ALTER TABLE audit ENABLE ALWAYS TRIGGER refuse;
         CREATE FUNCTION note_down() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             BEGIN
                 INSERT INTO public.audit VALUES (NEW.id);
             EXCEPTION WHEN raise_exception THEN NULL;
             END;
             RETURN NEW;
         END $$;
         CREATE TRIGGER note_down BEFORE INSERT ON background_jobs FOR EACH ROW EXECUTE FUNCTION note_down();
         ALTER TABLE background_jobs ENABLE ALWAYS TRIGGER note_down",
    );
    pair.subscribe("");
    pair.wait_copied();
    let ids: Vec<Uuid> = (0..3).map(|n| pair.submit("noted", json!({"n": n}))).collect();
    for id in ids {
        assert!(pair.wait_final(id).completed);
        assert_eq!(pair.server.noted(id), 1);
    }
    assert_converged(&mut pair);
}
