//! What an administrator is told of jobs that do not run: by the log, where log_line_prefix has no word for a worker's database, and by
//! the views. Each thing is said once, and once more when it comes back.

use server_tests::tenant::tenant;
use server_tests::{App, Cluster, Group, Uuid, ident, json};

/// Nothing here has the next poll to thank.
static SHARED: Group = Group::new(|| {
    Cluster::builder().conf("background_jobs.poll_interval", "1h").conf("background_jobs.cancel_grace", "50ms")
});

/// How often the log says `part` in an entry, with its detail and hint, that names this app's database.
fn said(app: &App, part: &str) -> usize {
    let (log, place) = (app.cluster.log(), format!("This is in database \"{}\".", app.database));
    let belongs = |line: &str| ["DETAIL:  ", "HINT:  "].iter().any(|word| line.contains(word));
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        match entries.last_mut() {
            Some(entry) if belongs(line) => entry.push_str(line),
            _ => entries.push(line.to_owned()),
        }
    }
    entries.iter().filter(|entry| entry.contains(part) && entry.contains(&place)).count()
}

fn wait_said(app: &App, part: &str, times: usize) {
    app.cluster.wait_until(&format!("{times} times {part}"), || match said(app, part) {
        seen if seen == times => Ok(()),
        seen => Err(seen.to_string()),
    });
}

#[test]
fn a_name_that_was_handled_meanwhile_is_complained_about_once_more() {
    let mut app = SHARED.app("again");
    let complaint = "no handler named \"Resize\" is registered";
    let first = app.submit("Resize", json!({}));
    wait_said(&app, complaint, 1);
    app.handler("Resize", "RETURN '1';");
    assert!(app.wait_final(first).completed);
    app.sql("SELECT background_jobs.unregister_handler('Resize')");
    for _ in 0..5 {
        app.submit("Resize", json!({}));
    }
    wait_said(&app, complaint, 2);
}

/// Nobody tells of handlers that a change of the owner brings back.
#[test]
fn a_table_that_is_given_back_runs_its_handlers_at_once_and_nothing_is_said() {
    let mut app = SHARED.app("back");
    app.handler("quick", "RETURN '1';");
    let mut heir = tenant(&app, "heir");
    let give = |to: &str| format!("ALTER TABLE public.background_jobs OWNER TO {}", ident(to));
    app.admin().batch_execute(&give(&heir.role)).unwrap();
    // The dispatcher has seen whose the handlers are.
    heir.sql(
        "CREATE FUNCTION theirs(payload jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '2'::jsonb $$;
         SELECT background_jobs.register_handler('theirs', 'theirs(jsonb)', 'public.background_jobs')",
    );
    let theirs = "SELECT background_jobs.enqueue('theirs', job_table => 'public.background_jobs')";
    let id = heir.one::<Uuid>(theirs, &[]);
    heir.client.execute("SELECT background_jobs.wait($1, job_table => 'public.background_jobs')", &[&id]).unwrap();
    app.admin().batch_execute(&give(&app.role)).unwrap();
    let id = app.submit("quick", json!({}));
    assert_eq!(app.wait_final(id).result, Some(json!(1)));
    assert_eq!(said(&app, "no handler named"), 0);
}

#[test]
fn a_handler_of_a_former_owner_is_complained_about_as_such() {
    let mut app = SHARED.app("former");
    app.handler("theirs", "RETURN '1';");
    let heir = tenant(&app, "heir");
    let give = format!(
        "ALTER TABLE public.background_jobs OWNER TO {}; GRANT INSERT, SELECT ON public.background_jobs TO {}",
        ident(&heir.role),
        ident(&app.role)
    );
    app.admin().batch_execute(&give).unwrap();
    // Any change of the handlers has the dispatcher look whose they are.
    app.sql("SELECT background_jobs.create_table('others')");
    app.sql("SELECT background_jobs.register_handler('theirs', 'theirs(jsonb)', 'others')");
    let id: Uuid = app.one("SELECT background_jobs.enqueue('theirs', job_table => 'others')", &[]);
    app.execute("SELECT background_jobs.wait($1, job_table => 'others')", &[&id]);
    app.submit("theirs", json!({}));
    wait_said(
        &app,
        &format!("It was registered by the former owner \"{}\" and is not run for \"{}\".", app.role, heir.role),
        1,
    );
    wait_said(&app, "Register it again with background_jobs.register_handler()", 1);
}
