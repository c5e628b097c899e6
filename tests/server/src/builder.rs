//! What a temporary server is started with.

use crate::Cluster;
use crate::installation::Installation;
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
        let mut conf = OpenOptions::new()
            .append(true)
            .open(cluster.data().join("postgresql.conf"))
            .unwrap_or_else(|e| panic!("postgresql.conf: {e}"));
        let mut text = format!(
            "unix_socket_directories = '{}'\n",
            cluster.socket_directory().display()
        );
        for (name, value) in &self.settings {
            let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
        }
        conf.write_all(text.as_bytes())
            .unwrap_or_else(|e| panic!("postgresql.conf: {e}"));
        cluster.start();
        cluster
    }
}

impl Cluster {
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            settings: Vec::new(),
            allowed: Vec::new(),
        }
        .conf("shared_preload_libraries", "background_jobs")
        .conf("listen_addresses", "")
        .conf("max_worker_processes", "24")
        .conf("log_line_prefix", "%m [%p] %b %d %a: ")
        // A killed process loses nothing that the kernel has; tests that stop the machine do not exist.
        .conf("fsync", "off")
    }
}
