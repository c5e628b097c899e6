//! From a handler's name to its function, and the call.

use crate::catalog;
use crate::gucs;
use crate::job::JobId;
use crate::pg::error::PgError;
use crate::pg::function::{self, Exact};
use crate::pg::guc;
use crate::pg::invoke::Invoked;
use crate::pg::memory::{self, Context, HeldDatum};
use crate::pg::role::bookkeeping;
use crate::pg::spi;
use crate::retry::Policy;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// A registered handler, ready to be called.
pub struct Handler {
    pub definition: catalog::Handler,
    function: Invoked,
}

impl Handler {
    fn new(definition: catalog::Handler) -> Self {
        Self { definition, function: Invoked::new() }
    }

    /// Attempts, delay and the delay's limit, with the settings standing in for what was not registered.
    pub fn policy(&self, job_max_attempts: Option<i32>) -> Policy {
        policy(&self.definition, job_max_attempts)
    }

    /// The function of that name and exactly these argument types, provided it still belongs to the owner it had at
    /// registration. Others of that name that could be called with them (anyelement, VARIADIC, further arguments with
    /// defaults) may be anybody's.
    pub fn function(&self) -> Exact {
        let definition = &self.definition;
        let (types, named): (&[pg_sys::Oid], _) = if definition.takes_id {
            (&[pg_sys::UUIDOID, pg_sys::JSONBOID], "uuid, jsonb")
        } else {
            (&[pg_sys::JSONBOID], "jsonb")
        };
        let Some(function) = function::exact(&definition.schema, &definition.function, types) else {
            PgError::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION,
                format!("function {}.{}({named}) does not exist", definition.schema, definition.function),
            )
            .hint("Create it again, or register another one with background_jobs.register_handler().")
            .raise();
        };
        if function.owner != definition.function_owner {
            PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!(
                    "handler function {} no longer belongs to the role that owned it at registration",
                    definition.function
                ),
            )
            .hint("Check the function, and register it again with background_jobs.register_handler().")
            .raise();
        }
        if !matches!(function.returns, Some(pg_sys::VOIDOID | pg_sys::JSONBOID)) {
            PgError::new(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!("handler function {} does not return one jsonb or void any more", definition.function),
            )
            .hint("Register a function that returns jsonb or void with background_jobs.register_handler().")
            .raise();
        }
        function
    }

    /// Calls the function as the session's user, in the current subtransaction, and undoes what it did to the settings.
    /// The result is a jsonb in `into`, or null.
    pub fn call(&self, id: &JobId, payload: HeldDatum, into: &Context) -> Option<HeldDatum> {
        let function = self.function();
        let id = self.definition.takes_id.then(|| spi::uuid(id)).flatten();
        let arguments: Vec<_> = id.into_iter().chain([payload.0]).collect();
        guc::nested(|| match function.returns {
            Some(pg_sys::VOIDOID) => {
                self.function.call(&function, &arguments, |_| ());
                None
            }
            _ => self.function.call(&function, &arguments, |result| memory::hold_varlena(result, into)),
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

/// What an attempt ends with that took too long.
pub fn timeout_error(timeout: Duration) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
        format!("background job timed out after {} ms", timeout.as_millis()),
    )
    .hint("Raise the handler's timeout, or background_jobs.handler_timeout.")
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
