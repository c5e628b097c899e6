//! Jobs of a partitioned table are read and finished in their own partitions, without the others.

use server_tests::{App, Cluster, Group, Uuid, json};
use std::time::Duration;

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "300ms"));

/// More than share a commit, many times.
const JOBS: i64 = 300;
const DRAIN: Duration = Duration::from_secs(60);

fn columns(key: &str) -> String {
    format!(
        "region text NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid(), timestamp timestamptz NOT NULL DEFAULT now(),
         payload jsonb NOT NULL DEFAULT '{{}}', completed boolean NOT NULL DEFAULT false, cancelled boolean NOT NULL DEFAULT false,
         progress real NOT NULL DEFAULT 0, result jsonb, PRIMARY KEY ({key})"
    )
}

/// The south has partitions of its own, whose columns are in another order, and all of whose rows are in the second one.
fn app(name: &str) -> App<'static> {
    let mut app = SHARED.app_without_table(name);
    app.sql(&format!(
        "CREATE TABLE background_jobs ({0}) PARTITION BY LIST (region);
         CREATE TABLE north PARTITION OF background_jobs FOR VALUES IN ('north');
         CREATE TABLE east PARTITION OF background_jobs FOR VALUES IN ('east');
         CREATE TABLE south PARTITION OF background_jobs FOR VALUES IN ('south') PARTITION BY RANGE (region, id);
         CREATE TABLE south_of_that PARTITION OF south
            FOR VALUES FROM ('south', MINVALUE) TO ('south', '00000000-0000-0000-0000-000000000000');
         CREATE TABLE south_itself (gone text, result jsonb, progress real NOT NULL DEFAULT 0, cancelled boolean NOT NULL DEFAULT false,
            completed boolean NOT NULL DEFAULT false, payload jsonb NOT NULL DEFAULT '{{}}', timestamp timestamptz NOT NULL DEFAULT now(),
            id uuid NOT NULL, region text NOT NULL);
         ALTER TABLE south_itself DROP COLUMN gone;
         ALTER TABLE south ATTACH PARTITION south_itself
            FOR VALUES FROM ('south', '00000000-0000-0000-0000-000000000000') TO ('south', MAXVALUE);
         SELECT background_jobs.attach('background_jobs')",
        columns("id, region")
    ));
    app.handler("noted", "PERFORM note(); RETURN payload -> 'n';");
    app
}

/// Jobs of a handler that nobody has registered, so that they wait.
fn submit(app: &mut App, region: &str, handler: &str) {
    submit_some(app, region, handler, JOBS);
}

fn submit_some(app: &mut App, region: &str, handler: &str, jobs: i64) {
    app.execute(
        "INSERT INTO background_jobs (region, payload)
         SELECT $1, jsonb_build_object('handler', $2::text, 'n', n) FROM generate_series(1, $3::bigint) n",
        &[&region, &handler, &jobs],
    );
}

fn wait_completed(app: &mut App, partition: &str, jobs: i64) {
    let query = format!("SELECT count(*), count(DISTINCT result) FROM {partition} WHERE completed AND progress = 1");
    let mut session = app.session();
    app.cluster.wait_within(DRAIN, &format!("jobs of {partition}"), || {
        let row = session.query_one(&query, &[]).unwrap();
        let counts: (i64, i64) = (row.get(0), row.get(1));
        if counts == (jobs, jobs) { Ok(()) } else { Err(format!("{counts:?} of {jobs}")) }
    });
}

fn is_in_company(app: &mut App, partition: &str) {
    // What is written for all of a transaction's jobs at once has its number, and what each writes itself one of its own.
    let query = format!("SELECT max(jobs) FROM (SELECT count(*) jobs FROM {partition} GROUP BY xmin::text) shared");
    let jobs: i64 = app.one(&query, &[]);
    assert!(jobs > 3, "{jobs} of {partition} together");
}

#[test]
fn jobs_do_not_wait_for_whoever_has_another_partition_to_himself() {
    let mut app = app("locked");
    // Those that wait for the lock stand before others in the line, and are tried again and again.
    submit_some(&mut app, "north", "later", 5);
    for region in ["east", "south"] {
        submit(&mut app, region, "later");
    }
    let mut other = app.session();
    other.batch_execute("BEGIN; LOCK TABLE north, south_of_that").unwrap();
    app.handler("later", "PERFORM note(); RETURN payload -> 'n';");
    for partition in ["east", "south_itself"] {
        wait_completed(&mut app, partition, JOBS);
        is_in_company(&mut app, partition);
    }
    // One that comes alone.
    let alone =
        "INSERT INTO background_jobs (region, payload) VALUES ('east', '{\"handler\": \"noted\", \"n\": \"alone\"}')";
    app.sql(alone);
    wait_completed(&mut app, "east", JOBS + 1);
    other.batch_execute("ROLLBACK").unwrap();
    wait_completed(&mut app, "north", 5);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
}

