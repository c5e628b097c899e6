//! The decisions of src/protocol.rs, which the model in tests/model is made of, against the server that really makes them:
//! the guards, in SQL, and the triggers, by what is in the queue afterwards. All combinations; nothing runs meanwhile.

use server_tests::{App, Builder, Cluster, Group, Uuid};
use unit_tests::job::Timing;
use unit_tests::protocol::{self, Action, Flags, Identity, Queued};

fn quiet() -> Builder {
    Cluster::builder().conf("background_jobs.enabled", "off")
}

static SHARED: Group = Group::new(quiet);

/// NULL, as columns without NOT NULL may be.
const BOOLS: [Option<bool>; 3] = [None, Some(false), Some(true)];

type Columns = (Option<bool>, Option<bool>);

fn all_columns() -> impl Iterator<Item = Columns> {
    BOOLS.into_iter().flat_map(|completed| BOOLS.map(|cancelled| (completed, cancelled)))
}

fn flags((completed, cancelled): Columns) -> Flags {
    Flags { completed: completed == Some(true), cancelled: cancelled == Some(true) }
}

/// A job table whose flags may be NULL.
fn table(name: &str) -> App<'static> {
    let mut app = App::new(SHARED.cluster(), name);
    app.sql(
        "CREATE TABLE background_jobs (id uuid PRIMARY KEY, timestamp timestamptz, payload jsonb, completed bool, cancelled bool,
             progress real, result jsonb);
         SELECT background_jobs.attach('background_jobs')",
    );
    app
}

/// The queue's row as a superuser sees it, its stamp in microseconds.
fn queued(app: &App, id: Uuid) -> Option<Queued> {
    let rows = app.admin().query(
        "SELECT (extract(epoch FROM enqueued_at) * 1000000)::int8, attempts, conflicts, timing
           FROM background_jobs.queued_job WHERE job_id = $1",
        &[&id],
    );
    rows.unwrap_or_else(|e| panic!("{e:?}")).first().map(|row| Queued {
        enqueued_at: row.get(0),
        attempts: row.get(1),
        conflicts: row.get(2),
        timing: Timing::from_i16(row.get(3)),
    })
}

/// Puts this row into the queue, whatever is there.
fn plant(app: &App, id: Uuid, row: Queued) {
    let planted = app.admin().execute(
        "INSERT INTO background_jobs.queued_job
             (job_table, job_id, handler, priority, timing, run_at, enqueued_at, attempts, conflicts)
         VALUES ('public.background_jobs', $1, 'default', 0, $2, now(), timestamptz 'epoch' + $3 * interval '1 us', $4, $5)
         ON CONFLICT (job_table, job_id) DO UPDATE SET timing = excluded.timing, enqueued_at = excluded.enqueued_at,
             attempts = excluded.attempts, conflicts = excluded.conflicts",
        &[&id, &(row.timing as i16), &(row.enqueued_at as f64), &row.attempts, &row.conflicts],
    );
    assert_eq!(planted.unwrap_or_else(|e| panic!("{e:?}")), 1);
}

/// Something that no trigger would leave there.
const OLD: Queued = Queued { enqueued_at: 4711, attempts: 3, conflicts: 2, timing: Timing::Retry };

/// Inserts the row; what the trigger did is replaced by `OLD`.
fn insert(app: &mut App, (completed, cancelled): Columns) -> Uuid {
    let id = Uuid::new_v4();
    app.execute("INSERT INTO background_jobs VALUES ($1, now(), '{}', $2, $3, 0)", &[&id, &completed, &cancelled]);
    plant(app, id, OLD);
    id
}

fn assert_submitted(app: &App, id: Uuid, what: &str) {
    let found = queued(app, id).unwrap_or_else(|| panic!("{what}: not in the queue"));
    assert_ne!(found.enqueued_at, OLD.enqueued_at, "{what}: a stamp of its own");
    assert_eq!(found, Queued::submitted(found.enqueued_at, Timing::Immediate), "{what}");
}

#[test]
fn insert_submits_what_is_open_whatever_was_in_the_queue_before() {
    let mut app = table("inserts");
    for columns in all_columns() {
        for leftover in [false, true] {
            let what = format!("INSERT of {columns:?}, leftover {leftover}");
            let id = Uuid::new_v4();
            if leftover {
                plant(&app, id, OLD);
            }
            let (completed, cancelled) = columns;
            app.execute(
                "INSERT INTO background_jobs VALUES ($1, now(), '{}', $2, $3, 0)",
                &[&id, &completed, &cancelled],
            );
            match (flags(columns).is_open(), leftover) {
                (true, _) => assert_submitted(&app, id, &what),
                (false, _) => assert_eq!(queued(&app, id), leftover.then_some(OLD), "{what}"),
            }
        }
    }
}

#[test]
fn update_does_to_the_queue_what_the_protocol_says() {
    let mut app = table("updates");
    for old in all_columns() {
        for new in all_columns() {
            for moved in [false, true] {
                let what = format!("UPDATE of {old:?} to {new:?}, moved {moved}");
                let id = insert(&mut app, old);
                let to = if moved { Uuid::new_v4() } else { id };
                app.execute(
                    "UPDATE background_jobs SET id = $2, completed = $3, cancelled = $4 WHERE id = $1",
                    &[&id, &to, &new.0, &new.1],
                );
                let fires = protocol::fires_on_update(flags(old), flags(new), moved);
                let change = protocol::on_update(flags(new), moved);
                let left = if fires && change.take_out { None } else { Some(OLD) };
                assert_eq!(queued(&app, id), left, "{what}");
                match (moved, fires && change.submit) {
                    (_, true) => assert_submitted(&app, to, &what),
                    (true, false) => assert_eq!(queued(&app, to), None, "{what}"),
                    (false, false) => {}
                }
            }
        }
    }
}

