//! What the figures were measured on.

use crate::book::Section;
use crate::scene::{SETTINGS, Scene};
use std::fs;

/// The machine, and how busy others keep it.
pub fn describe() -> String {
    let first_of = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: f64 = first_of("/proc/meminfo", "MemTotal").trim_end_matches("kB").trim().parse().unwrap_or(0.0);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{processors} processors ({}), {:.0} GB, Linux {}, load {}",
        first_of("/proc/cpuinfo", "model name"),
        memory / 1024.0 / 1024.0,
        kernel.trim(),
        load.split(' ').next().unwrap_or("unknown"),
    )
}

/// Completes the section's head with what the server knows, and prints it.
pub fn note(section: &mut Section, scene: &mut Scene) {
    let app = &mut scene.app;
    let version: String = app.one("SELECT version()", &[]);
    let extension: String = app.one("SELECT extversion FROM pg_extension WHERE extname = 'background_jobs'", &[]);
    let executors: String = app.one("SHOW background_jobs.max_executors", &[]);
    section.date = app.one("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI \"UTC\"')", &[]);
    section.machine += &format!(", data on {}", file_system(&app.cluster.data().to_string_lossy()));
    section.server = version.split(" on ").next().unwrap_or(&version).to_owned();
    section.extension = format!("background_jobs {extension}, {executors} executors");
    section.settings = SETTINGS.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
    println!("  machine    {}", section.machine);
    println!("  server     {}; {}", section.server, section.settings);
    println!("  extension  {}, commit {}; {}", section.extension, section.commit, section.scale);
}

/// The kind of the file system that holds the path: a commit costs nothing on one that lies in memory.
fn file_system(path: &str) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let inside = fields.filter(|(directory, _)| std::path::Path::new(path).starts_with(directory));
    inside.max_by_key(|(directory, _)| directory.len()).map_or("unknown", |(_, kind)| kind).to_owned()
}