#[test]
fn a_job_whose_partition_somebody_takes_for_himself_while_it_runs_is_finished_when_it_is_free() {
    let mut app = app("taken");
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('go'); RETURN payload -> 'n';");
    submit_some(&mut app, "north", "held", 1);
    app.wait_reached(1);
    let mut other = app.session();
    other.batch_execute("BEGIN; LOCK TABLE north").unwrap();
    app.open_gate("go");
    app.wait_true("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'north'::regclass)");
    other.batch_execute("COMMIT").unwrap();
    wait_completed(&mut app, "north", 1);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 1);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
}

#[test]
fn the_queue_knows_the_partition_of_a_row_and_has_nothing_of_it_otherwise() {
    let mut app = app("known");
    app.sql("SELECT background_jobs.create_table('plain')");
    app.sql(
        "INSERT INTO background_jobs (region, payload)
         SELECT region, '{\"handler\": \"nobody\"}' FROM unnest('{north,south}'::text[]) region",
    );
    app.sql("INSERT INTO plain (payload) VALUES ('{\"handler\": \"nobody\"}')");
    let query = "SELECT job_table::text, row_partition::regclass::text, row_tid = '(0,1)' FROM background_jobs.queued_job ORDER BY 1, 2";
    let rows = app.admin().query(query, &[]).unwrap();
    let found: Vec<(String, Option<String>, bool)> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    let at = |table: &str, partition: Option<&str>| (table.to_owned(), partition.map(str::to_owned), true);
    let partitioned = "background_jobs";
    assert_eq!(found, [at(partitioned, Some("north")), at(partitioned, Some("south_itself")), at("plain", None)]);
}

#[test]
fn what_is_no_partition_of_the_table_is_not_gone_to() {
    let mut app = app("stranger");
    let query = "INSERT INTO background_jobs (region, payload)
        VALUES ('north', '{\"handler\": \"later\", \"n\": \"right\"}') RETURNING id";
    let id: Uuid = app.one(query, &[]);
    app.sql(&format!(
        "CREATE TABLE parent ({0}) PARTITION BY LIST (region);
         CREATE TABLE stranger PARTITION OF parent DEFAULT;
         CREATE TABLE plain (LIKE background_jobs);
         INSERT INTO stranger (region, id, payload) SELECT region, id, '{{\"n\": \"wrong\"}}' FROM north;
         INSERT INTO plain SELECT * FROM stranger",
        columns("id, region")
    ));
    for elsewhere in ["stranger", "plain", "parent", "background_jobs", "north_pkey"] {
        let point = format!("UPDATE background_jobs.queued_job SET row_partition = '{elsewhere}'::regclass");
        assert_eq!(app.admin().execute(&point, &[]).unwrap(), 1);
        app.handler("later", "PERFORM note(); RETURN payload -> 'n';");
        assert_eq!(app.wait_final(id).result, Some(json!("right")), "{elsewhere}");
        app.sql("SELECT background_jobs.unregister_handler('later')");
        assert!(app.one::<bool>("SELECT background_jobs.retry($1)", &[&id]));
        app.wait_state(id, "unhandled");
        let place = "UPDATE background_jobs.queued_job SET row_tid = '(0,1)'";
        assert_eq!(app.admin().execute(place, &[]).unwrap(), 1);
    }
    assert!(app.one::<bool>("SELECT NOT EXISTS (SELECT FROM stranger WHERE completed)", &[]));
}

#[test]
fn a_trigger_of_a_partition_fires_for_each_of_its_jobs() {
    for table in ["east", "south_itself"] {
        let (mut app, region) = (app("triggers"), &table[..if table == "east" { 4 } else { 5 }]);
        app.sql(&format!(
            "CREATE TABLE told (id uuid PRIMARY KEY);
             CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN IF NEW.completed THEN INSERT INTO told VALUES (NEW.id); END IF; RETURN NULL; END $$;
             CREATE TRIGGER tell AFTER UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION tell()"
        ));
        submit(&mut app, region, "noted");
        wait_completed(&mut app, table, JOBS);
        assert_eq!(app.one::<i64>("SELECT count(*) FROM told", &[]), JOBS, "{table}");
        // One that comes while the partition is known.
        app.sql(&format!("DROP TRIGGER tell ON {table}"));
        app.sql(&format!("TRUNCATE {table}, told"));
        submit(&mut app, region, "noted");
        wait_completed(&mut app, table, JOBS);
        is_in_company(&mut app, table);
        app.sql("CREATE TRIGGER tell AFTER UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION tell()");
        app.sql(&format!("TRUNCATE {table}"));
        submit(&mut app, region, "noted");
        wait_completed(&mut app, table, JOBS);
        assert_eq!(app.one::<i64>("SELECT count(*) FROM told", &[]), JOBS, "{table}");
    }
}

