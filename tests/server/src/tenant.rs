//! Further roles in an application's database, for tests of what roles can do to each other.

use crate::{App, Cluster, Uuid, Value, ident, lit, wait};
use postgres::Client;
use postgres::types::{FromSql, ToSql};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A role of its own in somebody's database, with a schema of its own name in front of its search_path.
pub struct Tenant {
    pub role: String,
    pub database: String,
    pub client: Client,
}

/// A role without anything, but for what PUBLIC has.
pub fn stranger(app: &App, name: &str) -> Tenant {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let role = format!("{name}_{}_{}", NUMBER.fetch_add(1, Ordering::Relaxed), app.database);
    app.cluster.create_role(&role);
    let client = app.cluster.connect(&app.database, &role);
    Tenant { role, database: app.database.clone(), client }
}

/// A role with a schema.
pub fn tenant(app: &App, name: &str) -> Tenant {
    let tenant = stranger(app, name);
    let create = format!("CREATE SCHEMA AUTHORIZATION {}", ident(&tenant.role));
    app.admin().batch_execute(&create).unwrap();
    tenant
}

/// A role with a schema and a job table in it.
pub fn owner(app: &App, name: &str) -> Tenant {
    let mut tenant = tenant(app, name);
    tenant.sql("SELECT background_jobs.create_table()");
    tenant
}

impl Tenant {
    pub fn sql(&mut self, statements: &str) {
        self.client.batch_execute(statements).unwrap_or_else(|e| panic!("{statements}: {e:?}"));
    }

    /// The SQLSTATE of statements that fail, "none" of those that do not. A transaction that they have begun is rolled back.
    pub fn code(&mut self, statements: &str) -> String {
        let outcome = self.client.batch_execute(statements);
        self.sql("ROLLBACK");
        outcome.map_or_else(|error| crate::sqlstate(&error), |()| "none".to_owned())
    }

    pub fn one<T: for<'r> FromSql<'r>>(&mut self, query: &str, params: Params) -> T {
        self.client.query_one(query, params).unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0)
    }

    pub fn handler(&mut self, name: &str, body: &str, options: &str) {
        let comma = if options.is_empty() { "" } else { ", " };
        let (function, name) = (ident(name), lit(name));
        self.sql(&format!(
            "CREATE OR REPLACE FUNCTION {function}(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $handler$ BEGIN {body} END $handler$;
             SELECT background_jobs.register_handler({name}, {}{comma}{options});",
            lit(&format!("{function}(jsonb)"))
        ));
    }

    pub fn submit(&mut self, handler: &str) -> Uuid {
        self.one(
            &format!(
                "INSERT INTO background_jobs (payload) VALUES ({}) RETURNING id",
                lit(&format!("{{\"handler\": \"{handler}\"}}"))
            ),
            &[],
        )
    }

    /// The result, or the reason why there is none after so long.
    pub fn result_within(&mut self, cluster: &Cluster, deadline: Duration, id: Uuid) -> Result<Option<Value>, String> {
        let outcome = wait::attempt(deadline, &format!("job {id} of {}", self.role), || {
            let query = "SELECT completed OR cancelled, result, to_jsonb(j)::text FROM background_jobs j WHERE id = $1";
            let row = self.client.query_one(query, &[&id]).map_err(|e| format!("{e:?}"))?;
            if row.get(0) { Ok(row.get(1)) } else { Err(row.get(2)) }
        });
        outcome.map_err(|report| format!("{report}\n{}", cluster.log_tail()))
    }

    /// Waits for the job's end.
    pub fn result(&mut self, cluster: &Cluster, id: Uuid) -> Option<Value> {
        self.result_within(cluster, wait::DEADLINE, id).unwrap_or_else(|report| panic!("{report}"))
    }
}

/// Ends the sessions of a test and what its handlers hold, so that its database can be dropped although the test has failed.
pub fn end_sessions(cluster: &Cluster, database: &str) {
    let end =
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()
        AND backend_type IN ('client backend', 'background_jobs executor', 'background_jobs progress writer')";
    let _ = cluster.admin("postgres").execute(end, &[&database]);
}
