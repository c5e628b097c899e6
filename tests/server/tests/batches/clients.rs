//! What clients and other handlers do to one job of a batch concerns that job alone.

use crate::SHARED;
use crate::scene::{DRAIN, N, alone, check_others, id_of, in_one_batch, insert, on_completion, scene, warm};
use server_tests::json;
use server_tests::postgres::Client;

/// The batch has run all its handlers and is at the row of its first job when a client changes that of another.
#[test]
fn what_a_client_does_to_one_job_while_its_batch_is_being_completed_concerns_that_job_alone() {
    let _alone = alone();
    for (name, change) in [
        ("cancelled", "UPDATE background_jobs SET cancelled = true WHERE id = $1"),
        ("deleted", "DELETE FROM background_jobs WHERE id = $1"),
        ("completed", "UPDATE background_jobs SET completed = true, result = '\"by hand\"' WHERE id = $1"),
    ] {
        let mut app = scene(name);
        on_completion(
            &mut app,
            "BEFORE",
            "",
            "IF NEW.payload -> 'n' = '1' THEN PERFORM reach(1); PERFORM await_gate('go'); END IF;",
        );
        in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
        app.wait_reached(1);
        let id = id_of(&mut app, 3);
        assert_eq!(app.execute(change, &[&id]), 1, "{name}");
        app.open_gate("go");
        app.wait_drained(DRAIN);
        app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
        if name == "deleted" {
            assert!(app.find(id).is_none());
            app.execute("INSERT INTO background_jobs (id, payload, cancelled) VALUES ($1, '{\"n\": 3}', true)", &[&id]);
        } else {
            let job = app.row(id);
            assert_eq!((job.cancelled, job.completed), (name == "cancelled", name == "completed"), "{job:?}");
            assert_eq!(job.result, (name == "completed").then(|| json!("by hand")));
        }
        assert_eq!(app.noted(id), 0, "{name}: no effects");
        check_others(&mut app, &[3]);
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0, "{name}");
    }
}

#[test]
fn a_handler_may_cancel_or_delete_or_complete_another_job_of_its_batch() {
    let _alone = alone();
    let mut app = SHARED.app("among");
    app.handler(
        "noted",
        "PERFORM note();
         CASE payload ->> 'n'
            WHEN '5' THEN UPDATE background_jobs b SET cancelled = true WHERE b.payload -> 'n' IN ('6', '20') AND NOT b.completed;
            WHEN '7' THEN DELETE FROM background_jobs b WHERE b.payload -> 'n' = '8';
            WHEN '9' THEN UPDATE background_jobs b SET completed = true, result = '0' WHERE b.payload -> 'n' = '21';
            -- These are done by then.
            WHEN '11' THEN UPDATE background_jobs b SET cancelled = true WHERE b.payload -> 'n' = '3' AND NOT b.completed;
            ELSE NULL;
         END CASE;
         RETURN jsonb_build_object('n', payload -> 'n');",
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    let ran: Vec<String> = app
        .rows(
            "SELECT payload ->> 'n' || CASE WHEN completed THEN ' completed ' ELSE ' cancelled ' END
                    || (SELECT count(*) FROM ledger WHERE job = id)
               FROM background_jobs WHERE payload -> 'n' IN ('3', '6', '8', '20', '21') ORDER BY (payload ->> 'n')::int",
            &[],
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(ran, ["3 completed 1", "6 cancelled 0", "20 cancelled 0", "21 completed 0"]);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), N - 4);
    app.sql("INSERT INTO background_jobs (payload, cancelled) VALUES ('{\"n\": 8}', true)");
    check_others(&mut app, &[6, 8, 20, 21]);
}

fn others_complete_while(name: &str, hold: &str) {
    let _alone = alone();
    let mut app = scene(name);
    let mut session: Option<Client> = None;
    in_one_batch(&mut app, |app| {
        app.sql(&insert("noted", ""));
        let id = id_of(app, 3);
        let mut client = app.session();
        client.batch_execute("BEGIN").unwrap();
        client.execute(hold, &[&id]).unwrap();
        session = Some(client);
    });
    app.cluster.wait_until("the others to be completed", || {
        let left: i64 =
            app.one("SELECT count(*) FROM background_jobs WHERE NOT completed AND payload -> 'n' <> '3'", &[]);
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    });
    let id = id_of(&mut app, 3);
    assert!(!app.row(id).completed, "somebody holds its row");
    session.unwrap().batch_execute("ROLLBACK").unwrap();
    app.wait_drained(DRAIN);
    assert_eq!(app.noted(id), 1);
    let charged = "SELECT count(*) FROM background_jobs.attempts WHERE outcome <> 'conflict'";
    assert_eq!(app.one::<i64>(charged, &[]), 0);
    check_others(&mut app, &[3]);
}

#[test]
fn a_locked_row_delays_its_own_job_only() {
    others_complete_while("locked", "UPDATE background_jobs SET payload = payload WHERE id = $1");
}

#[test]
fn an_open_transaction_that_has_called_run_now_delays_its_own_job_only() {
    others_complete_while("hurried", "SELECT background_jobs.run_now($1)");
}
