//! The decisions of the row protocol: what a change of a row does to the queue, which attempt may finish a job, what is made of
//! an end, a death or a crash. Nothing here touches the server: the extension calls it, and so does the model in
//! tests/model, which tries every order of events on it.
//!
//! Where a decision is the WHERE clause of a statement, the statement's text stands beside the function that says the same,
//! but for run_now()'s and a submission's (`catalog::make_due`, `catalog::enqueue`). tests/server/tests/agreement.rs runs one
//! against the other.

use crate::job::{FREE_CONFLICTS, Setback, Timing};

/// The row, as the protocol sees it. A NULL is false.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flags {
    pub completed: bool,
    pub cancelled: bool,
}

/// `Flags::is_open` in SQL: guards every UPDATE that the extension makes of a job's row.
pub const UNFINISHED: &str = "completed IS NOT TRUE AND cancelled IS NOT TRUE";

/// The opposite: guards retry().
pub const FINISHED: &str = "(completed OR cancelled)";

/// Has a job failed, by its row? Completion sets progress to 1, which a failure never does, so that a handler may return what looks
/// like the error that a failure leaves there.
pub const FAILED: &str = "(completed AND progress OPERATOR(pg_catalog.<) 1::pg_catalog.float4
                 AND pg_catalog.jsonb_typeof(result OPERATOR(pg_catalog.#>) '{error,message}') OPERATOR(pg_catalog.=) 'string'
                 AND pg_catalog.jsonb_typeof(result OPERATOR(pg_catalog.#>) '{error,attempts}') OPERATOR(pg_catalog.=) 'number'
                 AND pg_catalog.octet_length(result OPERATOR(pg_catalog.#>>) '{error,sqlstate}') OPERATOR(pg_catalog.=) 5) IS TRUE";

impl Flags {
    pub fn is_open(self) -> bool {
        !self.completed && !self.cancelled
    }
}

/// What a client's change of a row does to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The job of the old row leaves the queue.
    pub take_out: bool,
    /// The job of the new row enters it.
    pub submit: bool,
}

/// Does the UPDATE trigger fire? Its WHEN clause is in `job_table::trigger_statements`; that of DELETE is `old.is_open()`. That of
/// INSERT fires for every row and submits those that are open.
#[allow(dead_code, reason = "the server decides this, by the clause")]
pub fn fires_on_update(old: Flags, new: Flags, moved: bool) -> bool {
    old.is_open() && (new.cancelled || new.completed || moved)
}

/// What the UPDATE trigger does. `moved`: the row has another id now.
pub fn on_update(new: Flags, moved: bool) -> Change {
    Change { take_out: moved || !new.is_open(), submit: moved && new.is_open() }
}

/// What an executor is to do about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Action {
    Run = 0,
    /// The attempts are used up: write the final failure into the row.
    Fail = 1,
    /// The attempt ended with its executor or with the server, which left its progress in the row: take that back.
    Restart = 2,
}

/// What a row of the queue must still be for an attempt to change it: the same submission, with no attempt charged since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    pub enqueued_at: i64,
    pub attempts: i32,
}

impl Identity {
    /// `attempt` counts from 1 and is charged when it ends; what is not a run acts for one that was charged.
    pub fn of(enqueued_at: i64, attempt: i32, action: Action) -> Self {
        Self { enqueued_at, attempts: if action == Action::Run { attempt - 1 } else { attempt } }
    }
}

/// The columns of the queue that the protocol reads.
#[allow(dead_code, reason = "the server changes them, by the statements")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queued {
    pub enqueued_at: i64,
    pub attempts: i32,
    pub conflicts: i16,
    pub timing: Timing,
}

/// The fence. $1 job_table, $2 job_id, $3 enqueued_at, $4 attempts; says the same as `Queued::is`.
pub const FINISH: &str = "DELETE FROM background_jobs.queued_job
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND attempts = $4";

/// $1 to $4 as in `FINISH`, $5 run_at, $6 error, $7 timing; says the same as `Queued::put_back`.
pub const PUT_BACK: &str = "UPDATE background_jobs.queued_job
            SET attempts = attempts + 1, run_at = $5, last_error = COALESCE($6, last_error), timing = $7
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND attempts = $4";

/// $1 to $4 as in `FINISH`, $5 run_at; says the same as `Queued::put_back_free`.
pub const PUT_BACK_FREE: &str = "UPDATE background_jobs.queued_job
            SET conflicts = LEAST(conflicts + 1, 30000)::smallint, timing = 2, run_at = $5,
                last_error = last_error - 'missing_since'
          WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3 AND attempts = $4 RETURNING conflicts";

/// $1 to $3 as in `FINISH`; says the same as `is_queued`.
pub const IS_QUEUED: &str =
    "SELECT 1 FROM background_jobs.queued_job WHERE job_table = $1 AND job_id = $2 AND enqueued_at = $3";

#[allow(dead_code, reason = "the server decides this, by the statements")]
impl Queued {
    /// As INSERT, an UPDATE of the id and retry() leave it, whatever was there before.
    pub fn submitted(enqueued_at: i64, timing: Timing) -> Self {
        Self { enqueued_at, attempts: 0, conflicts: 0, timing }
    }

    pub fn is(&self, identity: Identity) -> bool {
        self.enqueued_at == identity.enqueued_at && self.attempts == identity.attempts
    }

    pub fn put_back(self, identity: Identity, timing: Timing) -> Option<Self> {
        self.is(identity).then_some(Self { attempts: self.attempts + 1, timing, ..self })
    }

    pub fn put_back_free(self, identity: Identity) -> Option<Self> {
        let conflicts = self.conflicts.saturating_add(1).min(30000);
        self.is(identity).then_some(Self { conflicts, timing: Timing::Retry, ..self })
    }

    /// run_now(). A suspect is in no hurry to run beside others.
    pub fn make_due(self) -> Self {
        let timing = if self.timing == Timing::Quarantine { Timing::Quarantine } else { Timing::Immediate };
        Self { timing, ..self }
    }
}

/// Is the submission that was handed out still in the queue? `queued` is the stamp of what is there under its id.
pub fn is_queued(queued: Option<i64>, enqueued_at: i64) -> bool {
    queued == Some(enqueued_at)
}

/// What an executor makes of a job's row when it loads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    Open,
    /// The row is finished, though nobody took the job out of the queue.
    Finished,
    /// There is no row, or its owner may not see it: a policy, or a restore that has not come to it yet.
    Missing,
}

/// `is_queued`: is this submission in the queue? The row may be another one's, under the same id.
pub fn on_load(finished: Option<bool>, is_queued: impl FnOnce() -> bool) -> Sight {
    match finished {
        None => Sight::Missing,
        Some(false) if is_queued() => Sight::Open,
        Some(_) => Sight::Finished,
    }
}

/// What writing the end of a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ending {
    Written,
    /// Somebody finished or deleted the row.
    Withdrawn,
    /// The row was written, but the attempt is not the one that may finish the job: all of it must be rolled back.
    Fenced,
    /// The row is open, and yet the UPDATE did not reach it.
    Unreached,
}

