//! Clients: statements on rows, the triggers that they fire, COMMIT and ROLLBACK.

use crate::dispatcher;
use crate::history::Broken;
use crate::job::Timing;
use crate::machine::{Bug, Machine};
use crate::protocol::{self, Flags, Queued};
use crate::state::{Job, Lane, Note, Place, Row, State, Transaction, Who, add};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statement {
    Insert,
    /// UPDATE SET cancelled = true, without a guard.
    Cancel,
    /// UPDATE SET completed = true
    Complete,
    /// UPDATE of all columns by somebody who read the row while it was unfinished.
    WriteStale,
    Delete,
    /// UPDATE SET id = another one that is free, completed = false, cancelled = false
    Move,
    /// retry()
    Retry,
    /// run_now()
    RunNow,
}

const STATEMENTS: [Statement; 8] = [
    Statement::Insert,
    Statement::Cancel,
    Statement::Complete,
    Statement::WriteStale,
    Statement::Delete,
    Statement::Move,
    Statement::Retry,
    Statement::RunNow,
];

const OPEN: Flags = Flags { completed: false, cancelled: false };

/// The statements that would do something now, and would not have to wait.
pub fn statements(machine: &Machine, state: &State, client: usize) -> Vec<(Job, Statement)> {
    let who = Who::Client(client);
    let mut found = Vec::new();
    for job in 0..machine.scope.jobs {
        let pair = &state.jobs[job];
        if !pair.row.is_free_for(who) || !pair.queued.is_free_for(who) {
            continue;
        }
        let row = pair.row.seen_by(who);
        let other = (job + 1) % machine.scope.jobs;
        let room = !state.history.is_full();
        for statement in STATEMENTS {
            let useful = match (statement, row) {
                (Statement::Insert, None) => room,
                (_, None) | (Statement::Insert, Some(_)) => false,
                (Statement::Cancel, Some(row)) => !row.flags.cancelled,
                (Statement::Complete, Some(row)) => !row.flags.completed,
                (Statement::WriteStale, Some(row)) => !row.flags.is_open(),
                (Statement::Delete, Some(_)) => true,
                (Statement::Move, Some(_)) => {
                    let target = &state.jobs[other];
                    room && other != job
                        && target.row.is_free_for(who)
                        && target.queued.is_free_for(who)
                        && target.row.seen_by(who).is_none()
                }
                (Statement::Retry, Some(row)) => room && !row.flags.is_open(),
                (Statement::RunNow, Some(_)) => {
                    pair.queued.seen_by(who).is_some_and(|queued| queued.timing != Timing::Immediate)
                }
            };
            if useful {
                found.push((job, statement));
            }
        }
    }
    found
}

pub fn run(machine: &Machine, state: &mut State, client: usize, job: Job, statement: Statement) {
    let mut session = Session { machine, state, client };
    let row = session.row(job);
    match (statement, row) {
        (Statement::Insert, _) => {
            let row = session.new_row();
            session.write(job, Some(row));
            session.submit(job, true);
        }
        (_, None) => {}
        (Statement::Cancel, Some(row)) => {
            session.state.history.seen.late_cancel |= row.flags.completed;
            session.update(job, row, Row { flags: Flags { cancelled: true, ..row.flags }, ..row });
        }
        (Statement::Complete, Some(row)) => {
            session.update(job, row, Row { flags: Flags { completed: true, ..row.flags }, ..row });
        }
        (Statement::WriteStale, Some(row)) => {
            session.update(job, row, Row { flags: OPEN, failed: false, set_back: true, ..row });
        }
        (Statement::Delete, Some(row)) => {
            session.write(job, None);
            if row.flags.is_open() || machine.has(Bug::FiresOnFinished) {
                session.take_out(job);
            }
        }
        (Statement::Move, Some(row)) => session.rename(job, (job + 1) % machine.scope.jobs, row),
        (Statement::Retry, Some(row)) => {
            let stamp = session.state.history.submissions as i64 + 1;
            let again = Row { flags: OPEN, failed: false, set_back: false, stamp, ..row };
            // The trigger's WHEN clause lets it pass: the old row is finished.
            session.write(job, Some(again));
            session.submit(job, false);
        }
        (Statement::RunNow, Some(row)) => {
            session.write(job, Some(row));
            session.run_now(job);
        }
    }
}

struct Session<'a> {
    machine: &'a Machine,
    state: &'a mut State,
    client: usize,
}

