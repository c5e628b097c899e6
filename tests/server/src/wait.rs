//! Waiting for a state, with a deadline.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine: a test that passes never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

const INTERVAL: Duration = Duration::from_millis(5);

/// Calls `probe` until it returns `Ok`; its `Err` is the state seen last, which the panic at the deadline reports.
pub fn wait_until<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    wait_within(DEADLINE, what, probe)
}

/// As [`wait_until`], with a deadline of the caller's.
pub fn wait_within<T>(deadline: Duration, what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    attempt(deadline, what, probe).unwrap_or_else(|report| panic!("{report}"))
}

/// As [`wait_within`], with the report for the caller to complete.
pub fn attempt<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let begin = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(state) if begin.elapsed() >= deadline => {
                let waited = begin.elapsed().as_secs_f64();
                return Err(format!("after {waited:.1} s still waiting for {what}; last seen: {state}"));
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// For probes that only know yes or no.
pub fn yes(value: bool) -> Result<(), String> {
    value.then_some(()).ok_or_else(|| "not yet".to_owned())
}

/// A promise about time, which is made for an idle machine: on one that others keep busy a scene may take long for no reason of ours,
/// but hardly three times in a row. So it has to be kept in one of three tries of the same scene; whatever else the scene asserts has to
/// hold in each of them. `scene` is told which try it is, from 1 on, and says how long it took.
pub fn once_within(bound: Duration, what: &str, mut scene: impl FnMut(i32) -> Duration) {
    let mut took = Vec::new();
    for number in 1..=3 {
        took.push(scene(number));
        if took.last().is_some_and(|took| *took < bound) {
            return;
        }
    }
    panic!("{what} took {took:?}, and never less than {bound:?}");
}