/// Completes a job: `updated` says whether the guarded UPDATE found the row open.
pub fn complete(updated: bool, is_open: impl FnOnce() -> bool, fence: impl FnOnce() -> bool) -> Ending {
    match updated {
        false if is_open() => Ending::Unreached,
        false => Ending::Withdrawn,
        true if fence() => Ending::Written,
        true => Ending::Fenced,
    }
}

/// Fails a job for good. Nothing else is in the transaction, so that a queue's row whose job is finished may go with it.
pub fn fail(updated: bool, is_open: impl FnOnce() -> bool, fence: impl FnOnce() -> bool) -> Ending {
    if !updated && is_open() {
        return Ending::Unreached;
    }
    match (updated, fence()) {
        (true, true) => Ending::Written,
        (true, false) => Ending::Fenced,
        (false, _) => Ending::Withdrawn,
    }
}

/// Why a running job is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interrupt {
    Cancelled = 1,
    Timeout = 2,
}

/// Was the run rolled back because somebody withdrew its job? The queue has the last word.
pub fn looks_withdrawn(withdrawn: bool, interrupt: Option<Interrupt>) -> bool {
    withdrawn || interrupt == Some(Interrupt::Cancelled)
}

/// What kind of setback an error is.
pub fn setback(interrupt: Option<Interrupt>, conflict: bool) -> Setback {
    match (interrupt, conflict) {
        (Some(Interrupt::Timeout), _) => Setback::Timeout,
        (_, true) => Setback::Conflict,
        _ => Setback::Error,
    }
}

