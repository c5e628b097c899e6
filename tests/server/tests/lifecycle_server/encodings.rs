//! Databases in encodings other than the client's.

use crate::{SHARED, assert_completes, noting};
use server_tests::{App, Uuid, ident, json};

/// Names, payloads and errors are text of the database's encoding; a client sees them in its own.
fn speaks_its_encoding(encoding: &str, letters: &str) {
    let cluster = SHARED.cluster();
    let options = format!("TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
    let mut app = App::new_with(cluster, &encoding.to_lowercase(), &options);
    app.sql("SELECT background_jobs.create_table('background_jobs', '{queue, job_key}')");
    let handler = format!("größe {letters}");
    app.handler(&handler, "PERFORM note(); RETURN jsonb_build_object('echo', payload -> 'text', 'key', payload);");
    app.handler_with(
        &format!("fällt {letters}"),
        &format!("RAISE 'Übergröße {letters}: %', payload ->> 'text' USING DETAIL = 'näher', HINT = 'früher';"),
        "max_attempts => 2, retry_delay => '1 ms'",
    );
    let text = format!("äöüß {letters}");
    let id = app.submit(&handler, json!({"text": text}));
    assert_eq!(app.wait_final(id).result.unwrap()["echo"], json!(text));
    assert_eq!(app.noted(id), 1);

    let id = app.submit(&format!("fällt {letters}"), json!({"text": text}));
    let job = app.wait_final(id);
    assert_eq!(job.error("message"), Some(&json!(format!("Übergröße {letters}: {text}"))));
    assert_eq!((job.error("detail"), job.error("hint")), (Some(&json!("näher")), Some(&json!("früher"))));
    let kept: String = app.one("SELECT error ->> 'message' FROM background_jobs.attempts WHERE attempt = 1", &[]);
    assert_eq!(kept, format!("Übergröße {letters}: {text}"));

    let nobody = format!("niemand für {letters}");
    let id = app.submit(&nobody, json!({}));
    app.wait_state(id, "unhandled");
    assert_eq!(app.one::<String>("SELECT handler FROM background_jobs.queue", &[]), nobody);
    let error = app.client.query_one("SELECT background_jobs.wait($1, '10 ms')", &[&id]).unwrap_err();
    assert!(error.as_db_error().is_some(), "{error:?}");
    let id: Uuid = app.one(
        "SELECT background_jobs.enqueue($1, job_key => $2, queue => $2, run_at => now() + interval '1 h')",
        &[&handler, &text],
    );
    let shown: String = app.one("SELECT queue FROM background_jobs.status($1)", &[&id]);
    assert_eq!(shown, text);
    let again: Uuid =
        app.one("SELECT background_jobs.enqueue($1, job_key => $2, job_key_mode => 'keep')", &[&handler, &text]);
    assert_eq!(again, id);
    for n in 60..66 {
        let id = app.submit(&format!("{}{letters}{letters}", "x".repeat(n)), json!({}));
        app.wait_state(id, "unhandled");
    }
    let shown: i64 = app.one("SELECT count(*) FROM background_jobs.queue WHERE handler LIKE 'xxx%'", &[]);
    assert_eq!(shown, 6);
    // A table of such a name.
    let table = format!("aufträge {letters}");
    app.sql(&format!("SELECT background_jobs.create_table('{}')", ident(&table)));
    let register = "SELECT background_jobs.register_handler($1, $2::text::regprocedure, $3::text::regclass)";
    app.execute(register, &[&"größe", &format!("{}(jsonb)", ident(&handler)), &ident(&table)]);
    let id: Uuid =
        app.one("SELECT background_jobs.enqueue('größe', job_table => $1::text::regclass)", &[&ident(&table)]);
    app.execute("SELECT background_jobs.wait($1, job_table => $2::text::regclass)", &[&id, &ident(&table)]);
}

#[test]
fn utf8_databases_keep_every_letter() {
    speaks_its_encoding("UTF8", "漢字 🐘");
}

#[test]
fn latin1_databases_keep_every_letter() {
    speaks_its_encoding("LATIN1", "ñ÷ÿ");
}

/// Characters of two and three bytes, which a name that is too long must not be cut inside of.
#[test]
fn euc_jp_databases_keep_every_letter() {
    speaks_its_encoding("EUC_JP", "漢字");
}

#[test]
fn sql_ascii_databases_keep_every_byte() {
    speaks_its_encoding("SQL_ASCII", "漢字 🐘");
}

/// Bytes that are no text in any other encoding.
#[test]
fn sql_ascii_databases_survive_bytes_that_are_not_utf8() {
    let options = "TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'";
    let mut app = App::new_with(SHARED.cluster(), "bytes", options);
    app.sql("SELECT background_jobs.create_table()");
    noting(&mut app);
    // Written by the server itself: the client's library sends UTF-8 only.
    let name = "E'gr\\xf6\\xdfe'";
    app.sql(&format!(
        "DO $$ BEGIN EXECUTE format('CREATE FUNCTION %I(p jsonb) RETURNS jsonb LANGUAGE plpgsql AS %L', {name},
            'BEGIN PERFORM note(); RETURN NULL; END'); END $$"
    ));
    app.sql(&format!(
        "SELECT background_jobs.register_handler({name}, (quote_ident({name}) || '(jsonb)')::regprocedure);
         INSERT INTO background_jobs (payload) VALUES (jsonb_build_object('handler', {name}, 'text', E'\\xe4\\xff'));
         INSERT INTO background_jobs (payload) VALUES (jsonb_build_object('handler', E'nobody \\xff'));
         INSERT INTO background_jobs (payload) VALUES (jsonb_build_object('handler', 'raises', 'text', E'\\xe4\\xff'));"
    ));
    app.handler_with("raises", "RAISE '%', payload ->> 'text';", "max_attempts => 1");
    app.wait_true("SELECT count(*) = 2 FROM background_jobs WHERE completed");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM ledger", &[]), 1);
    let kept: bool = app.one(
        "SELECT (result -> 'error' ->> 'message')::bytea = '\\xe4ff' FROM background_jobs WHERE payload ->> 'handler' = 'raises'",
        &[],
    );
    assert!(kept, "the error's text byte for byte");
    assert_completes(&mut app, "noted");
}
