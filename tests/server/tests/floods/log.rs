//! Failures by the thousand, and what they leave in the server's log.

use crate::{GRACE, assert_within, scene, turn, two_executors};
use server_tests::tenant::end_sessions;
use std::time::{Duration, Instant};

/// Jobs that fail, whose tables cannot be read, and whose rows cannot be written: as many as one likes, without the server's
/// log growing by the job or telling what was in them.
#[test]
fn no_kind_of_failure_floods_the_log_or_tells_a_payload() {
    let cluster = two_executors().conf("background_jobs.poll_interval", "300ms").start();
    let (app, mut older, mut younger) = scene(&cluster);
    let canary = "hush-5150";
    older.handler(
        "fails",
        "RAISE '%', payload USING DETAIL = payload::text, HINT = payload::text;",
        "max_attempts => 2, retry_delay => '5 ms', max_retry_delay => '5 ms'",
    );
    older.handler("works", "RETURN payload;", "max_attempts => 1");
    let insert = |handler: &str, jobs: u32| {
        format!(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', '{handler}', 'secret', '{canary}', 'n', n) FROM generate_series(1, {jobs}) n"
        )
    };
    let before = cluster.log().len();
    older.sql(&insert("fails", 3000));
    cluster.wait_within(Duration::from_secs(60), "3,000 failures", || {
        match older.one::<i64>("SELECT count(*) FROM background_jobs WHERE NOT completed", &[]) {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    });
    let failing = cluster.log().len() - before;

    let before = cluster.log().len();
    older.sql(
        "CREATE FUNCTION refuses(p jsonb) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()) <> 'client backend' THEN
                RAISE 'cannot read %', p USING DETAIL = p::text;
            END IF; RETURN true; END $$;
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY p ON background_jobs USING (refuses(payload)) WITH CHECK (true);",
    );
    // Several lanes of one handler: by priority, and one that waits for its time.
    older.sql(&insert("works", 3000));
    older.sql("SELECT count(background_jobs.enqueue('works', priority => (n % 5)::smallint, run_at => now() + interval '1 h' * (n % 2))) FROM generate_series(1, 100) n");
    let took: Vec<Duration> = (0..10).map(|_| turn(&cluster, &mut younger)).collect();
    let watched = Instant::now();
    cluster.wait_within(Duration::from_secs(10), "three seconds of refusals", || {
        if watched.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let refusing = cluster.log().len() - before;
    let rows: i64 = older.one("SELECT count(*) FROM background_jobs.queue", &[]);
    older.sql("DROP POLICY p ON background_jobs; ALTER TABLE background_jobs DISABLE ROW LEVEL SECURITY; TRUNCATE background_jobs");
    let log = cluster.log();
    let told = log.lines().filter(|line| line.contains(canary)).count();
    end_sessions(&cluster, &app.database);
    assert_within(GRACE, "beside refusals", &took);
    assert_eq!(rows, 3100, "jobs whose rows cannot be read are kept");
    assert!(failing < 20_000, "{failing} bytes of log for 3,000 failures");
    assert!(
        refusing < 50_000 && told == 0,
        "{refusing} bytes of log for refusals, and {told} lines of the log tell a payload: {:?}",
        log.lines().find(|line| line.contains(canary))
    );
}
