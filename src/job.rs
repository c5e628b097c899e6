//! The words of the protocol as types: what a job is, where it stands, how a run ends. Nothing here touches the server.

use std::fmt;
use std::rc::Rc;

/// The job's id: the bytes of its uuid.
pub type JobId = [u8; 16];

/// The longest handler name that can be registered, in bytes.
pub const MAX_HANDLER_NAME: usize = 63;

/// The handler of a job that names none.
pub const DEFAULT_HANDLER: &str = "default";

/// A job, wherever in the database: the OID of its job table and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct JobRef {
    pub table: u32,
    pub id: JobId,
}

/// Where a table has a row, or had it when somebody looked: whoever goes there has to see whether it is the right one. 0: nobody
/// has looked.
pub type Tid = u64;

/// Where a job table has a row, or had it when somebody looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RowPlace {
    /// The partition that has it; 0: the table itself.
    pub partition: u32,
    pub tid: Tid,
}

/// What is kept of a job that waits in the queue.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    pub id: JobId,
    /// In microseconds since 2000-01-01, as the server counts.
    pub run_at: i64,
    /// With table and id the identity of the submission.
    pub enqueued_at: i64,
    /// Charged so far.
    pub attempts: i32,
    /// The job's own limit.
    pub max_attempts: Option<i32>,
    /// Of its row in the queue.
    pub tid: Tid,
    /// Of its row in the job table, at the submission.
    pub row: RowPlace,
}

impl Waiting {
    /// Where it is in the order of its lane.
    pub fn place(&self) -> (i64, i64) {
        (self.run_at, self.enqueued_at)
    }
}

/// Why a queued job waits, which is also what its `run_at` means. Stored in `queued_job.timing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timing {
    /// Due as soon as it is committed; `run_at` is when it arrived and only orders it. A clock that is set back
    /// delays nothing.
    Immediate = 0,
    /// Not before `run_at`, by the wall clock.
    Scheduled = 1,
    /// Has failed and waits for its backoff.
    Retry = 2,
    /// Was running when the server crashed; runs when `crash_quarantine` is over, one such job at a time.
    Quarantine = 3,
}

impl Timing {
    pub fn from_i16(value: i16) -> Self {
        match value {
            0 => Self::Immediate,
            1 => Self::Scheduled,
            3 => Self::Quarantine,
            _ => Self::Retry,
        }
    }
}

/// The jobs that are handed out in one order: `run_at`, then arrival. Between lanes a lower priority goes first,
/// and lanes of the same priority take turns, so that a flood of one handler hides nobody's jobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneKey {
    pub table: u32,
    pub handler: Rc<str>,
    pub priority: i16,
    pub timing: Timing,
}

/// `queued_job.lane`, as `background_jobs.lane_of` has it: the lanes of a handler lie one behind the other, by priority and timing.
pub fn lane_number(first_of_handler: i64, priority: i16, timing: Timing) -> i64 {
    first_of_handler | (i64::from(priority) + 32768) << 2 | timing as i64
}

/// Priority and timing of a lane.
pub fn of_lane_number(lane: i64) -> (i16, Timing) {
    (((lane >> 2 & 0xffff) - 32768) as i16, Timing::from_i16((lane & 3) as i16))
}

/// The states that views show. Derived from the row, the queue and the executors; never stored.
///
/// ```text
///              +--> scheduled --+
///              |                v
/// INSERT ------+--> available -----> running -----> completed
///              |       ^               |  ^  |
///              |       v               v  |  +----> failed
///              +--> unhandled        retrying
///
/// scheduled, available, unhandled, running, retrying -----> cancelled
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Scheduled,
    Available,
    Running,
    Retrying,
    Unhandled,
    Completed,
    Failed,
    Cancelled,
}

