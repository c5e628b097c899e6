//! One owner floods, another has one job: how long that job waits at most (I12), and what the flood costs the others.
//!
//! The bound that is documented is the run time of one running job plus about a second: an executor's tenure of half a second,
//! and the start of a process. The tests allow `GRACE` for both on a busy machine.

mod log;
mod sizes;

use server_tests::tenant::{Tenant, end_sessions, owner};
use server_tests::{App, Builder, Cluster, Uuid, json};
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(3);

fn two_executors() -> Builder {
    Cluster::builder().conf("background_jobs.max_executors", "2")
}

/// An owner in the application's database whose role is older or younger than the application's own: order by OID, where
/// there is one, must favour nobody.
fn scene(cluster: &Cluster) -> (App<'_>, Tenant, Tenant) {
    let app = App::with_table(cluster, "flooded");
    let (mut older, mut younger) = (owner(&app, "older"), owner(&app, "younger"));
    for tenant in [&mut older, &mut younger] {
        tenant.handler("fine", "RETURN '1';", "");
    }
    (app, older, younger)
}

/// How long the job of somebody who has no executor takes, from its INSERT on.
fn turn(cluster: &Cluster, victim: &mut Tenant) -> Duration {
    let begin = Instant::now();
    let id = victim.submit("fine");
    assert_eq!(victim.result(cluster, id), Some(json!(1)));
    begin.elapsed()
}

fn assert_within(bound: Duration, what: &str, took: &[Duration]) {
    assert!(took.iter().all(|took| *took <= bound), "{what}: {took:?}, and the bound is {bound:?}");
}

/// Jobs that take `run` each, on every executor, with a queue that does not end.
fn flood(owner: &mut Tenant, run: Duration, jobs: u32) {
    owner.handler("floods", &format!("PERFORM pg_sleep({}); RETURN NULL;", run.as_secs_f64()), "");
    owner.sql(&format!(
        "INSERT INTO background_jobs (payload) SELECT '{{\"handler\": \"floods\"}}' FROM generate_series(1, {jobs})"
    ));
    everywhere(owner);
}

/// Waits until every executor runs a job of the flood.
fn everywhere(owner: &mut Tenant) {
    let running = "SELECT count(*) >= 2 FROM background_jobs.workers WHERE handler = 'floods'";
    server_tests::wait_until("the flood to be everywhere", || {
        if owner.one(running, &[]) { Ok(()) } else { Err("not yet".to_owned()) }
    });
}

/// It is another owner's, who has nothing to do; the time after which it would leave by itself is a minute.
#[test]
fn an_idle_executor_goes_to_an_owner_who_has_another_one() {
    let cluster = two_executors().start();
    let (mut app, mut idle, mut flooder) = scene(&cluster);
    turn(&cluster, &mut idle);
    flood(&mut flooder, Duration::from_secs(2), 10);
    app.wait_true(
        "SELECT count(*) = 2 FROM background_jobs.workers WHERE role = 'executor' AND owner::text LIKE '%younger%'",
    );
    end_sessions(&cluster, &app.database);
}

fn whoever_is_flooded_gets_a_turn(run: Duration, older_floods: bool) {
    let cluster = two_executors().start();
    let (app, mut older, mut younger) = scene(&cluster);
    let (flooder, victim) = if older_floods { (&mut older, &mut younger) } else { (&mut younger, &mut older) };
    flood(flooder, run, 2000);
    let took: Vec<Duration> = (0..3).map(|_| turn(&cluster, victim)).collect();
    flooder.sql("TRUNCATE background_jobs");
    end_sessions(&cluster, &app.database);
    assert_within(run + GRACE, "a job of another owner", &took);
}

#[test]
fn an_older_role_that_fills_every_executor_with_long_jobs_delays_others_by_one_of_them() {
    whoever_is_flooded_gets_a_turn(Duration::from_millis(700), true);
}

#[test]
fn a_younger_role_that_fills_every_executor_with_long_jobs_delays_others_by_one_of_them() {
    whoever_is_flooded_gets_a_turn(Duration::from_millis(700), false);
}

#[test]
fn an_older_role_that_fills_every_executor_with_short_jobs_delays_others_by_its_tenure() {
    whoever_is_flooded_gets_a_turn(Duration::from_millis(20), true);
}

#[test]
fn a_flood_in_one_database_delays_another_database_by_one_job() {
    let cluster = two_executors().start();
    let run = Duration::from_millis(500);
    for flooder_first in [true, false] {
        let first = App::with_table(&cluster, "first");
        let second = App::with_table(&cluster, "second");
        let (flooded, quiet) = if flooder_first { (&first, &second) } else { (&second, &first) };
        let mut flooder = owner(flooded, "flooder");
        let mut victim = owner(quiet, "victim");
        victim.handler("fine", "RETURN '1';", "");
        flood(&mut flooder, run, 2000);
        let took: Vec<Duration> = (0..2).map(|_| turn(&cluster, &mut victim)).collect();
        flooder.sql("TRUNCATE background_jobs");
        for app in [&first, &second] {
            end_sessions(&cluster, &app.database);
        }
        drop((flooder, victim));
        assert_within(run + GRACE, "a job in another database", &took);
    }
}

