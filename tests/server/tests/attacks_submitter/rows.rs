//! Others' rows, rows that are final when they come, and what is hung on the table.

use crate::{SHARED, submit, submitter};
use server_tests::{Uuid, ident, json, lit};

#[test]
fn a_submitter_changes_nothing_of_others_jobs() {
    let mut app = SHARED.app("others");
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';");
    let mut submitter = submitter(&mut app);
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    for statement in [
        format!("UPDATE background_jobs SET cancelled = true WHERE id = '{id}'"),
        "UPDATE background_jobs SET cancelled = true".to_owned(),
        "UPDATE background_jobs SET completed = true".to_owned(),
        "DELETE FROM background_jobs".to_owned(),
        "TRUNCATE background_jobs".to_owned(),
        "SELECT id FROM background_jobs FOR UPDATE".to_owned(),
        "INSERT INTO background_jobs (id) SELECT job_id FROM background_jobs.workers WHERE job_id IS NOT NULL RETURNING id".to_owned(),
        format!("INSERT INTO background_jobs (id) VALUES ('{id}') ON CONFLICT (id) DO UPDATE SET cancelled = true"),
        format!("SELECT background_jobs.cancel('{id}')"),
        format!("SELECT background_jobs.retry('{id}')"),
        format!("SELECT background_jobs.run_now('{id}')"),
        format!("SELECT background_jobs.wait('{id}', '10 ms')"),
        format!("SELECT * FROM background_jobs.status('{id}')"),
        "SELECT background_jobs.detach('background_jobs')".to_owned(),
        "SELECT background_jobs.attach('background_jobs', handler_key => 'mine')".to_owned(),
        "SELECT background_jobs.unregister_handler('held')".to_owned(),
    ] {
        assert_eq!(submitter.code(&statement), "42501", "{statement}");
    }
    for statement in [
        format!("INSERT INTO background_jobs (id) VALUES ('{id}')"),
        format!("INSERT INTO background_jobs (id, cancelled) VALUES ('{id}', true)"),
    ] {
        assert_eq!(submitter.code(&statement), "23505", "{statement}");
    }
    // UPDATE (cancelled) is the right to cancel, and only that.
    app.sql(&format!("GRANT UPDATE (cancelled) ON background_jobs TO {}", ident(&submitter.role)));
    for statement in [
        "UPDATE background_jobs SET completed = true",
        "UPDATE background_jobs SET cancelled = true, result = '7'",
        "UPDATE background_jobs SET progress = 1",
        "UPDATE background_jobs SET id = gen_random_uuid()",
        "UPDATE background_jobs SET payload = '{}'",
    ] {
        assert_eq!(submitter.code(statement), "42501", "{statement}");
    }
    submitter.sql("UPDATE background_jobs SET cancelled = false");
    assert_eq!(app.state(id), "running", "that was no cancel");
    let done = app.submit("held", json!({"done": true}));
    app.open_gate("go");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.wait_final(done).result, Some(json!(1)));
    // To and fro on finished jobs: they stay finished and run no more.
    for value in ["true", "false", "true", "false"] {
        submitter.sql(&format!("UPDATE background_jobs SET cancelled = {value}"));
    }
    let next = app.submit("held", json!({}));
    app.wait_final(next);
    assert_eq!((app.state(id), app.noted(id)), ("completed".to_owned(), 1));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

