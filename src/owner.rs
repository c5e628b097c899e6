//! Who may own a job table: its jobs run in sessions of that role.

use crate::gucs;
use crate::pg::error::PgError;
use crate::pg::{relation, role};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::Oid;

/// Is this session still what the jobs of this owner's tables may run in?
pub fn is_served_here(owner: Oid) -> bool {
    owner == role::session() && !is_barred(owner)
}

fn is_barred(owner: Oid) -> bool {
    role::is_superuser(owner) && !gucs::ALLOW_SUPERUSER_JOBS.get()
}

/// May a job table belong to this role?
pub fn check(owner: Oid) -> Result<(), PgError> {
    let name = role::name(owner).unwrap_or_else(|| owner.to_u32().to_string());
    if is_barred(owner) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("job tables may not belong to superuser \"{name}\""),
        )
        .detail("Their handlers would run in a superuser session.")
        .hint("Give the table to an ordinary role, or set background_jobs.allow_superuser_jobs."));
    }
    if !role::can_connect(owner) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
            format!("role \"{name}\" cannot log in, so its jobs cannot run"),
        )
        .detail("Jobs run in a session of their table's owner.")
        .hint(format!("Use ALTER ROLE {} LOGIN, or give the table to another role.", relation::quote(&name))));
    }
    Ok(())
}