impl Session<'_> {
    fn who(&self) -> Who {
        Who::Client(self.client)
    }

    fn transaction(&mut self) -> &mut Transaction {
        self.state.clients[self.client].get_or_insert_default()
    }

    fn row(&self, job: Job) -> Option<Row> {
        self.state.row(job, self.who())
    }

    fn write(&mut self, job: Job, row: Option<Row>) {
        let who = self.who();
        self.transaction();
        self.state.jobs[job].row.set(who, row);
    }

    /// The row of the submission that comes next.
    fn new_row(&self) -> Row {
        let stamp = i64::from(self.state.history.submissions) + 1;
        Row { flags: OPEN, failed: false, born: stamp, stamp, set_back: false }
    }

    /// `inserted`: by a trigger, which found nothing under the id.
    fn submit(&mut self, job: Job, inserted: bool) {
        let who = self.who();
        let inserted = inserted && self.state.queued(job, who).is_none();
        let stamp = self.state.history.submit();
        self.state.jobs[job].queued.set(who, Some(Queued::submitted(stamp, Timing::Immediate)));
        self.note((job, Lane::Immediate), inserted.then_some((job, stamp)));
    }

    fn note(&mut self, note: Note, inserted: Option<(Job, i64)>) {
        let transaction = self.transaction();
        if transaction.changes == 0 {
            transaction.first = inserted;
        }
        transaction.changes += 1;
        add(&mut transaction.notes, note);
    }

    fn take_out(&mut self, job: Job) {
        let who = self.who();
        if self.state.queued(job, who).is_some() {
            self.state.jobs[job].queued.set(who, None);
            self.transaction().withdrawn = true;
        }
    }

    fn run_now(&mut self, job: Job) {
        let who = self.who();
        if let Some(queued) = self.state.queued(job, who) {
            let due = queued.make_due();
            self.state.jobs[job].queued.set(who, Some(due));
            let loud = !self.machine.has(Bug::QuietRunNow);
            self.transaction().withdrawn |= loud;
            self.note((job, Lane::of(due.timing)), None);
        }
    }

    fn fires(&self, old: Flags, new: Flags, moved: bool) -> bool {
        let old = if self.machine.has(Bug::FiresOnFinished) { OPEN } else { old };
        protocol::fires_on_update(old, new, moved)
    }

    /// An UPDATE that keeps the id.
    fn update(&mut self, job: Job, old: Row, new: Row) {
        self.write(job, Some(new));
        if self.fires(old.flags, new.flags, false)
            && protocol::on_update(self.machine.heeded(new.flags), false).take_out
        {
            self.take_out(job);
        }
    }

    fn rename(&mut self, from: Job, to: Job, old: Row) {
        let fires = self.fires(old.flags, OPEN, true);
        let mut new = self.new_row();
        if !fires {
            // What was finished stays so under another id, whatever its flags say.
            new = Row { stamp: old.stamp, set_back: true, ..new };
        }
        self.write(from, None);
        self.write(to, Some(new));
        let change = protocol::on_update(OPEN, true);
        if fires && change.take_out {
            self.take_out(from);
        }
        if fires && change.submit {
            if !old.flags.is_open() {
                self.state.history.breaks(Broken::Revived);
            }
            self.submit(to, true);
        }
    }
}

/// Whom a commit tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Told {
    Dispatcher,
    /// An idle executor is handed the only job that was submitted: `shmem::direct`.
    Executor(Place),
    /// After COMMIT PREPARED in a session that wrote nothing.
    Nobody,
}

/// The job and the stamp of a transaction that may be handed to an executor at its commit.
pub fn lone(state: &State, client: usize) -> Option<(Job, i64)> {
    let transaction = state.clients[client].as_ref()?;
    transaction.first.filter(|_| transaction.changes == 1 && !transaction.withdrawn)
}

pub fn commit(state: &mut State, client: usize, told: Told) {
    let lone = lone(state, client);
    let who = Who::Client(client);
    for job in 0..state.jobs.len() {
        let pair = state.jobs[job];
        let (before, after) = (pair.row.committed, pair.row.seen_by(who));
        let queued = pair.queued.seen_by(who).map(|queued| queued.enqueued_at);
        if !pair.row.is_free() && pair.row.is_free_for(who) {
            state.history.committed(before, after, queued);
        }
    }
    state.commit(who);
    let Some(transaction) = state.clients[client].take() else {
        return;
    };
    match (told, lone) {
        (Told::Nobody, _) => {}
        (Told::Executor(place), Some((job, stamp))) => dispatcher::hand_over(state, job, stamp, place),
        _ => {
            state.withdrawn |= transaction.withdrawn;
            transaction.notes.into_iter().for_each(|note| add(&mut state.notes, note));
        }
    }
}

pub fn roll_back(state: &mut State, client: usize) {
    state.roll_back(Who::Client(client));
    state.clients[client] = None;
}