/// Is the attempt that met a conflict free of charge, after so many that were?
pub fn is_free(conflicts: i16) -> bool {
    conflicts < FREE_CONFLICTS
}

/// What the dispatcher hands out for a job with so many attempts charged.
pub fn next_attempt(attempts: i32, limit: i32) -> (i32, Action) {
    if attempts >= limit { (attempts, Action::Fail) } else { (attempts + 1, Action::Run) }
}

/// May a job of this lane be handed out? One suspect of a crash at a time.
pub fn may_start(timing: Timing, no_suspect_runs: bool) -> bool {
    timing != Timing::Quarantine || no_suspect_runs
}

/// What the dispatcher does with a job that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    Keep,
    /// It is handed out already.
    PassBy,
    /// An earlier submission of its id is handed out: to be read again when that has ended.
    Remember,
}

/// `claimed` is the stamp of what is handed out under the job's id.
pub fn on_reading(claimed: Option<i64>, enqueued_at: i64) -> Reading {
    match claimed {
        None => Reading::Keep,
        Some(stamp) if stamp == enqueued_at => Reading::PassBy,
        Some(_) => Reading::Remember,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ClaimState {
    Empty = 0,
    /// Handed out. The dispatcher may take it back (-> Revoked), the executor begin it (-> Running).
    Pending = 1,
    /// Belongs to the executor until it says Done.
    Running = 2,
    /// What became of it is committed, or was rolled back for good.
    Done = 3,
    Revoked = 4,
}

/// Does a new dispatcher find this among what the one before has handed out?
pub fn is_adopted(state: ClaimState) -> bool {
    state != ClaimState::Revoked
}

/// What becomes of a claim whose executor has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescue {
    Nothing,
    /// It had ended before.
    Ended,
    /// Charged an attempt, then given back.
    Charge,
    GiveBack,
}

/// `began`: it was the one that ran. `evicted`: its executor was sent away for somebody else's sake.
pub fn on_rescue(state: ClaimState, began: bool, evicted: bool) -> Rescue {
    match state {
        ClaimState::Revoked | ClaimState::Empty => Rescue::Nothing,
        ClaimState::Done => Rescue::Ended,
        ClaimState::Running if began && !evicted => Rescue::Charge,
        ClaimState::Running | ClaimState::Pending => Rescue::GiveBack,
    }
}

/// A job that ran at a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// It was suspected of an earlier crash. Such jobs run one at a time.
    pub suspect: bool,
    /// Its process was told to quit because another one had crashed.
    pub told: bool,
}

/// Is a job that ran at a crash suspected of it? `all`: who ran. Of the first crash everybody is; when a suspect was among them, it
/// is those whose processes ended by themselves while others were told to. If that tells nobody from the others (some other process
/// has crashed, or the postmaster, whose children nobody tells), it is the suspect.
pub fn is_accused(job: Witness, all: impl Iterator<Item = Witness> + Clone) -> bool {
    let any = |what: fn(&Witness) -> bool| all.clone().any(|one| what(&one));
    if !any(|one| one.suspect) {
        true
    } else if any(|one| one.told) && any(|one| !one.told) {
        !job.told
    } else {
        job.suspect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_crash_beside_a_suspect_those_are_accused_whose_processes_ended_by_themselves() {
        let accused = |all: &[(bool, bool)]| -> Vec<bool> {
            let all: Vec<Witness> =
                all.iter().map(|(suspect, told)| Witness { suspect: *suspect, told: *told }).collect();
            all.iter().map(|job| is_accused(*job, all.iter().copied())).collect()
        };
        let (suspect, told) = (true, true);
        // Without a suspect, everybody.
        assert_eq!(accused(&[(!suspect, told), (!suspect, !told)]), [true, true]);
        assert_eq!(accused(&[(suspect, told), (!suspect, !told), (!suspect, told)]), [false, true, false]);
        assert_eq!(accused(&[(suspect, !told), (!suspect, told)]), [true, false]);
        // Some other process, or the postmaster.
        assert_eq!(accused(&[(suspect, told), (!suspect, told)]), [true, false]);
        assert_eq!(accused(&[(suspect, !told), (!suspect, !told)]), [true, false]);
    }
}
