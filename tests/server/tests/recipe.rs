//! The statements that the recipe's own client library sends, as it sends them: prepared, with typed parameters. On the
//! recipe's own table, attached, and on one from create_table().

use postgres::types::Type;
use server_tests::{App, Cluster, Group, Job, Uuid, json};
use std::time::{Duration, SystemTime};

static SHARED: Group = Group::new(Cluster::builder);

const INSERT: &str = r#"INSERT INTO "background_jobs" ("id","timestamp","payload","completed","cancelled","progress") VALUES ($1,$2,$3,$4,$5,$6) RETURNING "id","timestamp","payload","completed","cancelled","progress","result""#;
const FIND: &str = r#"SELECT "id","timestamp","payload","completed","cancelled","progress","result" FROM background_jobs WHERE id=$1 AND timestamp=$2 AND payload=$3 AND completed=$4 AND cancelled=$5 AND progress=$6"#;
const LIST: &str = r#"SELECT "id","timestamp","payload","completed","cancelled","progress","result" FROM background_jobs ORDER BY "timestamp" DESC LIMIT $1"#;
const CANCEL: &str = r#"UPDATE "background_jobs" SET "cancelled"=$1 WHERE "id"=$2 AND "completed"=$3 RETURNING "id","timestamp","payload","completed","cancelled","progress","result""#;

const ROW_TYPES: [Type; 6] = [Type::UUID, Type::TIMESTAMPTZ, Type::JSONB, Type::BOOL, Type::BOOL, Type::FLOAT4];

/// Submits as the client library does: INSERT, and in the same transaction a SELECT that has to find what it wrote.
fn create(app: &mut App, payload: &serde_json::Value) -> Job {
    let insert = app.client.prepare_typed(INSERT, &ROW_TYPES).unwrap();
    let find = app.client.prepare_typed(FIND, &ROW_TYPES).unwrap();
    // A client's clock has milliseconds.
    let milliseconds = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let timestamp = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap());
    let values: [&(dyn postgres::types::ToSql + Sync); 6] =
        [&Uuid::new_v4(), &timestamp, payload, &false, &false, &0_f32];
    let mut transaction = app.client.transaction().unwrap();
    let returned = Job::from(&transaction.query_one(&insert, &values).unwrap());
    let found = Job::from(&transaction.query_one(&find, &values).unwrap());
    transaction.commit().unwrap();
    assert_eq!(returned, found);
    assert_eq!((returned.timestamp, &returned.payload), (timestamp, payload));
    returned
}

fn cancel(app: &mut App, id: Uuid) -> Vec<Job> {
    let update = app.client.prepare_typed(CANCEL, &[Type::BOOL, Type::UUID, Type::BOOL]).unwrap();
    app.client.query(&update, &[&true, &id, &false]).unwrap().iter().map(Job::from).collect()
}

fn the_client_library_works(mut app: App) {
    app.handler("default", "PERFORM note(); RETURN jsonb_build_object('payload', payload);");
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('never'); RETURN NULL;");

    let job = create(&mut app, &json!({}));
    assert_eq!(app.wait_final(job.id).result, Some(json!({"payload": {}})));
    assert!(cancel(&mut app, job.id).is_empty(), "the cancel comes too late and finds no unfinished row");

    let held = create(&mut app, &json!({"handler": "held"}));
    app.wait_reached(1);
    let returned = cancel(&mut app, held.id);
    assert_eq!(returned.len(), 1);
    assert!(returned[0].cancelled && !returned[0].completed);
    app.wait_left(1);

    let list = app.client.prepare_typed(LIST, &[Type::INT8]).unwrap();
    let listed: Vec<Job> = app.client.query(&list, &[&10_i64]).unwrap().iter().map(Job::from).collect();
    assert_eq!(
        listed.iter().map(|j| (j.id, j.completed, j.cancelled)).collect::<Vec<_>>(),
        [(held.id, false, true), (job.id, true, false)]
    );
    assert_eq!(listed[0].result, None);
    assert_eq!((app.noted(job.id), app.noted(held.id)), (1, 0));
}

#[test]
fn on_the_recipes_own_table() {
    the_client_library_works(SHARED.app_with_recipe_table("recipe"));
}

#[test]
fn on_a_table_from_create_table() {
    the_client_library_works(SHARED.app("created"));
}

/// Some client libraries write the whole row back, whatever they changed.
#[test]
fn a_writer_that_sets_every_column_works() {
    let mut app = SHARED.app_with_recipe_table("whole_row");
    app.handler(
        "held",
        "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach((payload ->> 'point')::int);
         PERFORM await_gate(payload ->> 'gate'); RETURN to_jsonb('done'::text);",
    );
    let all = r#"UPDATE background_jobs SET "id"=$1,"timestamp"=$2,"payload"=$3,"completed"=$4,"cancelled"=$5,"progress"=$6,"result"=NULL WHERE "id"=$1"#;
    let write = |app: &mut App, job: &Job, cancelled: bool| {
        let n = app.execute(all, &[&job.id, &job.timestamp, &job.payload, &job.completed, &cancelled, &job.progress]);
        assert_eq!(n, 1);
    };

    let kept = create(&mut app, &json!({"handler": "held", "point": 1, "gate": "open"}));
    let stopped = create(&mut app, &json!({"handler": "held", "point": 2, "gate": "never"}));
    app.wait_reached(1);
    app.wait_reached(2);
    write(&mut app, &kept, false);
    write(&mut app, &stopped, true);
    app.open_gate("open");
    let job = app.wait_final(kept.id);
    assert!(job.completed && !job.cancelled);
    assert_eq!(job.result, Some(json!("done")));
    app.wait_left(2);
    let job = app.row(stopped.id);
    assert!(job.cancelled && !job.completed && job.result.is_none());
    assert_eq!((app.noted(kept.id), app.noted(stopped.id)), (1, 0));
}

/// Moving over: the old trigger and service are dropped, the table is attached, and what nobody had processed runs.
#[test]
fn a_table_with_a_backlog_is_taken_over() {
    let mut app = SHARED.app_without_table("backlog");
    app.sql(server_tests::app::RECIPE_TABLE);
    app.sql(
        "CREATE FUNCTION process_job() RETURNS trigger AS $$ BEGIN
            IF NEW.completed = false AND NEW.cancelled = false THEN
                PERFORM pg_notify('process_background_job', row_to_json(NEW)::text);
            END IF;
            RETURN NULL;
         END $$ LANGUAGE plpgsql;
         CREATE TRIGGER process_job_trigger AFTER INSERT ON background_jobs FOR EACH ROW EXECUTE FUNCTION process_job();
         ALTER TABLE background_jobs ENABLE ALWAYS TRIGGER process_job_trigger;
         INSERT INTO background_jobs
            SELECT gen_random_uuid(), now(), '{}', n = 1, n = 2, 0 FROM generate_series(1, 5) n;",
    );
    app.sql("DROP TRIGGER process_job_trigger ON background_jobs; DROP FUNCTION process_job()");
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 3);
    assert_eq!(app.one::<i64>("SELECT background_jobs.attach('background_jobs')", &[]), 0, "again is safe");
    app.handler("default", "PERFORM note(); RETURN NULL;");
    app.wait_drained(Duration::from_secs(30));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 3);
    assert_eq!(app.one::<i64>("SELECT count(DISTINCT job) FROM ledger", &[]), 3);
}
