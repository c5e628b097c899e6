//! A batch that is known to be one, and what has to hold of every job in it.

use crate::SHARED;
use server_tests::wait::yes;
use server_tests::{App, Still, Uuid, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub const DRAIN: Duration = Duration::from_secs(60);

/// The jobs of a batch.
pub const N: i64 = 24;

/// They share the only executor, which stands still at times: one test after the other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub const NOTED: &str = "PERFORM note(); RETURN jsonb_build_object('n', payload -> 'n');";

pub fn insert(handler: &str, more: &str) -> String {
    format!(
        "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', '{handler}', 'n', n) {more}
           FROM generate_series(1, {N}) n"
    )
}

/// Runs jobs of the handler until it is known to be short, and forgets them but for their number.
pub fn warm(app: &mut App, handler: &str) {
    warm_until(app, handler, shared);
}

pub fn warm_until(app: &mut App, handler: &str, enough: impl Fn(&mut App) -> bool) {
    let cluster = app.cluster;
    app.sql("CREATE TABLE IF NOT EXISTS warmed (jobs bigint)");
    let payload = json!({"handler": handler});
    let fill = "INSERT INTO background_jobs (payload) SELECT $1 FROM generate_series(1, 30)";
    cluster.wait_within(DRAIN, "jobs to share a commit", || {
        app.execute(fill, &[&payload]);
        app.wait_drained(DRAIN);
        let enough = enough(app);
        app.sql(
            "INSERT INTO warmed SELECT count(*) FROM background_jobs; DELETE FROM background_jobs; DELETE FROM ledger",
        );
        yes(enough)
    });
}

/// Were several rows written by one transaction, outside the subtransactions of their jobs?
pub fn shared(app: &mut App) -> bool {
    app.one("SELECT EXISTS (SELECT FROM background_jobs WHERE completed GROUP BY xmin::text HAVING count(*) > 3)", &[])
}

/// Makes a batch of the rows that `fill` inserts, and of nothing else.
pub fn in_one_batch(app: &mut App, fill: impl FnOnce(&mut App)) {
    in_one_batch_then(app, fill, |_| ());
}

/// The same; `then` comes when the jobs are handed out, and before the executor has seen them.
pub fn in_one_batch_then(app: &mut App, fill: impl FnOnce(&mut App), then: impl FnOnce(&mut App)) {
    let cluster = app.cluster;
    // What was counted is written when it has been idle for a while; then it waits for its latch and holds nothing.
    app.wait_true("SELECT (SELECT coalesce(sum(completed), 0) FROM background_jobs.handler_stats) = (SELECT sum(jobs) FROM warmed)");
    let (executors, dispatchers) = (app.pids("executor"), app.pids("dispatcher"));
    app.wait_asleep(&executors);
    let still = Still::new(cluster, executors[0]);
    fill(app);
    // Nothing tells how full the mailbox is: the views show the job that runs. Should the dispatcher not be done yet, the batch is a
    // shorter one. That there are any is what `shared` is for.
    app.wait_asleep(&dispatchers);
    then(app);
    drop(still);
}

pub fn id_of(app: &mut App, n: i64) -> Uuid {
    app.one("SELECT id FROM background_jobs WHERE payload -> 'n' = to_jsonb($1::bigint)", &[&n])
}

/// All jobs but `except` were done once, with their own results, and nobody was charged for them.
pub fn check_others(app: &mut App, except: &[i64]) {
    let wrong: Vec<String> = app
        .rows(
            "SELECT to_jsonb(j)::text || ' noted ' || (SELECT count(*) FROM ledger WHERE job = j.id)
                    || ' attempts ' || (SELECT count(*) FROM background_jobs.attempts WHERE job_id = j.id)
               FROM background_jobs j
              WHERE NOT (payload ->> 'n')::bigint = ANY ($1)
                AND (completed AND NOT cancelled AND progress = 1 AND result -> 'n' = payload -> 'n'
                     AND (SELECT count(*) FROM ledger WHERE job = j.id) = 1
                     AND NOT EXISTS (SELECT FROM background_jobs.attempts WHERE job_id = j.id)) IS NOT TRUE",
            &[&except],
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let others: i64 =
        app.one("SELECT count(*) FROM background_jobs WHERE NOT (payload ->> 'n')::bigint = ANY ($1)", &[&except]);
    assert_eq!(others, N - except.len() as i64);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}

pub fn on_completion(app: &mut App, when: &str, deferred: &str, body: &str) {
    app.sql(&format!(
        "CREATE FUNCTION on_completion() RETURNS trigger LANGUAGE plpgsql AS $t$ BEGIN {body} RETURN NEW; END $t$;
         CREATE {} TRIGGER on_completion {when} UPDATE ON background_jobs {deferred}
            FOR EACH ROW WHEN (NEW.completed AND NOT OLD.completed) EXECUTE FUNCTION on_completion()",
        if deferred.is_empty() { "" } else { "CONSTRAINT" }
    ));
}

pub fn scene(name: &str) -> App<'static> {
    let mut app = SHARED.app(name);
    app.handler("noted", NOTED);
    warm(&mut app, "noted");
    app
}
