//! The command line.

use std::path::PathBuf;

pub const USAGE: &str = "\
usage: bench [--only NAME[,NAME...]] [--rounds N] [--jobs N] [--sequential N] [--json OUT]
             [--queued N] [--finished N] [--snapshot-jobs N] [--snapshot-minutes N]
       bench --report [--json IN] [--peers-json IN] [--out DIRECTORY]
       bench --peers DIRECTORY [-- ARGUMENTS OF ITS PROGRAM]
names: drain, latency, enqueue, executors (all of these when none is named); long ones: size, old-snapshot";

#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    Measure,
    Report,
    /// The directory of the peers' benchmark, and what its program is to be told.
    Peers(PathBuf, Vec<String>),
}

#[derive(Debug)]
pub struct Options {
    pub mode: Mode,
    pub only: Vec<String>,
    pub rounds: usize,
    /// Jobs of a drain. What needs more of them (bulk submission, memory) takes five times as many.
    pub jobs: i64,
    /// Jobs one after another, a round.
    pub sequential: usize,
    pub queued: i64,
    pub finished: i64,
    pub snapshot_jobs: i64,
    pub snapshot_minutes: f64,
    pub json: PathBuf,
    pub peers_json: PathBuf,
    pub out: PathBuf,
}

impl Options {
    /// For what is measured with 100,000 rows when nothing is said.
    pub fn many(&self) -> i64 {
        self.jobs * 5
    }
}

pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        mode: Mode::Measure,
        only: Vec::new(),
        rounds: 3,
        jobs: 20_000,
        sequential: 500,
        queued: 1_000_000,
        finished: 10_000_000,
        snapshot_jobs: 500_000,
        snapshot_minutes: 10.0,
        json: "target/bench/results.json".into(),
        peers_json: "target/bench/peers.json".into(),
        out: "bench".into(),
    };
    while let Some(name) = arguments.next() {
        if name == "--report" {
            options.mode = Mode::Report;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("what is {name:?}, or its value?"))?;
        let number = || value.parse::<i64>().ok().filter(|n| *n > 0).ok_or_else(|| format!("{name} {value:?}?"));
        match name.as_str() {
            "--only" => options.only.extend(value.split(',').map(str::to_owned)),
            "--rounds" => options.rounds = number()? as usize,
            "--jobs" => options.jobs = number()?.max(100),
            "--sequential" => options.sequential = number()? as usize,
            "--queued" => options.queued = number()?,
            "--finished" => options.finished = number()?,
            "--snapshot-jobs" => options.snapshot_jobs = number()?,
            "--snapshot-minutes" => {
                options.snapshot_minutes = value.parse().map_err(|_| format!("{name} {value:?}?"))?;
            }
            "--json" => options.json = value.into(),
            "--peers-json" => options.peers_json = value.into(),
            "--out" => options.out = value.into(),
            "--peers" => {
                options.mode = Mode::Peers(value.into(), arguments.by_ref().filter(|a| a != "--").collect());
            }
            _ => return Err(format!("what is {name:?}?")),
        }
    }
    let known = |only: &&String| crate::SECTIONS.iter().any(|(name, ..)| name == only);
    match options.only.iter().find(|only| !known(only)) {
        Some(unknown) => Err(format!("there is no {unknown:?} to measure")),
        None => Ok(options),
    }
}