/// Handlers of one priority take turns, whatever waits for each of them.
#[test]
fn a_handler_with_thousands_of_jobs_delays_another_of_its_owner_by_one_of_them() {
    let cluster = Cluster::builder().conf("background_jobs.max_executors", "1").start();
    let mut app = App::with_table(&cluster, "handlers");
    app.handler("a", "PERFORM pg_sleep(0.02); RETURN NULL;");
    app.handler("b", "RETURN '1';");
    app.sql("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"a\"}' FROM generate_series(1, 2000)");
    app.wait_true("SELECT count(*) > 3 FROM background_jobs WHERE completed");
    let mut took = Vec::new();
    for _ in 0..3 {
        let begin = Instant::now();
        let id = app.submit("b", json!({}));
        assert_eq!(app.wait_final(id).result, Some(json!(1)));
        took.push(begin.elapsed());
    }
    let left: i64 = app.one("SELECT count(*) FROM background_jobs.queue WHERE handler = 'a'", &[]);
    app.sql("TRUNCATE background_jobs");
    assert!(left > 0, "the flood is over");
    assert_within(GRACE, "a job of another handler", &took);
}

/// Many sessions that wait, and many that cancel and submit, are so many sessions and no more.
#[test]
fn sessions_that_wait_by_the_dozen_delay_nobody() {
    let cluster = two_executors().conf("max_connections", "200").start();
    let (app, mut older, mut younger) = scene(&cluster);
    older.handler("held", "PERFORM pg_sleep(600); RETURN NULL;", "");
    let id = older.submit("held");
    let id: Uuid = id;
    let role = older.role.clone();
    std::thread::scope(|scope| {
        for _ in 0..140 {
            let (cluster, database, role) = (&cluster, &app.database, &role);
            scope.spawn(move || {
                let mut session = cluster.connect(database, role);
                let error = session.query("SELECT background_jobs.wait($1, '20 s')", &[&id]).unwrap_err();
                assert_eq!(server_tests::sqlstate(&error), "57014", "it is cancelled in the end");
            });
        }
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT background_jobs.wait(%' AND wait_event IS NOT NULL";
        cluster.wait_until("all of them to wait", || match older.one::<i64>(waiting, &[]) {
            140.. => Ok(()),
            some => Err(format!("{some}")),
        });
        let took: Vec<Duration> = (0..5).map(|_| turn(&cluster, &mut younger)).collect();
        let begin = Instant::now();
        older.client.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&id]).unwrap();
        let gone = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT background_jobs.wait(%' AND state = 'active'";
        cluster.wait_within(Duration::from_secs(10), "all of them to be told", || match older.one::<i64>(gone, &[]) {
            0 => Ok(()),
            some => Err(format!("{some}")),
        });
        let told = begin.elapsed();
        assert_within(GRACE, "beside 140 waiting sessions", &took);
        assert!(told < GRACE, "the cancel reached them after {told:?}");
    });
    end_sessions(&cluster, &app.database);
}

/// Two executors, and six owners whose jobs do not end: whoever has been served last comes last.
#[test]
fn more_owners_than_executors_all_get_their_turn_while_the_others_have_jobs() {
    let cluster = two_executors().start();
    let app = App::with_table(&cluster, "many_owners");
    let mut owners: Vec<Tenant> = (0..6).map(|n| owner(&app, &format!("owner_{n}"))).collect();
    for owner in &mut owners {
        owner.handler("floods", "PERFORM pg_sleep(0.1); RETURN NULL;", "");
        owner.sql(
            "INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"floods\"}' FROM generate_series(1, 2000)",
        );
    }
    for round in 1..=2 {
        cluster.wait_until("every owner to be served", || {
            let count = "SELECT count(*) FROM background_jobs WHERE completed";
            let done: Vec<i64> = owners.iter_mut().map(|owner| owner.one(count, &[])).collect();
            assert!(done.iter().all(|done| *done < 2000), "the floods have ended: {done:?}");
            if done.iter().all(|done| *done > 0) { Ok(()) } else { Err(format!("round {round}: {done:?}")) }
        });
        owners.iter_mut().for_each(|owner| owner.sql("DELETE FROM background_jobs WHERE completed"));
    }
    owners.iter_mut().for_each(|owner| owner.sql("TRUNCATE background_jobs"));
    end_sessions(&cluster, &app.database);
}

#[test]
fn a_thousand_lanes_of_a_handler_at_its_limit_keep_no_other_from_running() {
    let cluster = two_executors().start();
    let mut app = App::with_table(&cluster, "limited");
    app.sql(
        "SELECT background_jobs.detach('background_jobs'); ALTER TABLE background_jobs ADD priority smallint;
             SELECT background_jobs.attach('background_jobs', columns => '{priority}')",
    );
    app.handler_with("held", "PERFORM reach(1); PERFORM await_gate('go'); RETURN NULL;", "concurrency => 1");
    app.handler("fine", "RETURN '1';");
    let first = app.submit("held", json!({}));
    app.wait_reached(1);
    app.sql(
        "INSERT INTO background_jobs (payload, priority) SELECT '{\"handler\": \"held\"}', n FROM generate_series(1, 1500) n",
    );
    let last: Uuid = app.one(
        "INSERT INTO background_jobs (payload, priority) VALUES ('{\"handler\": \"fine\"}', 2000) RETURNING id",
        &[],
    );
    assert_eq!(app.wait_final(last).result, Some(json!(1)));
    assert!(!app.row(first).completed);
    app.sql("DELETE FROM background_jobs WHERE priority < 2000");
    app.open_gate("go");
    app.wait_final(first);
    end_sessions(&cluster, &app.database);
}
