//! What ran when the server crashed, according to the journal.

use super::Dispatcher;
use crate::catalog;
use crate::gucs;
use crate::job::{Setback, Timing};
use crate::journal::{self, Verdict};
use crate::pg::error::PgError;
use crate::pg::{database, guc, spi, xact};
use crate::planted::{self, Bug};
use crate::shmem::{Action, Assignment, monotone_now};
use pgrx::PgSqlErrorCode;
use std::time::Duration;

/// How long charging a suspect waits for whoever has its row locked; all other jobs wait meanwhile.
const LOCKED: Duration = Duration::from_millis(50);

/// How long bystanders of a crash wait for the accused of another database to be charged.
const DELIBERATION: Duration = Duration::from_secs(10);

impl Dispatcher {
    /// Charges the jobs that were running in this database when the server crashed, and lets them wait. Those that cannot be
    /// charged now (somebody has them locked) are not handed out before they are.
    pub fn charge_suspects(&mut self) {
        let mut suspects = journal::suspects(self.database);
        // Bystanders last: it is known then whether their accused could be charged.
        suspects.sort_by_key(|(_, entry)| entry.bystander);
        self.uncharged.clear();
        self.undecided = false;
        if suspects.is_empty() || planted::is(Bug::NoCrashCharge) {
            return;
        }
        let error = PgError::new(PgSqlErrorCode::ERRCODE_CRASH_SHUTDOWN, "the server crashed while the job ran")
            .hint("The server log says what happened.");
        let mut charged = 0;
        let quarantine = monotone_now() + gucs::crash_quarantine().as_micros() as i64;
        for (place, entry) in suspects {
            match journal::verdict(&entry) {
                Verdict::Charge => {}
                Verdict::Acquit => {
                    journal::close(place, false);
                    continue;
                }
                Verdict::Wait if self.begun.elapsed() < DELIBERATION => {
                    self.undecided = true;
                    self.uncharged.insert(entry.assignment.job());
                    continue;
                }
                // No dispatcher has come to that database.
                Verdict::Wait => {
                    journal::close(place, false);
                    continue;
                }
            }
            let charge = || {
                // Whatever the setting: what is charged has to stay charged if the server crashes again.
                guc::set_local(c"synchronous_commit", "on");
                database::has_extension().then(|| {
                    spi::connect(|| {
                        let document = catalog::error_document(&error);
                        let there = catalog::put_back(&entry.assignment, Timing::Quarantine, quarantine, document);
                        if there {
                            catalog::log_attempt(&entry.assignment, Setback::Crashed, document, entry.started_at, 0);
                        }
                        there
                    })
                })
            };
            match xact::transaction(|| guc::with_lock_timeout(LOCKED, charge)) {
                Ok(None) => {}
                Ok(Some(there)) => {
                    journal::close(place, there);
                    charged += usize::from(there);
                    let restart = Assignment { action: Action::Restart, suspect: false, ..entry.assignment };
                    self.restarts.push(restart);
                }
                Err(error) => {
                    self.uncharged.insert(entry.assignment.job());
                    self.complain("suspects".to_string(), &error.without_data());
                }
            }
        }
        if charged > 0 {
            say_charged(charged);
        }
    }
}

fn say_charged(jobs: usize) {
    let plural = if jobs == 1 { "job was" } else { "jobs were" };
    let quarantine = gucs::crash_quarantine().as_secs();
    PgError::new(
        PgSqlErrorCode::ERRCODE_CRASH_SHUTDOWN,
        format!("{jobs} background {plural} running when the server crashed"),
    )
    .detail(format!(
        "Each is charged an attempt, waits until background_jobs.crash_quarantine ({quarantine} s) is over, and then runs with no other of them."
    ))
    .hint("Call background_jobs.run_now() for one that need not wait.")
    .log();
}
