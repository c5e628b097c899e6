//! What the program is asked for.

pub const USAGE: &str = "usage: storm PART [--jobs N] [--seconds N] [--seed S]
  memory      a million jobs (or --jobs N), and how much every process has grown
  signals     signals to every process of ours for 300 seconds (or --seconds N)
  sqlsmith    random statements for 300 seconds (or --seconds N)
  --seed S    the choices derive from it (default: from the clock; it is printed)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Memory,
    Signals,
    Sqlsmith,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::Memory => "memory",
            Part::Signals => "signals",
            Part::Sqlsmith => "sqlsmith",
        }
    }
}

pub struct Options {
    pub part: Part,
    pub jobs: u32,
    pub seconds: u64,
    pub seed: u64,
}

pub fn parse() -> Option<Options> {
    let clock = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_millis() as u64);
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next()?;
    let part = [Part::Memory, Part::Signals, Part::Sqlsmith].into_iter().find(|part| part.name() == name)?;
    let mut options = Options { part, jobs: 1_000_000, seconds: 300, seed: clock % 1_000_000_000 };
    while let Some(name) = arguments.next() {
        let value = arguments.next()?;
        match name.as_str() {
            "--jobs" => options.jobs = value.parse().ok().filter(|jobs| *jobs >= 1000)?,
            "--seconds" => options.seconds = value.parse().ok().filter(|seconds| *seconds > 0)?,
            "--seed" => options.seed = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(options)
}
