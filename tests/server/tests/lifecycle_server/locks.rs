//! Rows and tables that a client holds.

use crate::{HELD, SHARED, assert_completes, noting};
use server_tests::{Uuid, json, sqlstate};

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
    app.wait_executor_blocked();
    for _ in 0..5 {
        assert_completes(&mut app, "noted");
    }
    assert!(!app.row(id).is_final());
    transaction.commit().unwrap();
    assert_eq!(app.wait_final(id).result, Some(json!("done")));
    assert_eq!(app.noted(id), 1);
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
    app.wait_executor_blocked();
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
