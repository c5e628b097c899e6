//! What is written into the rows of a batch.

use crate::SHARED;
use crate::scene::{DRAIN, N, alone, in_one_batch, insert, shared, warm, warm_until};
use server_tests::{App, ident};

/// Rows of all kinds of results, with everything that the engine writes into them.
/// `plain`: nothing of the owner's runs with an UPDATE of the table, so that a batch is completed with one.
fn check_results(app: &mut App, partitioned: bool, plain: bool) {
    app.handler(
        "noted",
        "PERFORM note();
         RETURN CASE (payload ->> 'n')::int % 4
            WHEN 0 THEN NULL
            WHEN 1 THEN payload -> 'n'
            WHEN 2 THEN to_jsonb(repeat(md5(payload ->> 'n'), 3200))
            ELSE jsonb_build_object('n', payload -> 'n', 'null', NULL)
         END;",
    );
    if plain {
        warm(app, "noted");
    } else {
        warm_until(app, "noted", |app| app.one("SELECT count(*) > 3 FROM warmed", &[]));
    }
    in_one_batch(app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    let wrong: Vec<String> = app
        .rows(
            "SELECT left(to_jsonb(j)::text, 1000) FROM background_jobs j WHERE (
                completed AND NOT cancelled AND progress = 1 AND attempts = 1
                AND started_at <= finished_at AND started_at > now() - interval '2 min' AND finished_at <= clock_timestamp()
                AND (SELECT count(*) FROM ledger WHERE job = id) = 1
                AND result IS NOT DISTINCT FROM CASE (payload ->> 'n')::int % 4
                    WHEN 0 THEN NULL
                    WHEN 1 THEN payload -> 'n'
                    WHEN 2 THEN to_jsonb(repeat(md5(payload ->> 'n'), 3200))
                    ELSE jsonb_build_object('n', payload -> 'n', 'null', NULL)
                END) IS NOT TRUE",
            &[],
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let (rows, starts): (i64, i64) = {
        let row = &app.rows("SELECT count(*), count(DISTINCT started_at) FROM background_jobs", &[])[0];
        (row.get(0), row.get(1))
    };
    assert_eq!((rows, starts), (N, N), "each has its own start");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0);
    if partitioned {
        let used = "SELECT count(DISTINCT tableoid) FROM background_jobs";
        assert!(app.one::<i64>(used, &[]) > 1);
    }
    assert_eq!(shared(app), plain, "they were completed together");
}

const COLUMNS: &str = "SELECT background_jobs.create_table(columns => '{attempts,started_at,finished_at}')";

#[test]
fn every_row_of_a_batch_has_its_own_result_and_times() {
    let _alone = alone();
    let mut app = SHARED.app_without_table("results");
    app.sql(COLUMNS);
    check_results(&mut app, false, true);
}

#[test]
fn so_in_a_partitioned_table() {
    let _alone = alone();
    let mut app = SHARED.app_without_table("parts");
    app.sql(
        "CREATE TABLE background_jobs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), timestamp timestamptz NOT NULL DEFAULT now(),
            payload jsonb NOT NULL, completed boolean NOT NULL DEFAULT false, cancelled boolean NOT NULL DEFAULT false,
            progress real NOT NULL DEFAULT 0, result jsonb, attempts integer, started_at timestamptz, finished_at timestamptz)
         PARTITION BY HASH (id);
         CREATE TABLE part_0 PARTITION OF background_jobs FOR VALUES WITH (MODULUS 3, REMAINDER 0);
         CREATE TABLE part_1 PARTITION OF background_jobs FOR VALUES WITH (MODULUS 3, REMAINDER 1);
         CREATE TABLE part_2 PARTITION OF background_jobs FOR VALUES WITH (MODULUS 3, REMAINDER 2);
         SELECT background_jobs.attach('background_jobs', columns => '{attempts,started_at,finished_at}')",
    );
    check_results(&mut app, true, true);
}

#[test]
fn so_with_policies_that_bind_the_owner() {
    let _alone = alone();
    let mut app = SHARED.app_without_table("policies");
    app.sql(COLUMNS);
    app.sql(
        "CREATE POLICY own ON background_jobs USING (payload ? 'handler' AND pg_has_role(current_user, 'USAGE'));
         ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY; ALTER TABLE background_jobs FORCE ROW LEVEL SECURITY"
            .replace("pg_has_role(current_user, 'USAGE')", "current_user = session_user")
            .as_str(),
    );
    check_results(&mut app, false, false);
}

#[test]
fn so_at_every_isolation_level() {
    let _alone = alone();
    for level in ["repeatable read", "serializable"] {
        let mut app = SHARED.app_without_table("isolation");
        let role = ident(&app.role);
        let set = format!("ALTER ROLE {role} SET default_transaction_isolation = '{level}'");
        app.admin().batch_execute(&set).unwrap();
        app.sql(COLUMNS);
        check_results(&mut app, false, true);
    }
}

#[test]
fn void_handlers_leave_no_results() {
    let _alone = alone();
    let mut app = SHARED.app("void");
    app.sql("CREATE FUNCTION nothing(payload jsonb) RETURNS void LANGUAGE sql AS $$ SELECT public.note() $$");
    app.register("noted", "nothing(jsonb)", "");
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    let right = "SELECT count(*) FROM background_jobs j WHERE completed AND progress = 1 AND result IS NULL
        AND (SELECT count(*) FROM ledger WHERE job = id) = 1";
    assert_eq!(app.one::<i64>(right, &[]), N);
    assert!(shared(&mut app), "they shared a commit");
}
