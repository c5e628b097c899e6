//! Functions of a stranger's, in a schema where both may create, that a call by the registered one's name could mean.

use crate::SHARED;
use server_tests::tenant::stranger;
use server_tests::{App, Job, ident, json};

/// What a call with a jsonb, and one with an id and a jsonb, can be resolved to where there is no function of exactly those types.
const STAND_INS: [(&str, [&str; 4]); 2] = [
    ("payload jsonb", ["p anyelement", "p anycompatible", "p jsonb, n int DEFAULT 0", "VARIADIC p jsonb[]"]),
    (
        "id uuid, payload jsonb",
        [
            "id uuid, p anyelement",
            "id anynonarray, p jsonb",
            "id uuid, p jsonb, n int DEFAULT 0",
            "id uuid, VARIADIC p jsonb[]",
        ],
    ),
];

fn create(arguments: &str, value: &str) -> String {
    format!(
        "CREATE FUNCTION public.shared({arguments}) RETURNS jsonb LANGUAGE plpgsql AS
            $$ BEGIN RETURN to_jsonb('{value} ' || current_user); END $$"
    )
}

fn run(app: &mut App) -> Job {
    let id = app.submit("shared", json!({}));
    app.wait_final(id)
}

#[test]
fn a_strangers_overload_is_not_called_for_a_registered_function_that_is_gone() {
    for (arguments, stand_ins) in STAND_INS {
        let mut app = SHARED.app("overloads");
        let mut stranger = stranger(&app, "overloader");
        app.admin().batch_execute(&format!("GRANT CREATE ON SCHEMA public TO {}", ident(&stranger.role))).unwrap();
        let types = arguments.replace("payload ", "").replace("id ", "");
        app.sql(&create(arguments, "registered"));
        app.register("shared", &format!("public.shared({types})"), "max_attempts => 1");
        let mine = Some(json!(format!("registered {}", app.role)));
        assert_eq!(run(&mut app).result, mine);
        for stand_in in stand_ins {
            stranger.sql(&create(stand_in, "stolen"));
            assert_eq!(run(&mut app).result, mine, "beside {stand_in}");

            app.sql(&format!("DROP FUNCTION public.shared({types})"));
            let gone = run(&mut app);
            assert_eq!(gone.error("sqlstate"), Some(&json!("42883")), "{stand_in}: {gone:?}");
            let message = format!("function public.shared({types}) does not exist");
            assert_eq!(gone.error("message"), Some(&json!(message)), "{stand_in}");
            let hint = gone.error("hint").and_then(|hint| hint.as_str()).unwrap_or_default();
            assert!(hint.contains("register_handler"), "{stand_in}: {gone:?}");
            app.sql(&create(arguments, "registered"));
            stranger.sql("DROP OWNED BY CURRENT_USER");
            app.admin().batch_execute(&format!("GRANT CREATE ON SCHEMA public TO {}", ident(&stranger.role))).unwrap();
        }
        assert_eq!(run(&mut app).result, mine);
    }
}
