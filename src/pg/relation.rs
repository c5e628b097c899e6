//! What the catalogs say about a relation, read under a lock.

use crate::pg::{encoding, index, partition};
use pgrx::pg_sys;
use std::ffi::c_char;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub type_id: pg_sys::Oid,
    pub generated: bool,
}

#[derive(Debug, Clone)]
pub struct Trigger {
    pub name: String,
    /// As in pg_trigger.tgenabled: 'O', 'D', 'R' or 'A'.
    pub enabled: char,
    pub arguments: Vec<String>,
    /// It is the partitioned table's, in its partition.
    pub is_clone: bool,
}

#[derive(Debug, Clone)]
pub struct Relation {
    pub oid: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    /// As in pg_class.relkind.
    pub kind: char,
    /// As in pg_class.relpersistence.
    pub persistence: char,
    pub is_partition: bool,
    pub schema: String,
    pub name: String,
    pub columns: Vec<Column>,
    pub triggers: Vec<Trigger>,
    /// See `partition::key`.
    pub partition_key: Vec<Option<String>>,
    /// Code of its owner's may run when a row is updated, but for triggers: rules, policies, constraints, generated columns and
    /// what indexes compute; or other tables are updated with it. Of a partitioned table: partitions aside.
    pub has_code: bool,
}

/// How strongly the relation is locked until the end of the transaction.
#[derive(Clone, Copy)]
pub enum Lock {
    /// Against being dropped or changed, unless somebody holds it against that: waits for nobody.
    ReadIfFree,
    /// Against being dropped or changed.
    Read,
    /// As a writer.
    Write,
    /// Against writers, as CREATE TRIGGER does.
    Define,
}

unsafe fn string(p: *const c_char) -> String {
    // SAFETY: the caller passes a nul-terminated string of the catalogs.
    unsafe { encoding::from_c(p).unwrap_or_default() }
}

impl Lock {
    fn mode(self) -> pg_sys::LOCKMODE {
        let mode = match self {
            Self::Read | Self::ReadIfFree => pg_sys::AccessShareLock,
            Self::Write => pg_sys::RowExclusiveLock,
            Self::Define => pg_sys::ShareRowExclusiveLock,
        };
        mode as pg_sys::LOCKMODE
    }
}

/// Locks what has this OID, if it is a relation (still), and hears of every change that was committed before. False:
/// somebody else has it, and `lock` does not wait.
pub fn lock(oid: pg_sys::Oid, lock: Lock) -> bool {
    // SAFETY: inside a transaction, which releases the lock at its end.
    unsafe {
        match lock {
            Lock::ReadIfFree => pg_sys::ConditionalLockRelationOid(oid, lock.mode()),
            _ => {
                pg_sys::LockRelationOid(oid, lock.mode());
                true
            }
        }
    }
}

/// Rises whenever something that a `Relation` holds may have changed, of whatever relation. To be asked after `lock`.
pub fn changes() -> u64 {
    static WATCHED: Once = Once::new();
    unsafe extern "C-unwind" fn on_relation(_: pg_sys::Datum, _: pg_sys::Oid) {
        CHANGES.fetch_add(1, Ordering::Relaxed);
    }
    unsafe extern "C-unwind" fn on_schema(_: pg_sys::Datum, _: i32, _: u32) {
        CHANGES.fetch_add(1, Ordering::Relaxed);
    }
    WATCHED.call_once(|| {
        let schemas = pg_sys::SysCacheIdentifier::NAMESPACEOID as i32;
        // SAFETY: once per process; the callbacks count and cannot fail.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(on_relation), pg_sys::Datum::from(0));
            pg_sys::CacheRegisterSyscacheCallback(schemas, Some(on_schema), pg_sys::Datum::from(0));
        }
    });
    CHANGES.load(Ordering::Relaxed)
}

static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Locks the relation and reads it. None: there is no such relation (any more).
pub fn open(oid: pg_sys::Oid, how: Lock) -> Option<Relation> {
    if matches!(how, Lock::ReadIfFree) && !lock(oid, how) {
        return None;
    }
    // SAFETY: inside a transaction; the pointers read belong to the relation cache entry, which stays put while the
    // relation is open; everything is copied before it is closed. The lock stays until the transaction's end.
    unsafe {
        let relation = pg_sys::try_relation_open(oid, how.mode());
        if relation.is_null() {
            return None;
        }
        let form = &*(*relation).rd_rel;
        let read = Relation {
            oid,
            owner: form.relowner,
            kind: form.relkind as u8 as char,
            persistence: form.relpersistence as u8 as char,
            is_partition: form.relispartition,
            schema: namespace_name(form.relnamespace).unwrap_or_default(),
            name: string(form.relname.data.as_ptr()),
            columns: columns(relation),
            triggers: triggers(relation),
            partition_key: partition::key(relation),
            has_code: has_code(relation),
        };
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        Some(read)
    }
}

unsafe fn columns(relation: pg_sys::Relation) -> Vec<Column> {
    // SAFETY: the caller holds the relation open; attribute i is within natts.
    unsafe {
        let descriptor = (*relation).rd_att;
        (0..(*descriptor).natts as usize)
            .map(|i| &*attribute(descriptor, i))
            .filter(|column| !column.attisdropped)
            .map(|column| Column {
                name: string(column.attname.data.as_ptr()),
                type_id: column.atttypid,
                generated: column.attgenerated != 0,
            })
            .collect()
    }
}

