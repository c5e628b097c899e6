//! A server with a job table and handlers, and its queue filled and drained.

use server_tests::postgres::{Client, Statement};
use server_tests::{App, Cluster, Uuid};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What is measured with, printed with the figures. Besides, only what every test server has (`Cluster::builder`: more worker
/// processes, no TCP, another prefix of log lines); everything else is PostgreSQL's default and ours.
pub const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
];

/// For what measures the time from a commit.
pub const COMMIT_TIMES: &[(&str, &str)] = &[("track_commit_timestamp", "on")];

/// How often a drain is looked at. A look is one row by its key.
const LOOK: Duration = Duration::from_millis(2);

pub fn cluster(more: &[(&str, &str)]) -> Cluster {
    let settings = SETTINGS.iter().chain(more);
    settings.fold(Cluster::builder(), |builder, (name, value)| builder.conf(name, value)).start()
}

pub struct Scene<'a> {
    pub app: App<'a>,
    /// A session of the superuser in the same database.
    pub admin: Client,
    is_completed: Statement,
    is_idle: Statement,
}

impl<'a> Scene<'a> {
    /// `noop` does nothing, `inserts` writes one row, `starts` returns when it has started, `waits` sleeps 10 ms.
    pub fn new(cluster: &'a Cluster, name: &str) -> Scene<'a> {
        let mut app = App::with_table(cluster, name);
        app.sql("SET statement_timeout = 0; CREATE TABLE effects (n bigint NOT NULL, at timestamptz NOT NULL DEFAULT now())");
        app.handler("noop", "RETURN NULL;");
        app.handler("inserts", "INSERT INTO effects (n) VALUES ((payload ->> 'n')::bigint); RETURN NULL;");
        app.handler("starts", "RETURN jsonb_build_object('at', extract(epoch FROM clock_timestamp()));");
        app.handler("waits", "PERFORM pg_sleep(0.01); RETURN NULL;");
        let mut admin = app.admin();
        admin.batch_execute("SET statement_timeout = 0").unwrap_or_else(|e| panic!("{e:?}"));
        let is_completed = app.client.prepare("SELECT completed FROM background_jobs WHERE id = $1");
        let is_completed = is_completed.unwrap_or_else(|e| panic!("prepare: {e:?}"));
        let is_idle = "SELECT NOT EXISTS (SELECT FROM background_jobs.workers WHERE job_id IS NOT NULL)";
        let is_idle = admin.prepare(is_idle).unwrap_or_else(|e| panic!("{is_idle}: {e:?}"));
        Scene { app, admin, is_completed, is_idle }
    }

    pub fn administer(&mut self, statement: &str) {
        self.admin.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }

    /// Makes an empty table of the application's with the columns, indexes and storage parameters of another, without its triggers.
    pub fn copy_shape(&mut self, original: &str, copy: &str) {
        let query = "SELECT coalesce(' WITH (' || array_to_string(reloptions, ', ') || ')', '') FROM pg_class WHERE oid = $1::text::regclass";
        let row = self.admin.query_one(query, &[&original]).unwrap_or_else(|e| panic!("{query}: {e:?}"));
        let (options, owner): (String, _) = (row.get(0), server_tests::ident(&self.app.role));
        self.administer(&format!(
            "CREATE TABLE public.{copy} (LIKE {original} INCLUDING ALL EXCLUDING GENERATED){options};
             ALTER TABLE public.{copy} OWNER TO {owner}"
        ));
    }

    pub fn count(&mut self, query: &str) -> i64 {
        self.admin.query_one(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}")).get(0)
    }

    /// Empty tables, and nothing of the rounds before left to be cleaned up in the next one's time.
    pub fn empty(&mut self) {
        self.switch(false);
        self.app.sql("TRUNCATE background_jobs, effects");
        self.administer("VACUUM background_jobs.queued_job");
    }

    /// The same, and the next checkpoint far away.
    pub fn clear(&mut self) {
        self.empty();
        self.administer("CHECKPOINT");
    }

    /// Has the extension start jobs, or not; returns when no process of it can have missed that.
    pub fn switch(&mut self, on: bool) {
        let cluster = self.app.cluster;
        cluster.set("background_jobs.enabled", if on { "on" } else { "off" });
        if !on {
            cluster.wait_until("running jobs to end", || {
                match self.count("SELECT count(*) FROM background_jobs.workers WHERE job_id IS NOT NULL") {
                    0 => Ok(()),
                    running => Err(format!("{running} run")),
                }
            });
        }
    }

    /// Submits the jobs in one transaction; returns the last one. They carry numbers from 1.
    pub fn fill(&mut self, handler: &str, count: i64) -> Uuid {
        let last = Uuid::new_v4();
        let mut transaction = self.app.client.transaction().unwrap_or_else(|e| panic!("begin: {e:?}"));
        let insert = "INSERT INTO background_jobs (payload)
            SELECT jsonb_build_object('handler', $1::text, 'n', n) FROM generate_series(1, $2::bigint) n";
        transaction.execute(insert, &[&handler, &(count - 1)]).unwrap_or_else(|e| panic!("{insert}: {e:?}"));
        let insert = "INSERT INTO background_jobs (id, payload)
            VALUES ($1, jsonb_build_object('handler', $2::text, 'n', $3::bigint))";
        transaction.execute(insert, &[&last, &handler, &count]).unwrap_or_else(|e| panic!("{insert}: {e:?}"));
        transaction.commit().unwrap_or_else(|e| panic!("commit: {e:?}"));
        last
    }

    /// Seconds from switching on to that job's completion: jobs are handed out in the order of their submission.
    pub fn until_completed(&mut self, job: Uuid) -> f64 {
        let begin = self.release();
        self.look_at(begin, job);
        begin.elapsed().as_secs_f64()
    }

    /// Seconds from switching on to an empty queue; `last` is the last job in it.
    pub fn drain(&mut self, last: Uuid, count: i64) -> f64 {
        let seconds = self.drain_from(last, count);
        let unfinished = self.count("SELECT count(*) FROM background_jobs WHERE NOT completed");
        assert_eq!(unfinished, 0, "the queue is empty and jobs are unfinished");
        seconds
    }

    /// As [`Scene::drain`], without a look at every row of a table that may be large.
    pub fn drain_from(&mut self, last: Uuid, count: i64) -> f64 {
        let waiting = self.count("SELECT count(*) FROM background_jobs.queued_job");
        assert_eq!(waiting, count, "some jobs have begun before their time");
        let begin = self.release();
        // The last to be handed out is not the last to end, but what has not ended runs. A look at the queue itself would be one at each job
        // that was there before, where an old snapshot keeps them: that comes after the clock has stopped.
        self.look_at(begin, last);
        loop {
            self.look(begin, "the last jobs to end", |scene| {
                scene.admin.query_one(&scene.is_idle, &[]).unwrap_or_else(|e| panic!("{e:?}")).get(0)
            });
            let seconds = begin.elapsed().as_secs_f64();
            if self.count("SELECT count(*) FROM background_jobs.queued_job") == 0 {
                return seconds;
            }
        }
    }

    /// Switches on without waiting. The setting is there before the clock starts: only the signal to read it is measured.
    fn release(&mut self) -> Instant {
        self.administer("ALTER SYSTEM SET background_jobs.enabled = on");
        let begin = Instant::now();
        self.administer("SELECT pg_reload_conf()");
        begin
    }

    fn look_at(&mut self, begin: Instant, job: Uuid) {
        self.look(begin, "the last job to be completed", |scene| {
            scene.app.client.query_one(&scene.is_completed, &[&job]).unwrap_or_else(|e| panic!("{e:?}")).get(0)
        });
    }

    fn look(&mut self, begin: Instant, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        loop {
            assert!(begin.elapsed() < Duration::from_secs(1800), "half an hour waiting for {what}");
            if done(self) {
                break;
            }
            sleep(LOOK);
        }
    }
}
