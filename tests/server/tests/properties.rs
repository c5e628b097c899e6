//! What goes in comes out, whatever it is: payloads, progress, errors and names drawn at random. The server compares, because
//! a client's JSON library rounds numbers that PostgreSQL keeps. A failure is reported with the smallest input that was found.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use server_tests::{App, Cluster, Group, Uuid, Value, json, times};
use std::fmt::Debug;
use std::time::Duration;

static SHARED: Group = Group::new(|| Cluster::builder().conf("background_jobs.poll_interval", "500ms"));

const DRAIN: Duration = Duration::from_secs(30);

/// Draws `cases` values, in the long run more (`times`), and has each examined; panics with the smallest one that fails.
fn examine<S: Strategy>(cases: u32, strategy: &S, mut examine: impl FnMut(S::Value) -> Result<(), String>)
where
    S::Value: Debug,
{
    let config = Config { cases: times(cases), max_shrink_iters: 150, failure_persistence: None, ..Config::default() };
    let examine = std::cell::RefCell::new(&mut examine);
    let outcome =
        TestRunner::new(config).run(strategy, |value| (examine.borrow_mut())(value).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, value)) => panic!("{why}\nfor {value:#?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

/// Any character that a text can hold, with those that are somebody's special case more often than chance would have it.
fn character() -> impl Strategy<Value = char> {
    prop_oneof![
        4 => any::<char>().prop_filter("no text holds it", |c| *c != '\0'),
        2 => proptest::char::range(' ', '~'),
        1 => proptest::sample::select(vec![
            '\u{1}', '\u{7}', '\u{8}', '\t', '\n', '\r', '\u{1b}', '\u{7f}', '\u{80}', '\u{a0}', '\u{308}', '\u{200b}', '\u{202e}',
            '\u{2028}', '\u{feff}', '\u{fffd}', '\u{fffe}', '\u{ffff}', '\u{10ffff}', '\'', '"', '\\', '%', '$', '{', '}', ';', '\u{1f418}',
        ]),
    ]
}

fn text(most: usize) -> impl Strategy<Value = String> {
    vec(character(), 0..most).prop_map(|characters| characters.into_iter().collect())
}

/// A JSON document as text, with numbers that no floating point type holds.
fn document() -> impl Strategy<Value = String> {
    let quoted = || text(12).prop_map(|text| Value::from(text).to_string());
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?",
        "-?[1-9]\\.[0-9]{1,5}[eE][+-]?[0-9]{1,3}",
        "-?[1-9]e(1[0-2]|[1-9])[0-9]{4}",
        quoted(),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(", "))),
            vec((quoted(), inner), 0..6).prop_map(|fields| {
                let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{{}}}", fields.join(", "))
            }),
        ]
    })
}

fn wait_drained(app: &mut App) {
    app.wait_drained(DRAIN);
}

#[test]
fn any_payload_is_seen_by_the_handler_and_stored_as_a_result_unchanged() {
    let mut app = SHARED.app("payloads");
    app.sql("CREATE TABLE seen (id uuid, payload text)");
    app.sql(
        "CREATE FUNCTION echo(id uuid, payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.seen VALUES (id, payload::text); RETURN payload; END $$",
    );
    app.register("default", "echo(uuid, jsonb)", "max_attempts => 1");
    // As the whole payload, which need not be an object, and inside of one.
    let wrapped =
        (document(), any::<bool>()).prop_map(|(json, wrap)| if wrap { format!("{{\"v\": {json}}}") } else { json });
    examine(15, &vec(wrapped, 1..40), |documents| {
        app.sql("TRUNCATE background_jobs, seen");
        let insert = "INSERT INTO background_jobs (payload) SELECT t::jsonb FROM unnest($1::text[]) t WHERE t::jsonb ->> 'handler' IS NULL";
        app.execute(insert, &[&documents]);
        wait_drained(&mut app);
        let wrong = app.rows(
            "SELECT j.payload::text, s.payload, j.result::text FROM background_jobs j LEFT JOIN seen s USING (id)
              WHERE NOT j.completed OR (j.payload::text, j.payload::text) IS DISTINCT FROM (s.payload, j.result::text)",
            &[],
        );
        match wrong.first() {
            None => Ok(()),
            Some(row) => {
                let [payload, seen, result] = [0, 1, 2].map(|n| row.get::<_, Option<String>>(n));
                Err(format!("payload {payload:?}, seen {seen:?}, result {result:?}"))
            }
        }
    });
}

