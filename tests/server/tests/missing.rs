//! Jobs whose rows are not to be seen: they are looked for, and given up in the end, which is said.

use server_tests::{App, Cluster, Uuid, json};

/// Its rows are hidden from executors until something is in `open_for`.
fn app<'a>(cluster: &'a Cluster, name: &str) -> App<'a> {
    let mut app = App::with_table(cluster, name);
    app.sql(
        "CREATE TABLE open_for (who text);
         CREATE FUNCTION is_open() RETURNS boolean LANGUAGE sql STABLE AS
            $$ SELECT (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'client backend'
                   OR EXISTS (SELECT FROM public.open_for) $$;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (is_open()) WITH CHECK (true);",
    );
    app.handler("noted", "PERFORM note(); RETURN '1';");
    app
}

fn wait_missed(app: &mut App) {
    app.wait_true("SELECT count(*) = 1 FROM background_jobs.queue WHERE last_error ->> 'missing_since' IS NOT NULL");
}

/// Changes the job's place in the queue as nobody but a superuser can: time passes.
fn age(app: &App, what: &str) {
    let aged = app.admin().execute(&format!("UPDATE background_jobs.queued_job SET {what}"), &[]);
    assert_eq!(aged.unwrap_or_else(|e| panic!("{what}: {e:?}")), 1);
}

#[test]
fn a_row_that_is_hidden_at_the_first_look_runs_its_job_when_it_is_seen_however_old_and_whatever_is_kept() {
    let cluster = Cluster::builder()
        .conf("background_jobs.poll_interval", "100ms")
        .conf("background_jobs.max_retry_delay", "100ms")
        .start();
    for (name, retention) in [("old", "30d"), ("nothing_kept", "0")] {
        cluster.set("background_jobs.attempts_retention", retention);
        let mut app = app(&cluster, name);
        let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '31 days')", &[]);
        // The days go by.
        age(&app, "enqueued_at = enqueued_at - interval '31 days'");
        assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
        wait_missed(&mut app);
        let shown: (String, bool) = {
            let row = &app.rows("SELECT state, last_error ->> 'sqlstate' = 'P0002' FROM background_jobs.queue", &[])[0];
            (row.get(0), row.get(1))
        };
        assert_eq!(shown, ("retrying".to_owned(), true));
        app.sql("INSERT INTO open_for VALUES ('all')");
        assert_eq!(app.wait_final(id).result, Some(json!(1)));
        assert_eq!(app.noted(id), 1);
    }
}

#[test]
fn a_job_that_was_looked_for_in_vain_for_long_is_given_up_and_the_log_says_so() {
    let cluster = Cluster::builder()
        .conf("background_jobs.poll_interval", "100ms")
        .conf("background_jobs.max_retry_delay", "100ms")
        .start();
    let mut app = app(&cluster, "in_vain");
    let id = app.submit("noted", json!({}));
    wait_missed(&mut app);
    let since = |interval: &str| {
        format!(
            "last_error = pg_catalog.jsonb_set(last_error, '{{missing_since}}', to_jsonb(now() - interval '{interval}'))"
        )
    };
    age(&app, &since("29 days"));
    let looks = "SELECT conflicts::int FROM background_jobs.queued_job";
    let looked: i32 = app.admin().query_one(looks, &[]).unwrap().get(0);
    cluster.wait_until("another look", || match app.admin().query_one(looks, &[]).unwrap().get::<_, i32>(0) {
        now if now > looked => Ok(()),
        now => Err(now.to_string()),
    });
    age(&app, &since("31 days"));
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    let kept: bool = app.one(
        "SELECT count(*) = 1 AND bool_and(outcome = 'conflict' AND error ->> 'sqlstate' = 'P0002')
           FROM background_jobs.attempts WHERE job_id = $1",
        &[&id],
    );
    assert!(kept);
    let line = format!("background job {id} is given up");
    cluster.wait_until("the log to say so", || match cluster.log().matches(&line).count() {
        1 => Ok(()),
        times => Err(format!("{times} times")),
    });
    // The row is as it was.
    assert!(!app.row(id).is_final());
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 1);
    app.sql("INSERT INTO open_for VALUES ('all')");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
}
