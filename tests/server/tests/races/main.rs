//! Two or three sessions and the engine on the same job, in hundreds of rounds with random small offsets. What is checked
//! afterwards are the invariants of exactly-once effects (I3), of the cancel that wins (I4), of attempts that do not overlap (I6),
//! of progress (I8) and of final states (I9). The seed is printed; `BACKGROUND_JOBS_TEST_SEED` runs one again.
//! `make soak` has twenty times as many rounds.

mod again;
mod cancels;
mod deadlocks;
mod dice;
mod tables;

use postgres::Client;
use server_tests::{App, Builder, Cluster, Group};
use std::time::Duration;

fn eager() -> Builder {
    Cluster::builder()
        .conf("background_jobs.poll_interval", "500ms")
        .conf("background_jobs.progress_flush_interval", "10ms")
        .conf("background_jobs.cancel_grace", "500ms")
        .conf("deadlock_timeout", "100ms")
        .conf("max_connections", "100")
}

static SHARED: Group = Group::new(eager);

/// Records each state that a row was in, and each attempt that met another of the same job (by a lock that lasts as long as
/// the attempt and a sequence that no rollback takes back).
const WITNESSES: &str = "
    CREATE TABLE edges (at bigserial, id uuid, completed bool, cancelled bool, progress real, result bool, gone bool);
    CREATE INDEX ON edges (id, at);
    CREATE FUNCTION on_edge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO public.edges (id, completed, cancelled, progress, result, gone)
                VALUES (OLD.id, OLD.completed, OLD.cancelled, OLD.progress, OLD.result IS NOT NULL, true);
        ELSE
            INSERT INTO public.edges (id, completed, cancelled, progress, result, gone)
                VALUES (NEW.id, NEW.completed, NEW.cancelled, NEW.progress, NEW.result IS NOT NULL, false);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER edges AFTER INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION on_edge();
    CREATE SEQUENCE starts; CREATE SEQUENCE met;
    CREATE FUNCTION begin_attempt() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_catalog.nextval('public.starts');
        IF NOT pg_catalog.pg_try_advisory_xact_lock((SELECT pg_catalog.hashtextextended(id::text, 7) FROM background_jobs.current_job())) THEN
            PERFORM pg_catalog.nextval('public.met');
        END IF;
        PERFORM public.note();
    END $$;";

fn scene(name: &str) -> App<'static> {
    let mut app = SHARED.app(name);
    app.sql(WITNESSES);
    app
}

const CANCEL: &str = "UPDATE background_jobs SET cancelled = true WHERE id = $1 AND NOT completed AND NOT cancelled";

fn overlaps(app: &mut App) -> bool {
    app.one("SELECT is_called FROM met", &[])
}

/// Every row is final, and what there is of it agrees.
fn check(app: &mut App) {
    app.wait_drained(Duration::from_secs(60));
    let role = app.role.clone();
    let problems = format!(
        "SELECT 'I3 effects: ' || to_jsonb(j)::text || ' ' || l.n FROM background_jobs j
            CROSS JOIN LATERAL (SELECT count(*) n FROM ledger WHERE job = j.id) l
          WHERE l.n <> (j.completed AND NOT coalesce(j.result ? 'error', false))::int
         UNION ALL
         SELECT 'I3 result: ' || to_jsonb(j)::text FROM background_jobs j WHERE (result IS NOT NULL) <> completed
         UNION ALL
         SELECT 'I4 both: ' || to_jsonb(j)::text FROM background_jobs j WHERE completed AND cancelled
         UNION ALL
         SELECT 'I3 effects of a row that is gone: ' || job || ' ' || count(*) FROM ledger l
          WHERE NOT EXISTS (SELECT FROM background_jobs j WHERE j.id = l.job)
            AND NOT EXISTS (SELECT FROM edges e WHERE e.id = l.job AND e.completed) GROUP BY job
         UNION ALL
         SELECT 'I8 range: ' || to_jsonb(e)::text FROM edges e
          WHERE NOT (progress >= 0 AND progress <= 1) OR (progress = 1 AND NOT completed)
         UNION ALL
         SELECT 'I9 from ' || to_jsonb(e)::text || ' to ' || to_jsonb(f)::text FROM edges e
           JOIN LATERAL (SELECT * FROM edges f WHERE f.id = e.id AND f.at > e.at ORDER BY f.at LIMIT 1) f ON true
          WHERE NOT e.gone AND NOT f.gone AND (e.completed OR e.cancelled)
            AND (e.completed, e.cancelled, e.progress, e.result) IS DISTINCT FROM (f.completed, f.cancelled, f.progress, f.result)
            AND NOT (f.progress = 0 AND NOT f.completed AND NOT f.cancelled AND NOT f.result)
         UNION ALL
         SELECT 'I10 in the queue: ' || to_jsonb(q)::text FROM background_jobs.queue q
          WHERE current_user = {}",
        server_tests::lit(&role)
    );
    let found: Vec<String> = app.rows(&problems, &[]).iter().map(|row| row.get(0)).collect();
    assert!(found.is_empty(), "{} problems, the first: {:#?}", found.len(), &found[..found.len().min(5)]);
    assert!(!overlaps(app), "I6: two attempts of one job at a time");
}

fn session(app: &App) -> Client {
    let mut session = app.session();
    session.batch_execute("SET lock_timeout = '20 s'").unwrap_or_else(|e| panic!("{e:?}"));
    session
}