/// The largest value below 1, which is as far as a job gets that is not completed.
const ALMOST: f32 = 1.0 - f32::EPSILON / 2.0;

#[test]
fn any_progress_is_an_error_or_the_largest_so_far() {
    let mut app = SHARED.app("progress");
    app.handler(
        "reports",
        "DECLARE v text; valid bool; seen jsonb := '[]';
         BEGIN
            FOR v IN SELECT jsonb_array_elements_text(payload -> 'values') LOOP
                BEGIN
                    IF (payload ->> 'real')::bool THEN PERFORM background_jobs.set_progress(v::real);
                    ELSE PERFORM background_jobs.set_progress(v::float8); END IF;
                    valid := true;
                EXCEPTION WHEN numeric_value_out_of_range THEN valid := false; END;
                seen := seen || jsonb_build_array(jsonb_build_array(valid,
                    (SELECT w.progress::text FROM background_jobs.workers w WHERE w.pid = pg_backend_pid())));
            END LOOP;
            RETURN seen;
         END;",
    );
    let value = prop_oneof![
        4 => 0.0..=1.0_f64,
        1 => any::<f64>(),
        1 => 0.0..=1e-30_f64,
        2 => proptest::sample::select(vec![
            0.0, -0.0, 1.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-300, 5e-324, 1.0 + f64::EPSILON, 1.0 - f64::EPSILON / 2.0,
            f64::from(ALMOST), f64::from(f32::MIN_POSITIVE), 1.0 / 3.0, 2.0,
        ]),
    ];
    examine(40, &(vec(value, 1..12), any::<bool>()), |(values, real)| {
        let values: Vec<f64> = values.into_iter().map(|v| if real { f64::from(v as f32) } else { v }).collect();
        let texts: Vec<String> = values
            .iter()
            .map(|v| match v {
                v if v.is_nan() => "NaN".to_owned(),
                v if v.is_infinite() => (if *v > 0.0 { "Infinity" } else { "-Infinity" }).to_owned(),
                v => format!("{v:e}"),
            })
            .collect();
        let id = app.submit("reports", json!({"values": texts, "real": real}));
        let job = app.wait_final(id);
        let mut largest = 0.0_f32;
        let expected: Vec<(bool, f32)> = values
            .iter()
            .map(|v| {
                let valid = (0.0..=1.0).contains(v);
                if valid {
                    largest = largest.max((*v as f32).min(ALMOST));
                }
                (valid, largest)
            })
            .collect();
        let seen: Option<Vec<(bool, String)>> =
            job.result.clone().and_then(|result| serde_json::from_value(result).ok());
        let Some(seen) = seen else { return Err(format!("{job:?}")) };
        let seen: Vec<(bool, f32)> =
            seen.into_iter().map(|(valid, text)| (valid, text.parse().unwrap_or(f32::NAN))).collect();
        if seen == expected { Ok(()) } else { Err(format!("expected {expected:?}, seen {seen:?}")) }
    });
}

