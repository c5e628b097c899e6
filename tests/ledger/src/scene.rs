//! The stage: one server with several databases, in each several owners, each with a job table, handlers and witnesses.

use crate::kinds::KINDS;
use crate::poison;
use server_tests::Cluster;
use std::sync::atomic::{AtomicI64, Ordering};

const DATABASES: [&str; 3] = ["north", "east", "south"];

/// The second one's sessions are REPEATABLE READ by default, so that its handlers fail to serialize.
const OWNERS: [&str; 2] = ["ada", "bob"];

/// Whose table has partitions.
const PARTITIONED: (&str, &str) = ("south", "ada");

const PARTITIONED_TABLE: &str = "
    CREATE TABLE background_jobs (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), timestamp timestamptz NOT NULL DEFAULT now(),
        payload jsonb NOT NULL DEFAULT '{}', completed boolean NOT NULL DEFAULT false,
        cancelled boolean NOT NULL DEFAULT false, progress real NOT NULL DEFAULT 0, result jsonb)
        PARTITION BY HASH (id);
    CREATE TABLE part_0 PARTITION OF background_jobs FOR VALUES WITH (MODULUS 3, REMAINDER 0);
    CREATE TABLE part_1 PARTITION OF background_jobs FOR VALUES WITH (MODULUS 3, REMAINDER 1);
    CREATE TABLE part_2 PARTITION OF background_jobs FOR VALUES WITH (MODULUS 3, REMAINDER 2);
    SELECT background_jobs.attach('background_jobs');";

/// Who submits, cancels and deletes: a role with nothing but those rights.
pub const CLIENT: &str = "client";

/// An idle server starts a job within this and a second, whatever was lost.
pub const POLL_SECONDS: f64 = 1.0;

const SETTINGS: &[(&str, &str)] = &[
    ("background_jobs.max_executors", "5"),
    ("background_jobs.crash_quarantine", "300ms"),
    ("background_jobs.poll_interval", "1s"),
    ("background_jobs.progress_flush_interval", "20ms"),
    ("background_jobs.cancel_grace", "300ms"),
    ("background_jobs.handler_timeout", "20s"),
    ("background_jobs.executor_idle_timeout", "5s"),
    ("synchronous_commit", "on"),
    ("max_prepared_transactions", "20"),
    ("deadlock_timeout", "30ms"),
    ("log_line_prefix", "%n [%p] %d: "),
    ("log_min_error_statement", "panic"),
    ("log_checkpoints", "off"),
    ("jit", "off"),
];

pub struct Table {
    pub database: String,
    pub owner: String,
    /// Unfinished rows, as an observer saw them last.
    pub backlog: AtomicI64,
}

impl Table {
    pub fn name(&self) -> String {
        format!("{}.background_jobs", self.owner)
    }

    pub fn is_flooded(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) > 400
    }
}

pub fn start(plant: Option<&str>) -> Result<(Cluster, Vec<Table>), String> {
    let mut builder = SETTINGS.iter().fold(Cluster::builder(), |builder, (name, value)| builder.conf(name, value));
    for number in [6, 9, 11] {
        builder = builder.allow_in_log(&format!("was terminated by signal {number}:"));
    }
    builder = builder.allow_in_log(poison::PANIC_MESSAGE);
    if let Some(plant) = plant {
        builder = builder.conf("background_jobs.planted", plant);
    }
    let cluster = builder.start();
    if plant.is_some() && cluster.admin("postgres").batch_execute("SHOW background_jobs.planted").is_err() {
        return Err("the extension was built without the feature planted_bugs".to_owned());
    }
    let tables = create(&cluster).map_err(|error| format!("{error:?}\n{}", cluster.log_tail()))?;
    Ok((cluster, tables))
}

fn create(cluster: &Cluster) -> Result<Vec<Table>, server_tests::postgres::Error> {
    let mut admin = cluster.admin("postgres");
    admin.batch_execute(&format!("CREATE ROLE {CLIENT} LOGIN"))?;
    for owner in OWNERS {
        admin.batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN;
             ALTER ROLE {owner} SET work_mem = '5MB';
             ALTER ROLE {owner} SET log_error_verbosity = 'terse'"
        ))?;
    }
    admin.batch_execute("ALTER ROLE bob SET default_transaction_isolation = 'repeatable read'")?;
    let mut tables = Vec::new();
    for database in DATABASES {
        admin.batch_execute(&format!("CREATE DATABASE {database}"))?;
        let mut inside = cluster.admin(database);
        inside.batch_execute("CREATE EXTENSION background_jobs; CREATE EXTENSION amcheck")?;
        inside.batch_execute(&poison::create(&OWNERS))?;
        for owner in OWNERS {
            inside.batch_execute(&format!("CREATE SCHEMA {owner} AUTHORIZATION {owner}"))?;
            let mut session = cluster.connect(database, owner);
            // attach() wants to see what is committed meanwhile.
            session.batch_execute("SET default_transaction_isolation = 'read committed'")?;
            session.batch_execute(match (database, owner) {
                PARTITIONED => PARTITIONED_TABLE,
                (_, "ada") => "SELECT background_jobs.create_table(columns => '{attempts,started_at,finished_at}')",
                _ => "SELECT background_jobs.create_table()",
            })?;
            session.batch_execute(&include_str!("owner.sql").replace("@owner@", owner))?;
            for kind in KINDS {
                session.batch_execute(&(kind.function(owner) + &kind.registration()))?;
            }
            let (database, owner) = (database.to_owned(), owner.to_owned());
            tables.push(Table { database, owner, backlog: AtomicI64::new(0) });
        }
    }
    Ok(tables)
}
