//! The job tables that this executor has met: checked under a lock, with their prepared statements.

use crate::job_table::{self, Statements};
use crate::pg::error::PgError;
use crate::pg::relation::{self, Lock};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::Oid;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

#[derive(Default)]
pub struct Tables {
    known: HashMap<u32, Rc<Statements>>,
    /// What was said about tables already.
    complained: HashSet<(u32, String)>,
}

impl Tables {
    /// Locks the table and makes sure that it is still what its jobs were submitted to: there, attached, and owned by the
    /// role that this session belongs to. None: its jobs cannot be run now.
    pub fn open(&mut self, oid: u32, lock: Lock) -> Option<Rc<Statements>> {
        let relation = relation::open(Oid::from(oid), lock)?;
        if !super::may_run_for(relation.owner) {
            return None;
        }
        let options = job_table::attachment(&relation)?;
        if job_table::fires_in_replication(&relation) {
            self.complained.remove(&(oid, String::new()));
        } else {
            let name = relation.qualified_name();
            let problem = PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("triggers of job table {name} are not enabled ALWAYS"),
            )
            .detail("Rows that arrive by replication are not submitted.")
            .hint(format!("Call background_jobs.attach('{name}')."));
            self.complain(oid, String::new(), &problem);
        }
        if let Err(problem) = job_table::check_shape(&relation, &options) {
            self.complain(oid, problem.message.clone(), &problem);
            return None;
        }
        if !self.known.get(&oid).is_some_and(|known| known.fit(&relation, &options)) {
            self.known.insert(oid, Rc::new(Statements::new(&relation, &options)));
        }
        self.known.get(&oid).cloned()
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
