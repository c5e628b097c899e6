//! Physical copies of a server: standbys, promotions and base backups.

use server_tests::wait::once_within;
use server_tests::{App, Builder, Cluster, Stop, Uuid, json};
use std::time::{Duration, Instant};

fn configuration() -> Builder {
    Cluster::builder().conf("background_jobs.crash_quarantine", "1h")
}

const NOTED: &str = "PERFORM note(); RETURN to_jsonb((SELECT attempt FROM background_jobs.current_job()));";

fn handlers(app: &mut App) {
    app.handler("noted", NOTED);
    app.handler("held", &format!("PERFORM reach((payload ->> 'point')::int); PERFORM await_gate('go'); {NOTED}"));
}

fn workers(cluster: &Cluster) -> i64 {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'background_jobs%'";
    cluster.admin("postgres").query_one(query, &[]).unwrap().get(0)
}

fn wait_replayed(primary: &Cluster, standby: &Cluster) {
    let lsn: String =
        primary.admin("postgres").query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).unwrap().get(0);
    let mut reader = standby.admin("postgres");
    standby.wait_until("the standby to replay", || {
        let query = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn, pg_last_wal_replay_lsn()::text";
        let row = reader.query_one(query, &[&lsn]).unwrap();
        if row.get(0) { Ok(()) } else { Err(row.get(1)) }
    });
}

/// Promotes; returns a moment at which the server was in recovery still: it ended a look later.
fn promote(standby: &Cluster) -> Instant {
    let (mut admin, mut observer) = (standby.admin("postgres"), standby.admin("postgres"));
    assert!(admin.query_one("SELECT pg_promote(wait => false)", &[]).unwrap().get::<_, bool>(0));
    let mut last = Instant::now();
    standby.wait_until("the recovery to end", || {
        let now = Instant::now();
        if observer.query_one("SELECT pg_is_in_recovery()", &[]).unwrap().get(0) {
            last = now;
            return Err("in recovery".to_owned());
        }
        Ok(last)
    })
}

#[test]
fn a_promoted_standby_starts_within_a_second_loses_nothing_replicated_and_charges_nobody() {
    once_within(Duration::from_secs(1), "the first job after a promotion", |_| fail_over());
}

/// The failover that matters: the primary is gone in the middle of everything. Returns how long after the promotion the first job
/// was done.
fn fail_over() -> Duration {
    let primary = configuration().start();
    let mut app = App::with_table(&primary, "failover");
    handlers(&mut app);
    let standby = configuration().start_standby_of(&primary);
    let done = app.submit("noted", json!({}));
    app.wait_final(done);
    let running: Vec<Uuid> = (1..=3).map(|point| app.submit("held", json!({"point": point}))).collect();
    for point in 1..=3 {
        app.wait_reached(point);
    }
    let scheduled: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
    app.sql(
        "INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"held\", \"point\": 4}' FROM generate_series(1, 50);
         INSERT INTO gates VALUES ('go');",
    );
    // Some of it completes on the primary, some of it does not, and all of it is replicated up to a point.
    app.wait_true("SELECT count(*) >= 10 FROM background_jobs WHERE completed");
    primary.set("background_jobs.enabled", "off");
    let waiting = app.submit("noted", json!({"handler": "noted"}));
    wait_replayed(&primary, &standby);
    assert_eq!(workers(&standby), 0, "nothing runs on a standby");
    let acknowledged: Vec<Uuid> =
        app.rows("SELECT id FROM background_jobs", &[]).iter().map(|row| row.get(0)).collect();
    let database = app.database.clone();
    primary.stop(Stop::Immediate);

    let mut client = standby.connect(&database, &app.role);
    let began = promote(&standby);
    standby.wait_within(Duration::from_secs(10), "the first job to be done", || {
        let query = "SELECT completed FROM background_jobs WHERE id = $1";
        server_tests::wait::yes(client.query_one(query, &[&waiting]).unwrap().get(0))
    });
    let took = began.elapsed();
    println!("the first job was done {took:?} after the promotion");
    client.execute("SELECT background_jobs.run_now($1)", &[&scheduled]).unwrap();
    standby.wait_until("all jobs to be done", || {
        let query = "SELECT count(*) FROM background_jobs WHERE NOT completed";
        match client.query_one(query, &[]).unwrap().get::<_, i64>(0) {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    });
    for id in acknowledged {
        let query = "SELECT count(*), min(attempt) FROM ledger WHERE job = $1";
        let row = client.query_one(query, &[&id]).unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<i32>>(1)), (1, Some(1)), "{id}");
    }
    assert_eq!(running.len(), 3);
    assert_eq!(client.query_one("SELECT count(*) FROM background_jobs.attempts", &[]).unwrap().get::<_, i64>(0), 0);
    drop(client);
    // The application's own end needs the server that it knows.
    primary.start();
    app.client = app.session();
    took
}

#[test]
fn a_restarted_standby_runs_nothing_and_a_second_promotion_is_as_good_as_the_first() {
    let primary = configuration().start();
    let mut app = App::with_table(&primary, "twice");
    handlers(&mut app);
    let first = configuration().start_standby_of(&primary);
    let second = configuration().start_standby_of(&first);
    primary.set("background_jobs.enabled", "off");
    let id = app.submit("noted", json!({}));
    wait_replayed(&primary, &first);
    wait_replayed(&primary, &second);
    first.restart(Stop::Fast);
    second.crash();
    assert_eq!((workers(&first), workers(&second)), (0, 0));
    // A setting that was made with ALTER SYSTEM has come with the base backup of neither: each has its own.
    for promoted in [&first, &second] {
        assert!(promoted.admin("postgres").query_one("SELECT pg_promote()", &[]).unwrap().get::<_, bool>(0));
        let mut client = promoted.connect(&app.database, &app.role);
        let result: serde_json::Value = client.query_one("SELECT background_jobs.wait($1)", &[&id]).unwrap().get(0);
        assert_eq!(result, json!(1));
        let noted = client.query_one("SELECT count(*) FROM ledger WHERE job = $1", &[&id]).unwrap();
        assert_eq!(noted.get::<_, i64>(0), 1);
    }
}

/// What the copy's original had in hand is not the copy's doing: nothing was running when the copy "crashed".
#[test]
fn a_base_backup_taken_while_jobs_run_charges_nobody_an_attempt() {
    let original = configuration().start();
    let mut app = App::with_table(&original, "backup");
    handlers(&mut app);
    let running: Vec<Uuid> = (1..=4).map(|point| app.submit("held", json!({"point": point}))).collect();
    for point in 1..=4 {
        app.wait_reached(point);
    }
    let waiting = app.submit("noted", json!({}));
    let copy = configuration().start_backup_of(&original);
    let mut client = copy.connect(&app.database, &app.role);
    client.batch_execute("INSERT INTO gates VALUES ('go')").unwrap();
    for id in running.iter().chain([&waiting]) {
        let result: serde_json::Value = client.query_one("SELECT background_jobs.wait($1)", &[id]).unwrap().get(0);
        assert_eq!(result, json!(1), "the first attempt, and not in quarantine");
    }
    let charged = client.query_one("SELECT count(*) FROM background_jobs.attempts", &[]).unwrap();
    assert_eq!(charged.get::<_, i64>(0), 0);
    // The original has not noticed.
    app.open_gate("go");
    for id in running {
        assert_eq!(app.wait_final(id).result, Some(json!(1)));
        assert_eq!(app.noted(id), 1);
    }
}
