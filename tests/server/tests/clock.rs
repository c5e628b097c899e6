//! A wall clock that is set an hour forwards and back under a running server (invariant I20).
//!
//! PostgreSQL's own `pg_sleep()` and timeouts follow the wall clock, so the handlers here do not sleep, and every delay is measured
//! here, by a clock that nobody sets.

use server_tests::{App, Builder, Cluster, Stop, Uuid, WallClock, json};
use std::time::{Duration, Instant};

const HOUR: i64 = 3600;

/// `poll_interval` and a second: what anything may be late, once it is due.
const BOUND: Duration = Duration::from_millis(1500);

/// A start of the server's first executor, and a busy machine; what a step delays, it delays by most of an hour.
const GRACE: Duration = Duration::from_secs(3);

fn builder(clock: &WallClock) -> Builder {
    clock.drive(
        Cluster::builder()
            .conf("background_jobs.poll_interval", "500ms")
            .conf("background_jobs.max_executors", "3")
            .conf("background_jobs.progress_flush_interval", "50ms"),
    )
}

fn application<'a>(cluster: &'a Cluster) -> App<'a> {
    let mut app = App::with_table(cluster, "clock");
    app.handler("quick", "PERFORM note(); RETURN '1';");
    app.handler_with(
        "again",
        "IF (SELECT attempt FROM background_jobs.current_job()) = 1 THEN RAISE 'no'; END IF; PERFORM note(); RETURN '2';",
        "retry_delay => '3 s'",
    );
    app.handler_with("overtime", "PERFORM reach(1); LOOP END LOOP;", "max_attempts => 1, timeout => '1 s'");
    app
}

/// The job's end, and how long it took since `since`.
fn final_within(app: &mut App, id: Uuid, since: Instant, bound: Duration, what: &str) -> server_tests::Job {
    let job = app.wait_final(id);
    let took = since.elapsed();
    assert!(took < bound, "{what} took {took:?}, and the bound is {bound:?}");
    job
}

const STEPS: [(i64, &str); 4] =
    [(HOUR, "an hour forwards"), (0, "an hour back"), (-HOUR, "another hour back"), (0, "an hour forwards again")];

