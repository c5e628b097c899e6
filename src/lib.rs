//! background_jobs: PostgreSQL runs the jobs.
//!
//! # The words
//!
//! A **job** is a row of a **job table**, which belongs to the application. A **handler** is a name that the table's owner
//! has bound to a function. The **owner**, of a job or an executor, is the role that owns the job table. The **queue** is the
//! extension's private table of unfinished jobs. A **lane** is what the queue has of one table, handler, priority and timing
//! (immediate, scheduled, retry or quarantine). An **attempt** is one run of a job. A **claim** is a job handed to an
//! executor; it lives in shared memory only.
//!
//! # The processes
//!
//! ```text
//! postmaster
//!  '- launcher            one per server; shared catalogs only; keeps dispatchers running
//!      '- dispatcher      one per database with the extension; the only scheduler
//!         |- executor     per (database, owner): its session is the job table's owner; runs handlers
//!         '- progress writer   per (database, owner), while jobs report progress
//! ```
//!
//! No user code ever runs in a superuser session, unless `background_jobs.allow_superuser_jobs` is on: an executor's session
//! is opened as the owner. The one privileged step, writing the extension's own tables, switches user *up* around fixed
//! statements (`pg::role::bookkeeping`), never down, or goes below SQL, where nobody asks for privileges (`pg::heap`).
//!
//! # One life of a job
//!
//! ```text
//! INSERT -> row trigger (submit) -> row in the queue (enqueue), note in this process (notes)
//!   -> a lone job, after a pause: an idle executor is woken (shmem::alert) and gets ready (executor::expect) meanwhile
//!   -> COMMIT
//!   -> a lone job, while the dispatcher is quiet and the owner has an idle executor: its mailbox, latch (shmem::direct)
//!   -> else: note to shared memory, latch
//!      -> dispatcher: takes the job from the note or reads the lane (dispatcher::reading),
//!         picks an executor (dispatcher::assign)
//!         -> mailbox, latch
//!   -> executor: loads the payload (executor::batch), calls the handler in a subtransaction (executor::attempt, pg::invoke),
//!      completes the row and deletes the queue's row, alone (executor::row) or with other short jobs (executor::together)
//!      -> COMMIT -> claim done, latch (executor::settle)
//!         '-> set_progress -> slot -> progress writer -> UPDATE progress, in a transaction of its own
//! ```
//!
//! The DELETE of the queue's row is the fence: it belongs to the transaction that has the handler's effects and the completed
//! row, and an attempt that finds nothing to delete is rolled back whole. So effects happen exactly once, whatever else goes wrong.
//! Cancelling deletes that row, too; whoever comes first wins, by the row's lock and not by a signal.
//! The signal that follows only saves work.
//!
//! The dispatcher is the only one who hands out jobs, or lets others do it: while it is quiet, a committing session may put its job
//! into the mailbox of an idle executor. The dispatcher ends that before it looks at anything, and books what was
//! handed over (`Roster::book`), so that nothing is handed out twice.
//!
//! Where the two rows lie is told along the way (`job::Tid`, `job::RowPlace`), which saves three walks down an index for each job, and
//! of a partitioned table as many for each partition. It is a hint: whoever goes there looks whether it is the right row, and else
//! looks for the id. Where nothing of the owner's is to run, and
//! no policy or privilege is in the way, rows are read and completed there below SQL (`pg::place`).
//!
//! # Shared memory
//!
//! One slot per dispatcher (notes from committing sessions), one per executor (its mailbox of claims, its interrupts, the running
//! job's progress), one per progress writer, and the sessions inside wait(). See `shmem`. A crash of any process empties it, and
//! that loses nothing: what is not in the queue is finished, and what is in the queue is found again by looking.
//!
//! # Crashes
//!
//! What each executor runs it notes in a file that outlives the processes (`journal`). What stands there when the server
//! comes up was running when it crashed: it is suspected (`journal` says who is charged). A job that is charged waits for
//! `crash_quarantine`, and runs as the only suspect.
//!
//! # CREATE and DROP EXTENSION, and databases that want to be alone
//!
//! The install script tells the launcher at commit, or whoever commits the transaction if it was prepared (`prepared`). A
//! dispatcher that finds the extension gone sends its executors away and leaves. Before a DROP, RENAME or copy of a database,
//! or its move to another tablespace, the session that runs the command sends our workers out of it and keeps them out until
//! its transaction ends (`databases`).
//!
//! # Layers
//!
//! The server comes in by `entry`, which calls `api`, `submit` and `worker`; they use what lies below them, down to `pg`, which knows
//! nothing of jobs. `scripts/arrows.sh` has the whole order, and `make lint` looks whether it holds.

#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks, clippy::unwrap_used)]

mod api;
mod catalog;
mod databases;
mod destinations;
mod enqueue;
mod entry;
mod finishing;
mod gaps;
mod gucs;
mod handler;
mod inserted;
mod job;
mod job_table;
mod journal;
mod notes;
mod owner;
mod pg;
mod planted;
mod prepared;
mod progress;
mod protocol;
mod retry;
mod running;
mod shmem;
mod submit;
mod successors;
mod worker;

use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/00_guard.sql", name = "guard", bootstrap);
extension_sql_file!("../sql/10_tables.sql", name = "tables", requires = ["guard"]);
extension_sql_file!("../sql/20_functions.sql", name = "functions", requires = ["tables"]);
extension_sql_file!("../sql/30_views.sql", name = "views", requires = ["functions"]);
extension_sql_file!("../sql/40_comments.sql", name = "comments", requires = ["views"]);

/// Loads the library: settings, shared memory, hooks and the launcher, when the server starts.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    if !pg::bgworker::preloading() {
        // Loaded by CREATE EXTENSION or a function call: the functions say what is missing.
        return;
    }
    gucs::define();
    pg::shmem::install(shmem::size, journal::start);
    pg::xact::after_end(notes::after_end);
    pg::xact::before_commit(notes::before_commit);
    pg::utility::install(databases::callbacks());
    pg::planner::install("queued_job");
    pg::statement::install(enqueue::queue_gathered);
    if !pg::bgworker::in_binary_upgrade() {
        worker::register_launcher();
    }
}
