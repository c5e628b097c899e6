//! Short jobs that share a commit: whatever happens to one of them, the others are done exactly once, with their own results and
//! without being charged for it.
//!
//! The only executor is stopped while the dispatcher fills its mailbox, so that it finds a whole batch when it goes on. That jobs
//! have shared a commit is seen from their rows, which one statement has written.

use server_tests::postgres::Client;
use server_tests::wait::yes;
use server_tests::{App, Cluster, Group, Signal, Uuid, ident, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

static SHARED: Group = Group::new(|| {
    Cluster::builder().conf("background_jobs.max_executors", "1").conf("background_jobs.poll_interval", "500ms")
});

const DRAIN: Duration = Duration::from_secs(60);

/// The jobs of a batch.
const N: i64 = 24;

/// They share the only executor, which stands still at times: one test after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const NOTED: &str = "PERFORM note(); RETURN jsonb_build_object('n', payload -> 'n');";

fn insert(handler: &str, more: &str) -> String {
    format!(
        "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', '{handler}', 'n', n) {more}
           FROM generate_series(1, {N}) n"
    )
}

/// Runs jobs of the handler until it is known to be short, and forgets them but for their number.
fn warm(app: &mut App, handler: &str) {
    warm_until(app, handler, shared);
}

fn warm_until(app: &mut App, handler: &str, enough: impl Fn(&mut App) -> bool) {
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
fn shared(app: &mut App) -> bool {
    app.one("SELECT EXISTS (SELECT FROM background_jobs WHERE completed GROUP BY xmin::text HAVING count(*) > 3)", &[])
}

/// Makes a batch of the rows that `fill` inserts, and of nothing else.
fn in_one_batch(app: &mut App, fill: impl FnOnce(&mut App)) {
    // What was counted is written when it has been idle for a while; then it waits for its latch and holds nothing.
    let find = |kind: &str| {
        format!(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background_jobs {kind}' AND datname = current_database()"
        )
    };
    let cluster = app.cluster;
    app.wait_true("SELECT (SELECT coalesce(sum(completed), 0) FROM background_jobs.handler_stats) = (SELECT sum(jobs) FROM warmed)");
    let mut admin = app.admin();
    let mut pid = |kind: &str| admin.query_one(&find(kind), &[]).unwrap().get::<_, i32>(0) as u32;
    let (executor, dispatcher) = (pid("executor"), pid("dispatcher"));
    cluster.wait_until("the executor to be idle", || yes(sleeps(executor)));
    cluster.kill(executor, Signal::SIGSTOP);
    let resumed = Resumed(cluster, executor);
    fill(app);
    let mut still = 0;
    cluster.wait_until("the dispatcher to have nothing to do", || {
        still = if sleeps(dispatcher) { still + 1 } else { 0 };
        yes(still == 30)
    });
    drop(resumed);
}

struct Resumed<'a>(&'a Cluster, u32);

impl Drop for Resumed<'_> {
    fn drop(&mut self) {
        self.0.kill(self.1, Signal::SIGCONT);
    }
}

