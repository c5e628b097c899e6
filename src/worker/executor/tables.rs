//! The job tables that this executor has met: checked under a lock, with their prepared statements.

use crate::job_table::{self, Statements};
use crate::owner;
use crate::pg::error::PgError;
use crate::pg::partition;
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

/// A partition as it was found.
struct KnownPart {
    table: u32,
    /// See `partition::way`.
    way: Rc<[Oid]>,
    /// As `Statements::plain`, of all on the way.
    plain: bool,
    changes: u64,
}

/// Partitions that are kept in mind; those that were dropped are among them.
const PARTS: usize = 10_000;

/// Whether one can go where a row was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// That part of the table is there, and locked.
    There,
    /// Somebody else has it locked, and `lock` does not wait.
    Busy,
    /// It is no part of the table any more.
    Gone,
}

#[derive(Default)]
pub struct Tables {
    known: HashMap<u32, Known>,
    parts: HashMap<u32, KnownPart>,
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

    /// Locks the parts of an open table that have, or had, rows: partitions, and 0 for the table itself. Names each once.
    pub fn reach(&mut self, table: u32, parts: impl Iterator<Item = u32>, lock: Lock) -> Vec<(u32, Reach)> {
        let mut reached: Vec<(u32, Reach)> = Vec::new();
        for part in parts {
            if !reached.iter().any(|(known, _)| *known == part) {
                reached.push((part, self.reach_part(table, part, lock)));
            }
        }
        reached
    }

    fn reach_part(&mut self, table: u32, partition: u32, lock: Lock) -> Reach {
        if partition == 0 {
            return Reach::There;
        }
        let (root, part) = (Oid::from(table), Oid::from(partition));
        let known = self.parts.get(&partition).filter(|known| known.table == table);
        let way = known.map(|known| Rc::clone(&known.way)).or_else(|| partition::way(root, part).map(Rc::from));
        let Some(way) = way else { return Reach::Gone };
        if !way.iter().all(|oid| relation::lock(*oid, lock)) {
            return Reach::Busy;
        }
        let changes = relation::changes();
        if known.is_some_and(|known| known.changes == changes) {
            return Reach::There;
        }
        // Nobody changes the way under the locks.
        self.parts.remove(&partition);
        if self.parts.len() >= PARTS {
            self.parts.clear();
        }
        let Some(known) = self.known.get(&table).filter(|_| partition::way(root, part).as_deref() == Some(&way)) else {
            return Reach::Gone;
        };
        let statements = &known.statements;
        let is_plain = |oid: &Oid| relation::open(*oid, lock).is_some_and(|part| statements.is_plain_part(&part));
        let plain = way.iter().all(is_plain);
        self.parts.insert(partition, KnownPart { table, way, plain, changes });
        Reach::There
    }

    /// See `Statements::plain`, of a row in that partition; as of the last look.
    pub fn is_plain(&self, table: u32, partition: u32) -> bool {
        let part = || self.parts.get(&partition).filter(|part| part.table == table);
        self.known.get(&table).is_some_and(|Known { statements, .. }| {
            statements.plain
                && match statements.partitioned {
                    true => part().is_some_and(|part| part.plain),
                    false => partition == 0,
                }
        })
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
