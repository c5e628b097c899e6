//! Sessions that touch the same jobs in any order meet no deadlock with each other or the engine.

use crate::dice::Dice;
use crate::{check, overlaps, scene, session};
use server_tests::{json, times};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Three sessions replace the job that has a key, or keep it, while it is being run and completed.
#[test]
fn sessions_that_fight_for_a_job_key_leave_one_unfinished_job_and_no_deadlock() {
    let mut app = scene("keys");
    app.handler("quick", "PERFORM begin_attempt(); PERFORM pg_sleep(random() * 0.003); RETURN '1';");
    let (errors, enqueued) = (std::sync::Mutex::new(Vec::<String>::new()), AtomicU64::new(0));
    let (cluster, database, role) = (app.cluster, app.database.clone(), app.role.clone());
    let barrier = Barrier::new(3);
    let seeds: Vec<Dice> = (0..3).map(|_| Dice::new("keys")).collect();
    std::thread::scope(|scope| {
        for mut dice in seeds {
            let (errors, enqueued, database, role, barrier) = (&errors, &enqueued, &database, &role, &barrier);
            scope.spawn(move || {
                let mut session = cluster.connect(database, role);
                barrier.wait();
                for _ in 0..times(150) {
                    let mode = if dice.one_in(4) { "keep" } else { "replace" };
                    let delay = if dice.one_in(3) { "now() + interval '2 ms'" } else { "NULL" };
                    let call = format!("SELECT background_jobs.enqueue('quick', job_key => 'k', job_key_mode => '{mode}', run_at => {delay})");
                    match session.execute(&call, &[]) {
                        Ok(_) => drop(enqueued.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => errors.lock().unwrap().push(format!("{mode}: {error:?}")),
                    }
                    dice.pause(Duration::from_millis(3));
                }
            });
        }
        let unfinished = "SELECT count(*) FROM background_jobs WHERE NOT completed AND NOT cancelled";
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(1) {
            let many: i64 = app.one(unfinished, &[]);
            assert!(many <= 1, "{many} unfinished jobs have the key");
        }
    });
    check(&mut app);
    let errors = errors.into_inner().unwrap();
    assert!(errors.is_empty(), "{} of {} calls failed, the first: {}", errors.len(), times(450), errors[0]);
}

/// Several statements on the same jobs in the order in which an application may well write them, against completion.
#[test]
fn transactions_that_cancel_retry_and_update_in_any_order_meet_no_deadlock() {
    let mut app = scene("orders");
    app.handler("quick", "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(random() * 0.004); RETURN '1';");
    let mut dice = Dice::new("orders");
    let mut other = session(&app);
    let mut errors = Vec::new();
    for round in 0..times(250) {
        let id = app.submit("quick", json!({}));
        dice.pause(Duration::from_millis(6));
        let mut steps = vec![
            format!("SELECT background_jobs.cancel('{id}')"),
            format!("UPDATE background_jobs SET timestamp = now() WHERE id = '{id}'"),
            format!("SELECT background_jobs.retry('{id}')"),
        ];
        let mut transaction = other.transaction().unwrap();
        let mut failed = None;
        for _ in 0..1 + dice.below(3) {
            let step = steps.swap_remove(dice.below(steps.len() as u64) as usize);
            dice.pause(Duration::from_millis(2));
            if let Err(error) = transaction.execute(&step, &[]) {
                failed = Some(format!("round {round}: {step}: {error:?}"));
                break;
            }
        }
        match failed {
            Some(error) => {
                errors.push(error);
                transaction.rollback().unwrap();
            }
            None => transaction.commit().unwrap(),
        }
    }
    app.wait_drained(Duration::from_secs(60));
    let effects: i64 = app.one(
        "SELECT count(*) FROM background_jobs j WHERE (SELECT count(*) FROM ledger WHERE job = j.id)
            <> (SELECT count(*) FROM edges e WHERE e.id = j.id AND e.completed AND NOT EXISTS (SELECT FROM edges f
                    WHERE f.id = e.id AND f.at = (SELECT max(at) FROM edges g WHERE g.id = e.id AND g.at < e.at) AND f.completed))",
        &[],
    );
    assert_eq!(effects, 0, "one effect for each completion (I3)");
    assert!(!overlaps(&mut app), "I6");
    assert!(errors.is_empty(), "{} of {}, the first: {}", errors.len(), times(250), errors[0]);
}

/// A completion locks the row and then its job in the queue; run_now() must not do it the other way round.
#[test]
fn a_transaction_that_calls_run_now_and_updates_the_row_meets_no_deadlock() {
    let mut app = scene("run_now");
    app.handler("held", "PERFORM begin_attempt(); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut other = session(&app);
    let mut transaction = other.transaction().unwrap();
    transaction.execute("SELECT background_jobs.run_now($1)", &[&id]).unwrap();
    app.open_gate("go");
    app.wait_executor_blocked();
    let outcome = transaction.execute("UPDATE background_jobs SET timestamp = now() WHERE id = $1", &[&id]);
    let outcome = outcome.map_err(|error| server_tests::sqlstate(&error));
    drop(transaction);
    let job = app.wait_final(id);
    assert_eq!((job.result, app.one::<i64>("SELECT last_value FROM starts", &[])), (Some(json!(1)), 1), "run once");
    assert_eq!(outcome, Ok(1));
}