fn sleeps(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

fn id_of(app: &mut App, n: i64) -> Uuid {
    app.one("SELECT id FROM background_jobs WHERE payload -> 'n' = to_jsonb($1::bigint)", &[&n])
}

/// All jobs but `except` were done once, with their own results, and nobody was charged for them.
fn check_others(app: &mut App, except: &[i64]) {
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

fn on_completion(app: &mut App, when: &str, deferred: &str, body: &str) {
    app.sql(&format!(
        "CREATE FUNCTION on_completion() RETURNS trigger LANGUAGE plpgsql AS $t$ BEGIN {body} RETURN NEW; END $t$;
         CREATE {} TRIGGER on_completion {when} UPDATE ON background_jobs {deferred}
            FOR EACH ROW WHEN (NEW.completed AND NOT OLD.completed) EXECUTE FUNCTION on_completion()",
        if deferred.is_empty() { "" } else { "CONSTRAINT" }
    ));
}

fn scene(name: &str) -> App<'static> {
    let mut app = SHARED.app(name);
    app.handler("noted", NOTED);
    warm(&mut app, "noted");
    app
}

#[test]
fn jobs_of_a_batch_share_a_commit_and_keep_their_results() {
    let _alone = alone();
    let mut app = scene("batch");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
    assert!(shared(&mut app), "or the other tests of this file prove nothing");
}

/// The batch has run all its handlers and is at the row of its first job when a client changes that of another.
#[test]
fn what_a_client_does_to_one_job_while_its_batch_is_being_completed_concerns_that_job_alone() {
    let _alone = alone();
    for (name, change) in [
        ("cancelled", "UPDATE background_jobs SET cancelled = true WHERE id = $1"),
        ("deleted", "DELETE FROM background_jobs WHERE id = $1"),
        ("completed", "UPDATE background_jobs SET completed = true, result = '\"by hand\"' WHERE id = $1"),
    ] {
        let mut app = scene(name);
        on_completion(
            &mut app,
            "BEFORE",
            "",
            "IF NEW.payload -> 'n' = '1' THEN PERFORM reach(1); PERFORM await_gate('go'); END IF;",
        );
        in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
        app.wait_reached(1);
        let id = id_of(&mut app, 3);
        assert_eq!(app.execute(change, &[&id]), 1, "{name}");
        app.open_gate("go");
        app.wait_drained(DRAIN);
        app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
        if name == "deleted" {
            assert!(app.find(id).is_none());
            app.execute("INSERT INTO background_jobs (id, payload, cancelled) VALUES ($1, '{\"n\": 3}', true)", &[&id]);
        } else {
            let job = app.row(id);
            assert_eq!((job.cancelled, job.completed), (name == "cancelled", name == "completed"), "{job:?}");
            assert_eq!(job.result, (name == "completed").then(|| json!("by hand")));
        }
        assert_eq!(app.noted(id), 0, "{name}: no effects");
        check_others(&mut app, &[3]);
        assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.attempts", &[]), 0, "{name}");
    }
}

#[test]
fn a_handler_may_cancel_or_delete_or_complete_another_job_of_its_batch() {
    let _alone = alone();
    let mut app = SHARED.app("among");
    app.handler(
        "noted",
        "PERFORM note();
         CASE payload ->> 'n'
            WHEN '5' THEN UPDATE background_jobs b SET cancelled = true WHERE b.payload -> 'n' IN ('6', '20') AND NOT b.completed;
            WHEN '7' THEN DELETE FROM background_jobs b WHERE b.payload -> 'n' = '8';
            WHEN '9' THEN UPDATE background_jobs b SET completed = true, result = '0' WHERE b.payload -> 'n' = '21';
            -- These are done by then.
            WHEN '11' THEN UPDATE background_jobs b SET cancelled = true WHERE b.payload -> 'n' = '3' AND NOT b.completed;
            ELSE NULL;
         END CASE;
         RETURN jsonb_build_object('n', payload -> 'n');",
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    app.wait_true("SELECT count(*) = 0 FROM background_jobs.queue");
    let ran: Vec<String> = app
        .rows(
            "SELECT payload ->> 'n' || CASE WHEN completed THEN ' completed ' ELSE ' cancelled ' END
                    || (SELECT count(*) FROM ledger WHERE job = id)
               FROM background_jobs WHERE payload -> 'n' IN ('3', '6', '8', '20', '21') ORDER BY (payload ->> 'n')::int",
            &[],
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(ran, ["3 completed 1", "6 cancelled 0", "20 cancelled 0", "21 completed 0"]);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), N - 4);
    app.sql("INSERT INTO background_jobs (payload, cancelled) VALUES ('{\"n\": 8}', true)");
    check_others(&mut app, &[6, 8, 20, 21]);
}

fn others_complete_while(name: &str, hold: &str) {
    let _alone = alone();
    let mut app = scene(name);
    let mut session: Option<Client> = None;
    in_one_batch(&mut app, |app| {
        app.sql(&insert("noted", ""));
        let id = id_of(app, 3);
        let mut client = app.session();
        client.batch_execute("BEGIN").unwrap();
        client.execute(hold, &[&id]).unwrap();
        session = Some(client);
    });
    app.cluster.wait_until("the others to be completed", || {
        let left: i64 =
            app.one("SELECT count(*) FROM background_jobs WHERE NOT completed AND payload -> 'n' <> '3'", &[]);
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    });
    let id = id_of(&mut app, 3);
    assert!(!app.row(id).completed, "somebody holds its row");
    session.unwrap().batch_execute("ROLLBACK").unwrap();
    app.wait_drained(DRAIN);
    assert_eq!(app.noted(id), 1);
    let charged = "SELECT count(*) FROM background_jobs.attempts WHERE outcome <> 'conflict'";
    assert_eq!(app.one::<i64>(charged, &[]), 0);
    check_others(&mut app, &[3]);
}

#[test]
fn a_locked_row_delays_its_own_job_only() {
    others_complete_while("locked", "UPDATE background_jobs SET payload = payload WHERE id = $1");
}

#[test]
fn an_open_transaction_that_has_called_run_now_delays_its_own_job_only() {
    others_complete_while("hurried", "SELECT background_jobs.run_now($1)");
}

fn one_fails(name: &str, when: &str, deferred: &str, body: &str, sqlstate: &str) {
    let _alone = alone();
    let mut app = SHARED.app(name);
    app.handler_with("noted", NOTED, "max_attempts => 2, retry_delay => '10 ms'");
    warm(&mut app, "noted");
    on_completion(&mut app, when, deferred, body);
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    let id = id_of(&mut app, 3);
    let job = app.row(id);
    assert_eq!(job.error("sqlstate"), Some(&json!(sqlstate)), "{job:?}");
    assert_eq!(app.noted(id), 0);
    let charged: Vec<(i32, String)> = app
        .rows("SELECT attempt, outcome::text FROM background_jobs.attempts WHERE job_id = $1 ORDER BY 1", &[&id])
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(charged, [(1, "error".to_owned()), (2, "error".to_owned())]);
    check_others(&mut app, &[3]);
}

const RAISES: &str = "IF NEW.payload -> 'n' = '3' AND NOT coalesce(NEW.result ? 'error', false) THEN
    RAISE 'not this one' USING ERRCODE = 'BJ001'; END IF;";

#[test]
fn a_trigger_that_raises_for_one_row_fails_that_job_alone() {
    one_fails("raises", "BEFORE", "", RAISES, "BJ001");
}

#[test]
fn an_after_trigger_that_raises_for_one_row_fails_that_job_alone() {
    one_fails("raises_after", "AFTER", "", RAISES, "BJ001");
}

#[test]
fn a_deferred_trigger_that_raises_for_one_row_fails_that_job_alone() {
    let raises = RAISES.replace("BJ001", "23514");
    one_fails("raises_late", "AFTER", "DEFERRABLE INITIALLY DEFERRED", &raises, "23514");
}

#[test]
fn a_deferred_trigger_that_raises_a_code_of_its_own_fails_the_job_with_that_code() {
    one_fails("raises_own", "AFTER", "DEFERRABLE INITIALLY DEFERRED", RAISES, "BJ001");
}

#[test]
fn a_trigger_that_turns_one_row_away_fails_that_job_alone() {
    let body = "IF NEW.payload -> 'n' = '3' AND NOT coalesce(NEW.result ? 'error', false) THEN RETURN NULL; END IF;";
    one_fails("turned", "BEFORE", "", body, "27000");
}

#[test]
fn a_trigger_that_asks_for_the_current_job_is_told_it() {
    let _alone = alone();
    let mut app = scene("asks");
    app.sql("CREATE TABLE seen (row_id uuid, job uuid)");
    on_completion(
        &mut app,
        "AFTER",
        "",
        "INSERT INTO public.seen SELECT NEW.id, id FROM background_jobs.current_job();",
    );
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen WHERE row_id = job", &[]), N);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen", &[]), N);
}

