//! What the catalogs say about a function.

use crate::pg::encoding;
use pgrx::pg_sys;

#[derive(Debug, Clone)]
pub struct Function {
    pub schema: String,
    pub name: String,
    pub owner: pg_sys::Oid,
    /// As in pg_proc.prokind: 'f' function, 'p' procedure, 'a' aggregate, 'w' window function.
    pub kind: char,
    pub arguments: Vec<pg_sys::Oid>,
    pub returns: pg_sys::Oid,
    pub returns_set: bool,
}

/// None: there is no such function.
pub fn find(oid: pg_sys::Oid) -> Option<Function> {
    // SAFETY: a look-up inside a transaction; everything is copied before the tuple is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::PROCOID as i32, pg_sys::Datum::from(oid));
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>();
        let schema = pg_sys::get_namespace_name(form.pronamespace);
        let types = &form.proargtypes;
        let found = Function {
            schema: encoding::from_c(schema).unwrap_or_default(),
            name: encoding::from_c(form.proname.data.as_ptr()).unwrap_or_default(),
            owner: form.proowner,
            kind: form.prokind as u8 as char,
            arguments: types.values.as_slice(types.dim1 as usize).to_vec(),
            returns: form.prorettype,
            returns_set: form.proretset,
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// May `role` call it?
pub fn may_execute(oid: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: a look-up inside a transaction.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let result = pg_sys::pg_proc_aclcheck(oid, role, pg_sys::ACL_EXECUTE as pg_sys::AclMode);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let result =
            pg_sys::object_aclcheck(pg_sys::ProcedureRelationId, oid, role, pg_sys::ACL_EXECUTE as pg_sys::AclMode);
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// What to call, as of one version of its definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exact {
    pub oid: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    /// What it returns; none: it returns a set, or is no function.
    pub returns: Option<pg_sys::Oid>,
    version: (pg_sys::TransactionId, u64),
}

/// The function of this name with exactly these argument types, or none if there is none.
pub fn exact(schema: &str, name: &str, arguments: &[pg_sys::Oid]) -> Option<Exact> {
    let (schema, name) = (encoding::to_c(schema), encoding::to_c(name));
    // SAFETY: look-ups inside a transaction; the tuple is released before the function returns.
    unsafe {
        let types = pg_sys::buildoidvector(arguments.as_ptr(), arguments.len() as i32);
        let tuple = pg_sys::SearchSysCache3(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(types),
            pg_sys::Datum::from(pg_sys::get_namespace_oid(schema.as_ptr(), true)),
        );
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_proc>();
        let single = form.prokind as u8 == pg_sys::PROKIND_FUNCTION && !form.proretset;
        let found = Exact {
            oid: form.oid,
            owner: form.proowner,
            returns: single.then_some(form.prorettype),
            version: ((*(*tuple).t_data).t_choice.t_heap.t_xmin, pgrx::itemptr::item_pointer_to_u64((*tuple).t_self)),
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// Raises the server's own error if the current user may not call it.
pub fn require_execute(function: &Exact) {
    // SAFETY: look-ups inside a transaction.
    unsafe {
        if !may_execute(function.oid, pg_sys::GetUserId()) {
            let name = pg_sys::get_func_name(function.oid);
            pg_sys::aclcheck_error(pg_sys::AclResult::ACLCHECK_NO_PRIV, pg_sys::ObjectType::OBJECT_FUNCTION, name);
        }
        let hook = pg_sys::object_access_hook;
        if hook.is_some() {
            pg_sys::RunFunctionExecuteHook(function.oid);
        }
    }
}
