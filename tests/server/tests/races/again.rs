//! One id that is submitted again while its former self may still be running.

use crate::dice::Dice;
use crate::{WITNESSES, eager, overlaps, scene, session};
use server_tests::{App, json, times};
use std::time::Duration;

/// One id, deleted and submitted again while its former self may still be running.
#[test]
fn a_row_that_is_deleted_and_inserted_again_is_another_job() {
    let mut app = scene("reinserted");
    app.handler(
        "tells",
        "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.9); PERFORM pg_sleep(random() * 0.004); RETURN payload -> 'n';",
    );
    let mut dice = Dice::new("reinserted");
    let mut other = session(&app);
    for round in 0..times(60) {
        let id = app.submit("tells", json!({"n": 0}));
        let generations = 1 + dice.below(6);
        for n in 1..=generations {
            dice.pause(Duration::from_millis(5));
            // In one transaction or in two: with a gap in which nothing has that id.
            let delete = "DELETE FROM background_jobs WHERE id = $1";
            let insert = "INSERT INTO background_jobs (id, payload) VALUES ($1, $2)";
            let payload = json!({"handler": "tells", "n": n});
            if dice.one_in(2) {
                let mut transaction = other.transaction().unwrap();
                transaction.execute(delete, &[&id]).unwrap();
                dice.pause(Duration::from_millis(1));
                transaction.execute(insert, &[&id, &payload]).unwrap();
                transaction.commit().unwrap();
            } else {
                other.execute(delete, &[&id]).unwrap();
                dice.pause(Duration::from_millis(1));
                other.execute(insert, &[&id, &payload]).unwrap();
            }
        }
        let job = app.wait_final(id);
        assert_eq!(job.result, Some(json!(generations)), "round {round}: the result of the last row of that id");
    }
    let problems: i64 = app.one(
        "SELECT count(*) FROM (SELECT job FROM ledger GROUP BY job HAVING count(*) > (
             SELECT count(*) FROM edges e WHERE e.id = job AND e.completed AND NOT e.gone)) x",
        &[],
    );
    assert_eq!(problems, 0, "effects without a completion that was committed (I3)");
    assert!(!overlaps(&mut app), "I6");
}

/// Its wake-up comes while its former self, which is told to stop, has not stopped yet. That wake-up must not be lost.
#[test]
fn a_job_that_is_submitted_again_under_its_running_self_does_not_wait_for_the_poll() {
    let cluster = eager().conf("background_jobs.poll_interval", "1min").start();
    let mut app = App::with_table(&cluster, "again");
    app.sql(WITNESSES);
    app.handler(
        "lingers",
        "PERFORM begin_attempt();
         IF (payload ->> 'n')::int = 0 THEN
            PERFORM reach(1);
            BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.2); END;
         END IF;
         RETURN payload -> 'n';",
    );
    for again in
        ["DELETE FROM background_jobs WHERE id = $1", "UPDATE background_jobs SET cancelled = true WHERE id = $1"]
    {
        let id = app.submit("lingers", json!({"n": 0}));
        app.wait_reached(1);
        app.execute(again, &[&id]);
        if again.starts_with("DELETE") {
            let payload = json!({"handler": "lingers", "n": 1});
            app.execute("INSERT INTO background_jobs (id, payload) VALUES ($1, $2)", &[&id, &payload]);
        } else {
            app.execute("UPDATE background_jobs SET payload = payload || '{\"n\": 1}' WHERE id = $1", &[&id]);
            app.execute("SELECT background_jobs.retry($1)", &[&id]);
        }
        cluster.wait_within(Duration::from_secs(5), again, || match app.row(id) {
            row if row.result == Some(json!(1)) => Ok(()),
            row => Err(format!("{row:?}, {}", app.state(id))),
        });
    }
    assert_eq!(app.one::<i64>("SELECT last_value FROM starts", &[]), 4, "both jobs were met by their former selves");
    assert!(!overlaps(&mut app), "I6");
}

/// cancel() and retry() again and again, under a handler that does not give up when it is told to: what an older attempt
/// still reports belongs to nobody.
#[test]
fn an_older_attempt_writes_no_progress_into_the_retried_job() {
    let mut app = scene("older");
    app.handler_with(
        "stubborn",
        "PERFORM note();
         IF (payload ->> 'first')::bool AND NOT EXISTS (SELECT FROM public.gates WHERE name = 'later') THEN
            PERFORM reach(1); PERFORM background_jobs.set_progress(0.6);
            FOR n IN 61..99 LOOP
                BEGIN PERFORM background_jobs.set_progress(n / 100.0); PERFORM pg_sleep(0.005);
                EXCEPTION WHEN query_canceled THEN NULL; END;
            END LOOP;
            PERFORM pg_sleep(10);
         END IF;
         PERFORM background_jobs.set_progress(0.1); PERFORM reach(2); PERFORM await_gate('go'); RETURN '1';",
        "",
    );
    for round in 0..times(6) {
        app.sql("TRUNCATE gates, edges");
        let id = app.submit("stubborn", json!({"first": true, "round": round}));
        app.wait_reached(1);
        app.wait_true("SELECT bool_or(progress > 0.6) FROM background_jobs WHERE NOT completed");
        app.open_gate("later");
        app.sql(&format!("BEGIN; SELECT background_jobs.cancel('{id}'); SELECT background_jobs.retry('{id}'); COMMIT"));
        app.wait_reached(2);
        app.open_gate("go");
        let job = app.wait_final(id);
        assert_eq!((job.result, job.progress), (Some(json!(1)), 1.0));
        let after: Vec<String> = app
            .rows(
                "SELECT progress::text FROM edges WHERE id = $1 AND at > (SELECT max(at) FROM edges WHERE id = $1 AND cancelled)
                  ORDER BY at",
                &[&id],
            )
            .iter()
            .map(|row| row.get(0))
            .collect();
        let own = ["0", "0.1", "1"];
        assert!(
            after.iter().all(|p| own.contains(&p.as_str())),
            "round {round}: progress after the retry {after:?} (I8)"
        );
        assert_eq!(app.noted(id), 1, "round {round}");
    }
}
