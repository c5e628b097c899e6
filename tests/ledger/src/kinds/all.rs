//! All kinds of handlers, with what each does.

use super::{CRASHED, Kind, kind};

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
    // These need no nemesis. Each attempt costs everybody a recovery, so there are few jobs of them, and two attempts.
    Kind { fails: true, ..kind("panic", 1, 2, CRASHED, "PERFORM effect(payload, attempt); PERFORM poison.panic();") },
    Kind { fails: true, ..kind("abort", 1, 2, CRASHED, "PERFORM effect(payload, attempt); PERFORM poison.abort();") },
];
