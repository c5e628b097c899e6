//! Submissions of one statement enter the queue together, when it ends; nobody can tell but by the time that it takes.

use server_tests::{App, Cluster, Group, Uuid, json, postgres};
use std::io::Write as _;

/// Nothing runs: what is asked is what waits.
static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.enabled", "off"));

const MANY: &str = "INSERT INTO background_jobs (payload) SELECT '{}' FROM generate_series(1, 600)";

fn waiting(app: &App) -> i64 {
    app.admin().query_one("SELECT count(*) FROM background_jobs.queued_job", &[]).unwrap().get(0)
}

fn app(name: &str) -> App<'static> {
    let mut app = SHARED.app(name);
    app.sql(
        "CREATE FUNCTION is_queued(id uuid) RETURNS boolean LANGUAGE sql AS
        'SELECT EXISTS (SELECT FROM background_jobs.queue q WHERE q.job_id = is_queued.id)'",
    );
    app
}

/// A trigger of the owner's, which runs behind ours.
fn trigger(app: &mut App, when: &str, body: &str) {
    app.sql(&format!(
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
         CREATE TRIGGER watch {when} EXECUTE FUNCTION watch()"
    ));
}

/// COPYs so many jobs, the last of them for this person.
fn copy(app: &mut App, count: i64, last: i64) -> Result<u64, postgres::Error> {
    let mut writer = app.client.copy_in("COPY background_jobs (id, person) FROM STDIN").unwrap();
    for n in 1..=count {
        writeln!(writer, "{}\t{}", Uuid::new_v4(), if n == count { last } else { 1 }).unwrap();
    }
    writer.finish()
}

/// A job may be for person 1 only.
fn with_people(app: &mut App) {
    app.sql(
        "CREATE TABLE people (person bigint PRIMARY KEY); INSERT INTO people VALUES (1);
        ALTER TABLE background_jobs ADD COLUMN person bigint REFERENCES people",
    );
}

#[test]
fn all_rows_of_a_statement_are_queued_when_it_has_ended() {
    let mut app = app("ended");
    with_people(&mut app);
    app.sql(&format!("BEGIN; {MANY}"));
    let own = "SELECT count(*) FROM background_jobs.queue";
    assert_eq!(app.one::<i64>(own, &[]), 600);
    assert_eq!(copy(&mut app, 700, 1).unwrap(), 700);
    assert_eq!(app.one::<i64>(own, &[]), 1300);
    let id: Uuid = app.one("INSERT INTO background_jobs DEFAULT VALUES RETURNING id", &[]);
    assert!(app.one::<bool>("SELECT background_jobs.cancel($1)", &[&id]));
    app.sql("COMMIT");
    assert_eq!(waiting(&app), 1300);
}

#[test]
fn a_trigger_of_the_owners_finds_the_row_that_it_is_called_for() {
    let mut app = app("called");
    trigger(&mut app, "AFTER INSERT ON background_jobs FOR EACH ROW", "ASSERT is_queued(NEW.id);");
    app.sql(MANY);
    assert_eq!(waiting(&app), 600);
}

#[test]
fn a_trigger_of_the_owners_for_the_statement_finds_all_its_rows() {
    let mut app = app("statement");
    trigger(
        &mut app,
        "AFTER INSERT ON background_jobs REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT",
        "ASSERT (SELECT bool_and(is_queued(n.id)) FROM new_rows n);",
    );
    app.sql(MANY);
    assert_eq!(waiting(&app), 600);
}

#[test]
fn so_does_one_of_a_partitioned_table() {
    let mut app = app("partitioned");
    app.sql("DROP TABLE background_jobs;
        CREATE TABLE background_jobs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), timestamp timestamptz NOT NULL DEFAULT now(),
            payload jsonb NOT NULL DEFAULT '{}', completed boolean NOT NULL DEFAULT false, cancelled boolean NOT NULL DEFAULT false,
            progress real NOT NULL DEFAULT 0, result jsonb) PARTITION BY HASH (id);
        CREATE TABLE even PARTITION OF background_jobs FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE odd PARTITION OF background_jobs FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        SELECT background_jobs.attach('background_jobs')");
    trigger(
        &mut app,
        "AFTER INSERT ON background_jobs FOR EACH STATEMENT",
        "ASSERT (SELECT bool_and(is_queued(id)) FROM background_jobs);",
    );
    app.sql(MANY);
    assert_eq!(waiting(&app), 600);
}

#[test]
fn what_a_trigger_of_the_owners_cancels_is_not_queued_and_what_it_takes_back_is() {
    let mut app = app("cancels");
    trigger(
        &mut app,
        "AFTER INSERT ON background_jobs FOR EACH ROW",
        "BEGIN
             UPDATE background_jobs SET cancelled = true WHERE id = NEW.id;
             ASSERT NOT is_queued(NEW.id);
             IF NEW.payload ? 'keep' THEN RAISE 'taken back'; END IF;
         EXCEPTION WHEN raise_exception THEN NULL;
         END;",
    );
    app.sql(
        "INSERT INTO background_jobs (payload)
        SELECT CASE WHEN n % 3 = 0 THEN '{\"keep\": 1}'::jsonb ELSE '{}' END FROM generate_series(1, 300) n",
    );
    assert_eq!(waiting(&app), 100);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE cancelled", &[]), 200);
}

