//! A table that is rewritten, or comes and goes, while its jobs run.

use crate::dice::Dice;
use crate::{check, scene, session};
use server_tests::{App, Uuid, ident, times};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A rewrite leaves nothing for snapshots that are older than it, and an executor may have taken its own before it had to
/// wait for the table: what it does not see then is there all the same.
#[test]
fn a_table_that_is_rewritten_while_its_jobs_are_due_loses_no_job() {
    let mut app = scene("rewritten");
    app.handler("quick", "PERFORM begin_attempt(); RETURN '1';");
    let mut other = session(&app);
    for n in 0..times(3) {
        let ids: Vec<Uuid> = (0..5)
            .map(|_| app.one("SELECT background_jobs.enqueue('quick', run_at => now() + interval '300 ms')", &[]))
            .collect();
        let mut transaction = other.transaction().unwrap();
        transaction
            .batch_execute(&format!(
                "ALTER TABLE background_jobs ADD COLUMN c{n} timestamptz DEFAULT clock_timestamp()"
            ))
            .unwrap();
        // No executor waits for the table; they find it locked, or rewritten.
        let due = "SELECT count(*) = 0 FROM background_jobs.queued_job WHERE run_at > clock_timestamp()";
        let mut admin = app.admin();
        app.cluster
            .wait_until("the jobs to be due", || server_tests::wait::yes(admin.query_one(due, &[]).unwrap().get(0)));
        transaction.commit().unwrap();
        let left = "SELECT count(*) FROM background_jobs WHERE NOT completed";
        app.cluster.wait_within(Duration::from_secs(5), "the jobs", || match app.one::<i64>(left, &[]) {
            0 => Ok(()),
            left => {
                let queued: i64 = app.one("SELECT count(*) FROM background_jobs.queue", &[]);
                Err(format!("{left} rows unfinished, {queued} jobs queued (I1, I10)"))
            }
        });
        assert_eq!(ids.iter().map(|id| app.noted(*id)).sum::<i64>(), 5);
    }
    check(&mut app);
}

/// The table is detached and attached, emptied, and given away and back, while jobs stream through it.
#[test]
fn a_table_that_comes_and_goes_under_its_jobs_loses_none_and_runs_none_twice() {
    let mut app = scene("table");
    app.handler("quick", "PERFORM begin_attempt(); RETURN '1';");
    let mut dice = Dice::new("table");
    let (mut writer, mut admin) = (session(&app), app.admin());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let role = ident(&app.role);
    let (inserted, emptied) = std::thread::scope(|scope| {
        let stop = &stop;
        let inserted = scope.spawn(move || {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += writer.execute("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"quick\"}' FROM generate_series(1, 3)", &[]).unwrap();
            }
            count
        });
        app.wait_true("SELECT count(*) > 0 FROM background_jobs");
        let mut emptied = 0;
        // Each of them once, and then as it comes.
        for round in 0..times(30) {
            dice.pause(Duration::from_millis(10));
            match if round < 5 { u64::from(round) } else { dice.below(5) } {
                0 => app.sql("BEGIN; SELECT background_jobs.detach('background_jobs'); SELECT background_jobs.attach('background_jobs'); COMMIT"),
                1 => app.sql("SELECT background_jobs.attach('background_jobs')"),
                2 => app.sql("SELECT background_jobs.register_handler('quick', 'quick(jsonb)')"),
                3 => admin.batch_execute(&format!("ALTER TABLE public.background_jobs OWNER TO postgres; ALTER TABLE public.background_jobs OWNER TO {role}")).unwrap(),
                _ => emptied += empty(&mut app),
            }
        }
        stop.store(true, Ordering::Relaxed);
        (inserted.join().unwrap(), emptied)
    });
    check(&mut app);
    assert!(emptied > 0);
    let left: i64 = app.one("SELECT count(*) FROM background_jobs WHERE completed", &[]);
    assert_eq!(
        left + emptied,
        i64::try_from(inserted).unwrap(),
        "what was acknowledged is there, or was emptied out (I1)"
    );
    let effects: i64 = app.one("SELECT count(*) FROM ledger", &[]);
    let completions: i64 = app.one("SELECT count(*) FROM edges WHERE completed", &[]);
    assert_eq!(effects, completions, "one effect for each completion, of rows that are gone, too (I3)");
}

/// Truncates the job table; returns how many rows it had.
fn empty(app: &mut App) -> i64 {
    let mut transaction = app.client.transaction().unwrap();
    transaction.batch_execute("LOCK TABLE background_jobs IN ACCESS EXCLUSIVE MODE").unwrap();
    let rows = transaction.query_one("SELECT count(*) FROM background_jobs", &[]).unwrap().get(0);
    transaction.batch_execute("TRUNCATE background_jobs").unwrap();
    transaction.commit().unwrap();
    rows
}
