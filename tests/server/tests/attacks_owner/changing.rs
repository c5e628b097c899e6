//! Tables that are hidden, retyped, replaced by a view or moved away while they have jobs.

use crate::SHARED;
use server_tests::{Uuid, ident, json};
use std::time::Duration;

/// A policy that hides a row from its owner's own executor hides it for now: the job is not gone.
#[test]
fn a_job_that_a_forced_policy_hides_is_kept_until_it_can_be_seen() {
    let mut app = SHARED.app("hidden");
    app.sql(
        "CREATE TABLE open_for (who text);
         CREATE FUNCTION is_open() RETURNS boolean LANGUAGE sql STABLE AS
            $$ SELECT (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) = 'client backend'
                   OR EXISTS (SELECT FROM public.open_for) $$;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (is_open()) WITH CHECK (true);",
    );
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let id = app.submit("noted", json!({}));
    // An executor has met it by the time it has met a job of another table that came later.
    app.sql("SELECT background_jobs.create_table('other_jobs')");
    app.sql("SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'other_jobs')");
    app.sql("INSERT INTO other_jobs (payload) VALUES ('{\"handler\": \"noted\"}')");
    app.wait_true("SELECT bool_and(completed) FROM other_jobs");
    app.wait_true("SELECT count(*) >= 1 FROM background_jobs.workers WHERE role = 'executor'");
    assert!(!app.row(id).is_final());
    assert_eq!(
        app.one::<i64>("SELECT count(*) FROM background_jobs.queue WHERE job_id = $1", &[&id]),
        1,
        "it is queued still (I10)"
    );
    app.sql("INSERT INTO open_for VALUES ('all')");
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(app.noted(id), 1);
}

#[test]
fn jobs_wait_while_a_column_has_another_type_and_run_when_it_is_back() {
    let mut app = SHARED.app("retyped");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    for (column, away, back) in [
        ("payload", "text USING payload::text", "jsonb USING payload::jsonb"),
        ("result", "json USING result::json", "jsonb USING result::jsonb"),
        ("progress", "numeric", "real"),
    ] {
        let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
        let drop_default =
            format!("ALTER TABLE background_jobs ALTER {column} DROP DEFAULT, ALTER {column} TYPE {away}");
        app.sql(&drop_default);
        app.execute("SELECT background_jobs.run_now($1)", &[&id]);
        app.wait_true("SELECT count(*) = 1 FROM background_jobs.queue WHERE state = 'available'");
        app.sql(&format!("ALTER TABLE background_jobs ALTER {column} TYPE {back}"));
        let end = format!("SELECT completed FROM background_jobs WHERE id = '{id}'");
        let done = server_tests::wait::attempt(Duration::from_secs(8), column, || {
            if app.one(&end, &[]) {
                return Ok(());
            }
            Err(app.rows("SELECT to_jsonb(j)::text || coalesce(to_jsonb(q)::text, ' is not queued ') || coalesce(to_jsonb(s)::text, 'no status')
                FROM background_jobs j LEFT JOIN background_jobs.queue q ON q.job_id = j.id LEFT JOIN LATERAL background_jobs.status(j.id) s ON true
                WHERE NOT completed", &[]).iter().map(|row| row.get::<_, String>(0)).collect::<String>())
        });
        assert_eq!(done, Ok(()), "{column}\n{}", app.cluster.log_tail());
        assert_eq!(app.row(id).result, Some(json!(1)), "{column}");
        assert_eq!(app.noted(id), 1, "{column}");
    }
    let busy = app.sqlstate("ALTER TABLE background_jobs ALTER completed TYPE text");
    assert_eq!(busy, "0A000", "what the triggers look at cannot be retyped below them");
}

#[test]
fn a_view_under_the_tables_name_gets_nothing_of_its_jobs() {
    let mut app = SHARED.app("view");
    app.create_witness();
    app.handler("noted", "PERFORM note(); RETURN '1';");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
    app.sql(
        "ALTER TABLE background_jobs RENAME TO real_jobs;
         CREATE FUNCTION in_view() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM public.seen('view'); RETURN false; END $$;
         CREATE VIEW background_jobs AS SELECT * FROM real_jobs WHERE in_view();
         CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.seen('instead'); RETURN NULL; END $$;
         CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION instead();
         CREATE RULE instead AS ON UPDATE TO background_jobs DO INSTEAD NOTHING;",
    );
    app.execute("SELECT background_jobs.run_now($1, 'real_jobs')", &[&id]);
    app.wait_true("SELECT completed FROM real_jobs");
    assert_eq!(app.noted(id), 1);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen WHERE kind LIKE 'background_jobs%'", &[]), 0);
    for call in ["attach('background_jobs')", "enqueue('noted')", "register_handler('noted', 'noted(jsonb)')"] {
        let code = app.sqlstate(&format!("SELECT background_jobs.{call}"));
        assert!(["42809", "55000"].contains(&code.as_str()), "{call}: {code}");
    }
    // What PostgreSQL 15 still allows: an empty table becomes a view, with the OID that the queue knows.
    if server_tests::major() > 15 {
        return;
    }
    app.sql("DROP VIEW background_jobs; ALTER TABLE real_jobs RENAME TO background_jobs");
    app.sql(
        "INSERT INTO background_jobs (payload) VALUES ('{\"handler\": \"later\"}');
         DROP TRIGGER background_jobs_submit ON background_jobs; DROP TRIGGER background_jobs_update ON background_jobs;
         DROP TRIGGER background_jobs_delete ON background_jobs; DROP TRIGGER background_jobs_truncate ON background_jobs;
         DELETE FROM background_jobs; ALTER TABLE background_jobs DROP CONSTRAINT background_jobs_pkey;",
    );
    app.sql("VACUUM background_jobs");
    app.sql(
        "CREATE RULE \"_RETURN\" AS ON SELECT TO background_jobs DO INSTEAD
            SELECT gen_random_uuid() AS id, now() AS timestamp, '{}'::jsonb AS payload, false AS completed, false AS cancelled,
                   0::real AS progress, NULL::jsonb AS result WHERE in_view()",
    );
    app.sql(
        "SELECT background_jobs.create_table('other_jobs');
         SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'other_jobs');
         SELECT background_jobs.register_handler('later', 'noted(jsonb)', 'other_jobs');
         INSERT INTO other_jobs (payload) VALUES ('{\"handler\": \"later\"}'), ('{\"handler\": \"noted\"}');",
    );
    app.wait_true("SELECT bool_and(completed) FROM other_jobs");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen WHERE kind LIKE 'background_jobs%'", &[]), 0);
}

#[test]
fn a_table_moved_to_another_schema_while_a_job_runs_gets_its_result() {
    let mut app = SHARED.app("moved");
    let (database, role) = (ident(&app.database), ident(&app.role));
    app.admin().batch_execute(&format!("GRANT CREATE ON DATABASE {database} TO {role}")).unwrap();
    app.sql("CREATE SCHEMA elsewhere");
    app.handler("held", "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    // In its old place stands another table with a row of the same id, for whoever goes by the name.
    app.sql(
        "ALTER TABLE background_jobs SET SCHEMA elsewhere; ALTER SCHEMA elsewhere RENAME TO \"else \"\"where\"\"\";
         CREATE TABLE background_jobs AS SELECT * FROM \"else \"\"where\"\"\".background_jobs;",
    );
    app.open_gate("go");
    app.wait_true("SELECT bool_and(completed AND result = '1') FROM \"else \"\"where\"\"\".background_jobs");
    assert!(!app.row(id).is_final(), "the table in its old place was not touched");
    assert_eq!(app.noted(id), 1);
}
