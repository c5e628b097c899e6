//! Columns of the job table that become domains, whose CHECK is code of the owner's.

use crate::SHARED;
use server_tests::{App, Uuid, json};

const COLUMNS: [(&str, &str); 3] = [("payload", "jsonb"), ("result", "jsonb"), ("progress", "real")];

/// A domain over each of the types; its CHECK notes in whose name it is evaluated, and lets everything pass.
fn scene(name: &str) -> App<'static> {
    let mut app = SHARED.app(name);
    app.create_witness();
    for (column, base) in COLUMNS {
        app.sql(&format!(
            "CREATE FUNCTION in_{column}(v {base}) RETURNS boolean LANGUAGE plpgsql AS
                $$ BEGIN PERFORM public.seen('{column}'); RETURN true; END $$;
             CREATE DOMAIN a_{column} AS {base} CHECK (in_{column}(VALUE));"
        ));
    }
    app.handler("noted", "PERFORM note(); PERFORM background_jobs.set_progress(0.5); RETURN '1';");
    app.handler("held", "PERFORM note(); PERFORM background_jobs.set_progress(0.5); PERFORM reach(1); PERFORM await_gate(payload ->> 'gate'); RETURN '1';");
    app
}

fn retype(app: &mut App, column: &str, to: &str) {
    app.sql(&format!("ALTER TABLE background_jobs ALTER {column} TYPE {to}"));
}

/// A job of another table that comes later and is done says that the executor has had its turn at the job before.
fn pass(app: &mut App) {
    let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', job_table => 'other_jobs')", &[]);
    app.wait_true(&format!("SELECT completed FROM other_jobs WHERE id = '{id}'"));
}

#[test]
fn a_check_of_a_domain_is_evaluated_in_the_owners_name_alone_and_jobs_wait_until_the_type_is_back() {
    let mut app = scene("domains");
    app.sql("SELECT background_jobs.create_table('other_jobs')");
    app.sql("SELECT background_jobs.register_handler('noted', 'noted(jsonb)', 'other_jobs')");
    for (column, base) in COLUMNS {
        // A table that the executor knows by its statements, and one that it meets as it is now.
        for known in [true, false] {
            let first = app.submit("noted", json!({}));
            assert!(app.wait_final(first).completed);
            let id: Uuid = app.one("SELECT background_jobs.enqueue('noted', run_at => now() + interval '1 h')", &[]);
            retype(&mut app, column, &format!("a_{column}"));
            if !known {
                app.end_executors();
            }
            let submitted: Uuid = app.one("SELECT background_jobs.enqueue('noted')", &[]);
            app.execute("SELECT background_jobs.run_now($1)", &[&id]);
            pass(&mut app);
            for id in [id, submitted] {
                assert!(!app.row(id).is_final(), "{column} is not what the table was attached with");
                assert_eq!(app.noted(id), 0, "{column}");
            }
            retype(&mut app, column, base);
            for id in [id, submitted] {
                assert_eq!(app.wait_final(id).result, Some(json!(1)), "{column}");
                assert_eq!(app.noted(id), 1, "{column}");
            }
        }
        let seen: i64 = app.one("SELECT count(*) FROM seen WHERE place = $1", &[&column]);
        assert!(seen > 0, "the CHECK of {column} was evaluated");
    }
    assert_eq!(app.foreign(), Vec::<String>::new());
}

/// The executor and the progress writer have prepared their statements for the type that the column had.
#[test]
fn a_check_of_a_domain_under_a_running_job_is_evaluated_in_the_owners_name_alone() {
    let mut app = scene("domains_running");
    for (column, base) in COLUMNS {
        let id = app.submit("held", json!({"gate": column}));
        app.wait_reached(1);
        app.wait_true("SELECT bool_or(progress = 0.5) FROM background_jobs WHERE NOT completed");
        retype(&mut app, column, &format!("a_{column}"));
        app.open_gate(column);
        app.wait_left(1);
        retype(&mut app, column, base);
        let job = app.wait_final(id);
        assert_eq!((job.result, app.noted(id)), (Some(json!(1)), 1), "{column}");
    }
    assert_eq!(app.foreign(), Vec::<String>::new());
}
