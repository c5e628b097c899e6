//! The gaps between known stretches of a number line: a table's lanes, or table OIDs.
//!
//! Who looks for something new in the queue looks in the gaps only. In what is known, the index may be full of dead entries,
//! which stay as long as somebody's old snapshot does.

use std::ops::RangeInclusive;

/// Of lanes as the queue has them, or of OIDs.
pub type Stretch = RangeInclusive<i64>;

/// The bits of a lane that tell priority and timing; the others tell the handler.
const WITHIN_HANDLER: i64 = 0x3_ffff;

pub const LANES: Stretch = i64::MIN..=i64::MAX;
pub const TABLES: Stretch = 0..=u32::MAX as i64;

/// A stretch of lanes in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub table: u32,
    pub lanes: Stretch,
}

/// What is passed at one go in a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Lane,
    Handler,
}

impl Step {
    /// The bits in which lanes of one step may differ.
    pub fn mask(self) -> i64 {
        match self {
            Self::Lane => 0,
            Self::Handler => WITHIN_HANDLER,
        }
    }
}

/// All lanes of the handler that this is a lane of.
pub fn of_handler(lane: i64) -> Stretch {
    lane & !WITHIN_HANDLER..=lane | WITHIN_HANDLER
}

/// What is left of `part`.
pub fn between(part: Stretch, mut known: Vec<Stretch>) -> Vec<Stretch> {
    known.sort_unstable_by_key(|stretch| *stretch.start());
    let (mut first, last) = (Some(*part.start()), *part.end());
    let mut gaps = Vec::new();
    for stretch in known {
        let Some(begin) = first else { break };
        if *stretch.end() < begin {
            continue;
        }
        let before = stretch.start().checked_sub(1).map(|end| begin..=end.min(last));
        gaps.extend(before.filter(|gap| !gap.is_empty()));
        first = stretch.end().checked_add(1);
    }
    gaps.extend(first.map(|begin| begin..=last).filter(|gap| !gap.is_empty()));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_known_stretches_make_up_the_whole() {
        let known = vec![5..=9, 0..=0, 10..=10, 7..=8, 20..=20];
        assert_eq!(between(LANES, known), [i64::MIN..=-1, 1..=4, 11..=19, 21..=i64::MAX]);
        assert_eq!(between(LANES, Vec::new()), [LANES]);
    }

    #[test]
    fn a_stretch_at_either_end_leaves_no_gap_there() {
        let last = of_handler(i64::MAX);
        assert_eq!(
            between(last.clone(), vec![*last.start()..=i64::MAX - 5, i64::MAX - 3..=i64::MAX]),
            [i64::MAX - 4..=i64::MAX - 4]
        );
        assert_eq!(between(of_handler(3), vec![of_handler(0)]), []);
        assert_eq!(between(TABLES, vec![0..=0, TABLES.end() - 1..=*TABLES.end()]), [1..=TABLES.end() - 2]);
    }

    #[test]
    fn what_is_known_elsewhere_does_not_matter() {
        assert_eq!(between(30..=40, vec![1..=29, 41..=50, 60..=70]), [30..=40]);
    }
}
