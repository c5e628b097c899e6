//! Cancel in all its moments: before, during, after, at the very end, and taken back.

use server_tests::{App, Cluster, Group, Uuid, json};
use std::time::{Duration, Instant};

static SHARED: Group = Group::new(Cluster::builder);

const CANCEL: &str = "UPDATE background_jobs SET cancelled = true WHERE id = $1 AND NOT completed";

/// A handler that leaves a trace and then waits, said to be at point 1.
fn held(app: &mut App) {
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN to_jsonb('done'::text);");
}

fn assert_cancelled(app: &mut App, id: Uuid) {
    let job = app.row(id);
    assert!(job.cancelled && !job.completed && job.result.is_none(), "{job:?}");
    assert_eq!(app.state(id), "cancelled");
    assert_eq!(app.noted(id), 0);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue WHERE job_id = $1", &[&id]), 0);
}

#[test]
fn before_its_time() {
    let mut app = SHARED.app("scheduled");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
    assert_eq!(app.execute(CANCEL, &[&id]), 1);
    assert_cancelled(&mut app, id);
}

#[test]
fn while_it_waits_for_its_turn() {
    let mut app = SHARED.app("turn");
    app.handler_with(
        "serial",
        "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;",
        "concurrency => 1",
    );
    let first = app.submit("serial", json!({}));
    app.wait_reached(1);
    let second = app.submit("serial", json!({}));
    let third = app.submit("serial", json!({}));
    assert_eq!(app.execute(CANCEL, &[&second]), 1);
    app.open_gate("go");
    app.wait_final(first);
    app.wait_final(third);
    assert_cancelled(&mut app, second);
}

#[test]
fn in_the_transaction_of_its_insert() {
    let mut app = SHARED.app("same");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    let id = Uuid::new_v4();
    let mut transaction = app.client.transaction().unwrap();
    transaction
        .execute("INSERT INTO background_jobs (id, payload) VALUES ($1, '{\"handler\": \"noted\"}')", &[&id])
        .unwrap();
    transaction.execute(CANCEL, &[&id]).unwrap();
    transaction.commit().unwrap();
    assert_cancelled(&mut app, id);
}

#[test]
fn while_it_runs() {
    let mut app = SHARED.app("runs");
    app.handler("sleeps", "PERFORM note(); PERFORM reach(1); PERFORM pg_sleep(600); RETURN NULL;");
    app.handler("loops", "PERFORM note(); PERFORM reach(1); LOOP END LOOP;");
    for handler in ["sleeps", "loops"] {
        let id = app.submit(handler, json!({}));
        app.wait_reached(1);
        let begin = Instant::now();
        assert_eq!(app.execute(CANCEL, &[&id]), 1);
        app.wait_left(1);
        assert!(begin.elapsed() < Duration::from_secs(2), "{handler}: {:?}", begin.elapsed());
        assert_cancelled(&mut app, id);
    }
}

#[test]
fn while_it_waits_for_a_retry() {
    let mut app = SHARED.app("retry");
    app.handler_with("fails", "PERFORM note(); RAISE 'no';", "retry_delay => '1 h', max_retry_delay => '1 h'");
    let id = app.submit("fails", json!({}));
    app.wait_state(id, "retrying");
    assert_eq!(app.execute(CANCEL, &[&id]), 1);
    assert_cancelled(&mut app, id);
}

#[test]
fn while_nobody_handles_it() {
    let mut app = SHARED.app("nobody");
    let id = app.submit("nobody", json!({}));
    app.wait_state(id, "unhandled");
    assert_eq!(app.execute(CANCEL, &[&id]), 1);
    assert_cancelled(&mut app, id);
}

#[test]
fn after_completion_it_changes_nothing() {
    let mut app = SHARED.app("after");
    held(&mut app);
    app.open_gate("go");
    let id = app.submit("held", json!({}));
    let before = app.wait_final(id);
    assert_eq!(app.execute(CANCEL, &[&id]), 0, "the recipe's UPDATE finds no unfinished row");
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]);
    let job = app.row(id);
    assert!(job.completed);
    assert_eq!((job.result, job.progress), (before.result, before.progress));
    assert_eq!((app.state(id), app.noted(id)), ("completed".to_owned(), 1));
}

#[test]
fn a_cancel_that_is_rolled_back_was_none() {
    let mut app = SHARED.app("rolled_back");
    held(&mut app);
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut transaction = app.client.transaction().unwrap();
    assert_eq!(transaction.execute(CANCEL, &[&id]).unwrap(), 1);
    transaction.rollback().unwrap();
    let mut transaction = app.client.transaction().unwrap();
    let mut savepoint = transaction.savepoint("s").unwrap();
    assert_eq!(savepoint.execute(CANCEL, &[&id]).unwrap(), 1);
    savepoint.rollback().unwrap();
    transaction.commit().unwrap();
    app.open_gate("go");
    let job = app.wait_final(id);
    assert_eq!((job.completed, job.result), (true, Some(json!("done"))));
    assert_eq!(app.noted(id), 1);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0, "it was not even interrupted");
}