impl State {
    /// Where an unfinished job stands.
    pub fn of_queued(timing: Timing, due: bool, handled: bool, running: bool) -> Self {
        match (running, handled, timing, due) {
            (true, ..) => Self::Running,
            (_, false, ..) => Self::Unhandled,
            (_, _, Timing::Retry | Timing::Quarantine, _) => Self::Retrying,
            (_, _, Timing::Scheduled, false) => Self::Scheduled,
            _ => Self::Available,
        }
    }

    /// Where a job stands that is in no queue.
    pub fn of_final(completed: bool, cancelled: bool, has_error: bool) -> Option<Self> {
        match (completed, cancelled) {
            (true, _) if has_error => Some(Self::Failed),
            (true, _) => Some(Self::Completed),
            (false, true) => Some(Self::Cancelled),
            (false, false) => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Scheduled => "scheduled",
            Self::Available => "available",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Unhandled => "unhandled",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// How an attempt ended that did not complete its job; `attempts.outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setback {
    /// The handler, or the completion of its job, raised an error.
    Error,
    /// It ran longer than its timeout.
    Timeout,
    /// It was told to stop and had to be terminated, or somebody terminated its session.
    Terminated,
    /// A deadlock or a serialization failure: run again promptly, and not charged for the first few times.
    Conflict,
    /// The server crashed while it ran.
    Crashed,
}

impl Setback {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Terminated => "terminated",
            Self::Conflict => "conflict",
            Self::Crashed => "crashed",
        }
    }
}

/// Conflicts of one job that are not charged as attempts.
pub const FREE_CONFLICTS: i16 = 10;

/// Formats an id the way PostgreSQL prints a uuid.
pub fn format_id(id: &JobId) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    let mut text = String::with_capacity(36);
    for (i, byte) in id.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.extend([digit(byte >> 4), digit(byte & 0xf)]);
    }
    text
}

/// The handler a row asks for, in the form in which the queue keeps it. A name that is too long to be registered stays
/// longer than any registered one, so that cutting it can never select another's handler.
pub fn handler_name(asked: Option<String>) -> String {
    let name = asked.unwrap_or_else(|| DEFAULT_HANDLER.to_string());
    if name.len() <= MAX_HANDLER_NAME {
        return name;
    }
    let mut end = MAX_HANDLER_NAME + 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_printed_as_a_uuid() {
        let id = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 0, 0, 0, 0, 0, 0, 0xff];
        assert_eq!(format_id(&id), "01234567-89ab-cdef-0000-0000000000ff");
    }

    #[test]
    fn missing_handler_is_the_default_one() {
        assert_eq!(handler_name(None), "default");
        assert_eq!(handler_name(Some("resize".into())), "resize");
    }

    #[test]
    fn overlong_name_never_becomes_a_name_that_can_be_registered() {
        for unit in ["a", "ä", "漢", "🐘"] {
            for n in 0..200 {
                let asked = unit.repeat(n);
                let kept = handler_name(Some(asked.clone()));
                assert!(kept == asked || kept.len() > MAX_HANDLER_NAME, "{asked} became {kept}");
                assert!(kept.len() <= MAX_HANDLER_NAME + 4);
            }
        }
    }

    #[test]
    fn states_of_the_queue() {
        use Timing::*;
        assert_eq!(State::of_queued(Immediate, true, true, false), State::Available);
        assert_eq!(State::of_queued(Immediate, true, false, false), State::Unhandled);
        assert_eq!(State::of_queued(Scheduled, false, true, false), State::Scheduled);
        assert_eq!(State::of_queued(Scheduled, true, true, false), State::Available);
        assert_eq!(State::of_queued(Retry, false, true, false), State::Retrying);
        assert_eq!(State::of_queued(Retry, true, true, true), State::Running);
    }

    #[test]
    fn final_states_absorb_the_row_flags() {
        assert_eq!(State::of_final(true, false, false), Some(State::Completed));
        assert_eq!(State::of_final(true, true, false), Some(State::Completed));
        assert_eq!(State::of_final(true, false, true), Some(State::Failed));
        assert_eq!(State::of_final(false, true, false), Some(State::Cancelled));
        assert_eq!(State::of_final(false, false, false), None);
    }
}