#[test]
fn a_trigger_for_a_row_that_is_updated_instead_finds_those_that_were_inserted() {
    let mut app = app("conflict");
    let id = app.submit("old", json!({}));
    trigger(
        &mut app,
        "AFTER UPDATE ON background_jobs FOR EACH ROW",
        "ASSERT (SELECT count(*) = 51 FROM background_jobs.queue);",
    );
    app.execute(
        "INSERT INTO background_jobs (id) SELECT CASE WHEN n = 51 THEN $1 ELSE gen_random_uuid() END FROM generate_series(1, 51) n
             ON CONFLICT (id) DO UPDATE SET payload = excluded.payload",
        &[&id],
    );
    assert_eq!(waiting(&app), 51);
}

#[test]
fn a_trigger_on_another_table_of_the_same_statement_finds_the_row() {
    let mut app = app("with");
    app.sql("CREATE TABLE log (id uuid)");
    trigger(&mut app, "AFTER INSERT ON log FOR EACH ROW", "ASSERT background_jobs.cancel(NEW.id);");
    app.sql(
        "WITH jobs AS (INSERT INTO background_jobs (payload) SELECT '{}' FROM generate_series(1, 50) RETURNING id)
        INSERT INTO log SELECT id FROM jobs",
    );
    assert_eq!(waiting(&app), 0);
}

#[test]
fn a_statement_that_fails_takes_its_submissions_with_it() {
    let mut app = app("fails");
    with_people(&mut app);
    // Found when the row's triggers run, and without a query.
    app.sql("ALTER TABLE background_jobs ADD COLUMN number int UNIQUE DEFERRABLE");
    app.sql(
        "DO $$ BEGIN
             BEGIN
                 INSERT INTO background_jobs (number) SELECT CASE WHEN n = 400 THEN 1 ELSE n END FROM generate_series(1, 400) n;
             EXCEPTION WHEN unique_violation THEN NULL;
             END;
             INSERT INTO people VALUES (3);
             INSERT INTO background_jobs (person) SELECT 1 FROM generate_series(1, 10);
         END $$",
    );
    assert_eq!(waiting(&app), 10);
    app.sql("BEGIN; SAVEPOINT before");
    copy(&mut app, 400, 2).unwrap_err();
    app.sql("ROLLBACK TO before");
    assert_eq!(copy(&mut app, 5, 1).unwrap(), 5);
    app.sql("INSERT INTO background_jobs DEFAULT VALUES; COMMIT");
    assert_eq!(waiting(&app), 16);
    copy(&mut app, 100, 2).unwrap_err();
    app.sql("INSERT INTO background_jobs DEFAULT VALUES");
    assert_eq!(waiting(&app), 17);
}

/// Whatever the statement within inserts is there when it ends, not when the outer one does.
#[test]
fn statements_within_a_statement_queue_their_own_rows() {
    let mut app = app("within");
    with_people(&mut app);
    app.sql("SELECT background_jobs.create_table('other')");
    for statement in [
        "INSERT INTO other (payload) SELECT '{}' FROM generate_series(1, 2) RETURNING id",
        "WITH jobs AS (INSERT INTO other (payload) SELECT '{}' FROM generate_series(1, 2) RETURNING id) SELECT id FROM jobs",
        "SELECT background_jobs.enqueue('any', job_table => 'other') AS id",
    ] {
        trigger(
            &mut app,
            "BEFORE INSERT ON background_jobs FOR EACH ROW",
            &format!("DECLARE job record; BEGIN FOR job IN {statement} LOOP ASSERT is_queued(job.id); END LOOP; END;"),
        );
        app.sql("TRUNCATE other, background_jobs; INSERT INTO background_jobs SELECT FROM generate_series(1, 20)");
        let each = app.one::<i64>("SELECT count(*) FROM other", &[]) / 20;
        assert_eq!(waiting(&app), 20 + 20 * each, "{statement}");
        assert_eq!(copy(&mut app, 20, 1).unwrap(), 20);
        assert_eq!(waiting(&app), 40 + 40 * each, "{statement}");
        app.sql("DROP FUNCTION watch() CASCADE");
    }
}

#[test]
fn a_row_with_the_id_of_a_job_that_waits_takes_its_place() {
    let mut app = app("place");
    let id = app.submit("old", json!({}));
    // The row goes, and nobody takes its job out of the queue.
    app.sql("ALTER TABLE background_jobs DISABLE TRIGGER USER; DELETE FROM background_jobs");
    app.sql("ALTER TABLE background_jobs ENABLE ALWAYS TRIGGER background_jobs_submit");
    assert_eq!(waiting(&app), 1);
    app.execute(
        "INSERT INTO background_jobs (id, payload) SELECT CASE WHEN n = 70 THEN $1 ELSE gen_random_uuid() END, '{\"handler\": \"new\"}'
           FROM generate_series(1, 100) n",
        &[&id],
    );
    let handlers = "SELECT string_agg(DISTINCT handler, ','), count(*) FROM background_jobs.queue";
    let row = app.client.query_one(handlers, &[]).unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i64>(1)), ("new", 100));
}

/// Their order is that of their arrival, also where many arrive within a microsecond.
#[test]
fn no_two_submissions_have_the_same_arrival() {
    let app = app("arrivals");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut client = app.session();
            scope.spawn(move || {
                for _ in 0..5 {
                    client.batch_execute(MANY).unwrap_or_else(|e| panic!("{MANY}: {e:?}"));
                }
            });
        }
    });
    let same = "SELECT count(*) - count(DISTINCT enqueued_at) FROM background_jobs.queued_job";
    assert_eq!((waiting(&app), app.admin().query_one(same, &[]).unwrap().get::<_, i64>(0)), (12_000, 0));
}
