//! What a server has used so far: CPU time, WAL, memory.

use server_tests::postgres::Client;
use std::process::Command;
use std::sync::OnceLock;
use std::{fs, iter};

#[derive(Debug, Clone, Copy)]
pub struct Used {
    pub cpu_seconds: f64,
    pub wal_bytes: f64,
}

impl Used {
    pub fn now(postmaster: u32, admin: &mut Client) -> Used {
        Used { cpu_seconds: cpu_seconds(postmaster), wal_bytes: wal_bytes(admin) }
    }

    pub fn since(self, before: Used) -> Used {
        Used { cpu_seconds: self.cpu_seconds - before.cpu_seconds, wal_bytes: self.wal_bytes - before.wal_bytes }
    }
}

fn wal_bytes(admin: &mut Client) -> f64 {
    let query = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
    admin.query_one(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0)
}

/// Of the postmaster, its children that have ended, and those that live: all processes of a server are its children.
fn cpu_seconds(postmaster: u32) -> f64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let living = pids.filter_map(stat).filter(|stat| stat.parent == postmaster);
    let ticks: u64 = living.chain(iter::once(stat(postmaster).unwrap_or_default())).map(|stat| stat.ticks).sum();
    ticks as f64 / ticks_per_second()
}

#[derive(Default)]
struct Stat {
    parent: u32,
    /// User and system, its own and that of its children which have been waited for.
    ticks: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, second, is in parentheses and may hold anything; state and parent follow it. See proc(5).
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

fn ticks_per_second() -> f64 {
    static TICKS: OnceLock<f64> = OnceLock::new();
    *TICKS.get_or_init(|| {
        let output = Command::new("getconf").arg("CLK_TCK").output().unwrap_or_else(|e| panic!("getconf: {e}"));
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or_else(|e| panic!("getconf CLK_TCK: {e}"))
    })
}

/// Private memory of a process that no file backs, in megabytes.
pub fn private_megabytes(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|e| panic!("process {pid}: {e}"));
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
    kilobytes.unwrap_or_else(|| panic!("process {pid} shows no RssAnon")) / 1024.0
}