#[test]
fn any_error_is_kept_as_it_was_raised() {
    let mut app = SHARED.app("errors");
    app.handler_with(
        "raises",
        "RAISE EXCEPTION USING MESSAGE = payload ->> 'message', DETAIL = payload ->> 'detail', HINT = payload ->> 'hint',
            ERRCODE = payload ->> 'sqlstate';",
        "max_attempts => 1",
    );
    let error = (
        text(40),
        text(40),
        text(40),
        "[0-9A-Z]{5}".prop_filter("success is no error", |code| !code.starts_with("00")),
    );
    examine(12, &vec(error, 1..25), |errors| {
        app.sql("TRUNCATE background_jobs");
        let payloads: Vec<Value> = errors
            .iter()
            .map(|(message, detail, hint, sqlstate)| {
                json!({"handler": "raises", "message": message, "detail": detail, "hint": hint, "sqlstate": sqlstate})
            })
            .collect();
        app.execute("INSERT INTO background_jobs (payload) SELECT p FROM unnest($1::jsonb[]) p", &[&payloads]);
        wait_drained(&mut app);
        // An empty detail or hint is none.
        let same = |of: &str| {
            ["message", "sqlstate", "detail", "hint"]
                .map(|field| format!("coalesce({of} ->> '{field}', '') = coalesce(j.payload ->> '{field}', '')"))
                .join(" AND ")
        };
        let query = format!(
            "SELECT j.payload::text, j.result::text, a.error::text FROM background_jobs j
               LEFT JOIN background_jobs.attempts a ON a.job_id = j.id AND a.outcome = 'error'
              WHERE ({} AND {}) IS NOT TRUE",
            same("(j.result -> 'error')"),
            same("a.error")
        );
        if let Some(row) = app.rows(&query, &[]).first() {
            let [payload, result, attempt] = [0, 1, 2].map(|n| row.get::<_, Option<String>>(n));
            return Err(format!("payload {payload:?}, result {result:?}, attempt {attempt:?}"));
        }
        let ids: Vec<Uuid> = app.rows("SELECT id FROM background_jobs", &[]).iter().map(|row| row.get(0)).collect();
        for id in ids {
            let payload = app.row(id).payload;
            let Err(error) = app.client.query("SELECT background_jobs.wait($1)", &[&id]) else {
                return Err(format!("wait() raised nothing for {payload}"));
            };
            let Some(error) = error.as_db_error() else { return Err(format!("{error:?}")) };
            let some = |text: Option<&str>| text.unwrap_or_default().to_owned();
            let seen = json!({"handler": "raises", "message": error.message(), "detail": some(error.detail()), "hint": some(error.hint()),
                "sqlstate": error.code().code()});
            if seen != payload {
                return Err(format!("wait() raised {seen} for {payload}"));
            }
        }
        Ok(())
    });
}

#[test]
fn any_name_of_up_to_63_bytes_is_one_handler_and_any_longer_one_is_none() {
    let mut app = SHARED.app("names");
    app.sql("CREATE FUNCTION who(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(handler) FROM background_jobs.current_job()'");
    let name = prop_oneof![
        4 => text(24),
        // Around the limit, in characters of one to four bytes.
        2 => (proptest::sample::select(vec!['a', 'ä', '漢', '\u{1f418}']), 10..70_usize, text(3))
            .prop_map(|(c, n, end)| c.to_string().repeat(n).chars().take(n).collect::<String>() + &end),
    ];
    examine(10, &vec(name, 1..20), |names| {
        app.sql(
            "TRUNCATE background_jobs; SELECT background_jobs.unregister_handler(name) FROM background_jobs.handlers",
        );
        for name in &names {
            let outcome = app.client.execute("SELECT background_jobs.register_handler($1, 'who(jsonb)')", &[name]);
            let valid = (1..=63).contains(&name.len());
            match outcome.map_err(|error| server_tests::sqlstate(&error)) {
                Ok(_) if valid => {}
                Err(code) if !valid && code == "22023" => {}
                other => return Err(format!("{} bytes {name:?}: {other:?}", name.len())),
            }
        }
        for name in &names {
            let id = app.submit(name, json!({}));
            if (1..=63).contains(&name.len()) {
                let job = app.wait_final(id);
                if job.result != Some(json!(name)) {
                    return Err(format!("{name:?}: {job:?}"));
                }
            } else {
                app.wait_state(id, "unhandled");
            }
        }
        Ok(())
    });
}
