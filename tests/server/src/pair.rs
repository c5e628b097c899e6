//! Two servers that exchange jobs by logical replication: a client, which submits, cancels and knows nothing of the
//! extension, and a server, which runs. Every column has one writer, so that nothing has to be resolved. The statements are
//! those of the README, which `readme` compares.

use crate::{App, Cluster, Job, Uuid, ident, job, lit};
use postgres::Client;
use serde_json::Value;
use std::sync::{Mutex, PoisonError};

/// What both sides need: an update that changes nothing, which is how every change comes back once, is skipped. Not by
/// `suppress_redundant_updates_trigger`, which compares bytes: a value that is stored compressed arrives uncompressed.
pub const SKIP_ECHOES: &str = "
    CREATE FUNCTION skip_echo() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER skip_echo BEFORE UPDATE ON background_jobs FOR EACH ROW
        WHEN (OLD.* IS NOT DISTINCT FROM NEW.*) EXECUTE FUNCTION skip_echo();
    ALTER TABLE background_jobs ENABLE REPLICA TRIGGER skip_echo;";

pub const CLIENT_PUBLICATION: &str = "CREATE PUBLICATION jobs_to_server
    FOR TABLE background_jobs (id, timestamp, payload, cancelled) WITH (publish = 'insert, update')";

pub const SERVER_PUBLICATION: &str = "CREATE PUBLICATION jobs_to_clients
    FOR TABLE background_jobs (id, completed, progress, result) WITH (publish = 'update')";

/// On the client, and before the other one. The name and the connection are quoted.
#[must_use]
pub fn subscription_to_client(name: &str, connection: &str) -> String {
    format!("CREATE SUBSCRIPTION {name} CONNECTION {connection} PUBLICATION jobs_to_clients WITH (copy_data = false)")
}

/// On the server.
#[must_use]
pub fn subscription_to_server(name: &str, connection: &str) -> String {
    format!("CREATE SUBSCRIPTION {name} CONNECTION {connection} PUBLICATION jobs_to_server")
}

/// Counts the updates of a table, whoever makes them, where no rollback and no statistics delay hides them.
const COUNT_UPDATES: &str = "
    CREATE SEQUENCE updates MINVALUE 0 START 0;
    SELECT nextval('updates');
    CREATE FUNCTION count_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN PERFORM pg_catalog.nextval('public.updates'); RETURN NULL; END $$;
    CREATE TRIGGER count_update AFTER UPDATE ON background_jobs FOR EACH ROW EXECUTE FUNCTION count_update();
    ALTER TABLE background_jobs ENABLE ALWAYS TRIGGER count_update;";

pub struct Pair<'a> {
    pub client_cluster: &'a Cluster,
    pub server_cluster: &'a Cluster,
    /// The server's side.
    pub server: App<'a>,
    /// A session of an ordinary role on the client's side.
    pub client: Client,
    /// Sessions of the superusers.
    client_admin: Client,
    server_admin: Client,
    database: String,
}

impl<'a> Pair<'a> {
    /// A database on either side, with the job table and the publications; nothing is subscribed to yet.
    #[must_use]
    pub fn new(client_cluster: &'a Cluster, server_cluster: &'a Cluster, name: &str) -> Pair<'a> {
        let mut server = App::with_table(server_cluster, name);
        server.sql(SKIP_ECHOES);
        let mut server_admin = server.admin();
        execute(&mut server_admin, COUNT_UPDATES);
        execute(&mut server_admin, SERVER_PUBLICATION);

