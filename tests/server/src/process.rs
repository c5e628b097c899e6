//! The processes of a server, as the kernel shows them.

use std::fs;
use std::path::Path;

pub fn works_in(pid: u32, directory: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
}

/// What a process that works in `directory` calls itself, without the leading "postgres: ".
pub fn title(pid: u32, directory: &Path) -> Option<String> {
    if !works_in(pid, directory) {
        return None;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    Some(line.strip_prefix("postgres: ")?.trim().to_owned())
}

pub fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
}
