//! What the handlers of tests share with the tests: meeting at a known point of a run without sleeping, and a ledger.
//!
//! A handler says where it is by taking an advisory lock, which every session can see before the handler's transaction
//! ends, and waits for a row of the table `gates`, which a test inserts. What it writes into the table `ledger` commits
//! with its job or not at all, so the ledger is the witness of exactly-once effects.

use crate::App;
use uuid::Uuid;

const SUPPORT: &str = "
    CREATE TABLE gates (name text PRIMARY KEY);
    CREATE FUNCTION reach(point int) RETURNS void LANGUAGE sql AS
        $$ SELECT pg_catalog.pg_advisory_xact_lock_shared(4711, point) $$;
    CREATE FUNCTION await_gate(gate text) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            WHILE NOT EXISTS (SELECT FROM public.gates g WHERE g.name = gate) LOOP
                PERFORM pg_catalog.pg_sleep(0.005);
            END LOOP;
        END $$;
    CREATE TABLE ledger (entry bigserial, job uuid NOT NULL, attempt int NOT NULL);
    CREATE FUNCTION note() RETURNS void LANGUAGE sql AS
        $$ INSERT INTO public.ledger (job, attempt) SELECT id, attempt FROM background_jobs.current_job() $$;
";

impl App<'_> {
    /// Creates `reach(point)`, `await_gate(name)` and `note()`.
    pub(crate) fn create_support(&mut self) {
        self.sql(SUPPORT);
    }

    /// Lets the handlers that wait at this gate go on, now and later.
    pub fn open_gate(&mut self, name: &str) {
        self.execute("INSERT INTO gates VALUES ($1) ON CONFLICT DO NOTHING", &[&name]);
    }

    /// Waits until a handler has said `reach(point)` in a transaction that is still open.
    pub fn wait_reached(&mut self, point: i32) {
        self.wait_true(&reached(point));
    }

    /// Waits until no handler that said `reach(point)` is in its transaction any more.
    pub fn wait_left(&mut self, point: i32) {
        self.wait_true(&format!("SELECT NOT ({})", reached(point)));
    }

    /// How often a job's handler has called `note()` in a transaction that committed.
    pub fn noted(&mut self, id: Uuid) -> i64 {
        self.one("SELECT count(*) FROM ledger WHERE job = $1", &[&id])
    }
}

fn reached(point: i32) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711 AND objid = {point}
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
}