/// Longer than a batch is given for all of them.
#[test]
fn a_trigger_that_takes_long_for_one_row_does_not_fail_any_job() {
    let _alone = alone();
    let mut app = scene("slow");
    on_completion(&mut app, "AFTER", "", "IF NEW.payload -> 'n' = '3' THEN PERFORM pg_sleep(6); END IF;");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
}

#[test]
fn a_job_that_fails_in_the_middle_of_a_batch_is_charged_once_and_retried() {
    let _alone = alone();
    let mut app = SHARED.app("middle");
    app.handler_with(
        "noted",
        "PERFORM note();
         IF payload -> 'n' = '3' AND payload ? 'fails' AND (SELECT attempt FROM background_jobs.current_job()) = 1 THEN
            RAISE 'once';
         END IF;
         RETURN jsonb_build_object('n', payload -> 'n');",
        "retry_delay => '10 ms'",
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "|| '{\"fails\": true}'")));
    app.wait_drained(DRAIN);
    let id = id_of(&mut app, 3);
    assert_eq!((app.row(id).result, app.noted(id)), (Some(json!({"n": 3})), 1));
    let charged: Vec<(Uuid, String)> = app
        .rows("SELECT job_id, outcome::text FROM background_jobs.attempts", &[])
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(charged, [(id, "error".to_owned())]);
    check_others(&mut app, &[3]);
    assert!(shared(&mut app), "the others shared a commit with it");
}

