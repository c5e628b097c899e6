//! How far what was read of a lane already has been looked through once more.

/// See `catalog::Position`.
type Position = (i64, i64);

/// Behind the first place, up to the second one.
type Stretch = (Position, Position);

const START: Position = (i64::MIN, i64::MIN);

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rescan {
    /// What is left of it.
    left: Option<Stretch>,
    /// What comes after it: somebody has asked meanwhile, and what they mean may lie in the part that is done.
    then: Option<Stretch>,
}

impl Rescan {
    /// All up to there is to be looked through. False: something is under way already, and that follows.
    pub fn ask(&mut self, last: Position) -> bool {
        self.ask_for((START, last))
    }

    /// The same of a stretch.
    pub fn ask_for(&mut self, (after, last): Stretch) -> bool {
        let begins = self.left.is_none();
        // What is under way is not thrown back, or it might never come to its end.
        let when = if begins { &mut self.left } else { &mut self.then };
        let (asked_after, asked_last) = when.unwrap_or((after, last));
        *when = Some((after.min(asked_after), last.max(asked_last)));
        begins
    }

    pub fn left(&self) -> Option<Stretch> {
        self.left
    }

    /// It was looked through up to this place.
    pub fn done_to(&mut self, place: Position) {
        if let Some((after, _)) = &mut self.left {
            *after = place;
        }
    }

    /// All of it was.
    pub fn done(&mut self) {
        self.left = self.then.take();
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
        rescan.done();
        assert_eq!(rescan, Rescan::default());
    }

    #[test]
    fn who_asks_while_it_is_under_way_is_heard_when_it_is_done_and_does_not_throw_it_back() {
        let mut rescan = Rescan::default();
        assert!(rescan.ask_for(((2, 0), (9, 9))));
        rescan.done_to((5, 1));
        assert!(!rescan.ask_for(((4, 0), (12, 0))));
        assert!(!rescan.ask_for(((3, 0), (11, 0))));
        assert_eq!(rescan.left(), Some(((5, 1), (9, 9))));
        rescan.done();
        assert_eq!(rescan.left(), Some(((3, 0), (12, 0))));
        rescan.done();
        assert_eq!(rescan, Rescan::default());
    }
}