#[test]
fn rows_move_where_finished_ones_belong() {
    let mut app = SHARED.app_without_table("moving");
    // The second level only.
    app.sql(&format!(
        "CREATE TABLE background_jobs ({}) PARTITION BY LIST (region);
         CREATE TABLE north PARTITION OF background_jobs FOR VALUES IN ('north') PARTITION BY LIST (completed);
         CREATE TABLE open PARTITION OF north FOR VALUES IN (false);
         CREATE TABLE done PARTITION OF north FOR VALUES IN (true);
         SELECT background_jobs.attach('background_jobs')",
        columns("id, region, completed")
    ));
    app.handler("noted", "PERFORM note(); RETURN payload -> 'n';");
    submit(&mut app, "north", "noted");
    wait_completed(&mut app, "background_jobs", JOBS);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM done", &[]), JOBS);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM open", &[]), 0);
}

#[test]
fn rights_and_policies_are_those_of_the_table_and_not_of_the_partition() {
    let mut app = app("rights");
    let owner = app.role.clone();
    app.sql(&format!("REVOKE ALL ON east, north FROM \"{owner}\""));
    submit(&mut app, "east", "noted");
    app.wait_drained(DRAIN);
    app.sql(&format!("GRANT SELECT ON east TO \"{owner}\""));
    is_in_company(&mut app, "east");
    // Whoever may not change the table completes nothing in it.
    app.sql(&format!("GRANT ALL ON east, north TO \"{owner}\"; REVOKE UPDATE ON background_jobs FROM \"{owner}\""));
    let query = "INSERT INTO background_jobs (region, payload) VALUES ('north', '{\"handler\": \"noted\", \"n\": 1}') RETURNING id";
    let id: Uuid = app.one(query, &[]);
    app.wait_true("SELECT EXISTS (SELECT FROM background_jobs.attempts WHERE error ->> 'sqlstate' = '42501')");
    app.sql(&format!("GRANT UPDATE ON background_jobs TO \"{owner}\""));
    app.execute("SELECT background_jobs.run_now($1)", &[&id]);
    assert!(app.wait_final(id).completed);
    // And what a policy hides is not there.
    app.sql(
        "CREATE POLICY hides ON background_jobs FOR SELECT USING (payload ->> 'n' <> '2');
         CREATE POLICY inserts ON background_jobs FOR INSERT WITH CHECK (true);
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY; ALTER TABLE background_jobs FORCE ROW LEVEL SECURITY;
         INSERT INTO background_jobs (region, payload) VALUES ('north', '{\"handler\": \"noted\", \"n\": 2}')",
    );
    app.wait_true("SELECT EXISTS (SELECT FROM background_jobs.queue WHERE last_error ->> 'missing_since' IS NOT NULL)");
}

#[test]
fn a_finished_row_where_the_job_was_does_not_hide_the_open_one_of_its_id() {
    let mut app = app("hidden");
    let id = Uuid::new_v4();
    let insert = "INSERT INTO background_jobs (region, id, payload)
        VALUES ($1, $2, jsonb_build_object('handler', $3::text, 'n', $1::text))";
    app.execute(insert, &[&"north", &id, &"noted"]);
    app.wait_true("SELECT completed FROM north");
    app.execute(insert, &[&"south", &id, &"later"]);
    let point = "UPDATE background_jobs.queued_job SET (row_partition, row_tid) = (SELECT tableoid, ctid FROM north)";
    assert_eq!(app.admin().execute(point, &[]).unwrap(), 1);
    app.handler("later", "PERFORM note(); RETURN payload -> 'n';");
    app.wait_true("SELECT completed AND result = '\"south\"' FROM south");
    assert_eq!(app.noted(id), 2);
}

#[test]
fn jobs_of_a_partition_that_is_detached_and_attached_again_run_once() {
    let mut app = app("detached");
    submit(&mut app, "south", "later");
    // Not the partition that has the rows, but the one that has it.
    app.sql("ALTER TABLE background_jobs DETACH PARTITION south");
    app.handler("later", "PERFORM note(); RETURN payload -> 'n';");
    app.wait_true(&format!(
        "SELECT count(*) = {JOBS} FROM background_jobs.queue WHERE last_error ->> 'missing_since' IS NOT NULL"
    ));
    app.sql("ALTER TABLE background_jobs ATTACH PARTITION south FOR VALUES IN ('south')");
    app.sql("SELECT background_jobs.run_now(job_id) FROM background_jobs.queue");
    wait_completed(&mut app, "south_itself", JOBS);
    let most = "SELECT count(*) FROM (SELECT FROM ledger GROUP BY job HAVING count(*) > 1) twice";
    assert_eq!(app.one::<i64>(most, &[]), 0);
}