/// It is interrupted because finished jobs wait for it, which is none of its handler's business.
fn interrupted_for_its_batch(name: &str, heeds: &str) {
    let _alone = alone();
    let mut app = SHARED.app(name);
    app.handler(
        "noted",
        &format!(
            "PERFORM note();
             IF payload -> 'n' = '3' THEN
                BEGIN PERFORM pg_sleep(0.2); EXCEPTION WHEN query_canceled THEN {heeds}; END;
             END IF;
             RETURN jsonb_build_object('n', payload -> 'n');"
        ),
    );
    warm(&mut app, "noted");
    in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
    app.wait_drained(DRAIN);
    check_others(&mut app, &[]);
}

#[test]
fn a_job_that_takes_long_for_once_runs_again_alone() {
    interrupted_for_its_batch("long", "RAISE");
}

#[test]
fn a_job_that_swallows_being_interrupted_for_its_batch_runs_again_alone() {
    interrupted_for_its_batch("swallows", "RETURN '\"interrupted\"'");
}

#[test]
fn a_job_that_calls_being_interrupted_for_its_batch_something_else_is_not_charged() {
    interrupted_for_its_batch("renames", "RAISE 'took too long'");
}

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
    check_results(&mut app, true, false);
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

/// Somebody has written into the registry what is no setting, so that the transactions of two handlers fail before a job is begun: at
/// the head of a batch, and at its end.
#[test]
fn a_job_whose_transaction_cannot_begin_fails_alone() {
    let _alone = alone();
    let mut app = scene("unbegun");
    let (head, end) = ([1, 2, 3], [23, 24]);
    for (handler, priority) in [("head", -1), ("end", 1)] {
        let options = format!(
            "priority => {priority}::smallint, max_attempts => 2, retry_delay => '10 ms', synchronous_commit => 'off'"
        );
        app.handler_with(handler, NOTED, &options);
        warm(&mut app, handler);
    }
    in_one_batch(&mut app, |app| {
        let spoil =
            "UPDATE background_jobs.handler SET synchronous_commit = 'perhaps' WHERE synchronous_commit = 'off'";
        assert_eq!(app.admin().execute(spoil, &[]).unwrap(), 2);
        // A registration has the registry read again.
        app.register("noted", "noted(jsonb)", "");
        app.execute(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('n', n, 'handler',
                CASE WHEN n = ANY ($1) THEN 'head' WHEN n = ANY ($2) THEN 'end' ELSE 'noted' END)
               FROM generate_series(1::bigint, $3) n",
            &[&head.as_slice(), &end.as_slice(), &N],
        );
    });
    app.wait_drained(DRAIN);
    for n in head.into_iter().chain(end) {
        let id = id_of(&mut app, n);
        let job = app.row(id);
        assert_eq!(job.error("sqlstate"), Some(&json!("22023")), "{job:?}");
        assert_eq!(app.noted(id), 0);
        let charged = "SELECT count(*) FROM background_jobs.attempts WHERE job_id = $1 AND outcome = 'error'";
        assert_eq!(app.one::<i64>(charged, &[&id]), 2);
    }
    check_others(&mut app, &[1, 2, 3, 23, 24]);
}

