//! A job that submits its successor under its own job_key.

use server_tests::{App, Cluster, Group, Uuid, json};

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "300ms"));

const AGAIN: &str =
    "background_jobs.enqueue('tick', run_at => now() + interval '1 h', job_key => 'tick', job_key_mode => ";

fn ticking(name: &str, columns: &str, body: &str) -> App<'static> {
    let mut app = SHARED.app_without_table(name);
    app.sql(&format!("SELECT background_jobs.create_table(columns => '{columns}')"));
    app.handler_with("tick", body, "retry_delay => '10 ms'");
    app
}

fn first(app: &mut App) -> Uuid {
    app.one("SELECT background_jobs.enqueue('tick', job_key => 'tick')", &[])
}

/// Those that the queue has, with their keys.
fn queued(app: &mut App) -> Vec<(Uuid, Option<String>)> {
    let query = "SELECT job_id, job_key FROM background_jobs.queued_job WHERE job_table::text = 'background_jobs'";
    app.admin().query(query, &[]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn successor(app: &mut App, id: Uuid) -> Uuid {
    let job = app.wait_final(id);
    assert!(job.completed && !job.cancelled, "{job:?}");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts WHERE job_id = $1", &[&id]), 0);
    job.result.unwrap().as_str().unwrap().parse().unwrap()
}

#[test]
fn a_handler_submits_its_job_again_under_its_own_key() {
    for (mode, columns) in [("replace", ""), ("keep", ""), ("replace", "job_key"), ("keep", "job_key,run_at")] {
        let body = format!("PERFORM note(); RETURN to_jsonb({AGAIN} '{mode}'));");
        let mut app = ticking("again", &format!("{{{columns}}}"), &body);
        let mut id = first(&mut app);
        for _ in 0..3 {
            let next = successor(&mut app, id);
            assert_ne!(next, id, "{mode} {columns}");
            assert_eq!(queued(&mut app), [(next, Some("tick".to_owned()))], "{mode} {columns}");
            assert_eq!(app.state(next), "scheduled");
            assert_eq!(app.noted(id), 1);
            let kept: Uuid =
                app.one("SELECT background_jobs.enqueue('tick', job_key => 'tick', job_key_mode => 'keep')", &[]);
            assert_eq!(kept, next, "it has the key");
            assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&next]));
            id = next;
        }
    }
}

#[test]
fn an_insert_with_the_key_of_the_running_job_is_its_successor_and_a_second_one_is_refused() {
    let insert =
        "INSERT INTO background_jobs (payload, job_key, run_at) VALUES ('{\"handler\": \"tick\"}', 'tick', 'infinity')";
    let mut app = ticking(
        "insert",
        "{job_key,run_at}",
        &format!(
            "BEGIN {insert}; RAISE 'rolled back'; EXCEPTION WHEN raise_exception THEN END;
             {insert};
             BEGIN {insert}; EXCEPTION WHEN unique_violation THEN RETURN '\"refused\"'; END;
             RETURN '\"taken twice\"';"
        ),
    );
    let id = first(&mut app);
    assert_eq!(app.wait_final(id).result, Some(json!("refused")));
    let left: Vec<_> = queued(&mut app).into_iter().map(|(_, key)| key).collect();
    assert_eq!(left, [Some("tick".to_owned())]);
}

#[test]
fn what_the_handler_takes_back_succeeds_nobody() {
    let mut app = ticking(
        "rolled_back",
        "{}",
        &format!(
            "DECLARE one uuid; same uuid; other uuid; BEGIN
                BEGIN PERFORM {AGAIN} 'keep'); RAISE 'rolled back'; EXCEPTION WHEN raise_exception THEN END;
                one := {AGAIN} 'keep'); same := {AGAIN} 'keep'); other := {AGAIN} 'replace');
                IF (SELECT attempt FROM background_jobs.current_job()) = 1 THEN RAISE 'once more'; END IF;
                RETURN jsonb_build_object('kept', same = one, 'replaced', other <> one, 'job', other);
             END;"
        ),
    );
    let id = first(&mut app);
    let result = app.wait_final(id).result.unwrap();
    assert_eq!((&result["kept"], &result["replaced"]), (&json!(true), &json!(true)), "{result}");
    let last: Uuid = result["job"].as_str().unwrap().parse().unwrap();
    assert_eq!(queued(&mut app), [(last, Some("tick".to_owned()))]);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts WHERE job_id = $1", &[&id]), 1);
}

/// The key stays the running job's until that is finished, so that nobody waits for the handler.
#[test]
fn who_cancels_or_replaces_the_job_does_not_wait_for_its_handler() {
    let body = format!(
        "PERFORM {AGAIN} 'replace'); PERFORM reach(1); PERFORM await_gate('never'); PERFORM note(); RETURN NULL;"
    );
    let mut app = ticking("cancelled", "{}", &body);
    app.sql("SET statement_timeout = '10 s'");
    for cancel in [
        "SELECT background_jobs.cancel($1)",
        "SELECT background_jobs.enqueue('later', run_at => 'infinity', job_key => 'tick') <> $1",
    ] {
        let id = first(&mut app);
        app.wait_reached(1);
        assert!(app.one::<bool>(cancel, &[&id]), "{cancel}");
        app.wait_left(1);
        assert!(app.row(id).cancelled);
        assert_eq!(app.noted(id), 0);
    }
    // Of the second one the successor went, and who has replaced it has the key.
    let left = queued(&mut app);
    assert!(matches!(&left[..], [(_, Some(key))] if key == "tick"), "{left:?}");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs WHERE NOT cancelled", &[]), 1);
}

/// Nobody tells of a partition that is dropped.
#[test]
fn a_key_is_free_when_its_jobs_partition_is_gone() {
    let mut app = SHARED.app_without_table("partition");
    app.partitioned_by_time();
    app.sql(
        "CREATE TABLE rest PARTITION OF background_jobs DEFAULT;
         SELECT background_jobs.attach('background_jobs')",
    );
    for mode in ["keep", "replace"] {
        let enqueue = format!(
            "SELECT background_jobs.enqueue('nobody', run_at => 'infinity', job_key => 'k', job_key_mode => '{mode}')"
        );
        let first: Uuid = app.one(&enqueue, &[]);
        app.sql("ALTER TABLE background_jobs DETACH PARTITION rest");
        app.sql("DROP TABLE rest; CREATE TABLE rest PARTITION OF background_jobs DEFAULT");
        let next: Uuid = app.one(&enqueue, &[]);
        assert_ne!(next, first, "{mode}");
        assert_eq!(queued(&mut app), [(next, Some("k".to_owned()))], "{mode}");
        app.sql("DELETE FROM background_jobs");
    }
}
