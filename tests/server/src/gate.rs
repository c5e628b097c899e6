//! Meeting a handler at a known point of its run, without sleeping.
//!
//! A handler says where it is by taking an advisory lock, which every session can see before the handler's transaction
//! ends, and waits for a row of the table `gates`, which a test inserts.

use crate::App;

const SUPPORT: &str = "
    CREATE TABLE gates (name text PRIMARY KEY);
    CREATE FUNCTION reach(point int) RETURNS void LANGUAGE sql AS
        $$ SELECT pg_advisory_xact_lock_shared(4711, point) $$;
    CREATE FUNCTION await_gate(gate text) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            WHILE NOT EXISTS (SELECT FROM gates WHERE name = gate) LOOP
                PERFORM pg_sleep(0.005);
            END LOOP;
        END $$;
";

impl App<'_> {
    /// Creates what handlers need for this: `reach(point)` and `await_gate(name)`.
    pub(crate) fn create_gates(&mut self) {
        self.sql(SUPPORT);
    }

    /// Lets the handlers that wait at this gate go on.
    pub fn open_gate(&mut self, name: &str) {
        self.execute(
            "INSERT INTO gates VALUES ($1) ON CONFLICT DO NOTHING",
            &[&name],
        );
    }

    /// Waits until a handler has said `reach(point)` in a transaction that is still open.
    pub fn wait_reached(&mut self, point: i32) {
        self.wait_true(&format!(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711 AND objid = {point}
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
        ));
    }
}
