//! The job tables that this executor has met: checked under a lock, with their prepared statements.

use crate::job_table::{self, Options, Statements};
use crate::pg::relation::{self, Lock};
use pgrx::pg_sys::Oid;
use std::collections::HashMap;
use std::rc::Rc;

/// A job table as the current transaction may use it.
pub struct Table {
    pub statements: Statements,
    pub options: Options,
}

#[derive(Default)]
pub struct Tables {
    known: HashMap<u32, Rc<Table>>,
}

impl Tables {
    /// Locks the table and makes sure that it is still what its jobs were submitted to: there, attached, and owned by the
    /// role that this session belongs to. None: its jobs cannot be run now.
    pub fn open(&mut self, oid: u32, lock: Lock) -> Option<Rc<Table>> {
        let relation = relation::open(Oid::from(oid), lock)?;
        if !super::is_owners_session(relation.owner) {
            return None;
        }
        let options = job_table::attachment(&relation)?;
        job_table::check_shape(&relation, &options).ok()?;
        if !self.known.get(&oid).is_some_and(|known| known.statements.fit(&relation, &options)) {
            let statements = Statements::new(&relation, &options);
            self.known.insert(oid, Rc::new(Table { statements, options }));
        }
        self.known.get(&oid).cloned()
    }
}
