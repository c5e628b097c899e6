//! The kinds of handlers: what each does, how often it is submitted, and how its jobs may end.

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

/// Of jobs whose executor was terminated, interrupted, or went down with the server.
pub const NEMESIS_ERRORS: [&str; 3] = ["57P01", "57P02", "57014"];

const fn kind(name: &'static str, weight: u32, max_attempts: i32, error: &'static str, body: &'static str) -> Kind {
    Kind { name, weight, max_attempts, options: "", fails: false, error, body }
}

/// The length of a poison job's run, in seconds.
pub const POISON_SECONDS: f64 = 2.0;

pub const KINDS: &[Kind] = &[
    kind("quick", 1000, 5, "", "PERFORM effect(payload, attempt);"),
    // Short on average, so that its jobs share commits, but now and then not.
    kind(
        "sprint",
        90,
        5,
        "",
        "PERFORM effect(payload, attempt); IF random() < 0.04 THEN PERFORM pg_sleep(0.03); END IF;",
    ),
    kind(
        "catch",
        80,
        5,
        "",
        "BEGIN PERFORM effect(payload, attempt); PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;
         PERFORM effect(payload, attempt);",
    ),
    kind(
        "dirty",
        40,
        5,
        "",
        "EXECUTE 'PREPARE left_statement AS SELECT 1';
         EXECUTE 'DECLARE left_cursor CURSOR WITH HOLD FOR SELECT 1';
         EXECUTE 'CREATE TEMP TABLE left_table (n int)';
         PERFORM pg_advisory_lock(pg_backend_pid());
         PERFORM set_config('work_mem', '77MB', false), set_config('search_path', 'pg_catalog', false);
         PERFORM @owner@.effect(payload, attempt);
         PERFORM set_config('search_path', '@owner@', false);",
    ),
    kind(
        "child",
        30,
        5,
        "",
        "INSERT INTO background_jobs (id, payload)
         VALUES ((payload ->> 'child')::uuid, jsonb_build_object('handler', 'quick', 'seq', 1));
         PERFORM effect(payload, attempt);",
    ),
    kind(
        "flaky",
        40,
        5,
        "22012",
        "PERFORM effect(payload, attempt);
         IF attempt = 1 THEN PERFORM end_job(payload, attempt); PERFORM 1 / 0; END IF;",
    ),
    Kind {
        fails: true,
        ..kind(
            "fail",
            25,
            3,
            "P0001",
            "PERFORM effect(payload, attempt); PERFORM end_job(payload, attempt); RAISE 'no';",
        )
    },
    Kind {
        fails: true,
        ..kind(
            "nan",
            10,
            2,
            "22003",
            "PERFORM effect(payload, attempt); PERFORM background_jobs.set_progress('NaN'::real);",
        )
    },
    // Its error comes at the commit, and takes everybody who shares it along.
    Kind {
        fails: true,
        ..kind("late", 10, 2, "P0003", "PERFORM effect(payload, attempt); INSERT INTO late VALUES (attempt);")
    },
    kind(
        "contend",
        20,
        5,
        "40001",
        "UPDATE pairs SET hits = hits + 1 WHERE n = 0; PERFORM pg_sleep(0.003); PERFORM effect(payload, attempt);",
    ),
    // Submitted in pairs that lock two rows in opposite order.
    kind(
        "deadlock",
        8,
        5,
        "40P01",
        "UPDATE pairs SET hits = hits + 1 WHERE n = (payload ->> 'first')::int; PERFORM pg_sleep(0.02);
         UPDATE pairs SET hits = hits + 1 WHERE n = (payload ->> 'second')::int; PERFORM effect(payload, attempt);",
    ),
    // The last digit of what it reports is the attempt's number.
    kind(
        "slow",
        45,
        5,
        "",
        "PERFORM effect(payload, attempt);
         FOR step IN 1..8 LOOP
             PERFORM background_jobs.set_progress(step * 0.1 + attempt * 0.001);
             PERFORM pg_sleep(0.02);
         END LOOP;",
    ),
    // Ends at the moment that it sees itself taken back, which is when the interrupt is on its way.
    kind(
        "brink",
        80,
        5,
        "",
        "PERFORM effect(payload, attempt);
         FOR step IN 1..COALESCE((brink.payload ->> 'steps')::int, 120) LOOP
             EXIT WHEN NOT EXISTS (
                 SELECT FROM background_jobs own
                  WHERE own.id = (SELECT id FROM background_jobs.current_job())
                    AND NOT own.cancelled AND own.payload -> 'seq' = brink.payload -> 'seq');
             PERFORM pg_sleep(0.0002);
         END LOOP;",
    ),
    Kind {
        options: ", timeout => '120 ms'",
        ..kind(
            "overtime",
            8,
            5,
            "57014",
            "PERFORM effect(payload, attempt); IF attempt = 1 THEN PERFORM pg_sleep(1); END IF;",
        )
    },
    kind(
        "swallow",
        6,
        5,
        "",
        "PERFORM effect(payload, attempt);
         FOR step IN 1..20 LOOP
             BEGIN PERFORM pg_sleep(0.02); EXCEPTION WHEN query_canceled THEN NULL; END;
         END LOOP;",
    ),
    kind("memory", 2, 5, "53200", "PERFORM length(repeat('x', 200000000)); PERFORM effect(payload, attempt);"),
    kind(
        "suicide",
        4,
        5,
        "57P01",
        "PERFORM effect(payload, attempt);
         IF attempt = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); END IF;",
    ),
    // What the nemesis likes best.
    kind(
        "poison",
        5,
        3,
        "",
        "PERFORM effect(payload, attempt);
         FOR step IN 1..8 LOOP
             PERFORM background_jobs.set_progress(step * 0.1 + attempt * 0.001);
             PERFORM pg_sleep(0.25);
         END LOOP;",
    ),
];

impl Kind {
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
