//! Two or three sessions and the engine on the same job, in hundreds of rounds with random small offsets. What is checked
//! afterwards are the invariants of exactly-once effects (I3), of the cancel that wins (I4), of attempts that do not overlap (I6),
//! of progress (I8) and of final states (I9). The seed is printed; `BACKGROUND_JOBS_TEST_SEED` runs one again.

use postgres::Client;
use server_tests::{App, Builder, Cluster, Group, Uuid, ident, json};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn eager() -> Builder {
    Cluster::builder()
        .conf("background_jobs.poll_interval", "500ms")
        .conf("background_jobs.progress_flush_interval", "10ms")
        .conf("background_jobs.cancel_grace", "500ms")
        .conf("deadlock_timeout", "100ms")
        .conf("max_connections", "100")
}

static SHARED: Group = Group::new(eager);

/// Offsets between the parties, from a seed: SplitMix64.
struct Dice(u64);

impl Dice {
    fn new(test: &str) -> Dice {
        static SALT: AtomicU64 = AtomicU64::new(0);
        let seed = match std::env::var("BACKGROUND_JOBS_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap_or_else(|e| panic!("BACKGROUND_JOBS_TEST_SEED={seed}: {e}")),
            Err(_) => {
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
            }
        };
        println!("{test}: BACKGROUND_JOBS_TEST_SEED={seed}");
        Dice(seed ^ SALT.fetch_add(0x1234_5678_9abc, Ordering::Relaxed) ^ test.len() as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Spins: a sleep is too coarse for offsets of microseconds.
    fn pause(&mut self, most: Duration) {
        let until = Instant::now() + Duration::from_nanos(self.below(most.as_nanos() as u64 + 1));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

/// Records each state that a row was in, and each attempt that met another of the same job (by a lock that lasts as long as
/// the attempt and a sequence that no rollback takes back).
const WITNESSES: &str = "
    CREATE TABLE edges (at bigserial, id uuid, completed bool, cancelled bool, progress real, result bool, gone bool);
    CREATE FUNCTION on_edge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO public.edges (id, completed, cancelled, progress, result, gone)
                VALUES (OLD.id, OLD.completed, OLD.cancelled, OLD.progress, OLD.result IS NOT NULL, true);
        ELSE
            INSERT INTO public.edges (id, completed, cancelled, progress, result, gone)
                VALUES (NEW.id, NEW.completed, NEW.cancelled, NEW.progress, NEW.result IS NOT NULL, false);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER edges AFTER INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_edge();
    CREATE SEQUENCE starts; CREATE SEQUENCE met;
    CREATE FUNCTION begin_attempt() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_catalog.nextval('public.starts');
        IF NOT pg_catalog.pg_try_advisory_xact_lock((SELECT pg_catalog.hashtextextended(id::text, 7) FROM background_jobs.current_job())) THEN
            PERFORM pg_catalog.nextval('public.met');
        END IF;
        PERFORM public.note();
    END $$;";

fn scene(name: &str) -> App<'static> {
    let mut app = SHARED.app(name);
    app.sql(WITNESSES);
    app
}

const CANCEL: &str = "UPDATE background_jobs SET cancelled = true WHERE id = $1 AND NOT completed AND NOT cancelled";

fn overlaps(app: &mut App) -> bool {
    app.one("SELECT is_called FROM met", &[])
}

/// Every row is final, and what there is of it agrees.
fn check(app: &mut App) {
    app.wait_drained(Duration::from_secs(60));
    let role = app.role.clone();
    let problems = format!(
        "SELECT 'I3 effects: ' || to_jsonb(j)::text || ' ' || l.n FROM background_jobs j
            CROSS JOIN LATERAL (SELECT count(*) n FROM ledger WHERE job = j.id) l
          WHERE l.n <> (j.completed AND NOT coalesce(j.result ? 'error', false))::int
         UNION ALL
         SELECT 'I3 result: ' || to_jsonb(j)::text FROM background_jobs j WHERE (result IS NOT NULL) <> completed
         UNION ALL
         SELECT 'I4 both: ' || to_jsonb(j)::text FROM background_jobs j WHERE completed AND cancelled
         UNION ALL
         SELECT 'I3 effects of a row that is gone: ' || job || ' ' || count(*) FROM ledger l
          WHERE NOT EXISTS (SELECT FROM background_jobs j WHERE j.id = l.job)
            AND NOT EXISTS (SELECT FROM edges e WHERE e.id = l.job AND e.completed) GROUP BY job
         UNION ALL
         SELECT 'I8 range: ' || to_jsonb(e)::text FROM edges e
          WHERE NOT (progress >= 0 AND progress <= 1) OR (progress = 1 AND NOT completed)
         UNION ALL
         SELECT 'I9 from ' || to_jsonb(e)::text || ' to ' || to_jsonb(f)::text FROM edges e
           JOIN LATERAL (SELECT * FROM edges f WHERE f.id = e.id AND f.at > e.at ORDER BY f.at LIMIT 1) f ON true
          WHERE NOT e.gone AND NOT f.gone AND (e.completed OR e.cancelled)
            AND (e.completed, e.cancelled, e.progress, e.result) IS DISTINCT FROM (f.completed, f.cancelled, f.progress, f.result)
            AND NOT (f.progress = 0 AND NOT f.completed AND NOT f.cancelled AND NOT f.result)
         UNION ALL
         SELECT 'I10 in the queue: ' || to_jsonb(q)::text FROM background_jobs.queue q
          WHERE current_user = {}",
        server_tests::lit(&role)
    );
    let found: Vec<String> = app.rows(&problems, &[]).iter().map(|row| row.get(0)).collect();
    assert!(found.is_empty(), "{} problems, the first: {:#?}", found.len(), &found[..found.len().min(5)]);
    assert!(!overlaps(app), "I6: two attempts of one job at a time");
}

fn session(app: &App) -> Client {
    let mut session = app.session();
    session.batch_execute("SET lock_timeout = '20 s'").unwrap_or_else(|e| panic!("{e:?}"));
    session
}

/// Rounds of one job each: it is submitted, and a canceller comes in at any point of its short life.
#[test]
fn a_cancel_at_any_moment_of_a_short_job_wins_or_comes_too_late() {
    let mut app = scene("cancels");
    app.handler("quick", "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.5); RETURN '1';");
    app.handler(
        "longer",
        "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(0.004); RETURN '1';",
    );
    let mut dice = Dice::new("cancel");
    let mut canceller = session(&app);
    let (mut acknowledged, mut late) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let id = app.submit(if dice.one_in(2) { "quick" } else { "longer" }, json!({}));
        dice.pause(Duration::from_millis(6));
        let won = canceller.execute(CANCEL, &[&id]).unwrap_or_else(|e| panic!("a cancel never fails: {e:?}"));
        if won == 1 { acknowledged.push(id) } else { late.push(id) }
    }
    check(&mut app);
    let cancelled: i64 =
        app.one("SELECT count(*) FROM background_jobs WHERE cancelled AND id = ANY($1)", &[&acknowledged]);
    assert_eq!(cancelled, acknowledged.len() as i64, "an acknowledged cancel is final (I4)");
    let completed: i64 = app.one("SELECT count(*) FROM background_jobs WHERE completed AND id = ANY($1)", &[&late]);
    assert_eq!(completed, late.len() as i64, "one that found nothing to cancel came after the end (I4)");
    assert!(!acknowledged.is_empty() && !late.is_empty(), "both happened: {} and {}", acknowledged.len(), late.len());
}

/// Failing attempts put jobs back, executors are killed under them, and cancels come at any moment in between.
#[test]
fn a_cancel_meets_attempts_that_fail_and_are_put_back() {
    let mut app = scene("failing");
    app.handler_with(
        "fails",
        "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(random()); PERFORM pg_sleep(random() * 0.003);
         IF random() < 0.7 THEN RAISE 'no'; END IF; RETURN '1';",
        "max_attempts => 4, retry_delay => '2 ms', max_retry_delay => '4 ms'",
    );
    let mut dice = Dice::new("failing");
    let (mut canceller, mut owner) = (session(&app), session(&app));
    let mut acknowledged = Vec::new();
    for round in 0..300 {
        let id = app.submit("fails", json!({}));
        dice.pause(Duration::from_millis(15));
        if canceller.execute(CANCEL, &[&id]).unwrap_or_else(|e| panic!("a cancel never fails: {e:?}")) == 1 {
            acknowledged.push(id);
        }
        if round % 60 == 30 {
            owner
                .batch_execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user
                AND backend_type IN ('background_jobs executor', 'background_jobs progress writer')",
                )
                .unwrap();
        }
    }
    check(&mut app);
    let cancelled: i64 =
        app.one("SELECT count(*) FROM background_jobs WHERE cancelled AND id = ANY($1)", &[&acknowledged]);
    assert_eq!(cancelled, acknowledged.len() as i64, "an acknowledged cancel is final (I4)");
    let many: i64 = app.one(
        "SELECT count(*) FROM (SELECT FROM background_jobs.attempts WHERE outcome <> 'conflict'
        GROUP BY job_id HAVING count(*) > 4 OR max(attempt) > 4) a",
        &[],
    );
    assert_eq!(many, 0, "attempts are bounded (I5)");
}

