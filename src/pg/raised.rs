//! Errors that somebody wants to know of even if code of the user's has caught them, or has made others of them.

use pgrx::PgSqlErrorCode;
use std::cell::Cell;

thread_local! {
    static WANTED: Cell<&'static [PgSqlErrorCode]> = const { Cell::new(&[]) };
    static MET: Cell<bool> = const { Cell::new(false) };
}

/// Looks for errors with one of these codes from now on, inside `error::catch_as` and its like; for none any more if there are none.
pub fn watch_for(codes: &'static [PgSqlErrorCode]) {
    WANTED.set(codes);
    MET.set(false);
}

/// Was one of them raised?
pub fn met() -> bool {
    MET.get()
}

/// An error was raised, by whomever.
pub fn note(code: i32) {
    if WANTED.get().iter().any(|wanted| *wanted as i32 == code) {
        MET.set(true);
    }
}
