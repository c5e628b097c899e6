//! After the storm: everything is let finish, and then the idle server is tried.

use crate::history::{Outcome, Submission, What, now};
use crate::run::{Run, Session};
use crate::scene::{CLIENT, POLL_SECONDS};
use crate::workload::{begin, end};
use server_tests::postgres::{Client, Error};
use server_tests::wait::{attempt, yes};
use server_tests::{Uuid, json};
use std::time::{Duration, Instant};

/// Something becomes final within this: delays are below a second, the longest run takes two, and what has no delay is picked
/// up at once or by a poll.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// With a planted bug: the sooner it is found the better.
pub const IMPATIENCE: Duration = Duration::from_secs(8);

/// Puts the settings back, decides the prepared transactions, and waits until nothing is unfinished.
pub fn drain(run: &Run, patience: Duration) -> Duration {
    let begun = Instant::now();
    let mut admin = Session::new(run, "postgres", "postgres");
    for statement in ["ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()"] {
        insist(&mut admin, |client| client.batch_execute(statement));
    }
    let prepared = insist(&mut admin, |client| client.query("SELECT gid, database FROM pg_prepared_xacts", &[]));
    for row in prepared {
        let (gid, database): (String, String) = (row.get(0), row.get(1));
        insist(&mut Session::new(run, &database, "postgres"), |client| roll_back(client, &gid));
        run.history.rolled_back(&gid);
    }
    let mut sessions: Vec<Session> =
        run.tables.iter().map(|table| Session::new(run, &table.database, "postgres")).collect();
    let mut left = unfinished(run, &mut sessions);
    // Patience begins anew with each that becomes final.
    while !left.is_empty() {
        let before = left.len();
        let fewer = || {
            left = unfinished(run, &mut sessions);
            yes(left.len() < before)
        };
        if attempt(patience, "another job to become final", fewer).is_err() {
            for (number, job) in &left {
                let query = "SELECT q::text FROM background_jobs.queue q WHERE job_id = $1";
                let queued = insist(&mut sessions[*number], |client| client.query(query, &[job]));
                let queued = queued.first().map_or("in no queue", |row| row.get(0));
                let text = format!("not final {:.0} s after the storm; {queued}", begun.elapsed().as_secs_f64());
                run.violated("I1", Some(*number), Some(*job), text);
            }
            break;
        }
    }
    begun.elapsed()
}

/// Jobs by the number of their table.
fn unfinished(run: &Run, sessions: &mut [Session]) -> Vec<(usize, Uuid)> {
    let mut left = Vec::new();
    for (number, table) in run.tables.iter().enumerate() {
        let query = format!("SELECT id FROM {} WHERE NOT completed AND NOT cancelled", table.name());
        let rows = insist(&mut sessions[number], |client| client.query(&query, &[]));
        left.extend(rows.iter().map(|row| (number, row.get::<_, Uuid>(0))));
    }
    left
}

/// It may be gone: the session may have ended after it was rolled back.
fn roll_back(client: &mut Client, gid: &str) -> Result<(), Error> {
    let is_there = "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1)";
    if client.query_one(is_there, &[&gid])?.get(0) {
        client.batch_execute(&format!("ROLLBACK PREPARED '{gid}'"))?;
    }
    Ok(())
}

/// What is done until it is done: poison that is left takes the server down as before.
fn insist<T>(session: &mut Session, mut f: impl FnMut(&mut Client) -> Result<T, Error>) -> T {
    let begun = Instant::now();
    loop {
        match session.get().map(&mut f) {
            Some(Ok(value)) => return value,
            Some(Err(error)) if Outcome::of_error(&error) == Outcome::Failed => panic!("{error:?}"),
            other => assert!(
                begun.elapsed() < PATIENCE,
                "the server takes no connections: {:?}",
                other.and_then(Result::err)
            ),
        }
    }
}

/// Jobs one at a time, each in a lane of its own: nobody else's wake-up makes up for one that was lost (I11). Returns the longest
/// time from the commit to the end.
pub fn probe(run: &Run) -> f64 {
    let limit = POLL_SECONDS + 1.0;
    let mut longest = 0.0_f64;
    let mut rng = run.rng(2);
    for priority in 0..12_i32 {
        for (number, table) in run.tables.iter().enumerate() {
            let mut client = run.cluster.connect(&table.database, CLIENT);
            let (name, job) = (table.name(), Uuid::from_u128(rng.u128(..)));
            let enqueue =
                format!("SELECT background_jobs.enqueue('quick', $1, priority => $2, id => $3, job_table => '{name}')");
            let payload = json!({ "handler": "quick", "seq": 1 });
            let one = Submission { job, seq: 1, kind: "quick", child: None };
            let operation = begin(number, "probe", What::Insert(vec![one]));
            let result = client.execute(&enqueue, &[&payload, &(100 + priority), &job]);
            result.unwrap_or_else(|e| panic!("{enqueue}: {e:?}"));
            let committed = now();
            end(run, operation, Outcome::Acknowledged);
            let query = format!("SELECT completed FROM {name} WHERE id = $1");
            // That it was too late is told below, with how long it took.
            let completed = || yes(client.query_one(&query, &[&job]).is_ok_and(|row| row.get(0)));
            let _ = attempt(Duration::from_secs_f64(3.0 * limit), "the probe", completed);
            let took = now() - committed;
            longest = longest.max(took);
            if took > limit {
                let text = format!("a job on an idle server was not completed within {limit} s of its commit");
                run.violated("I11", Some(number), Some(job), text);
                return longest;
            }
        }
    }
    longest
}
