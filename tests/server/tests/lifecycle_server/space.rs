//! A server that has no room left on a disk, or may not use it.

use crate::{SHARED, configuration, noting};
use server_tests::{App, SmallDisk, Uuid, ident, json, sqlstate};
use std::time::{Duration, Instant};

#[test]
fn a_full_tablespace_fails_the_attempts_that_need_it_and_jobs_go_on_when_there_is_room() {
    let tiny = SmallDisk::new("tiny", 6);
    let cluster = tiny.limit(configuration()).start();
    let mut app = App::with_table(&cluster, "full");
    let directory = tiny.directory().display();
    app.cluster.admin("postgres").batch_execute(&format!("CREATE TABLESPACE tiny LOCATION '{directory}'")).unwrap();
    app.admin().batch_execute(&format!("GRANT CREATE ON TABLESPACE tiny TO {}", ident(&app.role))).unwrap();
    // The job table, too, is in there: not even a failure can be written.
    app.sql("CREATE TABLE filling (v text) TABLESPACE tiny; ALTER TABLE background_jobs SET TABLESPACE tiny");
    noting(&mut app);
    app.handler_with(
        "fills",
        "PERFORM note(); INSERT INTO filling SELECT repeat(md5(n::text), 30) FROM generate_series(1, 2000) n; RETURN NULL;",
        "retry_delay => '200 ms', max_retry_delay => '200 ms', max_attempts => 1000",
    );
    let ids: Vec<Uuid> = (0..6).map(|_| app.submit("fills", json!({}))).collect();
    cluster.wait_until("the tablespace to be full", || {
        let query = "SELECT count(*) FROM background_jobs.attempts WHERE error ->> 'sqlstate' = '53100'";
        match app.one::<i64>(query, &[]) {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    // Whoever needs no room there is not held up.
    app.sql("SELECT background_jobs.create_table('elsewhere')");
    app.sql("SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'elsewhere')");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', job_table => 'elsewhere')", &[]);
    app.execute("SELECT background_jobs.wait($1, job_table => 'elsewhere')", &[&id]);

    app.sql("ALTER TABLE filling SET TABLESPACE pg_default");
    for id in ids {
        assert!(app.wait_final(id).completed);
        assert_eq!(app.noted(id), 1);
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM filling", &[]), 6 * 2000);
    app.sql("ALTER TABLE background_jobs SET TABLESPACE pg_default");
    app.cluster.admin("postgres").batch_execute("DROP TABLESPACE tiny").unwrap();
}

/// Everything of this database is in there, the queue and the attempts, too.
#[test]
fn a_database_on_a_full_disk_loses_no_job_and_does_not_flood_the_log() {
    let disk = SmallDisk::new("disk", 16);
    let cluster = disk.limit(configuration()).start();
    let create = format!("CREATE TABLESPACE disk LOCATION '{}'", disk.directory().display());
    cluster.admin("postgres").batch_execute(&create).unwrap();
    let mut app = App::new_with(&cluster, "disk", "TABLESPACE disk");
    app.sql("SELECT background_jobs.create_table(); CREATE TABLE filling (v text)");
    app.handler_with(
        "fills",
        "PERFORM note(); INSERT INTO filling SELECT repeat(md5(n::text), 30) FROM generate_series(1, 1000) n; RETURN NULL;",
        "retry_delay => '100 ms', max_retry_delay => '100 ms', max_attempts => 1000",
    );
    let mut ids = Vec::new();
    let submission = server_tests::app::submission();
    let refused = cluster.wait_until("the disk to be full for clients, too", || {
        let payload = json!({"handler": "fills", "text": "x".repeat(1000)});
        match app.client.query_one(&submission, &[&Uuid::new_v4(), &payload]) {
            Ok(row) => {
                ids.push(row.get::<_, Uuid>(0));
                Err(format!("{} accepted", ids.len()))
            }
            Err(error) => Ok(sqlstate(&error)),
        }
    });
    assert_eq!(refused, "53100");
    let lines = || cluster.log().lines().count();
    let before = lines();
    let begin = Instant::now();
    cluster.wait_until("failures at every place", || match lines() - before {
        0..20 => Err("not yet".to_owned()),
        _ => Ok(()),
    });
    let a_second = (lines() - before) as f64 / begin.elapsed().as_secs_f64();
    assert!(a_second < 200.0, "{a_second} lines a second: {}", server_tests::log::tail(&cluster.log(), 20));
    disk.grow(400);
    app.wait_drained(Duration::from_secs(60));
    for id in &ids {
        assert!(app.row(*id).completed);
        assert_eq!(app.noted(*id), 1);
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM filling", &[]), 1000 * i64::try_from(ids.len()).unwrap());
}

#[test]
fn a_handler_that_exceeds_temp_file_limit_fails_with_that_error() {
    let mut app = SHARED.app("temp_file");
    let limit = format!("ALTER ROLE {} SET temp_file_limit = '1MB'", ident(&app.role));
    app.admin().batch_execute(&limit).unwrap();
    app.handler_with(
        "sorts",
        "RETURN to_jsonb((SELECT max(v) FROM (SELECT md5(n::text) v FROM generate_series(1, 300000) n ORDER BY 1 OFFSET 1) s));",
        "max_attempts => 1",
    );
    let id = app.submit("sorts", json!({}));
    assert_eq!(app.wait_final(id).error("sqlstate"), Some(&json!("53400")));
}