/// Attribute `i` of a tuple descriptor, counted from 0.
///
/// # Safety
/// `descriptor` is valid and has more than `i` attributes.
pub unsafe fn attribute(descriptor: pg_sys::TupleDesc, i: usize) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: by the caller's promise; from 18 on the attributes lie behind the compact ones.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return (*descriptor).attrs.as_ptr().add(i);
        #[cfg(feature = "pg18")]
        return pg_sys::TupleDescAttr(descriptor, i as i32);
    }
}

unsafe fn has_code(relation: pg_sys::Relation) -> bool {
    // SAFETY: the caller holds the relation open; its indexes are open while they are looked at.
    unsafe {
        let form = &*(*relation).rd_rel;
        let constraints = (*(*relation).rd_att).constr;
        let computes = |constraints: &pg_sys::TupleConstr| {
            constraints.num_check > 0 || constraints.has_generated_stored || has_virtual_columns(constraints)
        };
        let partitioned = form.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
        if !(partitioned || form.relkind as u8 == pg_sys::RELKIND_RELATION)
            || form.relhasrules
            || form.relrowsecurity
            || (form.relhassubclass && !partitioned)
            || constraints.as_ref().is_some_and(computes)
        {
            return true;
        }
        !index::each(relation, pg_sys::AccessShareLock, |index| {
            !index::has(index, pg_sys::Anum_pg_index_indexprs) && !index::has(index, pg_sys::Anum_pg_index_indpred)
        })
    }
}

/// From 18 on: a column that is computed whenever it is read is computed by a write, too, if it is NOT NULL.
fn has_virtual_columns(constraints: &pg_sys::TupleConstr) -> bool {
    #[cfg(feature = "pg18")]
    return constraints.has_generated_virtual;
    #[cfg(not(feature = "pg18"))]
    {
        let _ = constraints;
        false
    }
}

unsafe fn triggers(relation: pg_sys::Relation) -> Vec<Trigger> {
    // SAFETY: the caller holds the relation open; the description is part of its cache entry.
    unsafe {
        let description = (*relation).trigdesc;
        if description.is_null() {
            return Vec::new();
        }
        (0..(*description).numtriggers as usize)
            .map(|i| &*(*description).triggers.add(i))
            .map(|trigger| Trigger {
                name: string(trigger.tgname),
                enabled: trigger.tgenabled as u8 as char,
                arguments: (0..trigger.tgnargs as usize).map(|n| string(*trigger.tgargs.add(n))).collect(),
                is_clone: trigger.tgisclone,
            })
            .collect()
    }
}

fn namespace_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: a look-up inside a transaction; the result is a palloc'd string or null.
    unsafe {
        let name = pg_sys::get_namespace_name(oid);
        (!name.is_null()).then(|| string(name))
    }
}

/// The owner, or none if there is no such relation.
pub fn owner(oid: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: a look-up inside a transaction; the tuple is released before the function returns.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, pg_sys::Datum::from(oid));
        if tuple.is_null() {
            return None;
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}

/// The name without its schema, or none if there is no such relation.
pub fn name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: a look-up inside a transaction; the result is a palloc'd string or null.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        (!name.is_null()).then(|| string(name))
    }
}

/// `schema.name`, in quotes.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote(schema), quote(name))
}

/// An identifier, always in quotes.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Relation {
    pub fn qualified_name(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// May a change of the column move a row to another partition?
    pub fn is_partitioned_by(&self, column: &str) -> bool {
        self.partition_key.iter().any(|key| key.as_deref().is_none_or(|key| key == column))
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// The topmost partitioned table whose trigger `trigger` is a copy of, or the trigger's own table: row triggers of a
/// partitioned table are cloned into its partitions, where they fire.
pub fn root_of_trigger(trigger: pg_sys::Oid, relation: pg_sys::Oid) -> pg_sys::Oid {
    let (mut trigger, mut relation) = (trigger, relation);
    // SAFETY: an index scan of pg_trigger inside a transaction, closed before the function returns; a column of the
    // fixed part of the tuple is read while the scan holds it.
    unsafe {
        let catalog = pg_sys::table_open(pg_sys::TriggerRelationId, pg_sys::AccessShareLock as i32);
        loop {
            let mut key = pg_sys::ScanKeyData::default();
            pg_sys::ScanKeyInit(
                &mut key,
                pg_sys::Anum_pg_trigger_oid as i16,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::Oid::from(pg_sys::F_OIDEQ).to_u32().into(),
                pg_sys::Datum::from(trigger),
            );
            let scan = pg_sys::systable_beginscan(
                catalog,
                pg_sys::Oid::from(pg_sys::TriggerOidIndexId),
                true,
                std::ptr::null_mut(),
                1,
                &mut key,
            );
            let tuple = pg_sys::systable_getnext(scan);
            let parent = if tuple.is_null() {
                pg_sys::Oid::INVALID
            } else {
                let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_trigger>();
                relation = form.tgrelid;
                form.tgparentid
            };
            pg_sys::systable_endscan(scan);
            if parent == pg_sys::Oid::INVALID {
                break;
            }
            trigger = parent;
        }
        pg_sys::table_close(catalog, pg_sys::AccessShareLock as i32);
    }
    relation
}
