//! What PostgreSQL does by itself, for comparison with jobs: a durable commit, and NOTIFY to another client.

use crate::scene::Scene;
use server_tests::postgres::{Client, Statement, fallible_iterator::FallibleIterator};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

pub struct Bare {
    client: Client,
    commit: Statement,
    notify: Statement,
    committed: Statement,
    heard: Receiver<SystemTime>,
    listener: JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl Bare {
    pub fn new(scene: &Scene) -> Bare {
        let mut client = scene.app.session();
        let commit = prepare(&mut client, "INSERT INTO plain VALUES (1)");
        let notify = prepare(&mut client, "SELECT pg_notify('bench', '1'), pg_current_xact_id()::text");
        let committed = prepare(&mut client, COMMITTED);
        let mut listening = scene.app.session();
        listening.batch_execute("LISTEN bench").unwrap_or_else(|e| panic!("listen: {e:?}"));
        let over = Arc::new(AtomicBool::new(false));
        let (tell, heard) = mpsc::channel();
        let end = Arc::clone(&over);
        let listener = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let mut notifications = listening.notifications();
                let mut notifications = notifications.timeout_iter(Duration::from_millis(200));
                while notifications.next().unwrap_or_else(|e| panic!("listening: {e:?}")).is_some() {
                    if tell.send(SystemTime::now()).is_err() {
                        return;
                    }
                }
            }
        });
        Bare { client, commit, notify, committed, heard, listener, over }
    }

    pub fn durable_commit(&mut self) -> f64 {
        let sent = SystemTime::now();
        self.client.execute(&self.commit, &[]).unwrap_or_else(|e| panic!("commit: {e:?}"));
        milliseconds(sent, SystemTime::now())
    }

    /// When it was delivered, answered, and committed.
    pub fn notify(&mut self) -> (SystemTime, SystemTime, SystemTime) {
        let row = self.client.query_one(&self.notify, &[]).unwrap_or_else(|e| panic!("notify: {e:?}"));
        let answered = SystemTime::now();
        let delivered = self.heard.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|e| panic!("no NOTIFY: {e}"));
        let transaction: String = row.get(1);
        (delivered, answered, commit_time(&mut self.client, &self.committed, &transaction))
    }

    pub fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.listener.join().unwrap_or_else(|_| panic!("the listener has failed"));
    }
}

pub const COMMITTED: &str = "SELECT extract(epoch FROM pg_xact_commit_timestamp($1::text::xid))::float8";

pub fn commit_time(client: &mut Client, statement: &Statement, transaction: &str) -> SystemTime {
    moment(client.query_one(statement, &[&transaction]).unwrap_or_else(|e| panic!("{COMMITTED}: {e:?}")).get(0))
}

pub fn moment(epoch: f64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs_f64(epoch)
}

pub fn prepare(client: &mut Client, statement: &str) -> Statement {
    client.prepare(statement).unwrap_or_else(|e| panic!("prepare {statement}: {e:?}"))
}

pub fn milliseconds(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64() * 1e3,
        Err(before) => -before.duration().as_secs_f64() * 1e3,
    }
}
