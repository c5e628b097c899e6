//! Progress: visible while the handler's transaction is still open, and always a sane number.

use server_tests::{Cluster, Group, json};

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.progress_flush_interval", "50ms"));

#[test]
fn a_second_session_sees_it_before_the_commit() {
    let mut app = SHARED.app("visible");
    app.handler(
        "steps",
        "PERFORM note();
         FOR i IN 1..3 LOOP
            PERFORM background_jobs.set_progress((i * 0.25)::real); PERFORM await_gate('step' || i);
         END LOOP;
         RETURN NULL;",
    );
    let id = app.submit("steps", json!({}));
    for (gate, progress) in [("step1", 0.25), ("step2", 0.5), ("step3", 0.75)] {
        app.wait_true(&format!("SELECT progress = {progress} AND NOT completed FROM background_jobs"));
        assert_eq!(app.noted(id), 0, "the handler's own work is not visible");
        let shown: bool = app.one(
            "SELECT w.progress = s.progress AND s.progress = $2
                AND w.handler = 'steps' AND w.attempt = 1 AND w.pid = s.pid
             FROM background_jobs.workers w, background_jobs.status($1) s WHERE w.job_id = $1",
            &[&id, &(progress as f32)],
        );
        assert!(shown);
        app.open_gate(gate);
    }
    let job = app.wait_final(id);
    assert!((job.progress - 1.0).abs() < f32::EPSILON);
    assert_eq!(app.noted(id), 1);
}

#[test]
fn values_that_are_none_are_errors_in_the_handler() {
    let mut app = SHARED.app("range");
    app.handler_with(
        "sets",
        "PERFORM background_jobs.set_progress(0.5); PERFORM background_jobs.set_progress((payload ->> 'value')::real);
         RETURN NULL;",
        "max_attempts => 1",
    );
    for value in ["NaN", "-0.001", "1.001", "Infinity", "-Infinity"] {
        let id = app.submit("sets", json!({"value": value}));
        let job = app.wait_final(id);
        let sqlstate = job.error("sqlstate").unwrap_or_else(|| panic!("{value} was taken")).as_str().unwrap();
        assert!(sqlstate.starts_with("22"), "{value}: a data exception, not {sqlstate}");
        assert!((job.progress - 0.5).abs() < f32::EPSILON, "{value}: progress stays: {}", job.progress);
    }
    let id = app.submit("sets", json!({"value": "1"}));
    assert_eq!(app.wait_final(id).result, None, "1 is in the range");
}

#[test]
fn it_never_falls_and_is_not_1_before_the_end() {
    let mut app = SHARED.app("monotone");
    // The owner's trigger sees every value the row ever had.
    app.sql(
        "CREATE TABLE seen (entry bigserial, progress real, completed boolean);
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen (progress, completed) VALUES (NEW.progress, NEW.completed); RETURN NULL;
         END $$;
         CREATE TRIGGER see AFTER UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION see();",
    );
    app.handler(
        "wavers",
        "PERFORM background_jobs.set_progress(0.5); PERFORM await_gate('a');
         PERFORM background_jobs.set_progress(0.25); PERFORM background_jobs.set_progress(0.5);
         PERFORM background_jobs.set_progress(0.125); PERFORM reach(1); PERFORM await_gate('b');
         PERFORM background_jobs.set_progress(1); PERFORM await_gate('c');
         RETURN NULL;",
    );
    let id = app.submit("wavers", json!({}));
    app.wait_true("SELECT progress = 0.5 FROM background_jobs");
    app.open_gate("a");
    app.wait_reached(1);
    app.open_gate("b");
    app.wait_true("SELECT progress > 0.5 FROM background_jobs");
    app.open_gate("c");
    app.wait_final(id);
    let seen: Vec<(f32, bool)> = app
        .rows("SELECT progress, completed FROM seen ORDER BY entry", &[])
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert!(seen.is_sorted_by(|a, b| a.0 <= b.0), "{seen:?}");
    assert!(seen.iter().all(|(progress, completed)| *completed == (*progress >= 1.0)), "{seen:?}");
}

#[test]
fn a_flush_writes_progress_alone_and_not_too_often() {
    let mut app = SHARED.app("flush");
    app.sql(
        "CREATE TABLE edges (entry bigserial, at timestamptz DEFAULT clock_timestamp(), changed jsonb, last boolean);
         CREATE FUNCTION edge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO edges (changed, last) SELECT jsonb_agg(n.key ORDER BY n.key), NEW.completed
            FROM jsonb_each(to_jsonb(NEW)) n JOIN jsonb_each(to_jsonb(OLD)) o USING (key) WHERE n.value <> o.value;
            RETURN NULL;
         END $$;
         CREATE TRIGGER edge AFTER UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION edge();",
    );
    // Runs until fifteen of its thousands of values were flushed, which a busy machine takes longer for. What is measured is that there
    // are not more than the time allows, and that some come as fast as the setting says.
    app.handler(
        "eager",
        "FOR i IN 1..900000 LOOP
            PERFORM background_jobs.set_progress(i / 1000000.0::real); PERFORM pg_sleep(0.001);
            EXIT WHEN i % 20 = 0 AND EXISTS (SELECT FROM gates WHERE name = 'enough');
         END LOOP;
         RETURN NULL;",
    );
    let id = app.submit("eager", json!({}));
    app.wait_true("SELECT count(*) >= 15 FROM edges WHERE NOT last");
    app.open_gate("enough");
    app.wait_final(id);
    let rows = app.rows(
        "SELECT count(*), bool_and(changed = '[\"progress\"]'), extract(epoch FROM max(at) - min(at))::float8,
                extract(epoch FROM min(gap))::float8
         FROM (SELECT *, at - lag(at) OVER (ORDER BY entry) AS gap FROM edges WHERE NOT last) flush",
        &[],
    );
    let (flushes, alone, seconds): (i64, bool, f64) = (rows[0].get(0), rows[0].get(1), rows[0].get(2));
    assert!(alone);
    // No pair of them would be so close at the default interval, however many there are.
    let closest: f64 = rows[0].get(3);
    assert!(closest < 0.2, "{closest} s between two flushes");
    assert!(flushes as f64 <= seconds / 0.05 + 2.0, "{flushes} flushes in {seconds} s");
}

