//! A hostile owner of one job table. Whatever is hung on the table runs, but in the owner's name only (I15), for a bounded time,
//! and at nobody else's expense. What an honest role leaves behind or plants is in `clean_room`.

mod bounded;
mod changing;
mod endless;
mod given;
mod places;
mod role;

use server_tests::{App, Builder, Cluster, Group};

fn lively() -> Builder {
    Cluster::builder()
        .conf("background_jobs.poll_interval", "300ms")
        .conf("background_jobs.retry_delay", "10ms")
        .conf("max_prepared_transactions", "4")
}

static SHARED: Group = Group::new(lively);

/// Everything that a witness sees goes into `seen`; the argument says where it stood.
const WITNESS: &str = "
    CREATE TABLE seen (place text, session_role text, user_role text, superuser text, kind text);
    CREATE FUNCTION public.seen(place text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.seen SELECT place, session_user, current_user, pg_catalog.current_setting('is_superuser'),
            (SELECT a.backend_type FROM pg_catalog.pg_stat_activity a
             WHERE a.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid());
    END $$;";

/// Whoever the witnesses saw but the role itself.
fn foreign(app: &mut App) -> Vec<String> {
    let role = app.role.clone();
    let query = "SELECT DISTINCT format('%s: session %s, user %s, superuser %s, %s', place, session_role, user_role, superuser, kind)
        FROM public.seen WHERE (session_role, user_role, superuser) IS DISTINCT FROM ($1, $1, 'off')";
    app.rows(query, &[&role]).iter().map(|row| row.get(0)).collect()
}

fn restart_executors(app: &App) {
    app.admin()
        .batch_execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
             WHERE datname = current_database() AND backend_type = 'background_jobs executor'",
        )
        .unwrap();
}
