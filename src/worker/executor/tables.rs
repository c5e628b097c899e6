//! The job tables that this executor has met: checked under a lock, with their prepared statements.

use crate::job_table::{self, Statements};
use crate::pg::relation::{self, Lock};
use pgrx::pg_sys::Oid;
use std::collections::HashMap;
use std::rc::Rc;

#[derive(Default)]
pub struct Tables {
    known: HashMap<u32, Rc<Statements>>,
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
        job_table::check_shape(&relation, &options).ok()?;
        if !self.known.get(&oid).is_some_and(|known| known.fit(&relation, &options)) {
            self.known.insert(oid, Rc::new(Statements::new(&relation, &options)));
        }
        self.known.get(&oid).cloned()
    }
}
