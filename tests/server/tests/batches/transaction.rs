//! What belongs to the transaction and not to one job of it: the modes of constraints, triggers that are still to be fired, values
//! that are not committed yet, locks. Nobody gets to feel that somebody else was there before.

use crate::SHARED;
use crate::scene::{DRAIN, NOTED, alone, check_others, id_of, in_one_batch, insert, shared, warm};
use server_tests::{App, Cluster, json};

/// Each job has children that wait for their parents, and says in which transaction it was done. `one` is what job 3 does before.
fn family(app: &mut App, one: &str) {
    app.sql(
        "CREATE TABLE parent (id bigint PRIMARY KEY);
         CREATE TABLE kid (id bigint REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE did (n bigint, xact xid8 DEFAULT pg_current_xact_id())",
    );
    app.handler_with(
        "noted",
        &format!(
            "IF payload -> 'n' = '3' THEN {one} END IF;
             INSERT INTO did VALUES ((payload ->> 'n')::bigint);
             IF payload -> 'n' <> '3' THEN
                INSERT INTO kid VALUES ((payload ->> 'n')::bigint);
                INSERT INTO parent VALUES ((payload ->> 'n')::bigint);
             END IF;
             {NOTED}"
        ),
        "max_attempts => 1",
    );
    warm(app, "noted");
}

fn run(app: &mut App) {
    in_one_batch(app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
}

/// Nobody was charged, and job 3 was done in a transaction of its own, as the others were not.
fn was_alone(app: &mut App) {
    check_others(app, &[]);
    assert!(shared(app), "the others shared a commit");
    let with_it = "SELECT count(*) FROM did WHERE xact = (SELECT xact FROM did WHERE n = 3)";
    assert_eq!(app.one::<i64>(with_it, &[]), 1);
}

/// The modes are the transaction's until its end; and those that wait are checked at once, in the subtransaction that asks for it.
fn sets_constraints(name: &str, statement: &str) {
    let _alone = alone();
    let mut app = SHARED.app(name);
    family(&mut app, &format!("{statement} PERFORM mode();"));
    // Fails unless the mode is what was asked for.
    app.sql(
        "CREATE FUNCTION mode() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO kid VALUES (-1);
            RAISE 'still deferred';
         EXCEPTION WHEN foreign_key_violation THEN
            NULL;
         END $$",
    );
    run(&mut app);
    was_alone(&mut app);
}

#[test]
fn a_job_that_sets_constraints_does_so_for_no_other() {
    sets_constraints("modes", "SET CONSTRAINTS ALL IMMEDIATE;");
}

#[test]
fn a_job_that_swallows_every_error_sets_constraints_for_no_other() {
    let swallows = "BEGIN SET CONSTRAINTS ALL IMMEDIATE; EXCEPTION WHEN OTHERS THEN NULL; END;";
    sets_constraints("modes_swallowed", swallows);
}

#[test]
fn a_job_that_makes_another_error_of_every_error_sets_constraints_for_no_other() {
    let renames = "BEGIN SET CONSTRAINTS ALL IMMEDIATE; EXCEPTION WHEN OTHERS THEN RAISE 'cannot be set'; END;";
    sets_constraints("modes_renamed", renames);
}

#[test]
fn a_job_that_sets_constraints_is_not_blamed_for_what_those_before_it_have_left() {
    let _alone = alone();
    let mut app = SHARED.app("orphan");
    family(&mut app, "SET CONSTRAINTS ALL IMMEDIATE;");
    // The parent of job 2's comes with job 4, which is too late for its own commit, but not for that of a group.
    app.sql(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id = 2 THEN RETURN NULL; END IF;
            INSERT INTO parent VALUES (2);
            RETURN NEW;
         END $$;
         CREATE TRIGGER late BEFORE INSERT ON parent
            FOR EACH ROW WHEN (NEW.id IN (2, 4) AND pg_trigger_depth() = 0) EXECUTE FUNCTION late()",
    );
    run(&mut app);
    let id = id_of(&mut app, 2);
    let job = app.row(id);
    assert_eq!((job.error("sqlstate"), app.noted(id)), (Some(&json!("23503")), 0), "{job:?}");
    check_others(&mut app, &[2]);
}

#[test]
fn a_job_may_truncate_a_table_on_which_those_before_it_have_left_triggers_to_fire() {
    let _alone = alone();
    let mut app = SHARED.app("pending");
    family(&mut app, "TRUNCATE kid;");
    run(&mut app);
    was_alone(&mut app);
}

#[test]
fn a_job_is_not_left_with_the_way_out_that_it_has_for_errors_which_come_of_others() {
    let _alone = alone();
    let mut app = SHARED.app("way_out");
    family(&mut app, "BEGIN TRUNCATE kid; EXCEPTION WHEN OTHERS THEN INSERT INTO did VALUES (-1); END;");
    run(&mut app);
    was_alone(&mut app);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM did WHERE n = -1", &[]), 0);
}

#[test]
fn a_job_may_use_the_value_of_an_enum_that_the_one_before_it_has_added() {
    let _alone = alone();
    let mut app = SHARED.app("mood");
    app.sql("CREATE TYPE mood AS ENUM ('dull')");
    app.handler_with(
        "noted",
        &format!(
            "IF payload -> 'n' = '2' THEN ALTER TYPE mood ADD VALUE 'cheerful'; END IF;
             IF payload -> 'n' = '3' THEN PERFORM 'cheerful'::text::mood; END IF;
             {NOTED}"
        ),
        "max_attempts => 1",
    );
    warm(&mut app, "noted");
    run(&mut app);
    check_others(&mut app, &[]);
    assert!(shared(&mut app), "the others shared a commit");
}

#[test]
fn a_job_does_not_lack_the_locks_that_those_before_it_hold() {
    let cluster = Cluster::builder()
        .conf("background_jobs.max_executors", "1")
        .conf("max_connections", "20")
        .conf("max_locks_per_transaction", "10")
        .start();
    let mut app = App::with_table(&cluster, "locks");
    // Some thousand are more than there is room for; of one job there are few enough.
    app.handler_with(
        "noted",
        &format!(
            "PERFORM pg_advisory_xact_lock((payload ->> 'n')::int, i) FROM generate_series(1, 150) i WHERE payload ? 'n';
             {NOTED}"
        ),
        "max_attempts => 1",
    );
    warm(&mut app, "noted");
    run(&mut app);
    check_others(&mut app, &[]);
    assert!(shared(&mut app), "they shared commits");
}
