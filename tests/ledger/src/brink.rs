//! Jobs that are taken back at the moment of their completion, without chance: their dispatcher is stopped meanwhile, so no
//! interrupt comes, and whether anything of the run is left is up to the guard of the row and the fence alone.

use crate::history::{Outcome, Submission, What};
use crate::nemesis::targets;
use crate::rhythm::pause;
use crate::run::Run;
use crate::scene::CLIENT;
use crate::workload::{Take, Way, begin, end, new_id, payload};
use nix::sys::signal::Signal;
use server_tests::{json, wait};
use std::time::Duration;

/// The dispatcher goes on after that, whatever happened: it may have been stopped while others wait for it.
const PAUSE: u64 = 400;

/// No longer than that: a job that a planted bug keeps from starting, or from ending, is for the drain to find.
const PATIENCE: Duration = Duration::from_secs(3);

/// On the idle server after the storm; a drain follows.
pub fn try_all(run: &Run) {
    let mut rng = run.rng(3);
    for way in [Way::Update, Way::Function, Way::Delete, Way::Replace(1_000_000)] {
        for (number, table) in run.tables.iter().enumerate() {
            // The others' snapshots do not see what is committed while they run.
            if table.owner == "ada" {
                let one = Submission { job: new_id(&mut rng), seq: 1, kind: "brink", child: None };
                try_one(run, number, one, way);
            }
        }
    }
}

fn try_one(run: &Run, number: usize, one: Submission, way: Way) {
    let table = &run.tables[number];
    let mut client = run.cluster.connect(&table.database, CLIENT);
    let mut admin = run.cluster.admin(&table.database);
    let mut payload = payload(&one);
    payload["steps"] = json!(10_000);
    let insert = format!("INSERT INTO {} (id, payload) VALUES ($1, $2)", table.name());
    let operation = begin(number, "brink", What::Insert(vec![one]));
    client.execute(&insert, &[&one.job, &payload]).unwrap_or_else(|e| panic!("{insert}: {e:?}"));
    end(run, operation, Outcome::Acknowledged);
    // Nothing in its handler sleeps but the loop.
    let in_its_loop = "SELECT EXISTS (SELECT FROM background_jobs.workers JOIN pg_stat_activity USING (pid)
        WHERE job_id = $1 AND role = 'executor' AND wait_event = 'PgSleep')";
    let gone = "SELECT NOT EXISTS (SELECT FROM background_jobs.workers WHERE job_id = $1 AND role = 'executor')";
    let mut wait_for = |state: &str| {
        let _ = wait::attempt(PATIENCE, state, || {
            wait::yes(admin.query_one(state, &[&one.job]).is_ok_and(|row| row.get(0)))
        });
    };
    wait_for(in_its_loop);
    let dispatchers = targets::find(&run.cluster, targets::Target::Dispatcher);
    let signal = |signal| {
        for pid in &dispatchers {
            targets::send(&run.cluster, *pid, signal);
        }
    };
    signal(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pause(PAUSE);
            signal(Signal::SIGCONT);
        });
        Take { run, table: number, one, hold: 0.0, client: &mut client }.by(way);
        wait_for(gone);
    });
}