        let database = server.database.clone();
        execute(&mut client_cluster.admin("postgres"), &format!("CREATE DATABASE {}", ident(&database)));
        client_cluster.create_role(&server.role);
        let mut client_admin = client_cluster.admin(&database);
        execute(&mut client_admin, &format!("GRANT CREATE ON SCHEMA public TO {}", ident(&server.role)));
        let mut client = client_cluster.connect(&database, &server.role);
        execute(&mut client, crate::app::RECIPE_TABLE);
        execute(&mut client, SKIP_ECHOES);
        execute(&mut client_admin, COUNT_UPDATES);
        execute(&mut client_admin, CLIENT_PUBLICATION);
        Pair { client_cluster, server_cluster, server, client, client_admin, server_admin, database }
    }

    /// Connects both sides. `options` are those of the server's subscription: `"two_phase = true"`.
    pub fn subscribe(&mut self, options: &str) {
        let from = |cluster: &Cluster| {
            lit(&format!("host={} user=postgres dbname={}", cluster.socket_directory().display(), self.database))
        };
        let name = |side: &str| ident(&format!("{}_to_{side}", self.database));
        let to_client = subscription_to_client(&name("client"), &from(self.server_cluster));
        let to_server = subscription_to_server(&name("server"), &from(self.client_cluster));
        let options = if options.is_empty() { String::new() } else { format!(" WITH ({options})") };
        // One pair at a time: a new slot waits for the transactions of its server, among them another pair's that waits for
        // a slot on the other server.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // First the way back: a result that is there before anybody subscribes to it is not sent.
        execute(&mut self.client_admin, &to_client);
        execute(&mut self.server_admin, &format!("{to_server}{options}"));
    }

    /// Waits until the server has what was there before: from then on either side can be restarted at any time.
    pub fn wait_copied(&mut self) {
        let query = "SELECT coalesce(string_agg(r.srsubstate::text, ''), 'none') FROM pg_subscription_rel r
            JOIN pg_subscription s ON s.oid = r.srsubid WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = $1)";
        self.server_cluster.wait_until("the initial copy", || {
            let state: String = self.server_admin.query_one(query, &[&self.database]).unwrap().get(0);
            if state == "r" { Ok(()) } else { Err(state) }
        });
    }

    /// Cuts the connection, or restores it: the client works on alone meanwhile.
    pub fn set_online(&mut self, online: bool) {
        let action = if online { "ENABLE" } else { "DISABLE" };
        for (side, admin) in [("server", &mut self.server_admin), ("client", &mut self.client_admin)] {
            let name = ident(&format!("{}_to_{side}", self.database));
            execute(admin, &format!("ALTER SUBSCRIPTION {name} {action}"));
        }
        if !online {
            let query = "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE $1";
            for (cluster, admin) in
                [(self.client_cluster, &mut self.client_admin), (self.server_cluster, &mut self.server_admin)]
            {
                cluster.wait_until("the connection to be closed", || {
                    let left: i64 = admin.query_one(query, &[&format!("{}_to_%", self.database)]).unwrap().get(0);
                    if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
                });
            }
        }
    }

    /// Opens the sessions again, after a server was restarted.
    pub fn reconnect(&mut self) {
        self.server.client = self.server.session();
        self.server_admin = self.server_cluster.admin(&self.database);
        self.client = self.client_cluster.connect(&self.database, &self.server.role);
        self.client_admin = self.client_cluster.admin(&self.database);
    }

    /// A job inserted on the client's side, every column named.
    pub fn submit(&mut self, handler: &str, payload: Value) -> Uuid {
        let payload = crate::app::with_handler(handler, payload);
        let submission = crate::app::submission();
        self.client.query_one(&submission, &[&Uuid::new_v4(), &payload]).unwrap_or_else(|e| panic!("{e:?}")).get(0)
    }

    pub fn cancel(&mut self, id: Uuid) {
        let statement = "UPDATE background_jobs SET cancelled = true WHERE id = $1";
        assert_eq!(self.client.execute(statement, &[&id]).unwrap_or_else(|e| panic!("{e:?}")), 1);
    }

    /// The row on the client's side.
    pub fn row(&mut self, id: Uuid) -> Job {
        let query = format!("SELECT {} FROM background_jobs WHERE id = $1", job::COLUMNS);
        Job::from(&self.client.query_one(&query, &[&id]).unwrap_or_else(|e| panic!("{e:?}")))
    }

    /// Waits until the client's row is final, and then for the server's own sessions to see that: what is flushed is sent at
    /// once, a moment before the commit is visible where it was made.
    pub fn wait_final(&mut self, id: Uuid) -> Job {
        let cluster = self.server_cluster;
        let row = cluster.wait_until(&format!("job {id} to be final on the client"), || {
            let row = self.row(id);
            if row.is_final() { Ok(row) } else { Err(format!("{row:?}; on the server {:?}", self.server.find(id))) }
        });
        self.server.wait_final(id);
        row
    }

    /// Waits until each side has applied all that the other has written by now, and what that caused on the way back.
    pub fn round_trip(&mut self) {
        for side in ["server", "client"] {
            let (cluster, admin) = match side {
                "server" => (self.client_cluster, &mut self.client_admin),
                _ => (self.server_cluster, &mut self.server_admin),
            };
            let lsn: String = admin.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).unwrap().get(0);
            let query = "SELECT coalesce(bool_or(replay_lsn >= $1::text::pg_lsn), false), max(replay_lsn)::text
                FROM pg_stat_replication WHERE application_name = $2";
            cluster.wait_until(&format!("the {side} to apply up to {lsn}"), || {
                let row = admin.query_one(query, &[&lsn, &format!("{}_to_{side}", self.database)]).unwrap();
                if row.get(0) { Ok(()) } else { Err(format!("{:?}", row.get::<_, Option<String>>(1))) }
            });
        }
    }

    /// Updates of the job table so far, on the client's and the server's side.
    pub fn updates(&mut self) -> (i64, i64) {
        let count = |admin: &mut Client| admin.query_one("SELECT last_value FROM updates", &[]).unwrap().get(0);
        (count(&mut self.client_admin), count(&mut self.server_admin))
    }
}

fn execute(client: &mut Client, statements: &str) {
    client.batch_execute(statements).unwrap_or_else(|e| panic!("{statements}: {e:?}"));
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        let drop = |cluster: &Cluster, side: &str| -> Result<(), postgres::Error> {
            let name = ident(&format!("{}_to_{side}", self.database));
            cluster
                .try_connect(&self.database, "postgres")?
                .batch_execute(&format!("DROP SUBSCRIPTION IF EXISTS {name}"))
        };
        // The application's own end drops the server's database; it cannot while there is a slot for it.
        for (cluster, side) in [(self.client_cluster, "client"), (self.server_cluster, "server")] {
            match drop(cluster, side) {
                Err(error) if !std::thread::panicking() => panic!("drop the subscription: {error:?}"),
                _ => {}
            }
        }
    }
}
