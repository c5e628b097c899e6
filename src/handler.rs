//! From a handler's name to its function, and the call.

use crate::catalog;
use crate::gucs;
use crate::job::JobId;
use crate::pg::error::PgError;
use crate::pg::memory::{Context, HeldDatum};
use crate::pg::relation::qualified;
use crate::pg::role::bookkeeping;
use crate::pg::spi::{self, Statement};
use crate::pg::{function, guc};
use crate::retry::Policy;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::collections::HashMap;
use std::rc::Rc;

/// A registered handler, ready to be called.
pub struct Handler {
    pub definition: catalog::Handler,
    call: Statement,
}

impl Handler {
    fn new(definition: catalog::Handler) -> Self {
        let function = qualified(&definition.schema, &definition.function);
        let call = if definition.takes_id {
            Statement::new(
                format!("SELECT {function}($1::pg_catalog.uuid, $2::pg_catalog.jsonb)"),
                &[pg_sys::UUIDOID, pg_sys::JSONBOID],
            )
        } else {
            Statement::new(format!("SELECT {function}($1::pg_catalog.jsonb)"), &[pg_sys::JSONBOID])
        };
        Self { definition, call }
    }

    /// Attempts, delay and the delay's limit, with the settings standing in for what was not registered.
    pub fn policy(&self, job_max_attempts: Option<i32>) -> Policy {
        policy(&self.definition, job_max_attempts)
    }

    /// Is the function of that name and exactly these argument types there, and still the registered one's owner's?
    ///
    /// Where it is, the call reaches it and no other: its arguments have just these types, and an exact match comes before whatever
    /// else they could be made to fit (anyelement, VARIADIC). An overload that has further arguments with defaults fits exactly, too;
    /// then the server finds the call ambiguous, and calls neither. Where it is not there, one of those could be anybody's, so
    /// the call is not even tried.
    fn check_function(&self) {
        let definition = &self.definition;
        let (types, named): (&[pg_sys::Oid], _) = if definition.takes_id {
            (&[pg_sys::UUIDOID, pg_sys::JSONBOID], "uuid, jsonb")
        } else {
            (&[pg_sys::JSONBOID], "jsonb")
        };
        let Some(owner) = function::owner_by_name(&definition.schema, &definition.function, types) else {
            PgError::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION,
                format!("function {}.{}({named}) does not exist", definition.schema, definition.function),
            )
            .hint("Create it again, or register another one with background_jobs.register_handler().")
            .raise();
        };
        if owner != definition.function_owner {
            PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("handler function {} belongs to another role than the one registered", definition.function),
            )
            .hint("Look at the function, and register it again with background_jobs.register_handler().")
            .raise();
        }
    }

    /// Calls the function as the session's user, in the current subtransaction, and undoes what it did to the settings.
    /// The result is a jsonb in `into`, or null.
    pub fn call(&self, id: &JobId, payload: HeldDatum, into: &Context) -> Option<HeldDatum> {
        self.check_function();
        guc::nested(|| {
            spi::connect(|| {
                let rows = if self.definition.takes_id {
                    self.call.execute(&[spi::uuid(id), Some(payload.0)], 0)
                } else {
                    self.call.execute(&[Some(payload.0)], 0)
                };
                match rows.type_of(1) {
                    pg_sys::VOIDOID => None,
                    pg_sys::JSONBOID if rows.processed == 1 => rows.hold(0, 1, into),
                    _ => PgError::new(
                        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                        format!(
                            "handler function {} does not return one jsonb or void any more",
                            self.definition.function
                        ),
                    )
                    .hint("Register a function that returns jsonb or void with background_jobs.register_handler().")
                    .raise(),
                }
            })
        })
    }
}

pub fn policy(definition: &catalog::Handler, job_max_attempts: Option<i32>) -> Policy {
    let default = gucs::retry_policy();
    Policy {
        max_attempts: job_max_attempts.or(definition.max_attempts).unwrap_or(default.max_attempts),
        delay: definition.retry_delay.unwrap_or(default.delay),
        max_delay: definition.max_retry_delay.unwrap_or(default.max_delay),
    }
}

/// The handlers that this process has looked up, as of one version of the registry.
#[derive(Default)]
pub struct Handlers {
    version: Option<u64>,
    known: HashMap<(u32, String), Rc<Handler>>,
}

impl Handlers {
    /// Forgets everything if the registry has, or may have, changed since.
    pub fn refresh(&mut self, version: Option<u64>) {
        if version.is_none() || self.version != version {
            self.known.clear();
            self.version = version;
        }
    }

    /// The handler of that name, if it is (still) registered and for this table's owner to run.
    pub fn resolve(&mut self, table: u32, name: &str) -> Option<Rc<Handler>> {
        let key = (table, name.to_string());
        if let Some(handler) = self.known.get(&key) {
            return Some(Rc::clone(handler));
        }
        let found = bookkeeping(|| spi::connect(|| catalog::handlers(Some((table, name)))));
        let handler = Rc::new(Handler::new(found.into_iter().next()?));
        self.known.insert(key, Rc::clone(&handler));
        Some(handler)
    }
}
