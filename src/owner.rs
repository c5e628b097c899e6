//! Who may own a job table: its jobs run in sessions of that role.

use crate::gucs;
use crate::pg::error::PgError;
use crate::pg::{database, relation, role};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::Oid;

/// May jobs still run in this session, which was opened as their owner's?
pub fn may_run_here() -> bool {
    !role::session_is_stale() && check(role::session()).is_ok()
}

/// Is this session what the jobs of this owner's tables run in?
pub fn is_served_here(owner: Oid) -> bool {
    owner == role::session() && !is_barred(owner)
}

fn is_barred(owner: Oid) -> bool {
    role::is_superuser(owner) && !gucs::ALLOW_SUPERUSER_JOBS.get()
}

/// May a job table belong to this role?
pub fn check(owner: Oid) -> Result<(), PgError> {
    let name = || role::name(owner).unwrap_or_else(|| owner.to_u32().to_string());
    if is_barred(owner) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("job tables may not belong to superuser \"{}\"", name()),
        )
        .detail("Their handlers would run in a superuser session.")
        .hint("Give the table to an ordinary role, or set background_jobs.allow_superuser_jobs."));
    }
    let missing = |code, what: &str, grant: String| {
        Err(PgError::new(code, format!("role \"{}\" {what}, so its jobs cannot run", name()))
            .detail("Jobs run in a session of their table's owner.")
            .hint(format!("Use {grant}, or give the table to another role.")))
    };
    if !role::has_login(owner) {
        let code = PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
        return missing(code, "cannot log in", format!("ALTER ROLE {} LOGIN", relation::quote(&name())));
    }
    if !database::may_connect(owner) {
        let (database, role) = (relation::quote(&database::current_name()), relation::quote(&name()));
        let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
        return missing(
            code,
            "may not connect to this database",
            format!("GRANT CONNECT ON DATABASE {database} TO {role}"),
        );
    }
    Ok(())
}
