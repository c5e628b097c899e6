//! A hostile submitter: a role with INSERT on a job table, and in some tests UPDATE (cancelled) or TRIGGER. It can have
//! its jobs fail and its rows ignored; it cannot run what is not registered, nor stop, fill or mislead what others see.

mod names;
mod rows;
mod values;

use server_tests::tenant::{Tenant, stranger};
use server_tests::{App, Cluster, Group, Uuid, Value, ident, json};
use std::time::Duration;

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "300ms"));

/// A role that may insert into the application's table.
fn submitter(app: &mut App) -> Tenant {
    let submitter = stranger(app, "submitter");
    app.sql(&format!("GRANT INSERT ON background_jobs TO {}", ident(&submitter.role)));
    submitter
}

fn submit(by: &mut Tenant, payload: &Value) -> Uuid {
    let id = Uuid::new_v4();
    let insert = "INSERT INTO background_jobs (id, payload) VALUES ($1, $2)";
    by.client.execute(insert, &[&id, payload]).unwrap_or_else(|e| panic!("{e:?}"));
    id
}

/// Another owner of the same database has its job run, now.
fn assert_others_run(app: &App, victim: &mut Tenant) {
    let id = victim.submit("fine");
    assert_eq!(victim.result_within(app.cluster, Duration::from_secs(10), id), Ok(Some(json!(1))));
}
