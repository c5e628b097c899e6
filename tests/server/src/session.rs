//! Sessions on a temporary server: roles, connections, settings.

use crate::installation::Installation;
use crate::wait::yes;
use crate::{Cluster, ident, lit};
use postgres::types::ToSql;
use postgres::{Client, NoTls};
use std::process::Command;
use std::time::SystemTime;

impl Cluster {
    pub fn try_connect(&self, database: &str, role: &str) -> Result<Client, postgres::Error> {
        postgres::Config::new()
            .host_path(self.socket_directory())
            .user(role)
            .dbname(database)
            .application_name("test")
            // Nothing a test does takes this long: a hang becomes an error.
            .options("-c statement_timeout=60s")
            .connect(NoTls)
    }

    #[must_use]
    pub fn connect(&self, database: &str, role: &str) -> Client {
        self.try_connect(database, role)
            .unwrap_or_else(|e| panic!("connect to {database} as {role}: {e:?}\n{}", self.log_tail()))
    }

    /// A session of the superuser.
    #[must_use]
    pub fn admin(&self, database: &str) -> Client {
        self.connect(database, "postgres")
    }

    /// An ordinary role that may log in, as the owner of a job table must.
    pub fn create_role(&self, name: &str) {
        let statement = format!("CREATE ROLE {} LOGIN", ident(name));
        self.admin("postgres").batch_execute(&statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }

    /// Changes a setting for the whole server and waits until the server has read it.
    pub fn set(&self, name: &str, value: &str) {
        let statement = format!("ALTER SYSTEM SET {name} = {}", lit(value));
        self.admin("postgres").batch_execute(&statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        self.reload_conf();
    }

    /// Has the server read its configuration again; the postmaster has done so when this returns, and has told the others.
    pub fn reload_conf(&self) {
        let mut admin = self.admin("postgres");
        let mut ask = |query: &str, since: &[&(dyn ToSql + Sync)]| {
            admin.query_one(query, since).unwrap_or_else(|e| panic!("{query}: {e:?}"))
        };
        let before: SystemTime = ask("SELECT clock_timestamp()", &[]).get(0);
        assert!(ask("SELECT pg_reload_conf()", &[]).get::<_, bool>(0), "the server did not reload");
        self.wait_until("the configuration to be read", || {
            yes(ask("SELECT pg_conf_load_time() >= $1", &[&before]).get(0))
        });
    }

    /// `psql` as that role, for the caller to add arguments to and to run.
    #[must_use]
    pub fn psql(&self, database: &str, role: &str) -> Command {
        let mut command = self.client("psql", role);
        command.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", database]);
        command
    }

    /// Has `pg_amcheck` look at every table and index of the database; panics with what it finds.
    pub fn amcheck(&self, database: &str) {
        crate::run(self.client("pg_amcheck", "postgres").args([
            "--install-missing",
            "--heapallindexed",
            "-d",
            database,
        ]));
    }

    /// A client program of PostgreSQL as that role, for the caller to add arguments to and to run.
    #[must_use]
    pub fn client(&self, program: &str, role: &str) -> Command {
        let mut command = Command::new(Installation::get().program(program));
        command.args(["-U", role, "-h"]).arg(self.socket_directory());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
    }
}
