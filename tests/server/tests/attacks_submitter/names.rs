//! Names of handlers: any, huge, and very many.

use crate::{SHARED, assert_others_run, submit, submitter};
use server_tests::tenant::owner;
use server_tests::{App, Cluster, Uuid, json};
use std::time::{Duration, Instant};

#[test]
fn names_of_handlers_are_compared_byte_for_byte_whatever_they_hold() {
    let mut app = SHARED.app("names");
    let mut submitter = submitter(&mut app);
    app.sql("CREATE FUNCTION who(p jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(handler) FROM background_jobs.current_job()'");
    let sixty_three = "ä".repeat(31) + "x";
    let names = [
        sixty_three.as_str(),
        "a\"b'c;--\\",
        "'); DROP TABLE background_jobs; --",
        "\u{1f418}漢字",
        " leading and trailing ",
        "new\nline\ttab",
        "\u{1}\u{7f}\u{200b}\u{202e}",
        "%s%n$1{}$$",
        "Default",
        "NULL",
    ];
    for name in names {
        app.execute("SELECT background_jobs.register_handler($1, 'who(jsonb)')", &[&name]);
    }
    for name in names {
        let id = submit(&mut submitter, &json!({"handler": name}));
        assert_eq!(app.wait_final(id).result, Some(json!(name)));
    }
    // One byte more, one character else, another case or normal form, another JSON type: all of them another name.
    let mut waiting = Vec::new();
    for other in [
        json!(sixty_three.clone() + "x"),
        json!(sixty_three.clone() + "..."),
        json!("ä".repeat(32)),
        json!(sixty_three.replace('x', "y")),
        json!("a\u{308}".repeat(20)),
        json!("default "),
        json!("DEFAULT"),
        json!(""),
        json!(names),
        json!({"name": "Default"}),
        json!(7),
        json!(true),
    ] {
        waiting.push(submit(&mut submitter, &json!({"handler": other})));
    }
    for id in waiting {
        app.wait_state(id, "unhandled");
    }
    app.execute("SELECT background_jobs.register_handler('default', 'who(jsonb)')", &[]);
    for payload in
        [json!({"handler": null}), json!({}), json!([]), json!("Default"), json!(null), json!({"Handler": "NULL"})]
    {
        let id = submit(&mut submitter, &payload);
        assert_eq!(app.wait_final(id).result, Some(json!("default")), "{payload}");
    }
}

#[test]
fn a_huge_name_is_kept_out_of_the_queue_and_the_log() {
    let mut app = SHARED.app("huge");
    let mut submitter = submitter(&mut app);
    let before = app.cluster.log().len();
    let mut last = Uuid::nil();
    for size in [64, 4_000, 1_000_000, 20_000_000] {
        last = submit(&mut submitter, &json!({"handler": "n".repeat(size)}));
        app.wait_state(last, "unhandled");
    }
    assert!(app.one::<i32>("SELECT max(octet_length(handler)) FROM background_jobs.queue", &[]) < 100);
    let log = app.cluster.log();
    let written = &log[before..];
    assert!(!written.contains(&"n".repeat(200)), "no more of a name than can be registered, and a little");
    // Other tests write into the same log; ours are the lines that name this database.
    let own: usize = written.lines().filter(|line| line.contains(&app.database)).map(str::len).sum();
    assert!(own < 20_000, "{own}");
    app.execute("UPDATE background_jobs SET cancelled = true WHERE id = $1", &[&last]);
    assert_eq!(app.state(last), "cancelled");
}

/// Each name is warned about once, a thousand of an owner's at most, and the warnings name what cannot forge a line of their own.
#[test]
fn unregistered_names_by_the_ten_thousand_neither_flood_the_log_nor_stop_others() {
    let cluster = Cluster::builder().conf("background_jobs.poll_interval", "300ms").start();
    let mut app = App::with_table(&cluster, "unknown");
    let mut victim = owner(&app, "victim");
    victim.handler("fine", "RETURN '1';", "");
    app.handler("known", "RETURN '1';");
    let mut submitter = submitter(&mut app);
    for round in 0..3 {
        submitter.sql(&format!(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', 'n{round}_' || n) FROM generate_series(1, 5000) n"
        ));
        assert_others_run(&app, &mut victim);
    }
    submit(&mut submitter, &json!({"handler": "x\nFATAL:  forged\r\nERROR:  forged too"}));
    let id = submit(&mut submitter, &json!({"handler": "known"}));
    app.wait_final(id);
    assert_others_run(&app, &mut victim);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM background_jobs.queue WHERE state = 'unhandled'", &[]), 15_001);
    let log = cluster.log();
    let warnings = log.lines().filter(|line| line.contains("no handler named")).count();
    assert!((1..=1000).contains(&warnings), "{warnings} warnings");
    assert!(log.len() < 1_000_000, "{} bytes of log", log.len());
    let forged: Vec<&str> = log.lines().filter(|line| line.starts_with("FATAL") || line.starts_with("ERROR")).collect();
    assert!(forged.is_empty(), "{forged:?}");
}

#[test]
fn who_makes_up_names_until_no_more_of_them_are_warned_about_hides_nobody_elses() {
    let cluster = Cluster::builder().conf("background_jobs.poll_interval", "20ms").start();
    let mut app = App::with_table(&cluster, "used_up");
    let mut victim = owner(&app, "victim");
    app.sql(
        "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', 'made_up_' || n) FROM generate_series(1, 1500) n",
    );
    let warnings = |name: &str| cluster.log().matches(&format!("no handler named \"{name}")).count();
    cluster.wait_until("a thousand warnings", || match warnings("made_up_") {
        1000 => Ok(()),
        seen => Err(seen.to_string()),
    });
    victim.submit("forgotten");
    cluster.wait_until("the victim's warning", || match warnings("forgotten") {
        1 => Ok(()),
        seen => Err(seen.to_string()),
    });
    assert_eq!(warnings("made_up_"), 1000);
}

/// Time that one INSERT of that many names takes, which nobody but its own session pays for; it must not be quadratic.
#[test]
fn many_names_in_one_transaction_cost_about_as_much_as_one_name() {
    let mut app = SHARED.app("one_transaction");
    let mut submitter = submitter(&mut app);
    let mut time = |handler: &str| {
        let begin = Instant::now();
        submitter.sql(&format!(
            "INSERT INTO background_jobs (payload) SELECT jsonb_build_object('handler', {handler}) FROM generate_series(1, 30000) n"
        ));
        begin.elapsed()
    };
    let (one, many) = (time("'nobody'"), time("'nobody' || n"));
    assert!(many < one * 6 + Duration::from_secs(1), "one name {one:?}, 30,000 names {many:?}");
}
