//! What an administrator is told of jobs that do not run: by the log, where log_line_prefix has no word for a worker's database, and by
//! the views. Each thing is said once, and once more when it comes back.

use server_tests::tenant::tenant;
use server_tests::wait::yes;
use server_tests::{App, Cluster, Group, Uuid, ident, json};

/// Nothing here has the next poll to thank.
static SHARED: Group = Group::new(|| {
    Cluster::builder().conf("background_jobs.poll_interval", "1h").conf("background_jobs.cancel_grace", "50ms")
});

/// How often the log says `part` in an entry, with its detail and hint, that names this app's database.
fn said(app: &App, part: &str) -> usize {
    let (log, place) = (app.cluster.log(), format!("This is in database \"{}\".", app.database));
    let belongs = |line: &str| ["DETAIL:  ", "HINT:  "].iter().any(|word| line.contains(word));
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        match entries.last_mut() {
            Some(entry) if belongs(line) => entry.push_str(line),
            _ => entries.push(line.to_owned()),
        }
    }
    entries.iter().filter(|entry| entry.contains(part) && entry.contains(&place)).count()
}

fn wait_said(app: &App, part: &str, times: usize) {
    app.cluster.wait_until(&format!("{times} times {part}"), || match said(app, part) {
        seen if seen == times => Ok(()),
        seen => Err(seen.to_string()),
    });
}

#[test]
fn a_name_that_was_handled_meanwhile_is_complained_about_once_more() {
    let mut app = SHARED.app("again");
    let complaint = "no handler named \"Resize\" is registered";
    let first = app.submit("Resize", json!({}));
    wait_said(&app, complaint, 1);
    app.handler("Resize", "RETURN '1';");
    assert!(app.wait_final(first).completed);
    app.sql("SELECT background_jobs.unregister_handler('Resize')");
    for _ in 0..5 {
        app.submit("Resize", json!({}));
    }
    wait_said(&app, complaint, 2);
}

