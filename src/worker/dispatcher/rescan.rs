//! How far what was read of a lane already has been looked through rescan.

/// See `catalog::Position`.
type Position = (i64, i64);

const START: Position = (i64::MIN, i64::MIN);

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rescan {
    /// What is left of it: behind the first place, up to the second one.
    left: Option<(Position, Position)>,
    /// Once more when that is done: somebody has asked meanwhile, and what he means may lie in the part that is done.
    once_more: bool,
}

impl Rescan {
    /// All up to there is to be looked through. False: one is under way already, which is followed by another.
    pub fn ask(&mut self, last: Position) -> bool {
        self.once_more = self.left.is_some();
        self.left.get_or_insert((START, last));
        !self.once_more
    }

    pub fn left(&self) -> Option<(Position, Position)> {
        self.left
    }

    /// It was looked through up to this place.
    pub fn done_to(&mut self, place: Position) {
        if let Some((after, _)) = &mut self.left {
            *after = place;
        }
    }

    /// All of it was. `last` is where one more ends.
    pub fn done(&mut self, last: Position) {
        self.left = std::mem::take(&mut self.once_more).then_some((START, last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_from_piece_to_piece_and_ends() {
        let mut rescan = Rescan::default();
        assert_eq!(rescan.left(), None);
        assert!(rescan.ask((9, 9)));
        assert_eq!(rescan.left(), Some((START, (9, 9))));
        rescan.done_to((5, 1));
        assert_eq!(rescan.left(), Some(((5, 1), (9, 9))));
        rescan.done((9, 9));
        assert_eq!(rescan, Rescan::default());
    }

    #[test]
    fn who_asks_while_it_is_under_way_is_heard_when_it_is_done_and_does_not_throw_it_back() {
        let mut rescan = Rescan::default();
        assert!(rescan.ask((9, 9)));
        rescan.done_to((5, 1));
        assert!(!rescan.ask((12, 0)));
        assert!(!rescan.ask((13, 0)));
        assert_eq!(rescan.left(), Some(((5, 1), (9, 9))));
        rescan.done((14, 0));
        assert_eq!(rescan.left(), Some((START, (14, 0))));
        rescan.done((15, 0));
        assert_eq!(rescan, Rescan::default());
    }
}