/// One id, deleted and submitted again while its former self may still be running.
#[test]
fn a_row_that_is_deleted_and_inserted_again_is_another_job() {
    let mut app = scene("reinserted");
    app.handler(
        "tells",
        "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.9); PERFORM pg_sleep(random() * 0.004); RETURN payload -> 'n';",
    );
    let mut dice = Dice::new("reinserted");
    let mut other = session(&app);
    for round in 0..60 {
        let id = app.submit("tells", json!({"n": 0}));
        let generations = 1 + dice.below(6);
        for n in 1..=generations {
            dice.pause(Duration::from_millis(5));
            // In one transaction or in two: with a gap in which nothing has that id.
            let delete = "DELETE FROM background_jobs WHERE id = $1";
            let insert = "INSERT INTO background_jobs (id, payload) VALUES ($1, $2)";
            let payload = json!({"handler": "tells", "n": n});
            if dice.one_in(2) {
                let mut transaction = other.transaction().unwrap();
                transaction.execute(delete, &[&id]).unwrap();
                dice.pause(Duration::from_millis(1));
                transaction.execute(insert, &[&id, &payload]).unwrap();
                transaction.commit().unwrap();
            } else {
                other.execute(delete, &[&id]).unwrap();
                dice.pause(Duration::from_millis(1));
                other.execute(insert, &[&id, &payload]).unwrap();
            }
        }
        let job = app.wait_final(id);
        assert_eq!(job.result, Some(json!(generations)), "round {round}: the result of the last row of that id");
    }
    let problems: i64 = app.one(
        "SELECT count(*) FROM (SELECT job FROM ledger GROUP BY job HAVING count(*) > (
             SELECT count(*) FROM edges e WHERE e.id = job AND e.completed AND NOT e.gone)) x",
        &[],
    );
    assert_eq!(problems, 0, "effects without a completion that was committed (I3)");
    assert!(!overlaps(&mut app), "I6");
}