#[test]
fn jobs_start_at_once_after_a_step_either_way_and_wait_returns() {
    let clock = WallClock::new();
    let cluster = builder(&clock).start();
    let mut app = application(&cluster);
    for (offset, what) in STEPS {
        // Some are waited for from before the step on: by a session that sleeps in wait().
        let blocker = app.submit("overtime", json!({}));
        app.wait_reached(1);
        let mut waiter = app.session();
        let waiting = std::thread::spawn(move || {
            waiter
                .query_one("SELECT background_jobs.wait($1, '1 min')", &[&blocker])
                .map(drop)
                .map_err(|e| server_tests::sqlstate(&e))
        });
        app.wait_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%background_jobs.wait(%' AND state = 'active' AND pid <> pg_backend_pid()");
        let begin = Instant::now();
        clock.set(&mut app.client, offset);
        for _ in 0..3 {
            let begin = Instant::now();
            let id = app.submit("quick", json!({}));
            final_within(&mut app, id, begin, BOUND + GRACE, &format!("a job after a step of {what}"));
            let id = app.submit("quick", json!({}));
            let result: server_tests::Value = app.one("SELECT background_jobs.wait($1, '20 s')", &[&id]);
            assert_eq!(result, json!(1));
        }
        // Its timeout of a second is a length of time.
        let job = final_within(
            &mut app,
            blocker,
            begin,
            Duration::from_secs(1) + BOUND + GRACE,
            &format!("a timeout over {what}"),
        );
        assert_eq!(job.error("sqlstate"), Some(&json!("57014")));
        assert_eq!(waiting.join().unwrap(), Err("57014".to_owned()), "wait() raises the error of its job");
        // wait() itself gives up after a length of time.
        let id: Uuid = app.one("SELECT background_jobs.enqueue('quick', run_at => now() + interval '1 day')", &[]);
        let begin = Instant::now();
        assert_eq!(app.sqlstate(&format!("SELECT background_jobs.wait('{id}', '300 ms')")), "57014");
        assert!(begin.elapsed() < GRACE, "{:?}", begin.elapsed());
    }
}

#[test]
fn a_retry_comes_after_its_delay_whatever_the_clock_is_set_to() {
    let clock = WallClock::new();
    let cluster = builder(&clock).start();
    let mut app = application(&cluster);
    for (offset, what) in STEPS {
        let id = app.submit("again", json!({}));
        app.wait_state(id, "retrying");
        let begin = Instant::now();
        clock.set(&mut app.client, offset);
        let bound = Duration::from_secs(3) + BOUND + GRACE;
        let job = final_within(&mut app, id, begin, bound, &format!("a retry over a step of {what}"));
        // Backwards it is no shorter either (a quarter is chance); forwards it may be over at once.
        let took = begin.elapsed();
        assert!(
            !what.ends_with("back") || took > Duration::from_secs(1),
            "a retry over a step of {what} took {took:?}"
        );
        assert_eq!(job.result, Some(json!(2)));
        assert_eq!(app.noted(id), 1);
    }
}

#[test]
fn a_schedule_follows_the_wall_clock() {
    let clock = WallClock::new();
    let cluster = builder(&clock).start();
    let mut app = application(&cluster);
    let in_an_hour: Uuid = app.one("SELECT background_jobs.enqueue('quick', run_at => now() + interval '59 min')", &[]);
    let tomorrow: Uuid = app.one("SELECT background_jobs.enqueue('quick', run_at => now() + interval '1 day')", &[]);
    let begin = Instant::now();
    clock.set(&mut app.client, HOUR);
    final_within(&mut app, in_an_hour, begin, BOUND + GRACE, "a job whose time has come with a step forwards");

    let soon: Uuid = app.one("SELECT background_jobs.enqueue('quick', run_at => now() + interval '1 min')", &[]);
    clock.set(&mut app.client, 0);
    // What comes now is not held up by what is to come in an hour.
    let begin = Instant::now();
    let id = app.submit("quick", json!({}));
    final_within(&mut app, id, begin, BOUND + GRACE, "a job after a step back");
    let near: Uuid = app.one("SELECT background_jobs.enqueue('quick', run_at => now() + interval '1 s')", &[]);
    let begin = Instant::now();
    final_within(&mut app, near, begin, Duration::from_secs(1) + BOUND + GRACE, "a job a second after a step back");
    assert_eq!((app.state(soon), app.state(tomorrow)), ("scheduled".to_owned(), "scheduled".to_owned()));
    let begin = Instant::now();
    clock.set(&mut app.client, HOUR + 120);
    final_within(&mut app, soon, begin, BOUND + GRACE, "a job whose time has come once more");
    assert_eq!(app.state(tomorrow), "scheduled");
    for id in [in_an_hour, soon, near, id] {
        assert_eq!(app.noted(id), 1);
    }
}

/// How far ahead the clock was is not known any more then; the longest delay is.
#[test]
fn a_retry_from_a_time_when_the_clock_was_ahead_waits_for_the_longest_delay_after_a_step_back_and_a_restart() {
    let clock = WallClock::new();
    let cluster = builder(&clock).start();
    let mut app = application(&cluster);
    clock.set(&mut app.client, HOUR);
    app.handler_with(
        "later",
        "IF (SELECT attempt FROM background_jobs.current_job()) = 1 THEN RAISE 'no'; END IF; PERFORM note(); RETURN '2';",
        "retry_delay => '15 s', max_retry_delay => '15 s'",
    );
    let id = app.submit("later", json!({}));
    app.wait_state(id, "retrying");
    clock.set(&mut app.client, 0);
    app.admin().batch_execute("ALTER SYSTEM SET background_jobs.max_retry_delay = '1s'").unwrap();
    cluster.restart(Stop::Fast);
    app.client = app.session();
    let begin = Instant::now();
    // Jobs that come now are not held up by it.
    let other = app.submit("quick", json!({}));
    final_within(&mut app, other, begin, BOUND + GRACE, "a job after the restart");
    let again = app.submit("again", json!({}));
    final_within(&mut app, again, Instant::now(), Duration::from_secs(3) + BOUND + GRACE, "a retry after the restart");
    let job = final_within(&mut app, id, begin, Duration::from_secs(15) + BOUND + GRACE, "the retry");
    assert_eq!((job.result, app.noted(id)), (Some(json!(2)), 1));
}
