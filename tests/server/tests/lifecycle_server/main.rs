//! A server that is short of something, set up unusually, large, or about to stop. Every test's name is the expected outcome.

mod defaults;
mod encodings;
mod locks;
mod slots;
mod space;
mod upkeep;

use server_tests::{App, Builder, Cluster, Group, json};

fn configuration() -> Builder {
    Cluster::builder().conf("background_jobs.poll_interval", "200ms")
}

static SHARED: Group = Group::new(configuration);

const HELD: &str = "PERFORM note(); PERFORM reach((payload ->> 'point')::int); PERFORM await_gate('go');
    RETURN to_jsonb('done'::text);";

fn noting(app: &mut App) {
    app.handler("noted", "PERFORM note(); RETURN NULL;");
}

fn assert_completes(app: &mut App, handler: &str) {
    let id = app.submit(handler, json!({}));
    let job = app.wait_final(id);
    assert!(job.completed && job.error("message").is_none(), "{job:?}");
}
