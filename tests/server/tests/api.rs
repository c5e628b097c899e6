//! The functions that a client calls about a job, and where a job shows. Who may call them is tests/privileges.rs.

use server_tests::{App, Cluster, Group, Uuid, json};

static SHARED: Group = Group::new(Cluster::builder);

fn noting(app: &mut App) {
    app.handler("noted", "PERFORM note(); RETURN payload;");
}

const LATER: &str = "now() + interval '1 h'";

#[test]
fn enqueue_inserts_as_the_caller() {
    let mut app = SHARED.app("enqueue");
    noting(&mut app);
    let id: Uuid = app.one("SELECT background_jobs.enqueue('noted')", &[]);
    assert_eq!(app.wait_final(id).result, Some(json!({"handler": "noted"})));
    let own = Uuid::new_v4();
    let id: Uuid = app.one(
        "SELECT background_jobs.enqueue('noted', '{\"a\": 1, \"handler\": \"overruled\"}', id => $1, queue => 'slow',
            priority => 7::smallint, run_at => now() + interval '1 h', job_table => 'background_jobs')",
        &[&own],
    );
    assert_eq!(id, own);
    assert_eq!(app.row(id).payload, json!({"a": 1, "handler": "noted"}));
    let shown: bool = app.one(
        "SELECT state = 'scheduled' AND handler = 'noted' AND queue = 'slow' AND priority = 7 AND attempts = 0
            AND max_attempts = 5 AND run_at > now() + interval '50 min' AND started_at IS NULL AND finished_at IS NULL
            AND progress = 0 AND last_error IS NULL AND pid IS NULL
         FROM background_jobs.status($1)",
        &[&id],
    );
    assert!(shown, "{:?}", app.rows("SELECT * FROM background_jobs.status($1)", &[&id]));
    assert_eq!(app.sqlstate(&format!("SELECT background_jobs.enqueue('noted', id => '{own}')")), "23505");
}

#[test]
fn a_job_key_names_at_most_one_unfinished_job() {
    let mut app = SHARED.app("keys");
    noting(&mut app);
    let enqueue = format!(
        "SELECT background_jobs.enqueue('noted', $1, run_at => {LATER}, job_key => $2, job_key_mode => 'replace')"
    );
    let first: Uuid = app.one(&enqueue, &[&json!({"n": 1}), &"the key"]);
    let second: Uuid = app.one(&enqueue, &[&json!({"n": 2}), &"the key"]);
    let other: Uuid = app.one(&enqueue, &[&json!({"n": 3}), &"another key"]);
    let queued: Vec<Uuid> = app
        .rows("SELECT job_id FROM background_jobs.queue ORDER BY job_id = $1", &[&other])
        .iter()
        .map(|r| r.get(0))
        .collect();
    assert_eq!(queued, [second, other]);
    assert_eq!(app.row(second).payload["n"], 2, "the last one counts");
    if first != second {
        assert!(app.find(first).is_none_or(|job| job.cancelled), "the one it replaced will not run");
    }
    app.execute("SELECT background_jobs.run_now($1)", &[&second]);
    app.wait_final(second);
    let third: Uuid = app.one(&enqueue, &[&json!({"n": 4}), &"the key"]);
    assert!(third != second && third != first, "a finished job gives its key back");
    assert!(app.row(second).completed);
    assert_eq!(
        app.sqlstate("SELECT background_jobs.enqueue('noted', job_key => 'k', job_key_mode => 'nonsense')"),
        "22023"
    );
}

#[test]
fn run_now_drops_the_delay() {
    let mut app = SHARED.app("run_now");
    noting(&mut app);
    app.handler_with(
        "fails_once",
        "IF (SELECT attempt FROM background_jobs.current_job()) = 1 THEN RAISE 'no'; END IF; RETURN NULL;",
        "retry_delay => '1 h', max_retry_delay => '1 h'",
    );
    let scheduled: Uuid = app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {LATER})"), &[]);
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&scheduled]));
    assert!(app.wait_final(scheduled).completed);
    assert!(!app.one::<bool>("SELECT background_jobs.run_now($1)", &[&scheduled]), "it is finished");
    let retrying = app.submit("fails_once", json!({}));
    app.wait_state(retrying, "retrying");
    assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&retrying]));
    assert!(app.wait_final(retrying).completed);
    assert_eq!(app.one::<i32>("SELECT attempts FROM background_jobs.status($1)", &[&retrying]), 2);
}

