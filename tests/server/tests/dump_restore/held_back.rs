//! Whose restore holds the jobs of a database back.

use crate::{NOTED, SHARED, dump};
use server_tests::tenant::stranger;
use server_tests::wait::{attempt, yes};
use server_tests::{ident, json, run};
use std::time::Duration;

/// Whoever can connect can call himself pg_restore; so can the owner of a job table, which is no owner of the database.
#[test]
fn a_session_of_anybody_that_calls_itself_pg_restore_holds_no_job_back() {
    let mut app = SHARED.app("impostor");
    let mut impostor = stranger(&app, "impostor");
    impostor.sql("SET application_name = 'pg_restore'");
    app.sql("SET application_name = 'pg_restore'");
    // The dispatcher looks for restores now, because the handlers change, and then at every poll.
    app.handler("noted", NOTED);
    let id = app.submit("noted", json!({}));
    assert!(app.wait_final(id).completed);
    let connected: i64 = app.one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_restore'", &[]);
    assert!(connected >= 2, "{connected} sessions call themselves so");
}

/// Who owns the database can do worse to its jobs, and so can who can become its owner.
#[test]
fn a_restore_by_the_databases_owner_or_by_a_member_of_it_holds_jobs_back_until_it_is_over() {
    let mut app = SHARED.app("owners_restore");
    app.sql("CREATE TABLE stock (n int); INSERT INTO stock VALUES (1)");
    let cluster = app.cluster;
    let file = dump(cluster, &app.database, &["-Fc", "--data-only", "--table=stock"]);
    let member = stranger(&app, "member").role;
    let (database, owner) = (app.database.clone(), app.role.clone());
    let give = format!(
        "ALTER DATABASE {} OWNER TO {owner}; GRANT {owner} TO {}",
        ident(&database),
        ident(&member),
        owner = ident(&owner)
    );
    cluster.admin("postgres").batch_execute(&give).unwrap();
    for role in [owner, member] {
        // No executor is there whom the client could hand the job itself.
        app.end_executors();
        let mut locker = app.session();
        let mut transaction = locker.transaction().unwrap();
        transaction.batch_execute("LOCK TABLE stock IN EXCLUSIVE MODE").unwrap();
        std::thread::scope(|scope| {
            let restore = scope.spawn(|| {
                let mut command = cluster.client("pg_restore", &role);
                run(command.args(["--exit-on-error", "--data-only", "-d", &database]).arg(&file));
            });
            let mut admin = app.admin();
            cluster.wait_until("the restore to wait for the table", || {
                let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name = 'pg_restore' AND wait_event_type = 'Lock'";
                yes(admin.query_one(query, &[]).unwrap().get::<_, i64>(0) == 1)
            });
            app.handler("noted", NOTED);
            let id = app.submit("noted", json!({}));
            let ran = attempt(Duration::from_secs(1), "the job to run", || yes(app.row(id).completed));
            transaction.rollback().unwrap();
            restore.join().unwrap();
            assert!(ran.is_err(), "it ran during the restore by {role}");
            assert!(app.wait_final(id).completed);
        });
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM stock", &[]), 3);
}