#[test]
fn it_starts_again_with_an_attempt() {
    let mut app = SHARED.app("again");
    app.handler_with(
        "twice",
        "IF (SELECT attempt FROM background_jobs.current_job()) = 1 THEN
            PERFORM background_jobs.set_progress(0.9); PERFORM await_gate('fail'); RAISE 'no';
         END IF;
         PERFORM background_jobs.set_progress(0.1); PERFORM await_gate('end'); RETURN NULL;",
        "retry_delay => '10 ms'",
    );
    let id = app.submit("twice", json!({}));
    app.wait_true("SELECT progress = 0.9::real FROM background_jobs");
    app.open_gate("fail");
    app.wait_true("SELECT progress = 0.1::real FROM background_jobs");
    app.open_gate("end");
    assert!(app.wait_final(id).completed);
}

#[test]
fn outside_a_handler_there_is_no_job() {
    let mut app = SHARED.app("outside");
    for call in ["set_progress(0.5)", "current_job()", "check_cancelled()"] {
        assert_eq!(app.sqlstate(&format!("SELECT background_jobs.{call}")), "55000", "{call}");
    }
}

/// The row may have a lock of a client on it for as long as that client likes.
#[test]
fn a_locked_row_delays_progress_and_nothing_else() {
    let mut app = SHARED.app("locked");
    app.handler(
        "held",
        "PERFORM reach(1); PERFORM await_gate('set'); PERFORM background_jobs.set_progress(0.5);
         PERFORM reach(2); PERFORM await_gate('go'); RETURN NULL;",
    );
    app.handler("quick", "RETURN '1';");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut session = app.session();
    let mut transaction = session.transaction().unwrap();
    transaction.query_one("SELECT FROM background_jobs WHERE id = $1 FOR UPDATE", &[&id]).unwrap();
    app.open_gate("set");
    app.wait_reached(2);
    let other = app.submit("quick", json!({}));
    assert_eq!(app.wait_final(other).result, Some(json!(1)), "other jobs run");
    transaction.commit().unwrap();
    app.wait_true(&format!("SELECT progress = 0.5 FROM background_jobs WHERE id = '{id}'"));
    app.open_gate("go");
    assert!(app.wait_final(id).completed);
}

/// What the owner's triggers do in the session that writes progress ends with the write.
#[test]
fn nothing_is_left_behind_where_progress_is_written() {
    let mut app = SHARED.app("left_behind");
    app.sql(
        "CREATE TABLE found (entry bigserial, setting text, temporary bool, prepared bigint);
         CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NOT NEW.completed THEN
                INSERT INTO found (setting, temporary, prepared)
                VALUES (current_setting('work_mem'), to_regclass('pg_temp.mine') IS NOT NULL, (SELECT count(*) FROM pg_prepared_statements));
                PERFORM pg_advisory_lock(4712);
                PERFORM set_config('work_mem', '77MB', false), set_config('application_name', 'mine', false);
                EXECUTE 'CREATE TEMP TABLE mine ()';
                EXECUTE 'PREPARE mine AS SELECT 1';
            END IF;
            RETURN NULL;
         END $$;
         CREATE TRIGGER leave AFTER UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION leave();",
    );
    app.handler(
        "steps",
        "FOR i IN 1..3 LOOP
            PERFORM background_jobs.set_progress((i * 0.25)::real); PERFORM await_gate('step' || i);
         END LOOP;
         RETURN NULL;",
    );
    let id = app.submit("steps", json!({}));
    for (gate, progress) in [("step1", 0.25), ("step2", 0.5), ("step3", 0.75)] {
        app.wait_true(&format!("SELECT progress = {progress} FROM background_jobs"));
        app.wait_true(
            "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        );
        app.wait_true(
            "SELECT application_name = backend_type FROM pg_stat_activity
              WHERE datname = current_database() AND backend_type = 'background_jobs progress writer'",
        );
        app.open_gate(gate);
    }
    app.wait_final(id);
    let mut client = app.session();
    let own: String = client.query_one("SELECT current_setting('work_mem')", &[]).unwrap().get(0);
    let found = app.rows("SELECT setting, temporary, prepared FROM found ORDER BY entry", &[]);
    let found: Vec<(String, bool, i64)> = found.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert_eq!(found, vec![(own, false, 0); 3]);
}

#[test]
fn it_is_shown_where_the_client_has_left_it_null() {
    let mut app = SHARED.app("null");
    app.sql("ALTER TABLE background_jobs ALTER progress DROP NOT NULL, ALTER progress DROP DEFAULT");
    app.handler("half", "PERFORM background_jobs.set_progress(0.5); PERFORM await_gate('go'); RETURN NULL;");
    app.sql("INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"half\"}')");
    app.wait_true("SELECT coalesce(progress = 0.5 AND NOT completed, false) FROM background_jobs");
    app.open_gate("go");
    app.wait_true("SELECT completed AND progress = 1 FROM background_jobs");
}
