//! Two-phase commits: what a prepared transaction has done holds when it is committed, by whatever session, and not before; and whoever has
//! to know gets to know it. (`restart` has those that a crash comes between, `replication` those that arrive from a client.)

use server_tests::{App, Builder, Cluster, Group, Uuid, json};

fn configuration() -> Builder {
    Cluster::builder().conf("max_prepared_transactions", "10")
}

/// What COMMIT PREPARED says to nobody is found by looking.
static LOOKING: Group = Group::new(|| configuration().conf("background_jobs.poll_interval", "100ms"));

fn result(app: &mut App, handler: &str) -> serde_json::Value {
    let id = app.submit(handler, json!({}));
    app.wait_final(id).result.unwrap_or_default()
}

/// Sessions and executors keep what they know of a handler until they are told that something has changed.
#[test]
fn a_registration_that_was_prepared_holds_for_everybody_when_it_is_committed_and_not_before() {
    let mut app = LOOKING.app("registered");
    app.sql("CREATE FUNCTION other(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(''new''::text)'");
    app.handler("h", "RETURN to_jsonb('old'::text);");
    assert_eq!(result(&mut app, "h"), json!("old"));
    let name = format!("'{}'", app.database);
    app.session()
        .batch_execute(&format!(
            "BEGIN; SELECT background_jobs.register_handler('h', 'other(jsonb)', priority => 7::smallint);
             PREPARE TRANSACTION {name}"
        ))
        .unwrap();
    let mut client = app.session();
    let enqueue = "SELECT background_jobs.enqueue('h', run_at => now() + interval '1 h')";
    let mut priority = |app: &mut App| -> i16 {
        let id: Uuid = client.query_one(enqueue, &[]).unwrap().get(0);
        app.one("SELECT priority FROM background_jobs.queue WHERE job_id = $1", &[&id])
    };
    // Whoever was told of a change looks now, and finds none.
    for _ in 0..3 {
        assert_eq!((result(&mut app, "h"), priority(&mut app)), (json!("old"), 0));
    }
    app.sql(&format!("COMMIT PREPARED {name}"));
    let cluster = app.cluster;
    cluster.wait_until("the new registration to hold", || {
        let seen = (result(&mut app, "h"), priority(&mut app));
        if seen == (json!("new"), 7) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

/// Nothing is found by looking.
static TOLD: Group = Group::new(|| configuration().conf("background_jobs.poll_interval", "1h"));

#[test]
fn a_job_that_was_prepared_starts_when_it_is_committed_without_a_poll() {
    let mut app = TOLD.app("submitted");
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    result(&mut app, "noted");
    let name = format!("'{}'", app.database);
    let ids: Vec<Uuid> = (0..3)
        .map(|_| {
            let id = Uuid::new_v4();
            let insert =
                format!("INSERT INTO background_jobs (id, payload) VALUES ('{id}', '{{\"handler\": \"noted\"}}')");
            app.sql(&format!("BEGIN; {insert}; PREPARE TRANSACTION {name}"));
            // Later ones do not bring it along.
            result(&mut app, "noted");
            assert!(app.find(id).is_none());
            app.session().batch_execute(&format!("COMMIT PREPARED {name}")).unwrap();
            id
        })
        .collect();
    for id in ids {
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
    }
}

#[test]
fn a_cancel_that_was_prepared_interrupts_when_it_is_committed_without_a_poll() {
    let mut app = TOLD.app("cancelled");
    app.handler("held", "PERFORM note(); PERFORM reach(1); PERFORM await_gate('never'); RETURN NULL;");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let name = format!("'{}'", app.database);
    app.sql(&format!("BEGIN; UPDATE background_jobs SET cancelled = true; PREPARE TRANSACTION {name}"));
    app.session().batch_execute(&format!("COMMIT PREPARED {name}")).unwrap();
    app.wait_left(1);
    assert!(app.row(id).cancelled);
    assert_eq!(app.noted(id), 0);
}

#[test]
fn an_extension_whose_creation_was_prepared_gets_its_dispatcher_when_that_is_committed() {
    let mut app = TOLD.app_without_table("created");
    let mut admin = app.admin();
    admin.batch_execute("DROP EXTENSION background_jobs").unwrap();
    app.wait_workers("the workers to leave", |count| count == 0);
    let name = format!("'{}'", app.database);
    admin.batch_execute(&format!("BEGIN; CREATE EXTENSION background_jobs; PREPARE TRANSACTION {name}")).unwrap();
    // The launcher has looked for it, and found nothing, once it has started a dispatcher that was asked for later.
    let other = TOLD.app("created_later");
    other.wait_workers("a dispatcher elsewhere", |count| count > 0);
    app.wait_workers("nobody to be there", |count| count == 0);
    app.cluster.admin(&app.database).batch_execute(&format!("COMMIT PREPARED {name}")).unwrap();
    app.sql("SELECT background_jobs.create_table()");
    app.handler("noted", "PERFORM note(); RETURN '1';");
    assert_eq!(result(&mut app, "noted"), json!(1));
}

/// A dispatcher that looks for the extension just then finds it, or is started once more.
#[test]
fn an_extension_whose_creation_is_prepared_and_committed_at_once_gets_its_dispatcher() {
    let mut app = TOLD.app_without_table("at_once");
    let mut admin = app.admin();
    let name = format!("'{}'", app.database);
    for _ in 0..5 {
        admin.batch_execute("DROP EXTENSION background_jobs CASCADE; DROP TABLE IF EXISTS background_jobs").unwrap();
        admin.batch_execute(&format!("BEGIN; CREATE EXTENSION background_jobs; PREPARE TRANSACTION {name}")).unwrap();
        admin.batch_execute(&format!("COMMIT PREPARED {name}")).unwrap();
        app.sql("SELECT background_jobs.create_table()");
        app.handler("noted", "PERFORM note(); RETURN '1';");
        assert_eq!(result(&mut app, "noted"), json!(1));
    }
}
