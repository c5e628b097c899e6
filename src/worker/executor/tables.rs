//! The job tables that this executor has met: checked under a lock, with their prepared statements.

use crate::job_table::{self, Statements};
use crate::owner;
use crate::pg::error::PgError;
use crate::pg::relation::{self, Lock};
use pgrx::pg_sys::Oid;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// What is complained about, where the message does not say it.
const DETACHED: &str = "detached";

/// A table as it was found.
struct Known {
    statements: Rc<Statements>,
    owner: Oid,
    /// `relation::changes` when it was looked at.
    changes: u64,
}

#[derive(Default)]
pub struct Tables {
    known: HashMap<u32, Known>,
    /// What was said about tables already.
    complained: HashSet<(u32, String)>,
    /// The table that the end of a run waits for; after an error the one that it waited for in vain.
    pub waits_for: Option<u32>,
}

impl Tables {
    /// Locks the table and makes sure that it is still what its jobs were submitted to: there, attached, and owned by the
    /// role that this session belongs to. None: its jobs cannot be run now.
    pub fn open(&mut self, oid: u32, lock: Lock) -> Option<Rc<Statements>> {
        if !relation::lock(Oid::from(oid), lock) {
            return None;
        }
        // Before the look: a change meanwhile counts as one after it.
        let changes = relation::changes();
        if let Some(known) = self.known.get(&oid)
            && known.changes == changes
        {
            return owner::is_served_here(known.owner).then(|| Rc::clone(&known.statements));
        }
        let relation = relation::open(Oid::from(oid), lock)?;
        if !owner::is_served_here(relation.owner) {
            return None;
        }
        let Some(options) = job_table::attachment(&relation) else {
            let name = relation.qualified_name();
            let message = format!("job table {name} is not attached, or its triggers are disabled");
            let problem = job_table::unattached(&relation, message).detail("Its jobs wait.");
            self.complain(oid, DETACHED.to_string(), &problem);
            return None;
        };
        self.complained.remove(&(oid, DETACHED.to_string()));
        if job_table::fires_in_replication(&relation) {
            self.complained.remove(&(oid, String::new()));
        } else {
            let name = relation.qualified_name();
            let message = format!("triggers of job table {name} are not enabled ALWAYS");
            let problem =
                job_table::unattached(&relation, message).detail("Rows that arrive by replication are not submitted.");
            self.complain(oid, String::new(), &problem);
        }
        if let Err(problem) = job_table::check_shape(&relation, &options) {
            self.complain(oid, problem.message.clone(), &problem);
            return None;
        }
        let statements = match self.known.remove(&oid) {
            Some(known) if known.statements.fit(&relation, &options) => known.statements,
            _ => Rc::new(Statements::new(&relation, &options)),
        };
        self.known.insert(oid, Known { statements: Rc::clone(&statements), owner: relation.owner, changes });
        Some(statements)
    }

    /// See `Statements::plain`; as of the last look.
    pub fn is_plain(&self, table: u32) -> bool {
        self.known.get(&table).is_some_and(|known| known.statements.plain)
    }

    /// Has the table's statements prepared anew.
    pub fn forget(&mut self, table: u32) {
        self.known.remove(&table);
    }

    /// Logs a problem of a table once.
    pub fn complain(&mut self, table: u32, about: String, problem: &PgError) {
        if self.complained.len() < 100 && self.complained.insert((table, about)) {
            problem.log();
        }
    }
}