/// Neither the alarm of the commit nor the timeout of the last job ends it.
#[test]
fn a_commit_that_swallows_every_interrupt_is_ended_with_its_executor_and_its_jobs_run_again() {
    let _alone = alone();
    let mut app = SHARED.app("deaf");
    app.handler_with("noted", NOTED, "timeout => '6 s', retry_delay => '10 ms'");
    warm(&mut app, "noted");
    // It says how many jobs are in the commit.
    on_completion(
        &mut app,
        "AFTER",
        "DEFERRABLE INITIALLY DEFERRED",
        "PERFORM reach(100 + (SELECT count(*)::int FROM ledger));
         WHILE NOT EXISTS (SELECT FROM gates WHERE name = 'go') LOOP
            BEGIN PERFORM pg_sleep(0.05); EXCEPTION WHEN query_canceled THEN NULL; END;
         END LOOP;",
    );
    let executor = "SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'background_jobs executor' AND datname = current_database()";
    let in_commit =
        "SELECT objid::int - 100 FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711 AND objid > 100
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let cluster = app.cluster;
    // On a busy machine the first job may have taken so long that it waits for no other.
    let pid = cluster.wait_within(DRAIN, "a commit of several jobs", || {
        let pid: i32 = app.one(executor, &[]);
        in_one_batch(&mut app, |app| app.sql(&insert("noted", "")));
        let jobs = cluster.wait_until("the commit", || {
            let rows = app.rows(in_commit, &[]);
            rows.first().map(|row| row.get::<_, i32>(0)).ok_or_else(|| "not yet".to_owned())
        });
        if jobs > 1 {
            return Ok(pid);
        }
        app.open_gate("go");
        app.wait_drained(DRAIN);
        app.sql(
            "INSERT INTO warmed SELECT count(*) FROM background_jobs;
             DELETE FROM background_jobs; DELETE FROM ledger; DELETE FROM gates",
        );
        Err("it was one job's".to_owned())
    });
    cluster.wait_until("the executor to be gone", || yes(cluster.title(pid.cast_unsigned()).is_none()));
    app.open_gate("go");
    app.wait_drained(DRAIN);
    let charged: Vec<(i64, i32, String)> = app
        .rows(
            "SELECT (payload ->> 'n')::bigint, attempt, outcome::text
               FROM background_jobs.attempts JOIN background_jobs ON id = job_id",
            &[],
        )
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let [(n, 1, outcome)] = charged.as_slice() else { panic!("{charged:?}") };
    assert_eq!(outcome, "timeout");
    let id = id_of(&mut app, *n);
    assert_eq!((app.row(id).result, app.noted(id)), (Some(json!({"n": n})), 1));
    check_others(&mut app, &[*n]);
}
