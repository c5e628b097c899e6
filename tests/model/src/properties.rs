//! What must hold in every state (the numbers are those of the invariants that the crash ledger checks, too), and what has to
//! happen somewhere, or the model would prove nothing.

use crate::drain::{Mood, drains};
use crate::history::{Broken, End, Fate};
use crate::job::Timing;
use crate::machine::Machine;
use crate::protocol::{Action, ClaimState};
use crate::state::{Ended, State, Step};
use stateright::Property;

pub fn all() -> Vec<Property<Machine>> {
    vec![
        Property::always("I1 no job is stuck, if its handler returns", |m, s: &State| {
            drains(m, s, Mood::HandlersReturn)
        }),
        Property::always("I1 no job is stuck, if its handler fails", |m, s: &State| drains(m, s, Mood::HandlersFail)),
        Property::always("I2 what was not committed does not start", |_, s: &State| unbroken(s, Broken::Phantom)),
        Property::always("I3 effects exactly once", |_, s: &State| {
            fates(s).all(|fate| fate.effects == u8::from(fate.end == End::Completed))
        }),
        Property::always("I4 an acknowledged cancel is final", |_, s: &State| {
            fates(s).all(|fate| fate.end != End::Cancelled || fate.effects == 0)
        }),
        Property::always("I5 attempts are bounded", |m, s: &State| {
            fates(s).all(|fate| i32::from(fate.starts) <= m.scope.max_attempts + i32::from(fate.free))
        }),
        Property::always("I6 no two attempts of a job overlap", |_, s: &State| {
            let running = |n: usize| s.slots[n].current().filter(|_| s.slots[n].is_in_handler());
            !matches!((running(0), running(1)), (Some(a), Some(b)) if a.assignment.job == b.assignment.job)
        }),
        Property::always("I7 an old attempt commits nothing", |_, s: &State| unbroken(s, Broken::OldAttempt)),
        Property::always("I9 a finished row stays finished", |_, s: &State| {
            unbroken(s, Broken::FinishedRow) && unbroken(s, Broken::Revived)
        }),
        Property::always("I9 what ended is in its row", |_, s: &State| {
            s.jobs.iter().filter_map(|pair| pair.row.committed).all(|row| {
                let end = s.history.fates[row.stamp as usize].end;
                match end {
                    End::None => true,
                    End::Completed => row.set_back || row.flags.completed && !row.failed,
                    End::Failed => row.set_back || row.flags.completed && row.failed,
                    End::Cancelled => row.set_back || row.flags.cancelled,
                    End::Withdrawn => !row.is_unfinished(),
                }
            })
        }),
        Property::always("I10 the queue holds the unfinished rows", |_, s: &State| {
            s.jobs.iter().all(|pair| {
                let unfinished = pair.row.committed.filter(|row| row.is_unfinished()).map(|row| row.stamp);
                pair.queued.committed.map(|queued| queued.enqueued_at) == unfinished
            })
        }),
        Property::always("one suspect at a time", |_, s: &State| {
            s.slots.iter().filter(|slot| slot.running && slot.journal.is_some_and(|entry| entry.suspect)).count() <= 1
        }),
        Property::sometimes("a job completes", |_, s: &State| fates(s).any(|fate| fate.end == End::Completed)),
        Property::sometimes("a job fails", |_, s: &State| fates(s).any(|fate| fate.end == End::Failed)),
        Property::sometimes("a running job is cancelled", |_, s: &State| {
            s.slots.iter().any(|slot| {
                slot.is_in_handler()
                    && slot
                        .current()
                        .is_some_and(|c| s.history.fates[c.assignment.stamp as usize].end == End::Cancelled)
            })
        }),
        Property::sometimes("a job runs again by retry()", |_, s: &State| {
            s.history.fates.windows(2).any(|two| two[0].end != End::None && two[1].effects == 1)
        }),
        Property::sometimes("the fence stops an attempt", |_, s: &State| s.history.seen.fenced),
        Property::sometimes("a completion finds another row than it waited for", |_, s: &State| {
            s.history.seen.unreached
        }),
        Property::sometimes("a completion waits for a client", |_, s: &State| {
            s.slots.iter().any(|slot| matches!(slot.step, Step::WaitForRow(_)))
        }),
        Property::sometimes("a cancel comes too late", |_, s: &State| s.history.seen.late_cancel),
        Property::sometimes("a crash is charged", |_, s: &State| s.history.seen.charged),
        Property::sometimes("a suspect runs", |_, s: &State| {
            s.slots.iter().any(|slot| slot.journal.is_some_and(|entry| entry.suspect))
        }),
        Property::sometimes("a job in quarantine waits", |_, s: &State| {
            s.jobs.iter().any(|pair| pair.queued.committed.is_some_and(|queued| queued.timing == Timing::Quarantine))
        }),
        Property::sometimes("a used-up job is failed by an executor that did not run it", |_, s: &State| {
            s.slots.iter().any(|slot| {
                slot.step == Step::Settle(Ended::Done)
                    && slot.current().is_some_and(|claim| {
                        claim.assignment.action == Action::Fail
                            && s.history.fates[claim.assignment.stamp as usize].end == End::Failed
                    })
            })
        }),
        Property::sometimes("a client hands a job to an executor", |_, s: &State| {
            s.slots.iter().flat_map(|slot| &slot.mailbox).any(|claim| !claim.booked)
        }),
        Property::sometimes("a claim is taken back", |_, s: &State| {
            s.slots.iter().flat_map(|slot| &slot.mailbox).any(|claim| claim.state == ClaimState::Revoked)
        }),
    ]
}

fn fates(state: &State) -> impl Iterator<Item = &Fate> {
    state.history.fates.iter()
}

fn unbroken(state: &State, rule: Broken) -> bool {
    state.history.broken != Some(rule)
}
