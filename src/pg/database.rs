//! Databases: the shared catalog, and what this one has installed.

use crate::pg::encoding;
use crate::pg::spi::{self, Statement};
use pgrx::pg_sys;

#[derive(Debug, Clone)]
pub struct Database {
    pub oid: pg_sys::Oid,
    pub name: String,
    /// Allows connections and is no template.
    pub usable: bool,
}

/// All databases. Needs no database connection of the session.
pub fn all() -> Vec<Database> {
    let mut found = Vec::new();
    // SAFETY: a scan of a shared catalog inside a transaction, closed before the function returns; the fixed part of each
    // tuple is copied while the scan holds it.
    unsafe {
        let catalog = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            catalog,
            pg_sys::Oid::INVALID,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            found.push(Database {
                oid: form.oid,
                name: encoding::from_c(form.datname.data.as_ptr()).unwrap_or_default(),
                // A negative limit other than -1 marks a database whose DROP was cut short.
                usable: form.datallowconn && !form.datistemplate && form.datconnlimit >= -1,
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, pg_sys::AccessShareLock as i32);
    }
    found
}

/// The database's id if it exists and the current user owns it, so that a command of theirs on it can succeed.
pub fn owned_by_current_user(name: &str) -> Option<pg_sys::Oid> {
    let name = encoding::to_c(name);
    // SAFETY: look-ups inside a transaction.
    unsafe {
        let oid = pg_sys::get_database_oid(name.as_ptr(), true);
        if oid == pg_sys::Oid::INVALID {
            return None;
        }
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let owned = pg_sys::pg_database_ownercheck(oid, pg_sys::GetUserId());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let owned = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, oid, pg_sys::GetUserId());
        owned.then_some(oid)
    }
}

pub fn current() -> pg_sys::Oid {
    // SAFETY: set once when the session was opened.
    unsafe { pg_sys::MyDatabaseId }
}

pub fn current_name() -> String {
    // SAFETY: a look-up inside a transaction; the result is a palloc'd string or null.
    unsafe { encoding::from_c(pg_sys::get_database_name(pg_sys::MyDatabaseId)).unwrap_or_default() }
}

/// May the role connect to this database?
pub fn may_connect(role: pg_sys::Oid) -> bool {
    let privilege = pg_sys::ACL_CONNECT as pg_sys::AclMode;
    // SAFETY: a look-up inside a transaction.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let result = pg_sys::pg_database_aclcheck(pg_sys::MyDatabaseId, role, privilege);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let result = pg_sys::object_aclcheck(pg_sys::DatabaseRelationId, pg_sys::MyDatabaseId, role, privilege);
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Is the extension installed in this database?
pub fn has_extension() -> bool {
    // SAFETY: a look-up inside a transaction.
    unsafe { pg_sys::get_extension_oid(c"background_jobs".as_ptr(), true) != pg_sys::Oid::INVALID }
}

/// Locks the extension against being dropped until the transaction ends, and returns its OID. None: it is not, or no longer,
/// installed. Waits for nobody: anybody may lock an extension by ALTER FUNCTION ... DEPENDS ON EXTENSION, and keep that up.
pub fn lock_extension() -> Option<pg_sys::Oid> {
    // SAFETY: look-ups and a lock inside a transaction.
    unsafe {
        let oid = pg_sys::get_extension_oid(c"background_jobs".as_ptr(), true);
        if oid == pg_sys::Oid::INVALID {
            return None;
        }
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: pg_sys::ExtensionRelationId.to_u32(),
            locktag_field3: oid.to_u32(),
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        pg_sys::LockAcquire(&tag, pg_sys::AccessShareLock as i32, false, true);
        pg_sys::AcceptInvalidationMessages();
        (pg_sys::get_extension_oid(c"background_jobs".as_ptr(), true) == oid).then_some(oid)
    }
}

/// Is pg_restore connected to this database? Anybody can call a session so: heeded are those whose role could stop everything
/// here in other ways, superusers and whoever is, or can become, the database's owner.
pub fn is_being_restored() -> bool {
    thread_local! {
        static STATEMENT: &'static Statement = Box::leak(Box::new(Statement::new(
            "SELECT 1 FROM pg_catalog.pg_stat_get_activity(NULL) a
               JOIN pg_catalog.pg_database d ON d.oid = a.datid
              WHERE a.datid = $1 AND a.application_name = 'pg_restore'
                AND pg_catalog.pg_has_role(a.usesysid, d.datdba, 'MEMBER')",
            &[pg_sys::OIDOID],
        )));
    }
    STATEMENT.with(|statement| statement.read(&[spi::oid(current())], 1).processed > 0)
}
