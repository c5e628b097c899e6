//! The judge: compares what the clients were told with what there is. It knows the promises and nothing of how they are kept.

mod attempts;
mod calls;
mod charges;
mod crashes;
mod edges;
pub mod effort;
mod fates;
mod rest;

use crate::evidence::Evidence;
use crate::run::Run;

pub use rest::at_rest;

pub fn check(run: &Run, evidence: &Evidence) {
    fates::check(run, evidence);
    attempts::check(run, evidence);
    crashes::check(run, evidence);
    charges::check(run, evidence);
    edges::check(run, evidence);
    calls::check(run, evidence);
    rest::log(run);
}
