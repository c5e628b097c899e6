//! What the current user may do to a relation.

use crate::pg::relation::owner;
use crate::pg::role;
use pgrx::pg_sys;

/// May the current user SELECT from the relation, seeing all of its rows? False if there is none.
pub fn may_select(oid: pg_sys::Oid) -> bool {
    let owned = owner(oid).is_some_and(role::is_member_of);
    has_privilege(oid, pg_sys::ACL_SELECT) && (owned || !hides_rows(oid))
}

/// May a policy keep rows of the relation from the current user?
pub fn hides_rows(oid: pg_sys::Oid) -> bool {
    // SAFETY: a look-up inside a transaction; one that is gone has no policies.
    unsafe {
        let security = pg_sys::check_enable_rls(oid, pg_sys::Oid::INVALID, true);
        security == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
    }
}

/// May the current user INSERT into the relation, or into some of its columns? True if there is none: the error is another.
pub fn may_insert(oid: pg_sys::Oid) -> bool {
    if owner(oid).is_none() || has_privilege(oid, pg_sys::ACL_INSERT) {
        return true;
    }
    // SAFETY: a look-up inside a transaction.
    unsafe {
        let (wanted, how) = (pg_sys::ACL_INSERT as pg_sys::AclMode, pg_sys::AclMaskHow::ACLMASK_ANY);
        pg_sys::pg_attribute_aclcheck_all(oid, pg_sys::GetUserId(), wanted, how) == pg_sys::AclResult::ACLCHECK_OK
    }
}

fn has_privilege(oid: pg_sys::Oid, privilege: u32) -> bool {
    if owner(oid).is_none() {
        return false;
    }
    // SAFETY: a look-up inside a transaction.
    unsafe {
        let wanted = privilege as pg_sys::AclMode;
        pg_sys::pg_class_aclcheck(oid, pg_sys::GetUserId(), wanted) == pg_sys::AclResult::ACLCHECK_OK
    }
}
