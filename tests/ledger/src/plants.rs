//! What each bug of src/planted.rs breaks: it is found when that is, and not when something else goes wrong.

use std::time::Duration;

/// A bug has to be found within this, from the start of its server on.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Bugs, and the invariants that each of them breaks.
const PLANTS: &[(&str, &[&str])] = &[
    // Effects of an attempt whose job was taken from it: without a completion, or in spite of a cancel.
    ("effects_apart", &["I3", "I4"]),
    // An older attempt completes the job, or the row that replaced it: the effects are another's, or two.
    ("no_fence", &["I3", "I7"]),
    ("no_cancel_guard", &["I4"]),
    // A job waits for a wake-up that never comes: longer than a poll takes, or for ever.
    ("no_poll", &["I1", "I11"]),
    ("no_crash_charge", &["I5"]),
    ("no_scrub", &["I14"]),
];

/// The invariants that the bug breaks, if it is known.
pub fn breaks(plant: &str) -> Option<&'static [&'static str]> {
    PLANTS.iter().find(|(name, _)| *name == plant).map(|(_, broken)| *broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_that_can_be_planted_has_the_invariants_that_it_breaks() {
        let source = include_str!("../../../src/planted.rs");
        let named: Vec<&str> =
            source.lines().filter_map(|line| line.split_once(" => c\"")?.1.strip_suffix("\",")).collect();
        assert_eq!(named.len(), PLANTS.len(), "{named:?}");
        for name in named {
            assert!(breaks(name).is_some_and(|broken| !broken.is_empty()), "{name}");
        }
    }
}
