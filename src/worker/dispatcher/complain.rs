//! What the log is told, once each: why jobs do not run.

use super::Dispatcher;
use crate::catalog::{self, Found};
use crate::gaps::{self, Gap, Step, Stretch};
use crate::pg::error::PgError;
use crate::pg::{relation, role};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::Oid;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

/// Unknown names that were complained about, of one owner's tables; beyond that many nobody reads the log. Anybody who may INSERT can make
/// some up, so they do not count for other owners, nor for the other complaints.
const UNKNOWN_NAMES: usize = 1000;

/// Names that are looked for at a time, and stretches of the queue between those of handlers that are looked through.
const NAMES: usize = 32;
const GAPS: usize = 1000;

/// What was said already.
#[derive(Default)]
pub struct Complaints {
    said: HashSet<String>,
    /// By owner.
    unknown_names: HashMap<u32, usize>,
    /// What keeps an owner's jobs from running: the message.
    owners: HashMap<u32, String>,
}

fn about_name(table: u32, name: &str) -> String {
    format!("handler {table} {name}")
}

impl Dispatcher {
    /// Looks for names that nobody handles, on from where it was left the last time.
    /// `others` are tables without any handler.
    pub fn complain_about_unhandled(&mut self, others: &[u32]) {
        let mut handled: BTreeMap<u32, Vec<Stretch>> = others.iter().map(|table| (*table, Vec::new())).collect();
        for handler in self.handlers.values() {
            handled.entry(handler.table).or_default().push(gaps::of_handler(handler.lanes));
        }
        let from = self.unhandled_from;
        let mut gaps = Vec::new();
        for (table, handled) in handled.split_off(&from.0) {
            let part = if table == from.0 { from.1..=i64::MAX } else { gaps::LANES };
            gaps.extend(gaps::between(part, handled).into_iter().map(|lanes| Gap { table, lanes }));
        }
        let later = gaps.get(GAPS).map(|gap| (gap.table, *gap.lanes.start()));
        gaps.truncate(GAPS);
        let found = catalog::in_gaps(&gaps, Step::Handler, NAMES);
        let place = |found: &Found| (gaps[found.gap].table, *gaps::of_handler(found.lane).end());
        let last = found.last().filter(|_| found.len() == NAMES);
        self.unhandled_from = last.map(place).or(later).unwrap_or((0, i64::MIN));
        for unhandled in found {
            self.complain_unhandled(gaps[unhandled.gap].table, &unhandled.handler);
        }
    }

    /// Says that nobody handles the name, unless that is only what was not told: a restore, and a table that is given back to its former
    /// owner, bring handlers without a word.
    pub fn complain_unhandled(&mut self, table: u32, name: &str) {
        let Some(owner) = relation::owner(Oid::from(table)).filter(|_| !self.restoring) else { return };
        let said = self.complaints.unknown_names.get(&owner.to_u32()).copied().unwrap_or(0);
        if said >= UNKNOWN_NAMES || self.complaints.said.contains(&about_name(table, name)) {
            return;
        }
        let registered_by = catalog::registered_by(table, name);
        if registered_by == Some(owner) {
            self.next_poll = Instant::now();
            return;
        }
        let table_name = relation::name(Oid::from(table)).unwrap_or_else(|| table.to_string());
        let problem = PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION,
            format!("no handler named \"{name}\" is registered for job table \"{table_name}\""),
        );
        let role_name = |role: Oid| role::name(role).unwrap_or_else(|| role.to_u32().to_string());
        let problem = match registered_by.map(role_name) {
            Some(former) => problem
                .detail(format!(
                    "It was registered by the former owner \"{former}\" and is not run for \"{}\".",
                    role_name(owner)
                ))
                .hint("Register it again with background_jobs.register_handler(), as the owner of the table."),
            None => problem
                .detail("Its jobs are kept and run as soon as there is one.")
                .hint("Register it with background_jobs.register_handler(), as the owner of the table."),
        };
        self.complain(about_name(table, name), &problem);
        self.complaints.unknown_names.insert(owner.to_u32(), said + 1);
    }

    /// It is handled now: should it not be once more, that is said once more.
    pub fn forget_unhandled(&mut self, table: u32, name: &str) {
        self.complaints.said.remove(&about_name(table, name));
    }

    /// Says once why an owner's jobs do not run; again, if it comes back.
    pub fn complain_of_owner(&mut self, owner: u32, problem: Option<&PgError>) {
        let owners = &mut self.complaints.owners;
        let Some(problem) = problem else { return drop(owners.remove(&owner)) };
        let before = owners.insert(owner, problem.message.clone());
        if before.as_ref() != Some(&problem.message) {
            problem.log();
        }
    }

    /// Logs a problem once.
    pub fn complain(&mut self, about: String, problem: &PgError) {
        if self.complaints.said.insert(about) {
            problem.log();
        }
    }
}
