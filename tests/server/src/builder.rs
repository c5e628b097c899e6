//! What a temporary server is started with.

use crate::installation::Installation;
use crate::{Cluster, os};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

pub struct Builder {
    settings: Vec<(String, String)>,
    allowed: Vec<String>,
}

impl Builder {
    /// Adds a line to postgresql.conf; the last one for a name counts.
    #[must_use]
    pub fn conf(mut self, name: &str, value: &str) -> Builder {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A server without the extension, to test what is ours alone.
    #[must_use]
    pub fn plain(self) -> Builder {
        self.conf("shared_preload_libraries", "")
    }

    /// This test makes the server log lines holding `part`, which would be an offence otherwise.
    #[must_use]
    pub fn allow_in_log(mut self, part: &str) -> Builder {
        self.allowed.push(part.to_owned());
        self
    }

    /// Creates the cluster and starts it; panics with the log when it does not come up.
    #[must_use]
    pub fn start(self) -> Cluster {
        let cluster = Cluster::new(self.allowed);
        Installation::get().data_directory(&cluster.data());
        configure(&cluster, &self.settings);
        cluster.start();
        cluster
    }

    /// Creates a streaming standby of `primary` and starts it.
    #[must_use]
    pub fn start_standby_of(self, primary: &Cluster) -> Cluster {
        let cluster = Cluster::new(self.allowed);
        let program = Installation::get().program("pg_basebackup");
        let mut command = os::server_command(program, cluster.socket_directory());
        command.args(["--username=postgres", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]);
        command.arg("-h").arg(primary.socket_directory());
        os::run(command.arg("-D").arg(cluster.data()));
        configure(&cluster, &self.settings);
        cluster.start();
        cluster
    }
}

fn configure(cluster: &Cluster, settings: &[(String, String)]) {
    let mut text = format!("unix_socket_directories = '{}'\n", cluster.socket_directory().display());
    for (name, value) in settings {
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
    }
    let path = cluster.data().join("postgresql.conf");
    let file = OpenOptions::new().append(true).open(&path);
    file.and_then(|mut conf| conf.write_all(text.as_bytes())).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

impl Cluster {
    #[must_use]
    pub fn builder() -> Builder {
        Builder { settings: Vec::new(), allowed: Vec::new() }
            .conf("shared_preload_libraries", "background_jobs")
            .conf("listen_addresses", "")
            .conf("max_worker_processes", "24")
            .conf("log_line_prefix", "%m [%p] %b %d %a: ")
            // A killed process loses nothing that the kernel has; tests that stop the machine do not exist.
            .conf("fsync", "off")
    }
}
