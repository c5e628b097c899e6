//! What a temporary server is started with.

use crate::installation::Installation;
use crate::{Cluster, Stop, os};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

pub struct Builder {
    settings: Vec<(String, String)>,
    allowed: Vec<String>,
    environment: Vec<(String, String)>,
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

    /// A variable in the environment of the server, which has nothing of ours but the search path.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Builder {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Creates the cluster and starts it; panics with the log when it does not come up.
    #[must_use]
    pub fn start(self) -> Cluster {
        let cluster = Cluster::new(self.allowed, self.environment);
        Installation::get().data_directory(&cluster.data());
        configure(&cluster, &self.settings);
        cluster.start();
        cluster
    }

    /// Creates a streaming standby of `primary` and starts it.
    #[must_use]
    pub fn start_standby_of(self, primary: &Cluster) -> Cluster {
        let cluster = self.backup_of(primary, &["--write-recovery-conf"]);
        cluster.start();
        cluster
    }

    /// Restores a base backup of `original`, taken now, and starts it as a server of its own.
    #[must_use]
    pub fn start_backup_of(self, original: &Cluster) -> Cluster {
        let cluster = self.backup_of(original, &[]);
        cluster.start();
        cluster
    }

    fn backup_of(self, original: &Cluster, options: &[&str]) -> Cluster {
        let cluster = Cluster::new(self.allowed, self.environment);
        let program = Installation::get().program("pg_basebackup");
        let mut command = os::server_command(program, cluster.socket_directory());
        command.args(["--username=postgres", "--checkpoint=fast", "--no-sync"]).args(options);
        command.arg("-h").arg(original.socket_directory());
        os::run(command.arg("-D").arg(cluster.data()));
        configure(&cluster, &self.settings);
        cluster
    }

    /// Stops `old`, moves what is in it to a new server with `pg_upgrade`, and starts that one.
    #[must_use]
    pub fn start_upgrade_of(self, old: &Cluster) -> Cluster {
        old.stop(Stop::Fast);
        let cluster = Cluster::new(self.allowed, self.environment);
        let installation = Installation::get();
        installation.data_directory(&cluster.data());
        configure(&cluster, &self.settings);
        let program = installation.program("pg_upgrade");
        let programs = program.parent().unwrap_or(&program).to_owned();
        let mut command = os::server_command(program, cluster.socket_directory());
        command.arg("--username=postgres").arg("-b").arg(&programs).arg("-B").arg(&programs);
        os::run(command.arg("-d").arg(old.data()).arg("-D").arg(cluster.data()));
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
        Builder { settings: Vec::new(), allowed: Vec::new(), environment: Vec::new() }
            .conf("shared_preload_libraries", "background_jobs")
            .conf("listen_addresses", "")
            .conf("max_worker_processes", "24")
            .conf("log_line_prefix", "%m [%p] %b %d %a: ")
            // A killed process loses nothing that the kernel has; tests that stop the machine do not exist.
            .conf("fsync", "off")
    }
}