/// Nobody tells of handlers that a change of the owner brings back.
#[test]
fn a_table_that_is_given_back_runs_its_handlers_at_once_and_nothing_is_said() {
    let mut app = SHARED.app("back");
    app.handler("quick", "RETURN '1';");
    let mut heir = tenant(&app, "heir");
    let give = |to: &str| format!("ALTER TABLE public.background_jobs OWNER TO {}", ident(to));
    app.admin().batch_execute(&give(&heir.role)).unwrap();
    // The dispatcher has seen whose the handlers are.
    heir.sql(
        "CREATE FUNCTION theirs(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '2'::jsonb $$;
         SELECT background_jobs.register_handler('theirs', 'theirs(jsonb)', 'public.background_jobs')",
    );
    let theirs = "SELECT background_jobs.enqueue('theirs', job_table => 'public.background_jobs')";
    let id = heir.one::<Uuid>(theirs, &[]);
    heir.client.execute("SELECT background_jobs.wait($1, job_table => 'public.background_jobs')", &[&id]).unwrap();
    app.admin().batch_execute(&give(&app.role)).unwrap();
    let id = app.submit("quick", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(said(&app, "no handler named"), 0);
}

#[test]
fn a_handler_of_a_former_owner_is_complained_about_as_such() {
    let mut app = SHARED.app("former");
    app.handler("theirs", "RETURN '1';");
    let heir = tenant(&app, "heir");
    let give = format!(
        "ALTER TABLE public.background_jobs OWNER TO {}; GRANT INSERT, SELECT ON public.background_jobs TO {}",
        ident(&heir.role),
        ident(&app.role)
    );
    app.admin().batch_execute(&give).unwrap();
    // Any change of the handlers has the dispatcher look whose they are.
    app.sql("SELECT background_jobs.create_table('others')");
    app.sql("SELECT background_jobs.register_handler('theirs', 'theirs(jsonb)', 'others')");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('theirs', job_table => 'others')", &[]);
    app.execute("SELECT background_jobs.wait($1, job_table => 'others')", &[&id]);
    app.submit("theirs", json!({}));
    wait_said(
        &app,
        &format!("It was registered by the former owner \"{}\" and is not run for \"{}\".", app.role, heir.role),
        1,
    );
    wait_said(&app, "Register it again with background_jobs.register_handler()", 1);
}

#[test]
fn jobs_behind_disabled_triggers_are_complained_about_once_and_run_when_the_table_is_attached() {
    let mut app = SHARED.app("disabled");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    // One job, for which one executor comes: each says it for itself.
    app.sql("SELECT background_jobs.enqueue('noted', run_at => 'infinity')");
    app.sql("ALTER TABLE background_jobs DISABLE TRIGGER USER");
    app.sql("SELECT background_jobs.run_now(id) FROM background_jobs");
    let complaint = "is not attached, or its triggers are disabled";
    wait_said(&app, complaint, 1);
    wait_said(&app, "Call background_jobs.attach('\"public\".\"background_jobs\"').", 1);
    app.sql("SELECT background_jobs.attach('background_jobs')");
    app.wait_true("SELECT bool_and(completed) FROM background_jobs");
    assert_eq!(said(&app, complaint), 1);
}

#[test]
fn a_handler_that_ignores_its_interrupt_is_named_before_its_executor_is_terminated() {
    let mut app = SHARED.app("deaf");
    app.handler(
        "deaf",
        "PERFORM reach(1); LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;",
    );
    let id = app.submit("deaf", json!({}));
    app.wait_reached(1);
    app.execute("SELECT background_jobs.cancel($1)", &[&id]);
    app.wait_left(1);
    let told =
        format!("background job {id} (deaf) did not react to its interrupt within 50 ms; its executor is terminated");
    wait_said(&app, &told, 1);
}

#[test]
fn the_dispatcher_shows_why_it_hands_out_nothing() {
    let cluster = Cluster::builder().conf("background_jobs.poll_interval", "50ms").start();
    let mut app = App::with_table(&cluster, "paused");
    let wait_state = |app: &mut App, state: &str| {
        app.wait_true(&format!(
            "SELECT count(*) = 1 FROM background_jobs.workers
              WHERE role = 'dispatcher' AND database = current_database() AND state = '{state}'"
        ));
    };
    wait_state(&mut app, "running");
    let mut restore = app.admin();
    restore.batch_execute("SET application_name = 'pg_restore'").unwrap();
    wait_state(&mut app, "restoring");
    cluster.set("background_jobs.enabled", "off");
    wait_state(&mut app, "paused");
    drop(restore);
    cluster.set("background_jobs.enabled", "on");
    wait_state(&mut app, "running");
}

#[test]
fn a_crash_says_how_many_jobs_wait_for_its_sake_and_they_have_no_process_in_the_log_of_attempts() {
    let cluster = Cluster::builder().conf("background_jobs.crash_quarantine", "1h").start();
    let mut app = App::with_table(&cluster, "crashed");
    app.handler("held", "PERFORM reach((payload ->> 'n')::int); PERFORM await_gate('go'); RETURN '1';");
    let ids = [1, 2].map(|n| app.submit("held", json!({"n": n})));
    [1, 2].into_iter().for_each(|n| app.wait_reached(n));
    cluster.crash();
    app.client = app.session();
    wait_said(&app, "2 background jobs were running when the server crashed", 1);
    wait_said(&app, "background_jobs.crash_quarantine (3600 s)", 1);
    let kept = "SELECT count(*) = 2 AND bool_and(outcome = 'crashed' AND pid IS NULL) FROM background_jobs.attempts";
    assert!(app.one::<bool>(kept, &[]));
    app.open_gate("go");
    for id in ids {
        assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
        assert!(app.wait_final(id).completed);
    }
}

#[test]
fn attempts_from_before_a_retry_are_marked_in_the_log_of_attempts() {
    let mut app = SHARED.app("superseded");
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 1");
    let id = app.submit("fails", json!({}));
    assert!(app.wait_final(id).error("message").is_some());
    app.sql(&format!("SELECT background_jobs.retry('{id}')"));
    let shown = "SELECT array_agg(superseded ORDER BY finished_at) = '{t,f}' FROM background_jobs.attempts";
    app.cluster.wait_until("both", || yes(app.one::<Option<bool>>(shown, &[]) == Some(true)));
}
