//! Calls of our functions with values that nobody would choose.

use fastrand::Rng;
use server_tests::postgres::Client;

/// Name, and the arguments with their names and types.
struct Function {
    name: String,
    arguments: Vec<(String, String)>,
    /// So many of them have to be given.
    needed: usize,
}

pub struct Calls(Vec<Function>);

/// What the arguments of these types may be; the first one fits most often.
const VALUES: &[(&str, &[&str])] = &[
    (
        "regclass",
        &[
            "'public.background_jobs'::regclass",
            "'public.others'::regclass",
            "'public.things'::regclass",
            "'pg_class'::regclass",
            "'background_jobs.queue'::regclass",
            "'background_jobs.queued_job'::regclass",
            "'public.background_jobs_pkey'::regclass",
            "0::oid::regclass",
            "4294967295::oid::regclass",
        ],
    ),
    (
        "uuid",
        &[
            "(SELECT job_id FROM background_jobs.queue LIMIT 1)",
            "(SELECT id FROM public.background_jobs ORDER BY random() LIMIT 1)",
            "gen_random_uuid()",
            "'00000000-0000-0000-0000-000000000000'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        ],
    ),
    (
        "text",
        &[
            "'fine'",
            "'runs'",
            "'catches'",
            "''",
            "'no such'",
            "repeat('x', 100000)",
            "E'\\u00e4\"''\\n'",
            "'keep'",
            "'replace'",
            "'off'",
        ],
    ),
    (
        "jsonb",
        &["'{}'", "'{\"handler\": \"fine\"}'", "'[]'", "'null'", "'1e1000'", "'{\"handler\": [{}]}'", "'{\"\": \"\"}'"],
    ),
    (
        "interval",
        &["'1 s'", "'10 ms'", "'0'", "'-1 day'", "'178000000 years'", "'-178000000 years'", "'1 month'", "'1 us'"],
    ),
    (
        "timestamp with time zone",
        &["now()", "'infinity'", "'-infinity'", "'294276-12-31'", "'4713-01-01 BC'", "now() + '1 s'"],
    ),
    ("real", &["0.5", "0", "1", "'NaN'", "'infinity'", "-0.0", "1e-40", "2"]),
    ("integer", &["1", "0", "-1", "2147483647", "-2147483648"]),
    ("smallint", &["0::smallint", "1::smallint", "32767::smallint", "-32768::smallint"]),
    ("bigint", &["0", "9223372036854775807", "-1"]),
    ("boolean", &["true", "false"]),
    (
        "regprocedure",
        &[
            "'fine(jsonb)'",
            "'runs(jsonb)'",
            "'pg_sleep(float8)'",
            "'now()'",
            "0::oid",
            "4294967295::oid",
            "'upper(text)'",
        ],
    ),
    ("name", &["'others'", "'fresh'", "''", "'background_jobs'"]),
    (
        "name[]",
        &[
            "'{}'",
            "'{handler,finished_at}'",
            "'{nothing}'",
            "'{NULL}'",
            "'{{handler},{run_at}}'",
            "'[5:6]={handler,queue}'",
        ],
    ),
    ("text[]", &["'{}'", "'{NULL}'", "'{a,b}'"]),
    ("oid", &["0", "'public.background_jobs'::regclass::oid", "4294967295"]),
];

impl Calls {
    pub fn of(admin: &mut Client) -> Calls {
        let query = "SELECT proname::text, pronargs::int4, pronargdefaults::int4, coalesce(proargnames, '{}')::text[],
                (SELECT coalesce(array_agg(format_type(t, NULL) ORDER BY n), '{}') FROM unnest(proargtypes) WITH ORDINALITY u (t, n))::text[]
            FROM pg_proc WHERE pronamespace = 'background_jobs'::regnamespace AND prokind = 'f' ORDER BY 1";
        let rows = admin.query(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}"));
        let functions = rows.iter().map(|row| {
            let (count, defaults): (i32, i32) = (row.get(1), row.get(2));
            let (names, types): (Vec<String>, Vec<String>) = (row.get(3), row.get(4));
            let name = |n: usize| names.get(n).cloned().unwrap_or_default();
            let arguments = types.into_iter().enumerate().map(|(n, kind)| (name(n), kind)).collect();
            Function { name: row.get(0), arguments, needed: (count - defaults).unsigned_abs() as usize }
        });
        Calls(functions.collect())
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// One of them, alone or for many rows, and sometimes rolled back to where a transaction goes on.
    pub fn one(&self, rng: &mut Rng) -> String {
        let function = &self.0[rng.usize(..self.0.len())];
        let mut given = Vec::new();
        for (number, (name, kind)) in function.arguments.iter().enumerate() {
            let needed = number < function.needed;
            if needed || rng.bool() {
                let value = value(kind, rng);
                given.push(if needed || name.is_empty() { value } else { format!("{name} => {value}") });
            }
        }
        let call = format!("background_jobs.{}({})", function.name, given.join(", "));
        match rng.u32(..10) {
            0 => format!("SELECT * FROM {call} AS answer"),
            1 => format!("SELECT {call} FROM generate_series(1, 3)"),
            2 => format!("BEGIN; SAVEPOINT here; SELECT {call}; ROLLBACK TO here; SELECT {call}; COMMIT"),
            3 => format!("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT {call}; COMMIT"),
            4 => format!("BEGIN READ ONLY; SELECT {call}; COMMIT"),
            _ => format!("SELECT {call}"),
        }
    }
}

fn value(kind: &str, rng: &mut Rng) -> String {
    let known = VALUES.iter().find(|(name, _)| *name == kind).map(|(_, values)| *values);
    match known {
        Some(values) if rng.u32(..12) > 0 => {
            let number = if rng.u32(..3) == 0 { 0 } else { rng.usize(..values.len()) };
            format!("({})::{kind}", values[number])
        }
        _ => format!("NULL::{kind}"),
    }
}