/// The handler is done, and its completion meets a cancel that holds the row: whoever has the row lock wins.
fn completion_meets_cancel(name: &str, commit: bool) {
    let mut app = SHARED.app(name);
    held(&mut app);
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut session = app.session();
    let mut transaction = session.transaction().unwrap();
    assert_eq!(transaction.execute(CANCEL, &[&id]).unwrap(), 1);
    app.open_gate("go");
    app.wait_true(
        "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE NOT l.granted AND l.locktype IN ('transactionid', 'tuple') AND a.datname = current_database())",
    );
    if commit {
        transaction.commit().unwrap();
        app.wait_left(1);
        assert_cancelled(&mut app, id);
    } else {
        transaction.rollback().unwrap();
        let job = app.wait_final(id);
        assert_eq!((job.completed, job.result), (true, Some(json!("done"))));
        assert_eq!(app.noted(id), 1);
    }
}

#[test]
fn a_cancel_that_has_the_row_lock_wins() {
    completion_meets_cancel("lock_wins", true);
}

#[test]
fn a_cancel_that_gives_the_row_lock_back_loses() {
    completion_meets_cancel("lock_back", false);
}

#[test]
fn deleting_the_row_is_a_cancel() {
    let mut app = SHARED.app("deleted");
    held(&mut app);
    let running = app.submit("held", json!({}));
    app.wait_reached(1);
    let waiting: Uuid = app.one("SELECT background_jobs.enqueue('held', run_at => now() + interval '1 h')", &[]);
    assert_eq!(app.execute("DELETE FROM background_jobs WHERE id IN ($1, $2)", &[&running, &waiting]), 2);
    app.wait_left(1);
    for id in [running, waiting] {
        assert!(app.find(id).is_none());
        assert_eq!(app.noted(id), 0);
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

#[test]
fn truncating_the_table_is_a_cancel() {
    let mut app = SHARED.app("truncated");
    held(&mut app);
    let running = app.submit("held", json!({}));
    app.wait_reached(1);
    app.sql("SELECT background_jobs.enqueue('held', run_at => now() + interval '1 h')");
    app.sql("TRUNCATE background_jobs");
    app.wait_left(1);
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    assert_eq!(app.noted(running), 0);
    let next = app.submit("held", json!({}));
    app.open_gate("go");
    assert!(app.wait_final(next).completed, "the table works on");
}

#[test]
fn dropping_the_table_is_a_cancel() {
    let mut app = SHARED.app("dropped");
    held(&mut app);
    app.submit("held", json!({}));
    app.wait_reached(1);
    app.sql("DROP TABLE background_jobs");
    app.wait_left(1);
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.workers WHERE job_id IS NOT NULL");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 0);
    app.sql("SELECT background_jobs.create_table()");
    held(&mut app);
    let next = app.submit("held", json!({}));
    app.open_gate("go");
    assert!(app.wait_final(next).completed, "a table of the same name is another table");
}

#[test]
fn by_the_function() {
    let mut app = SHARED.app("function");
    held(&mut app);
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    assert!(app.one::<bool>("SELECT background_jobs.cancel($1)", &[&id]));
    app.wait_left(1);
    assert_cancelled(&mut app, id);
    assert!(!app.one::<bool>("SELECT background_jobs.cancel($1)", &[&id]), "it is cancelled already");
    app.open_gate("go");
    let id = app.submit("held", json!({}));
    app.wait_final(id);
    assert!(!app.one::<bool>("SELECT background_jobs.cancel($1)", &[&id]), "it is completed already");
}

/// A handler that catches the interrupt cannot complete a job that was cancelled.
#[test]
fn a_cancel_cannot_be_swallowed() {
    let mut app = SHARED.app("swallowed");
    app.handler(
        "swallows",
        "PERFORM note(); PERFORM reach(1);
         BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END;
         RETURN to_jsonb('ha'::text);",
    );
    let id = app.submit("swallows", json!({}));
    app.wait_reached(1);
    app.execute(CANCEL, &[&id]);
    app.wait_left(1);
    assert_cancelled(&mut app, id);
}

/// The interrupt is for the job, not for whatever the executor runs next.
#[test]
fn a_cancel_never_hits_another_job() {
    let mut app = SHARED.app("another");
    app.handler("quick", "PERFORM note(); RETURN NULL;");
    let mut canceller = app.session();
    let ids: Vec<Uuid> = (0..200).map(|_| app.submit("quick", json!({}))).collect();
    let cancelled: Vec<Uuid> =
        ids.iter().copied().step_by(2).filter(|id| canceller.execute(CANCEL, &[id]).unwrap() == 1).collect();
    for id in ids {
        let job = app.wait_final(id);
        assert_eq!(job.cancelled, cancelled.contains(&id), "{job:?}");
        assert_eq!(job.completed, !job.cancelled, "{job:?}");
        assert_eq!(app.noted(id), i64::from(job.completed));
        assert!(job.result.is_none(), "nothing failed: {job:?}");
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
}

#[test]
fn a_handler_can_ask() {
    let mut app = SHARED.app("ask");
    app.handler("asks", "PERFORM note(); PERFORM reach(1); LOOP PERFORM background_jobs.check_cancelled(); END LOOP;");
    let id = app.submit("asks", json!({}));
    app.wait_reached(1);
    app.execute(CANCEL, &[&id]);
    app.wait_left(1);
    assert_cancelled(&mut app, id);
}
