//! How a job enters the queue. Ordinarily without SQL, together with the rows of its statement where it may wait for them;
//! otherwise by a statement that deals with what the queue already holds.

use crate::catalog::{self, Destination, NewJob, Submission};
use crate::destinations;
use crate::job::{JobRef, Waiting, format_id};
use crate::notes::{self, Submitted};
use crate::pg::error::PgError;
use crate::pg::relation;
use crate::pg::role::bookkeeping;
use crate::pg::spi;
use crate::pg::statement::Number;
use crate::successors;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::RefCell;

/// What becomes of a queued job that has the id of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Replace,
    Refuse,
}

/// Submissions kept at most, some 50 kB.
const MANY: usize = 256;

/// Those that wait for the end of their statement: a page of rows is written at a time then, and each index is opened once for all.
#[derive(Default)]
struct Gathered {
    /// Whose they are: those of a statement that has failed are nobody's.
    statement: Number,
    submissions: Vec<Submission>,
}

thread_local! {
    static GATHERED: RefCell<Gathered> = RefCell::new(Gathered::default());
}

/// Queues a job for whoever the caller is, and takes the note.
pub fn queue(new: NewJob, taken: Taken) {
    let new = at_least_one_attempt(new);
    match destination(&new) {
        Some(destination) => insert(vec![Submission { new, destination }], taken),
        None => requeue(new, taken),
    }
}

/// The same at the latest when the statement ends. Of a former row with the same id nothing is left but its job.
pub fn queue_for(statement: Number, new: NewJob) {
    let new = at_least_one_attempt(new);
    match destination(&new) {
        Some(destination) => gather(statement, Submission { new, destination }),
        None => requeue(new, Taken::Replace),
    }
}

/// Where the job goes, if the quick way is open to it.
fn destination(new: &NewJob) -> Option<Destination> {
    if new.job_key.is_some() { None } else { destinations::of(new.job.table, &new.handler) }
}

fn gather(statement: Number, submission: Submission) {
    let many = GATHERED.with_borrow_mut(|gathered| {
        if gathered.statement != statement {
            gathered.statement = statement;
            gathered.submissions.clear();
        }
        gathered.submissions.push(submission);
        gathered.submissions.len() >= MANY
    });
    if many {
        queue_gathered(statement);
    }
}

/// Queues what waits for the end of this statement.
pub fn queue_gathered(statement: Number) {
    let submissions = GATHERED.with_borrow_mut(|gathered| {
        if gathered.statement == statement { std::mem::take(&mut gathered.submissions) } else { Vec::new() }
    });
    if !submissions.is_empty() {
        insert(submissions, Taken::Replace);
    }
}

fn insert(submissions: Vec<Submission>, taken: Taken) {
    let places = catalog::insert(&submissions);
    for (submission, tid) in submissions.into_iter().zip(places) {
        let Some(tid) = tid else {
            requeue(submission.new, taken);
            continue;
        };
        let (lane, Submission { new, destination }) = (submission.lane(), submission);
        let waiting = Waiting {
            id: new.job.id,
            run_at: new.run_at,
            enqueued_at: new.enqueued_at,
            attempts: 0,
            max_attempts: new.max_attempts,
            tid,
            row: new.row,
        };
        notes::note_change(lane, new.run_at, Some(Submitted { waiting, owner: destination.owner }));
    }
}

/// Queues a job that is, or may be, in the queue already.
pub fn requeue(new: NewJob, taken: Taken) {
    let mut new = at_least_one_attempt(new);
    let lane = bookkeeping(|| {
        spi::connect(|| {
            let predecessor = new.job_key.as_ref().and_then(|key| refuse_taken_key(new.job, key));
            let key = if predecessor.is_some() { new.job_key.take() } else { None };
            let lane = catalog::enqueue(&new, taken == Taken::Refuse);
            if let (Some(of), Some(key)) = (predecessor, key) {
                successors::note(of, key, new.job, new.enqueued_at);
            }
            lane
        })
    });
    let Some(lane) = lane else { refuse_taken_id(new.job) };
    notes::note_job(lane, new.run_at);
}

fn at_least_one_attempt(new: NewJob) -> NewJob {
    NewJob { max_attempts: new.max_attempts.map(|limit| limit.max(1)), ..new }
}

fn refuse_taken_id(job: JobRef) -> ! {
    let table = relation::name(pg_sys::Oid::from(job.table)).unwrap_or_else(|| job.table.to_string());
    PgError::new(
        PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
        format!("an unfinished job with id {} exists already in job table \"{table}\"", format_id(&job.id)),
    )
    .detail("The id names the job, so it has to be unique over all partitions.")
    .hint("If no partition has such a row, call background_jobs.detach() and background_jobs.attach().")
    .raise()
}

/// Returns the job that the key comes from when that is finished.
fn refuse_taken_key(job: JobRef, key: &str) -> Option<JobRef> {
    let holder = successors::holder(job.table, key);
    if holder.job.is_some_and(|holder| holder != job.id) {
        PgError::new(
            PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
            format!("an unfinished job with job_key \"{key}\" exists already"),
        )
        .hint("Use background_jobs.enqueue() with job_key_mode 'replace' or 'keep', or cancel that job first.")
        .raise();
    }
    holder.running.filter(|running| *running != job)
}
