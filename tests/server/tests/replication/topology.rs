//! More than one client, and more than the jobs' table published.

use crate::{SERVER, connected};
use server_tests::pair::{CLIENT_PUBLICATION, SKIP_ECHOES};
use server_tests::{Cluster, Uuid, json};

/// The server tells every client about every job; a client has no row for the jobs of others, and takes no notice.
#[test]
fn two_clients_of_one_server_get_the_results_of_their_own_jobs() {
    let mut pair = connected("first_client");
    let second = format!("{}_second", pair.server.database);
    let create = format!("CREATE DATABASE {second}");
    pair.client_cluster.admin("postgres").batch_execute(&create).unwrap();
    let mut client = pair.client_cluster.admin(&second);
    for statement in [server_tests::app::RECIPE_TABLE, SKIP_ECHOES, CLIENT_PUBLICATION] {
        client.batch_execute(statement).unwrap();
    }
    let connection = |from: &Cluster, database: &str| {
        format!("host={} user=postgres dbname={database}", from.socket_directory().display())
    };
    let to_client = connection(pair.server_cluster, &pair.server.database);
    let to_server = connection(pair.client_cluster, &second);
    client
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION {second}_down CONNECTION '{to_client}' PUBLICATION jobs_to_clients WITH (copy_data = false)"
        ))
        .unwrap();
    let mut server = pair.server.admin();
    server
        .batch_execute(&format!("CREATE SUBSCRIPTION {second}_up CONNECTION '{to_server}' PUBLICATION jobs_to_server"))
        .unwrap();

    let ids: Vec<(Uuid, Uuid)> = (0..10)
        .map(|n| {
            let ours = pair.submit("noted", json!({"n": n}));
            let theirs = Uuid::new_v4();
            let payload = json!({"handler": "noted", "n": n});
            client.execute(&server_tests::app::submission(), &[&theirs, &payload]).unwrap();
            (ours, theirs)
        })
        .collect();
    for (ours, theirs) in &ids {
        assert!(pair.wait_final(*ours).completed);
        pair.client_cluster.wait_until("the second client's job", || {
            let query = "SELECT completed FROM background_jobs WHERE id = $1";
            server_tests::wait::yes(client.query_one(query, &[theirs]).unwrap().get(0))
        });
        assert_eq!((pair.server.noted(*ours), pair.server.noted(*theirs)), (1, 1));
    }
    for known in [&mut client, &mut pair.client] {
        assert_eq!(known.query_one("SELECT count(*) FROM background_jobs", &[]).unwrap().get::<_, i64>(0), 10);
    }
    client.batch_execute(&format!("DROP SUBSCRIPTION {second}_down")).unwrap();
    server.batch_execute(&format!("DROP SUBSCRIPTION {second}_up")).unwrap();
}

/// Whoever publishes everything publishes the extension's own tables, too. Its own work must not need more than they have.
#[test]
fn a_publication_for_all_tables_keeps_nothing_from_running() {
    let mut app = SERVER.app("all_tables");
    app.admin().batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").unwrap();
    app.handler("noted", "PERFORM note(); RETURN NULL;");
    app.handler_with(
        "flaky",
        "IF NOT EXISTS (SELECT FROM gates WHERE name = 'mended') THEN RAISE 'no'; END IF; PERFORM note(); RETURN NULL;",
        "max_attempts => 2, retry_delay => '1 ms'",
    );
    // A dispatcher that starts does all that it does now and then.
    let restart = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE backend_type = 'background_jobs dispatcher' AND datname = current_database()";
    app.admin().batch_execute(restart).unwrap();
    let id = app.submit("noted", json!({}));
    assert!(app.wait_final(id).completed);
    let failed = app.submit("flaky", json!({}));
    assert_eq!(app.wait_final(failed).error("attempts"), Some(&json!(2)));
    let log = app.cluster.log();
    let troubles: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("background_jobs dispatcher") && line.contains("replica identity"))
        .collect();
    assert_eq!(troubles, Vec::<&str>::new(), "the dispatcher's own work");
    app.open_gate("mended");
    assert!(app.one::<bool>("SELECT background_jobs.retry($1)", &[&failed]));
    let job = app.wait_final(failed);
    assert_eq!((job.completed, job.result), (true, None));
    app.handler("noted", "RETURN to_jsonb(1);");
    assert!(app.one::<bool>("SELECT background_jobs.unregister_handler('noted')", &[]));
}
