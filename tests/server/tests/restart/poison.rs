//! Jobs that take the server down with each of their attempts. They end, and who runs beside them completes.

use super::configuration;
use server_tests::{App, Cluster, Signal, Uuid, json};
use std::time::Duration;

/// As many attempts as a poisonous job has here, and therefore as many crashes.
const ATTEMPTS: i32 = 3;

/// Waits at the gate that its payload names, and notes itself.
const NEIGHBOUR: &str = "PERFORM await_gate(payload ->> 'gate'); PERFORM note(); RETURN NULL;";

fn submit_running(app: &mut App, gate: &str) -> Uuid {
    let id = app.submit("neighbour", json!({"gate": gate}));
    app.wait_state(id, "running");
    id
}

/// The job used up its attempts, each in a crash, and has failed.
fn check_failed(app: &mut App, id: Uuid) {
    let query = "SELECT attempt, outcome, error ->> 'sqlstate' FROM background_jobs.attempts
        WHERE job_id = $1 ORDER BY attempt, finished_at";
    let seen: Vec<(i32, String, String)> =
        app.rows(query, &[&id]).iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let expected: Vec<_> = (1..=ATTEMPTS).map(|attempt| (attempt, "crashed".into(), "57P02".into())).collect();
    assert_eq!(seen, expected);
    let job = app.row(id);
    assert!(job.completed && !job.cancelled, "{job:?}");
    assert_eq!(job.error("sqlstate"), Some(&json!("57P02")), "{job:?}");
    assert_eq!(job.error("attempts"), Some(&json!(ATTEMPTS)), "{job:?}");
    assert_eq!(app.state(id), "failed");
    assert_eq!(app.noted(id), 0);
}

fn check_completes(app: &mut App, id: Uuid, charged: i64) {
    let job = app.wait_final(id);
    assert!(job.completed && job.error("message").is_none(), "{job:?}");
    assert_eq!(app.noted(id), 1);
    let query =
        "SELECT count(*), count(*) FILTER (WHERE outcome = 'crashed') FROM background_jobs.attempts WHERE job_id = $1";
    let row = &app.rows(query, &[&id])[0];
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (charged, charged), "charged for a crash");
}

/// How often the server has gone down because a process of it died of this signal.
fn crashes(cluster: &Cluster, signal: i32) -> i32 {
    let deaths = cluster.log().matches(&format!("was terminated by signal {signal}:")).count();
    i32::try_from(deaths).unwrap()
}

/// The process in which the job's handler runs; none: it is final. Sessions are new: the server may just be starting.
fn next_run(app: &mut App, id: Uuid) -> Option<u32> {
    let cluster = app.cluster;
    cluster.wait_within(Duration::from_secs(60), "the job to run or to be final", || {
        app.client = cluster.try_connect(&app.database, &app.role).map_err(|e| e.to_string())?;
        let query =
            "SELECT completed, (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711 AND objid = 1)
            FROM background_jobs WHERE id = $1";
        let row = app.client.query_one(query, &[&id]).map_err(|e| e.to_string())?;
        match (row.get(0), row.get::<_, Option<i32>>(1)) {
            (true, _) => Ok(None),
            (false, Some(pid)) => Ok(Some(pid.cast_unsigned())),
            (false, None) => Err("neither".to_owned()),
        }
    })
}

/// Attempts stay bounded across crashes: a job that takes the server down does not do so for ever.
#[test]
fn a_job_that_kills_the_server_ends() {
    let cluster = configuration().allow_in_log("was terminated by signal 9").start();
    let mut app = App::with_table(&cluster, "killer");
    let options = format!("max_attempts => {ATTEMPTS}");
    app.handler_with("killer", "PERFORM note(); PERFORM reach(1); PERFORM pg_sleep(600); RETURN NULL;", &options);
    app.handler("neighbour", NEIGHBOUR);
    let killer = app.submit("killer", json!({}));
    let mut rounds: Vec<[Uuid; 2]> = Vec::new();
    while let Some(pid) = next_run(&mut app, killer) {
        let round = rounds.len() as i32 + 1;
        assert!(round <= ATTEMPTS, "it runs for the {round}th time");
        let gate = round.to_string();
        rounds.push([submit_running(&mut app, &gate), submit_running(&mut app, &gate)]);
        cluster.kill(pid, Signal::SIGKILL);
        cluster.wait_until("the server to notice", || match app.client.batch_execute("SELECT 1") {
            Ok(()) => Err("still there".to_owned()),
            Err(_) => Ok(()),
        });
        cluster.wait_until("the server to be back", || {
            app.client = cluster.try_connect(&app.database, &app.role).map_err(|e| e.to_string())?;
            Ok(())
        });
        app.open_gate(&gate);
    }
    assert_eq!(rounds.len() as i32, ATTEMPTS);
    assert_eq!(crashes(&cluster, 9), ATTEMPTS);
    check_failed(&mut app, killer);
    for (round, neighbours) in rounds.iter().enumerate() {
        // At the first crash nobody knows who it was. Later it was the only suspect that ran.
        let charged = i64::from(round == 0);
        neighbours.iter().for_each(|id| check_completes(&mut app, *id, charged));
    }
    let id = app.submit("neighbour", json!({"gate": "1"}));
    check_completes(&mut app, id, 0);
}

/// The same without anybody's help: its own session dies of a segmentation fault while it calls a function.
#[test]
fn a_job_whose_handler_takes_the_server_down_ends() {
    let cluster = configuration().allow_in_log("was terminated by signal 11").start();
    let mut app = App::with_table(&cluster, "fault");
    let fault = format!(
        "CREATE FUNCTION public.fault() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
            EXECUTE pg_catalog.format('COPY (SELECT 1) TO PROGRAM %L', 'kill -SEGV ' || pg_catalog.pg_backend_pid());
         END $$;
         REVOKE ALL ON FUNCTION public.fault() FROM PUBLIC; GRANT EXECUTE ON FUNCTION public.fault() TO {}",
        server_tests::ident(&app.role)
    );
    app.admin().batch_execute(&fault).unwrap();
    let options = format!("max_attempts => {ATTEMPTS}");
    app.handler_with("poison", "PERFORM note(); PERFORM fault(); RETURN NULL;", &options);
    app.handler("neighbour", NEIGHBOUR);
    let neighbours = [submit_running(&mut app, "go"), submit_running(&mut app, "go")];
    let poison = Uuid::new_v4();
    // The answer may be lost in the crash that follows; that the row is there is seen below.
    let _ = app
        .client
        .execute("INSERT INTO background_jobs (id, payload) VALUES ($1, '{\"handler\": \"poison\"}')", &[&poison]);
    cluster.wait_within(Duration::from_secs(60), "the job to be final", || {
        app.client = cluster.try_connect(&app.database, &app.role).map_err(|e| e.to_string())?;
        let query = "SELECT completed FROM background_jobs WHERE id = $1";
        let completed: bool = app.client.query_one(query, &[&poison]).map_err(|e| e.to_string())?.get(0);
        if crashes(&cluster, 11) > 0 {
            // From now on a suspect that is held would keep the other from running.
            let open = "INSERT INTO gates VALUES ('go') ON CONFLICT DO NOTHING";
            app.client.batch_execute(open).map_err(|e| e.to_string())?;
        }
        server_tests::wait::yes(completed)
    });
    assert_eq!(crashes(&cluster, 11), ATTEMPTS);
    check_failed(&mut app, poison);
    neighbours.iter().for_each(|id| check_completes(&mut app, *id, 1));
    let id = app.submit("neighbour", json!({"gate": "go"}));
    check_completes(&mut app, id, 0);
}
