//! The kinds of handlers: what each does, how often it is submitted, and how its jobs may end.

mod all;

pub use all::KINDS;

pub struct Kind {
    pub name: &'static str,
    /// Of fifteen hundred jobs or so.
    pub weight: u32,
    pub max_attempts: i32,
    /// Further arguments of register_handler().
    options: &'static str,
    /// Its jobs never succeed.
    pub fails: bool,
    /// The SQLSTATE of its own errors; beside it a job may end with those that the nemesis causes.
    pub error: &'static str,
    body: &'static str,
}

/// Of jobs that ran when the server crashed, at their last attempt.
pub const CRASHED: &str = "57P02";

/// Of jobs whose executor was terminated, interrupted, or went down with the server.
pub const NEMESIS_ERRORS: [&str; 3] = ["57P01", CRASHED, "57014"];

const fn kind(name: &'static str, weight: u32, max_attempts: i32, error: &'static str, body: &'static str) -> Kind {
    Kind { name, weight, max_attempts, options: "", fails: false, error, body }
}

/// The length of a poison job's run, in seconds.
pub const POISON_SECONDS: f64 = 2.0;

impl Kind {
    /// Its runs meet the server's end, by their own doing or by the nemesis's. Nobody takes its jobs back: the checker has to
    /// be sure that they ran.
    pub fn is_poison(name: &str) -> bool {
        name == "poison" || Kind::crashes(name)
    }

    /// Its runs end the server.
    pub fn crashes(name: &str) -> bool {
        matches!(name, "panic" | "abort")
    }

    /// Its runs take so long that a cancel meets them.
    pub fn is_long(name: &str) -> bool {
        matches!(name, "brink" | "slow" | "swallow" | "overtime" | "contend" | "deadlock")
    }

    pub fn named(name: &str) -> &'static Kind {
        KINDS.iter().find(|kind| kind.name == name).unwrap_or_else(|| panic!("no kind {name}"))
    }

    pub fn choose(rng: &mut fastrand::Rng) -> &'static Kind {
        let all: u32 = KINDS.iter().map(|kind| kind.weight).sum();
        let mut left = rng.u32(..all);
        for kind in KINDS {
            match left.checked_sub(kind.weight) {
                Some(rest) => left = rest,
                None => return kind,
            }
        }
        &KINDS[0]
    }

    /// The statement that creates its function, or replaces it.
    pub fn function(&self, owner: &str) -> String {
        let body = self.body.replace("@owner@", owner);
        format!(
            "CREATE OR REPLACE FUNCTION \"{}\"(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $handler$
             DECLARE attempt int := begin_job(payload);
             BEGIN
                 {body}
                 PERFORM end_job(payload, attempt);
                 RETURN jsonb_build_object('seq', payload -> 'seq');
             END $handler$;\n",
            self.name
        )
    }

    /// The statement that registers it, or registers it anew.
    pub fn registration(&self) -> String {
        let Kind { name, max_attempts, options, .. } = self;
        format!(
            "SELECT background_jobs.register_handler('{name}', '\"{name}\"(jsonb)', max_attempts => {max_attempts},
                 retry_delay => '20 ms', max_retry_delay => '200 ms'{options});\n"
        )
    }
}
