//! Submissions of one statement, which enter the queue together: a page of rows is written at a time, and each index is opened once
//! for all of them.

use crate::catalog;
use crate::job::Waiting;
use crate::notes::{self, Submitted};
use crate::pg::statement::Number;
use crate::submit::{self, Submission};
use std::cell::RefCell;

/// Submissions kept at most, some 50 kB.
const MANY: usize = 256;

#[derive(Default)]
struct Gathered {
    /// Whose they are: those of a statement that has failed are nobody's.
    statement: Number,
    submissions: Vec<Submission>,
}

thread_local! {
    static GATHERED: RefCell<Gathered> = RefCell::new(Gathered::default());
}

/// Keeps a submission for the end of the statement, or until there are many.
pub fn add(statement: Number, submission: Submission) {
    let many = GATHERED.with_borrow_mut(|gathered| {
        if gathered.statement != statement {
            gathered.statement = statement;
            gathered.submissions.clear();
        }
        gathered.submissions.push(submission);
        gathered.submissions.len() >= MANY
    });
    if many {
        queue(statement);
    }
}

/// Queues what is kept for this statement.
pub fn queue(statement: Number) {
    let submissions = GATHERED.with_borrow_mut(|gathered| {
        if gathered.statement == statement { std::mem::take(&mut gathered.submissions) } else { Vec::new() }
    });
    insert(submissions);
}

/// Queues jobs, in the ordinary case without SQL.
pub fn insert(submissions: Vec<Submission>) {
    if submissions.is_empty() {
        return;
    }
    let places = catalog::insert(&submissions);
    for (Submission { new, destination, taken }, tid) in submissions.into_iter().zip(places) {
        let Some(tid) = tid else {
            submit::requeue(new, taken);
            continue;
        };
        let waiting = Waiting {
            id: new.job.id,
            run_at: new.run_at,
            enqueued_at: new.enqueued_at,
            attempts: 0,
            max_attempts: new.max_attempts,
            tid,
            row_tid: new.row_tid,
        };
        let lane = new.lane(destination.priority_of(&new));
        notes::note_change(lane, new.run_at, Some(Submitted { waiting, owner: destination.owner }));
    }
}
