//! An application as a user would write it: a database with the extension, an ordinary role, its job table and handlers.

use crate::wait::yes;
use crate::{Cluster, Job, ident, job, lit, log};
use postgres::types::{FromSql, ToSql};
use postgres::{Client, Row};
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// The table that the recipe's own statements create, word for word but for the line breaks.
pub const RECIPE_TABLE: &str = "CREATE TABLE IF NOT EXISTS background_jobs (
    id UUID PRIMARY KEY NOT NULL, timestamp TIMESTAMPTZ NOT NULL, payload JSONB NOT NULL, completed BOOLEAN NOT NULL,
    cancelled BOOLEAN NOT NULL, progress REAL NOT NULL, result JSONB)";

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

pub struct App<'a> {
    pub cluster: &'a Cluster,
    pub database: String,
    pub role: String,
    /// A session of the role.
    pub client: Client,
}

impl<'a> App<'a> {
    /// A database and a role of their own for the test `name`. Both are gone when the value is dropped.
    #[must_use]
    pub fn new(cluster: &'a Cluster, name: &str) -> App<'a> {
        App::new_with(cluster, name, "")
    }

    /// As [`App::new`], its database created with these options: `"TEMPLATE template0 ENCODING 'LATIN1'"`.
    #[must_use]
    pub fn new_with(cluster: &'a Cluster, name: &str, options: &str) -> App<'a> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (database, role) = (format!("{name}_{number}"), format!("app_{name}_{number}"));
        cluster.create_role(&role);
        let mut admin = cluster.admin("postgres");
        admin
            .batch_execute(&format!("CREATE DATABASE {} {options}", ident(&database)))
            .unwrap_or_else(|e| panic!("create {database}: {e:?}"));
        let grant = format!("CREATE EXTENSION background_jobs; GRANT CREATE ON SCHEMA public TO {}", ident(&role));
        cluster.admin(&database).batch_execute(&grant).unwrap_or_else(|e| panic!("{grant}: {e:?}"));
        let client = cluster.connect(&database, &role);
        let mut app = App { cluster, database, role, client };
        app.create_support();
        app
    }

    /// A job table by `create_table()`, with nothing but defaults.
    #[must_use]
    pub fn with_table(cluster: &'a Cluster, name: &str) -> App<'a> {
        let mut app = App::new(cluster, name);
        app.sql("SELECT background_jobs.create_table()");
        app
    }

    /// The recipe's own table, attached.
    #[must_use]
    pub fn with_recipe_table(cluster: &'a Cluster, name: &str) -> App<'a> {
        let mut app = App::new(cluster, name);
        app.sql(RECIPE_TABLE);
        app.sql("SELECT background_jobs.attach('background_jobs')");
        app
    }

    /// Another session of the role.
    #[must_use]
    pub fn session(&self) -> Client {
        self.cluster.connect(&self.database, &self.role)
    }

    /// A session of the superuser in this database.
    #[must_use]
    pub fn admin(&self) -> Client {
        self.cluster.admin(&self.database)
    }

    /// Runs statements without parameters; several in one call are one transaction.
    pub fn sql(&mut self, statements: &str) {
        self.client.batch_execute(statements).unwrap_or_else(|e| panic!("{statements}: {e:?}"));
    }

    /// Runs statements that have to fail; returns the SQLSTATE.
    pub fn sqlstate(&mut self, statements: &str) -> String {
        match self.client.batch_execute(statements) {
            Ok(()) => panic!("this should have failed: {statements}"),
            Err(error) => crate::sqlstate(&error),
        }
    }

    pub fn execute(&mut self, statement: &str, params: Params) -> u64 {
        self.client.execute(statement, params).unwrap_or_else(|e| panic!("{statement}: {e:?}"))
    }

    pub fn rows(&mut self, query: &str, params: Params) -> Vec<Row> {
        self.client.query(query, params).unwrap_or_else(|e| panic!("{query}: {e:?}"))
    }

    /// The first column of a query's only row.
    pub fn one<T: for<'r> FromSql<'r>>(&mut self, query: &str, params: Params) -> T {
        let row = self.client.query_one(query, params);
        row.unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0)
    }

    /// Creates `name(payload jsonb) RETURNS jsonb` in PL/pgSQL with this body, between BEGIN and END, and registers it.
    pub fn handler(&mut self, name: &str, body: &str) {
        self.handler_with(name, body, "");
    }

    /// As [`App::handler`], with further arguments for `register_handler`: `"max_attempts => 3, timeout => '1 s'"`.
    pub fn handler_with(&mut self, name: &str, body: &str, options: &str) {
        self.sql(&format!(
            "CREATE OR REPLACE FUNCTION {}(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $handler$ BEGIN {body} END $handler$",
            ident(name)
        ));
        self.register(name, &format!("{}(jsonb)", ident(name)), options);
    }

    pub fn register(&mut self, name: &str, function: &str, options: &str) {
        let comma = if options.is_empty() { "" } else { ", " };
        self.sql(&format!("SELECT background_jobs.register_handler({}, {}{comma}{options})", lit(name), lit(function)));
    }

    /// Inserts a job for the handler as a client does, in a transaction of its own.
    pub fn submit(&mut self, handler: &str, payload: Value) -> Uuid {
        self.one(&submission(), &[&Uuid::new_v4(), &with_handler(handler, payload)])
    }

    /// The row, or nothing when it was deleted.
    pub fn find(&mut self, id: Uuid) -> Option<Job> {
        let query = format!("SELECT {} FROM background_jobs WHERE id = $1", job::COLUMNS);
        self.rows(&query, &[&id]).first().map(Job::from)
    }

    pub fn row(&mut self, id: Uuid) -> Job {
        self.find(id).unwrap_or_else(|| panic!("no row {id}"))
    }

    /// Waits until the row is completed or cancelled and returns it.
    pub fn wait_final(&mut self, id: Uuid) -> Job {
        let cluster = self.cluster;
        cluster.wait_until(&format!("job {id} to be final"), || {
            let row = self.row(id);
            if row.is_final() { Ok(row) } else { Err(format!("{row:?}, {}", self.state(id))) }
        })
    }

    /// The state that `status()` derives, `none` when it knows no such job.
    pub fn state(&mut self, id: Uuid) -> String {
        let rows = self.rows("SELECT state::text FROM background_jobs.status($1)", &[&id]);
        rows.first().map_or_else(|| "none".to_owned(), |row| row.get(0))
    }

    pub fn wait_state(&mut self, id: Uuid, state: &str) {
        let cluster = self.cluster;
        cluster.wait_until(&format!("job {id} to be {state}"), || match self.state(id) {
            seen if seen == state => Ok(()),
            seen => Err(seen),
        });
    }

    /// Waits until the query's only value is true.
    pub fn wait_true(&mut self, query: &str) {
        let cluster = self.cluster;
        cluster.wait_until(query, || yes(self.one(query, &[])));
    }

    /// Makes a job table without partitions, to be attached.
    pub fn partitioned_by_time(&mut self) {
        self.sql(
            "CREATE TABLE background_jobs (id uuid NOT NULL, timestamp timestamptz NOT NULL, payload jsonb NOT NULL,
                completed boolean NOT NULL, cancelled boolean NOT NULL, progress real NOT NULL, result jsonb,
                PRIMARY KEY (id, timestamp)) PARTITION BY RANGE (timestamp)",
        );
    }

    /// Waits until no job is unfinished.
    pub fn wait_drained(&mut self, deadline: Duration) {
        let cluster = self.cluster;
        cluster.wait_within(deadline, "all jobs to be final", || {
            match self.one::<i64>("SELECT count(*) FROM background_jobs WHERE NOT completed AND NOT cancelled", &[]) {
                0 => Ok(()),
                left => Err(format!("{left} unfinished")),
            }
        });
    }
}

/// A client's INSERT: it names every column that a table without defaults needs. Parameters: id, payload.
#[must_use]
pub fn submission() -> String {
    "INSERT INTO background_jobs (id, timestamp, payload, completed, cancelled, progress)
     VALUES ($1, now(), $2, false, false, 0) RETURNING id"
        .to_owned()
}

#[must_use]
pub fn with_handler(handler: &str, mut payload: Value) -> Value {
    payload["handler"] = Value::from(handler);
    payload
}

impl Drop for App<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The server may be shared, so that the end of its log is about others.
            eprintln!("{}", log::tail_of(&self.cluster.log(), &format!(" {} ", self.database), 40));
        }
        // FORCE would hide a worker that does not leave; only our own clients are in the way, and those end themselves.
        let end_sessions = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
            WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let drop = || -> Result<(), postgres::Error> {
            let mut admin = self.cluster.try_connect("postgres", "postgres")?;
            admin.query(end_sessions, &[&self.database])?;
            admin.batch_execute(&format!("DROP DATABASE IF EXISTS {}", ident(&self.database)))?;
            admin.batch_execute(&format!("DROP ROLE IF EXISTS {}", ident(&self.role)))
        };
        match drop() {
            Err(error) if !std::thread::panicking() => panic!("drop {}: {error:?}", self.database),
            _ => {}
        }
    }
}