#[test]
fn retry_runs_a_finished_job_from_the_beginning() {
    let mut app = SHARED.app("retry");
    app.handler_with(
        "attempts",
        "PERFORM note();
         IF NOT EXISTS (SELECT FROM gates WHERE name = 'good') THEN RAISE 'no'; END IF;
         RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));",
        "max_attempts => 2, retry_delay => '5 ms'",
    );
    let failed = app.submit("attempts", json!({}));
    assert!(app.wait_final(failed).error("message").is_some());
    let cancelled: Uuid = app.one(&format!("SELECT background_jobs.enqueue('attempts', run_at => {LATER})"), &[]);
    app.execute("SELECT background_jobs.cancel($1)", &[&cancelled]);
    app.open_gate("good");
    for (id, runs) in [(failed, 1), (cancelled, 1), (failed, 2)] {
        let mut transaction = app.client.transaction().unwrap();
        let again: bool = transaction.query_one("SELECT background_jobs.retry($1)", &[&id]).unwrap().get(0);
        assert!(again);
        let row = transaction.query_one("SELECT * FROM background_jobs WHERE id = $1", &[&id]).unwrap();
        let job = server_tests::Job::from(&row);
        assert!(!job.is_final() && job.result.is_none() && job.progress == 0.0, "{job:?}");
        transaction.commit().unwrap();
        let job = app.wait_final(id);
        assert_eq!((job.completed, job.cancelled, job.result), (true, false, Some(json!(1))), "from attempt 1");
        assert_eq!(app.noted(id), runs);
    }
    let scheduled: Uuid = app.one(&format!("SELECT background_jobs.enqueue('attempts', run_at => {LATER})"), &[]);
    assert!(!app.one::<bool>("SELECT background_jobs.retry($1)", &[&scheduled]), "it is not finished");
}

/// What the completion of the one does to the queue is not the other's.
#[test]
fn a_trigger_on_a_row_that_is_completed_may_retry_another_job() {
    let mut app = SHARED.app("nested_retry");
    noting(&mut app);
    let other = app.submit("noted", json!({}));
    app.wait_final(other);
    app.sql(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM background_jobs.retry((NEW.payload ->> 'other')::uuid);
            RETURN NEW;
         END $$;
         CREATE TRIGGER again BEFORE UPDATE ON background_jobs FOR EACH ROW
            WHEN (NEW.completed AND NOT OLD.completed AND NEW.payload ? 'other') EXECUTE FUNCTION again()",
    );
    let id = app.submit("noted", json!({"other": other.to_string()}));
    assert!(app.wait_final(id).completed);
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    assert_eq!((app.noted(id), app.noted(other)), (1, 2));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
}

#[test]
fn retry_takes_back_what_is_written_into_columns() {
    let mut app = SHARED.app_without_table("written");
    app.sql(
        "SELECT background_jobs.create_table('background_jobs', '{attempts,started_at,finished_at}');
         ALTER TABLE background_jobs ALTER attempts SET DEFAULT 0, ALTER attempts SET NOT NULL",
    );
    noting(&mut app);
    let id = app.submit("noted", json!({}));
    app.wait_final(id);
    let now = "attempts = 1 AND started_at IS NOT NULL AND finished_at IS NOT NULL";
    app.wait_true(&format!("SELECT {now} FROM background_jobs"));
    app.sql("BEGIN");
    assert!(app.one::<bool>("SELECT background_jobs.retry($1)", &[&id]));
    assert!(
        app.one::<bool>("SELECT attempts = 0 AND started_at IS NULL AND finished_at IS NULL FROM background_jobs", &[])
    );
    app.sql("COMMIT");
    app.wait_final(id);
    app.wait_true(&format!("SELECT {now} FROM background_jobs"));
    assert_eq!(app.noted(id), 2);
}

#[test]
fn status_tells_about_a_job_in_every_phase() {
    let mut app = SHARED.app("status");
    app.handler(
        "held",
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;",
    );
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let running: bool = app.one(
        "SELECT state = 'running' AND handler = 'held' AND attempts = 1 AND progress = 0.5 AND started_at <= clock_timestamp()
            AND finished_at IS NULL AND pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'background_jobs executor')
         FROM background_jobs.status($1)",
        &[&id],
    );
    assert!(running, "{:?}", app.rows("SELECT * FROM background_jobs.status($1)", &[&id]));
    app.open_gate("go");
    app.wait_final(id);
    let done: bool =
        app.one("SELECT state = 'completed' AND progress = 1 AND pid IS NULL FROM background_jobs.status($1)", &[&id]);
    assert!(done, "{:?}", app.rows("SELECT * FROM background_jobs.status($1)", &[&id]));
    assert_eq!(app.state(Uuid::new_v4()), "none");
}

/// What an administrator sees of a running job, and what not: the payload.
#[test]
fn running_jobs_are_named_where_people_look() {
    let mut app = SHARED.app("named");
    app.handler("shouts", "PERFORM reach(1); PERFORM await_gate('go'); RAISE WARNING 'hear me'; RETURN NULL;");
    let id = app.submit("shouts", json!({"secret": "payload_canary"}));
    app.wait_reached(1);
    let mut admin = app.admin();
    let row = admin
        .query_one(
            "SELECT a.application_name, a.usename::text, a.query FROM background_jobs.workers w JOIN pg_stat_activity a USING (pid)
             WHERE w.job_id = $1 AND w.role = 'executor' AND w.database = current_database() AND w.owner = a.usename",
            &[&id],
        )
        .unwrap();
    let (name, user, query): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    assert!(name.contains("shouts"), "{name}");
    assert_eq!(user, app.role);
    assert!(!query.contains("payload_canary"), "{query}");
    app.open_gate("go");
    app.wait_final(id);
    let cluster = app.cluster;
    let context = format!("background job {id} (shouts)");
    cluster.wait_until("the warning with its context", || {
        let log = cluster.log();
        if log.contains("hear me") && log.contains(&context) { Ok(()) } else { Err(server_tests::log::tail(&log, 5)) }
    });
    assert!(!cluster.log().contains("payload_canary"));
}
