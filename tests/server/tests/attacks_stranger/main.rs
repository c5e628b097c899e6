//! A role that nobody has granted anything: what it learns, what it changes, and whom it can hold up. What each function
//! asks of its caller, grant by grant, is in `privileges`.

mod functions;
mod holds_up;
mod learns;
mod stand_ins;

use server_tests::tenant::{Tenant, stranger};
use server_tests::{App, Builder, Cluster, Group, Uuid, json};

fn keyed() -> Builder {
    Cluster::builder().conf("background_jobs.poll_interval", "300ms")
}

static SHARED: Group = Group::new(keyed);

const SECRET: &str = "hush-7731";

/// A table with a job in every phase, each with the secret in payload, error and key; and somebody who may see none of it.
struct Scene {
    app: App<'static>,
    stranger: Tenant,
    held: Uuid,
    queued: Uuid,
    failed: Uuid,
}

fn scene(name: &str) -> Scene {
    let mut app = SHARED.app(name);
    app.handler(
        "held",
        "PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate('go'); RETURN '1';",
    );
    app.handler_with("fails", &format!("RAISE '{SECRET}' USING DETAIL = payload::text;"), "max_attempts => 1");
    app.handler_with("retries", &format!("RAISE '{SECRET}';"), "retry_delay => '1 h', max_retry_delay => '1 h'");
    let failed = app.submit("fails", json!({"secret": SECRET}));
    app.wait_final(failed);
    let retrying = app.submit("retries", json!({"secret": SECRET}));
    app.wait_state(retrying, "retrying");
    let queued: Uuid = app.one(
        &format!("SELECT background_jobs.enqueue('held', '{{\"secret\": \"{SECRET}\"}}', job_key => '{SECRET}', run_at => now() + interval '1 h')"),
        &[],
    );
    let held = app.submit("held", json!({"secret": SECRET}));
    app.wait_reached(1);
    let stranger = stranger(&app, "stranger");
    Scene { app, stranger, held, queued, failed }
}

impl Scene {
    /// All is as it was: the held job ends well and the others are where they were.
    fn assert_untouched(&mut self) {
        self.app.open_gate("go");
        assert_eq!(self.app.wait_final(self.held).result, Some(json!(1)));
        assert_eq!(self.app.state(self.queued), "scheduled");
        assert_eq!(self.app.state(self.failed), "failed");
        let handlers: i64 = self.app.one("SELECT count(*) FROM background_jobs.handlers", &[]);
        assert_eq!(handlers, 3);
    }
}
