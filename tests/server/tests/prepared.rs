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