#[test]
fn delete_takes_out_what_was_open() {
    let mut app = table("deletes");
    for columns in all_columns() {
        let id = insert(&mut app, columns);
        app.execute("DELETE FROM background_jobs WHERE id = $1", &[&id]);
        assert_eq!(queued(&app, id), (!flags(columns).is_open()).then_some(OLD), "DELETE of {columns:?}");
    }
}

#[test]
fn retry_submits_what_is_finished_and_run_now_moves_what_waits() {
    let mut app = table("retries");
    for columns in all_columns() {
        let id = insert(&mut app, columns);
        let again: bool = app.one("SELECT background_jobs.retry($1)", &[&id]);
        assert_eq!(again, !flags(columns).is_open(), "retry() of {columns:?}");
        if again {
            assert_submitted(&app, id, "retry()");
            let row = app.row(id);
            assert!(Flags { completed: row.completed, cancelled: row.cancelled }.is_open());
        } else {
            assert_eq!(queued(&app, id), Some(OLD), "retry() of {columns:?}");
        }
    }
    for timing in [Timing::Immediate, Timing::Scheduled, Timing::Retry, Timing::Quarantine] {
        let id = insert(&mut app, (Some(false), Some(false)));
        let waiting = Queued { timing, ..OLD };
        plant(&app, id, waiting);
        assert!(app.one::<bool>("SELECT background_jobs.run_now($1)", &[&id]));
        assert_eq!(queued(&app, id), Some(waiting.make_due()), "run_now() of {timing:?}");
    }
}

#[test]
fn guards_of_rows_are_what_the_protocol_says() {
    let mut app = table("guards");
    for columns in all_columns() {
        for (guard, expected) in
            [(protocol::UNFINISHED, flags(columns).is_open()), (protocol::FINISHED, !flags(columns).is_open())]
        {
            let query =
                format!("SELECT coalesce({guard}, false) FROM (SELECT $1::bool, $2::bool) r (completed, cancelled)");
            assert_eq!(app.one::<bool>(&query, &[&columns.0, &columns.1]), expected, "{guard} of {columns:?}");
        }
    }
}

/// The texts that the extension runs, on every row of the queue that differs from the expected one in nothing, the stamp, the
/// attempts, or both; and where there is none.
#[test]
fn guards_of_the_queue_are_what_the_protocol_says() {
    let app = table("queue");
    let mut admin = app.admin();
    let prepare = |admin: &mut server_tests::postgres::Client, name: &str, types: &str, text: &str| {
        let statement = format!("PREPARE {name} ({types}) AS {text}");
        admin.batch_execute(&statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    };
    prepare(&mut admin, "finish", "oid, uuid, timestamptz, int4", protocol::FINISH);
    prepare(&mut admin, "put_back", "oid, uuid, timestamptz, int4, timestamptz, jsonb, int2", protocol::PUT_BACK);
    prepare(&mut admin, "put_back_free", "oid, uuid, timestamptz, int4, timestamptz", protocol::PUT_BACK_FREE);
    prepare(&mut admin, "is_queued", "oid, uuid, timestamptz", protocol::IS_QUEUED);
    let mut tried = [0, 0];
    for action in [Action::Run, Action::Fail, Action::Restart] {
        for (stamp, attempts) in [(4711, 3), (4711, 2), (4711, 4), (4712, 3), (4712, 2), (4710, 4)] {
            for conflicts in [0, 2, 30000] {
                let row = Queued { enqueued_at: stamp, attempts, conflicts, timing: Timing::Immediate };
                // Attempt 4 has three before it; what acts for attempt 3 expects it to be charged.
                let attempt = if action == Action::Run { 4 } else { 3 };
                let identity = Identity::of(4711, attempt, action);
                assert_eq!(identity, Identity { enqueued_at: 4711, attempts: 3 });
                tried[usize::from(row.is(identity))] += 1;
                for (call, expected) in [
                    ("finish", (!row.is(identity)).then_some(row)),
                    ("put_back", row.put_back(identity, Timing::Quarantine).or(Some(row))),
                    ("put_back_free", row.put_back_free(identity).or(Some(row))),
                    ("is_queued", Some(row)),
                ] {
                    let id = Uuid::new_v4();
                    plant(&app, id, row);
                    let key =
                        format!("'public.background_jobs'::regclass, '{id}', timestamptz 'epoch' + interval '4711 us'");
                    let rest = match call {
                        "finish" => format!(", {}", identity.attempts),
                        "put_back" => format!(", {}, now(), NULL, {}", identity.attempts, Timing::Quarantine as i16),
                        "put_back_free" => format!(", {}, now()", identity.attempts),
                        _ => String::new(),
                    };
                    let done = admin
                        .simple_query(&format!("EXECUTE {call} ({key}{rest})"))
                        .unwrap_or_else(|e| panic!("{call}: {e:?}"));
                    let touched = done.iter().any(|message| {
                        matches!(message, server_tests::postgres::SimpleQueryMessage::CommandComplete(1))
                    });
                    let expected_to = match call {
                        "is_queued" => protocol::is_queued(Some(row.enqueued_at), identity.enqueued_at),
                        _ => row.is(identity),
                    };
                    assert_eq!(touched, expected_to, "{call} of {row:?}");
                    assert_eq!(queued(&app, id), expected, "{call} of {row:?}");
                }
            }
        }
    }
    assert!(tried.iter().all(|times| *times > 0), "both sides of the guard were tried: {tried:?}");
}