/// Rows that say they are final already, with whatever result, are never run and harm nobody.
#[test]
fn rows_that_come_with_their_end_are_only_rows() {
    let mut app = SHARED.app("ended");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let mut submitter = submitter(&mut app);
    for columns in ["completed", "cancelled", "completed, cancelled"] {
        let values = columns.replace("completed", "true").replace("cancelled", "true");
        submitter.sql(&format!(
            "INSERT INTO background_jobs (payload, progress, result, {columns}) VALUES
                ('{{\"handler\": \"noted\"}}', 0.3, '{{\"error\": {{\"attempts\": \"many\", \"sqlstate\": 5, \"message\": []}}}}', {values}),
                ('{{\"handler\": \"noted\"}}', 'NaN', '{{\"error\": {{\"attempts\": 1e400, \"sqlstate\": \"\\u0001ABCD\"}}}}', {values}),
                ('{{\"handler\": \"noted\"}}', '-Infinity', '{{\"error\": \"\"}}', {values}),
                ('{{\"handler\": \"noted\"}}', 7, '[]', {values})"
        ));
    }
    let next = app.submit("noted", json!({}));
    app.wait_final(next);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 1);
    // Reading them is safe, whatever they say about themselves.
    let ids: Vec<Uuid> = app.rows("SELECT id FROM background_jobs", &[]).iter().map(|row| row.get(0)).collect();
    for id in ids {
        let state = app.state(id);
        assert!(["completed", "failed", "cancelled"].contains(&state.as_str()), "{state}");
        let waited = app.client.query("SELECT background_jobs.wait($1, '1 s')", &[&id]);
        if let Err(error) = waited {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
            assert!(
                !error.code().code().starts_with("XX")
                    || error.code().code() == "XX000" && !error.message().contains("panic"),
                "{error:?}"
            );
        }
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

/// TRIGGER is the right to run functions as whoever writes the table. That is the owner in the owner's worker, as in any
/// session of the owner's, and never anybody above.
#[test]
fn a_planted_trigger_sees_the_owner_and_nobody_above() {
    let mut app = SHARED.app("planted");
    let mut submitter = submitter(&mut app);
    let role = ident(&submitter.role);
    app.sql(&format!("GRANT TRIGGER ON background_jobs TO {role}"));
    app.admin()
        .batch_execute(&format!("CREATE SCHEMA AUTHORIZATION {role}; GRANT USAGE ON SCHEMA {role} TO PUBLIC"))
        .unwrap();
    // It ends when the progress writer has written.
    app.handler(
        "works",
        "PERFORM background_jobs.set_progress(0.5);
         WHILE NOT (SELECT progress = 0.5 FROM background_jobs WHERE id = (SELECT id FROM background_jobs.current_job())) LOOP
            PERFORM pg_sleep(0.005);
         END LOOP;
         RETURN '1';",
    );
    app.handler_with("fails", "RAISE 'no';", "max_attempts => 2, retry_delay => '5 ms'");
    submitter.sql(
        "CREATE TABLE seen (who text, kind text); GRANT INSERT ON seen TO PUBLIC;
         CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            BEGIN EXECUTE 'SET ROLE postgres'; EXCEPTION WHEN insufficient_privilege OR invalid_parameter_value THEN NULL; END;
            BEGIN EXECUTE 'DELETE FROM background_jobs.queued_job'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
            RETURN coalesce(NEW, OLD);
         END $$;",
    );
    let schema = lit(&submitter.role);
    submitter.sql(&format!(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
            EXECUTE format('INSERT INTO %I.seen VALUES ($1, $2)', {schema})
              USING session_user || ' ' || current_user || ' ' || current_setting('is_superuser'),
                    (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid());
            RETURN NULL;
         END $f$;
         CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_row();
         CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION tell();
         CREATE CONSTRAINT TRIGGER c AFTER INSERT OR UPDATE ON background_jobs DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION tell();"
    ));
    for handler in ["works", "fails"] {
        let id = submit(&mut submitter, &json!({"handler": handler}));
        assert!(app.wait_final(id).completed);
    }
    let id: Uuid = app.one("SELECT background_jobs.enqueue('works', run_at => now() + interval '1 h')", &[]);
    app.execute("SELECT background_jobs.cancel($1)", &[&id]);
    let (owner, own) = (format!("{0} {0} off", app.role), format!("{0} {0} off", submitter.role));
    let foreign: i64 = submitter.one("SELECT count(*) FROM seen WHERE who NOT IN ($1, $2)", &[&owner, &own]);
    assert_eq!(foreign, 0);
    let kinds: i64 = submitter
        .one("SELECT count(DISTINCT kind) FROM seen WHERE who = $1 AND kind LIKE 'background_jobs %'", &[&owner]);
    assert_eq!(kinds, 2, "executor and progress writer were reached");
    // Our own trigger replaced by one that reads another key chooses among the registered handlers, no more.
    let replaced = |columns: &str| {
        format!(
            "CREATE OR REPLACE TRIGGER background_jobs_submit AFTER INSERT ON background_jobs FOR EACH ROW
                EXECUTE FUNCTION background_jobs.submit('other', '{columns}')"
        )
    };
    submitter.sql(&replaced("handler,priority"));
    assert_eq!(
        submitter.code("INSERT INTO background_jobs (payload) VALUES ('{}')"),
        "42703",
        "columns that are not there"
    );
    submitter.sql(&replaced("nonsense"));
    let id = submit(&mut submitter, &json!({"other": "pg_sleep", "handler": "works"}));
    app.wait_true(&format!("SELECT state = 'unhandled' FROM background_jobs.queue WHERE job_id = '{id}'"));
}

/// An owner may have reasons to give ids out itself. What the submitter asks for then is no way to the job that has the id.
#[test]
fn an_id_that_the_owners_trigger_replaces_is_no_way_to_the_job_that_has_it() {
    let mut app = SHARED.app("replaced");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let mut submitter = submitter(&mut app);
    let later = "now() + interval '1 h'";
    let victim: Uuid =
        app.one(&format!("SELECT background_jobs.enqueue('noted', run_at => {later}, priority => 5::smallint)"), &[]);
    app.sql(
        "CREATE FUNCTION give_id() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            NEW.id = gen_random_uuid(); RETURN NEW;
         END $$;
         CREATE TRIGGER give_id BEFORE INSERT ON background_jobs FOR EACH ROW EXECUTE FUNCTION give_id();
         -- Fires before the extension's own trigger.
         CREATE FUNCTION also() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$ BEGIN
            IF NOT NEW.payload ? 'also' THEN
                INSERT INTO background_jobs (payload) VALUES (NEW.payload || '{\"also\": true}');
            END IF;
            RETURN NULL;
         END $$;
         CREATE TRIGGER also AFTER INSERT ON background_jobs FOR EACH ROW EXECUTE FUNCTION also();",
    );
    let queue = "SELECT to_jsonb(q)::text FROM background_jobs.queue q WHERE job_id = $1";
    let before: String = app.one(queue, &[&victim]);
    let given: Uuid = submitter.one(
        "SELECT background_jobs.enqueue('noted', id => $1, priority => 9::smallint, run_at => now() + interval '2 h',
            queue => 'mine', job_key => 'mine', job_table => 'public.background_jobs')",
        &[&victim],
    );
    assert_eq!(app.one::<String>(queue, &[&victim]), before);
    let shown: bool = app.one(
        "SELECT q.state = 'scheduled' AND q.priority = 9 AND q.queue = 'mine' AND NOT j.payload ? 'also'
           FROM background_jobs.queue q JOIN background_jobs j ON j.id = q.job_id WHERE q.job_id = $1",
        &[&given],
    );
    assert!(shown, "the id that is returned is that of the row which was inserted");
}