/// A rewrite leaves nothing for snapshots that are older than it, and an executor may have taken its own before it had to
/// wait for the table: what it does not see then is there all the same.
#[test]
fn a_table_that_is_rewritten_while_its_jobs_are_due_loses_no_job() {
    let mut app = scene("rewritten");
    app.handler("quick", "PERFORM begin_attempt(); RETURN '1';");
    let mut other = session(&app);
    for n in 0..3 {
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

/// Its wake-up comes while its former self, which is told to stop, has not stopped yet. That wake-up must not be lost.
#[test]
fn a_job_that_is_submitted_again_under_its_running_self_does_not_wait_for_the_poll() {
    let cluster = eager().conf("background_jobs.poll_interval", "1min").start();
    let mut app = App::with_table(&cluster, "again");
    app.handler(
        "lingers",
        "IF (payload ->> 'n')::int = 0 THEN
            PERFORM reach(1);
            BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.2); END;
         END IF;
         RETURN payload -> 'n';",
    );
    for again in
        ["DELETE FROM background_jobs WHERE id = $1", "UPDATE background_jobs SET cancelled = true WHERE id = $1"]
    {
        let id = app.submit("lingers", json!({"n": 0}));
        app.wait_reached(1);
        app.execute(again, &[&id]);
        if again.starts_with("DELETE") {
            let payload = json!({"handler": "lingers", "n": 1});
            app.execute("INSERT INTO background_jobs (id, payload) VALUES ($1, $2)", &[&id, &payload]);
        } else {
            app.execute("UPDATE background_jobs SET payload = payload || '{\"n\": 1}' WHERE id = $1", &[&id]);
            app.execute("SELECT background_jobs.retry($1)", &[&id]);
        }
        cluster.wait_within(Duration::from_secs(5), again, || match app.row(id) {
            row if row.result == Some(json!(1)) => Ok(()),
            row => Err(format!("{row:?}, {}", app.state(id))),
        });
    }
}

/// cancel() and retry() again and again, under a handler that does not give up when it is told to: what an older attempt
/// still reports belongs to nobody.
#[test]
fn an_older_attempt_writes_no_progress_into_the_retried_job() {
    let mut app = scene("older");
    app.handler_with(
        "stubborn",
        "PERFORM note();
         IF (payload ->> 'first')::bool AND NOT EXISTS (SELECT FROM public.gates WHERE name = 'later') THEN
            PERFORM reach(1); PERFORM background_jobs.set_progress(0.6);
            FOR n IN 61..99 LOOP
                BEGIN PERFORM background_jobs.set_progress(n / 100.0); PERFORM pg_sleep(0.005);
                EXCEPTION WHEN query_canceled THEN NULL; END;
            END LOOP;
            PERFORM pg_sleep(10);
         END IF;
         PERFORM background_jobs.set_progress(0.1); PERFORM reach(2); PERFORM await_gate('go'); RETURN '1';",
        "",
    );
    for round in 0..6 {
        app.sql("TRUNCATE gates, edges");
        let id = app.submit("stubborn", json!({"first": true, "round": round}));
        app.wait_reached(1);
        app.wait_true("SELECT bool_or(progress > 0.6) FROM background_jobs WHERE NOT completed");
        app.open_gate("later");
        app.sql(&format!("BEGIN; SELECT background_jobs.cancel('{id}'); SELECT background_jobs.retry('{id}'); COMMIT"));
        app.wait_reached(2);
        app.open_gate("go");
        let job = app.wait_final(id);
        assert_eq!((job.result, job.progress), (Some(json!(1)), 1.0));
        let after: Vec<String> = app
            .rows(
                "SELECT progress::text FROM edges WHERE id = $1 AND at > (SELECT max(at) FROM edges WHERE id = $1 AND cancelled)
                  ORDER BY at",
                &[&id],
            )
            .iter()
            .map(|row| row.get(0))
            .collect();
        let own = ["0", "0.1", "1"];
        assert!(
            after.iter().all(|p| own.contains(&p.as_str())),
            "round {round}: progress after the retry {after:?} (I8)"
        );
        assert_eq!(app.noted(id), 1, "round {round}");
    }
}

/// Three sessions replace the job that has a key, or keep it, while it is being run and completed.
#[test]
fn sessions_that_fight_for_a_job_key_leave_one_unfinished_job_and_no_deadlock() {
    let mut app = scene("keys");
    app.handler("quick", "PERFORM begin_attempt(); PERFORM pg_sleep(random() * 0.003); RETURN '1';");
    let (errors, enqueued) = (std::sync::Mutex::new(Vec::<String>::new()), AtomicU64::new(0));
    let (cluster, database, role) = (app.cluster, app.database.clone(), app.role.clone());
    let barrier = Barrier::new(3);
    let seeds: Vec<Dice> = (0..3).map(|_| Dice::new("keys")).collect();
    std::thread::scope(|scope| {
        for mut dice in seeds {
            let (errors, enqueued, database, role, barrier) = (&errors, &enqueued, &database, &role, &barrier);
            scope.spawn(move || {
                let mut session = cluster.connect(database, role);
                barrier.wait();
                for _ in 0..150 {
                    let mode = if dice.one_in(4) { "keep" } else { "replace" };
                    let delay = if dice.one_in(3) { "now() + interval '2 ms'" } else { "NULL" };
                    let call = format!("SELECT background_jobs.enqueue('quick', job_key => 'k', job_key_mode => '{mode}', run_at => {delay})");
                    match session.execute(&call, &[]) {
                        Ok(_) => drop(enqueued.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => errors.lock().unwrap().push(format!("{mode}: {error:?}")),
                    }
                    dice.pause(Duration::from_millis(3));
                }
            });
        }
        let unfinished = "SELECT count(*) FROM background_jobs WHERE NOT completed AND NOT cancelled";
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(1) {
            let many: i64 = app.one(unfinished, &[]);
            assert!(many <= 1, "{many} unfinished jobs have the key");
        }
    });
    check(&mut app);
    let errors = errors.into_inner().unwrap();
    assert!(errors.is_empty(), "{} of 450 calls failed, the first: {}", errors.len(), errors[0]);
}

/// Several statements on the same jobs in the order in which an application may well write them, against completion.
#[test]
fn transactions_that_cancel_retry_and_update_in_any_order_meet_no_deadlock() {
    let mut app = scene("orders");
    app.handler("quick", "PERFORM begin_attempt(); PERFORM background_jobs.set_progress(0.5); PERFORM pg_sleep(random() * 0.004); RETURN '1';");
    let mut dice = Dice::new("orders");
    let mut other = session(&app);
    let mut errors = Vec::new();
    for round in 0..250 {
        let id = app.submit("quick", json!({}));
        dice.pause(Duration::from_millis(6));
        let mut steps = vec![
            format!("SELECT background_jobs.cancel('{id}')"),
            format!("UPDATE background_jobs SET timestamp = now() WHERE id = '{id}'"),
            format!("SELECT background_jobs.retry('{id}')"),
        ];
        let mut transaction = other.transaction().unwrap();
        let mut failed = None;
        for _ in 0..1 + dice.below(3) {
            let step = steps.swap_remove(dice.below(steps.len() as u64) as usize);
            dice.pause(Duration::from_millis(2));
            if let Err(error) = transaction.execute(&step, &[]) {
                failed = Some(format!("round {round}: {step}: {error:?}"));
                break;
            }
        }
        match failed {
            Some(error) => {
                errors.push(error);
                transaction.rollback().unwrap();
            }
            None => transaction.commit().unwrap(),
        }
    }
    app.wait_drained(Duration::from_secs(60));
    let effects: i64 = app.one(
        "SELECT count(*) FROM background_jobs j WHERE (SELECT count(*) FROM ledger WHERE job = j.id)
            <> (SELECT count(*) FROM edges e WHERE e.id = j.id AND e.completed AND NOT EXISTS (SELECT FROM edges f
                    WHERE f.id = e.id AND f.at = (SELECT max(at) FROM edges g WHERE g.id = e.id AND g.at < e.at) AND f.completed))",
        &[],
    );
    assert_eq!(effects, 0, "one effect for each completion (I3)");
    assert!(!overlaps(&mut app), "I6");
    assert!(errors.is_empty(), "{} of 250, the first: {}", errors.len(), errors[0]);
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
    std::thread::scope(|scope| {
        let stop = &stop;
        let inserted = scope.spawn(move || {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += writer.execute("INSERT INTO background_jobs (payload) SELECT '{\"handler\": \"quick\"}' FROM generate_series(1, 3)", &[]).unwrap();
            }
            count
        });
        for _ in 0..30 {
            dice.pause(Duration::from_millis(10));
            match dice.below(4) {
                0 => app.sql("BEGIN; SELECT background_jobs.detach('background_jobs'); SELECT background_jobs.attach('background_jobs'); COMMIT"),
                1 => app.sql("SELECT background_jobs.attach('background_jobs')"),
                2 => app.sql("SELECT background_jobs.register_handler('quick', 'quick(jsonb)')"),
                _ => admin.batch_execute(&format!("ALTER TABLE public.background_jobs OWNER TO postgres; ALTER TABLE public.background_jobs OWNER TO {role}")).unwrap(),
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(inserted.join().unwrap() > 0);
    });
    check(&mut app);
}

/// A completion locks the row and then its job in the queue; run_now() must not do it the other way round.
#[test]
fn a_transaction_that_calls_run_now_and_updates_the_row_meets_no_deadlock() {
    let mut app = scene("run_now");
    app.handler("held", "PERFORM begin_attempt(); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';");
    let id = app.submit("held", json!({}));
    app.wait_reached(1);
    let mut other = session(&app);
    let mut transaction = other.transaction().unwrap();
    transaction.execute("SELECT background_jobs.run_now($1)", &[&id]).unwrap();
    app.open_gate("go");
    app.wait_true(
        "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted
            AND a.backend_type = 'background_jobs executor' AND a.datname = current_database())",
    );
    let outcome = transaction.execute("UPDATE background_jobs SET timestamp = now() WHERE id = $1", &[&id]);
    let outcome = outcome.map_err(|error| server_tests::sqlstate(&error));
    drop(transaction);
    let job = app.wait_final(id);
    assert_eq!((job.result, app.one::<i64>("SELECT last_value FROM starts", &[])), (Some(json!(1)), 1), "run once");
    assert_eq!(outcome, Ok(1));
}
