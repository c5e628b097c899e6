//! Short jobs that share a commit: whatever happens to one of them, the others are done exactly once, with their own results and
//! without being charged for it.
//!
//! The only executor is stopped while the dispatcher fills its mailbox, so that it finds a whole batch when it goes on. That jobs
//! have shared a commit is seen from their rows, which one statement has written.

mod clients;
mod commits;
mod handlers;
mod indexes;
mod limits;
mod places;
mod results;
mod scene;
mod transaction;
mod triggers;

use scene::{DRAIN, N, NOTED, alone, check_others, in_one_batch, insert, scene, shared, warm};
use server_tests::{Cluster, Group};

static SHARED: Group = Group::new(|| {
    Cluster::builder().conf("background_jobs.max_executors", "1").conf("background_jobs.poll_interval", "500ms")
});

#[test]
fn jobs_of_a_batch_share_a_commit_and_keep_their_results() {
    let _alone = alone();
    let mut app = scene("batch");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
    assert!(shared(&mut app), "or the other tests here prove nothing");
}

/// Two tables, and two handlers that want different commits, in turns.
#[test]
fn a_mailbox_may_hold_jobs_of_several_tables_and_commits() {
    let _alone = alone();
    let mut app = scene("mixed");
    app.handler_with("lazy", NOTED, "synchronous_commit => 'off'");
    warm(&mut app, "lazy");
    app.sql("SELECT background_jobs.create_table('second')");
    app.sql("SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'second')");
    let both = format!(
        "{}; {}; {}",
        insert("noted", ""),
        insert("lazy", ""),
        insert("noted", "").replace("background_jobs", "second")
    );
    in_one_batch(&mut app, |app| app.sql(&both));
    app.wait_drained(DRAIN);
    app.wait_true("SELECT count(*) = 0 FROM second WHERE NOT completed");
    let right = |table: &str| {
        format!(
            "SELECT count(*) FROM {table} j WHERE completed AND progress = 1 AND result -> 'n' = payload -> 'n'
                AND (SELECT count(*) FROM ledger WHERE job = id) = 1"
        )
    };
    assert_eq!(app.one::<i64>(&right("background_jobs"), &[]), 2 * N);
    assert_eq!(app.one::<i64>(&right("second"), &[]), N);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue", &[]), 0);
}
