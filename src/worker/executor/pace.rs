//! How long handlers take, which decides whose jobs may share a commit.

use super::batch::Job;
use crate::worker::SHORT;
use std::collections::HashMap;
use std::time::Duration;

/// How long handlers take: a moving average per handler.
#[derive(Default)]
pub struct Pace(HashMap<(u32, String), Duration>);

impl Pace {
    fn key(job: &Job) -> (u32, String) {
        (job.assignment.table, job.handler.definition.name.clone())
    }

    pub fn is_short(&self, job: &Job) -> bool {
        self.0.get(&Self::key(job)).is_some_and(|mean| *mean < SHORT)
    }

    pub fn note(&mut self, job: &Job, took: Duration) {
        self.0.entry(Self::key(job)).and_modify(|mean| *mean = (*mean * 7 + took) / 8).or_insert(took);
    }

    /// It was interrupted because others waited: how long it would have taken is not known.
    pub fn note_overrun(&mut self, job: &Job) {
        self.note(job, SHORT * 4);
    }
}
