//! A witness that code of a role calls from wherever it stands: it notes in whose name, and in which process, it was called.

use crate::App;

/// Everything that a witness sees goes into `seen`; the argument says where it stood.
const WITNESS: &str = "
    CREATE TABLE seen (place text, session_role text, user_role text, superuser text, kind text);
    CREATE FUNCTION public.seen(place text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.seen SELECT place, session_user, current_user, pg_catalog.current_setting('is_superuser'),
            (SELECT a.backend_type FROM pg_catalog.pg_stat_activity a
             WHERE a.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid());
    END $$;";

impl App<'_> {
    /// Creates `seen(place)` and the table of that name.
    pub fn create_witness(&mut self) {
        self.sql(WITNESS);
    }

    /// Whoever the witnesses saw but the role itself.
    pub fn foreign(&mut self) -> Vec<String> {
        let role = self.role.clone();
        let query = "SELECT DISTINCT format('%s: session %s, user %s, superuser %s, %s', place, session_role, user_role, superuser, kind)
            FROM public.seen WHERE (session_role, user_role, superuser) IS DISTINCT FROM ($1, $1, 'off')";
        self.rows(query, &[&role]).iter().map(|row| row.get(0)).collect()
    }

    /// Where they stood when a process of the extension called them.
    pub fn places_in_workers(&mut self) -> Vec<String> {
        let query = "SELECT DISTINCT place FROM public.seen WHERE kind LIKE 'background_jobs%' ORDER BY 1";
        self.rows(query, &[]).iter().map(|row| row.get(0)).collect()
    }
}
