//! A lane of the queue, read in its order without SQL, which would go on past dead entries until it finds a job, however many they are:
//! while somebody's old snapshot lasts, there is one for each job that has passed.

use super::*;

/// A place in a lane: when a job is due there, and when it arrived.
pub type Position = (Timestamp, Timestamp);

/// How a walk has ended.
pub enum Walked {
    /// After so many entries, at that place.
    To(Position),
    /// As `f` said.
    Told,
    /// There is nothing behind.
    End,
}

/// Calls `f` with the jobs of a lane behind `after`, up to `last`, in their order, until it says false, but looks at no more than about
/// `entries` of the index. `number` is that of the lane.
pub fn walk_lane(
    lane: &LaneKey,
    number: i64,
    (after, last): (Position, Position),
    entries: usize,
    mut f: impl FnMut(Waiting) -> bool,
) -> Walked {
    let Some(queue) = heap::Table::open(c"queued_job") else { return Walked::End };
    let (table, number) = (Key::Oid(1, Datum::from(Oid::from(lane.table))), Key::Int8(2, Datum::from(number)));
    let due_then = [table, number, Key::At(3, after.0), Key::After(4, after.1)];
    let due_later = [table, number, Key::After(3, after.0), Key::UpTo(3, last.0)];
    for keys in [due_then, due_later] {
        let mut told = false;
        let walked = queue.walk(c"queued_job_order", &keys, entries, |row| {
            let job = waiting(row);
            let is_meant = job.place() <= last && is_handler(row, &lane.handler);
            told = is_meant && !f(job);
            !told
        });
        if told {
            return Walked::Told;
        }
        if let Some([.., run_at, enqueued_at]) = walked {
            return Walked::To((run_at.value() as Timestamp, enqueued_at.value() as Timestamp));
        }
    }
    Walked::End
}

/// A row of the queue.
fn waiting(row: &heap::Row) -> Waiting {
    Waiting {
        id: row.uuid(column::JOB_ID).unwrap_or_default(),
        run_at: row.timestamp(column::RUN_AT).unwrap_or_default(),
        enqueued_at: row.timestamp(column::ENQUEUED_AT).unwrap_or_default(),
        attempts: row.int4(column::ATTEMPTS).unwrap_or_default(),
        max_attempts: row.int4(column::MAX_ATTEMPTS),
        tid: row.place(),
        row: RowPlace { partition: row.oid(column::ROW_PARTITION).unwrap_or_default(), tid: row.tid(column::ROW_TID) },
    }
}

fn is_handler(row: &heap::Row, name: &str) -> bool {
    row.text(column::HANDLER).as_deref() == Some(name)
}
