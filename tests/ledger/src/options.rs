//! What the program is asked for.

use crate::plants;
use std::path::PathBuf;

pub struct Options {
    /// How long the storm lasts, in all.
    pub seconds: u64,
    pub seed: u64,
    /// The bug that the server is to have: the run then succeeds when it is found.
    pub plant: Option<Plant>,
    /// Where all violations are written to.
    pub violations: PathBuf,
}

pub struct Plant {
    pub name: String,
    /// The invariants that it breaks.
    pub breaks: &'static [&'static str],
}

pub const USAGE: &str = "usage: ledger [--seconds N] [--seed S] [--plant NAME]
  --seconds N   length of the storm (default 90; on a busy machine up to twice as long); beyond 90 it is cut into rounds, each with a server and a seed of its own
  --seed S      the choices derive from it (default: from the clock; it is printed)
  --plant NAME  a bug of src/planted.rs; the run ends as soon as what it breaks is seen broken, and fails when that is not
                seen within a minute
  --violations FILE  takes every violation with its history (default target/ledger-violations.txt)";

pub fn parse() -> Option<Options> {
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_millis() as u64);
    let violations = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/ledger-violations.txt").into();
    let mut options = Options { seconds: 90, seed: clock % 1_000_000_000, plant: None, violations };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next()?;
        match name.as_str() {
            "--seconds" => options.seconds = value.parse().ok().filter(|seconds| *seconds > 0)?,
            "--seed" => options.seed = value.parse().ok()?,
            "--plant" => options.plant = Some(Plant { breaks: plants::breaks(&value)?, name: value }),
            "--violations" => options.violations = value.into(),
            _ => return None,
        }
    }
    Some(options)
}
