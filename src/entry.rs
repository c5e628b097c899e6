//! Where the server comes in: the functions of `sql/20_functions.sql`, the triggers' among them, and the workers.

use crate::pg::fmgr::{sql_functions, worker_mains};
use crate::pg::trigger::trigger_functions;
use crate::{api, submit, worker};

sql_functions! {
    background_jobs_create_table, pg_finfo_background_jobs_create_table => api::tables::create_table;
    background_jobs_attach, pg_finfo_background_jobs_attach => api::tables::attach;
    background_jobs_detach, pg_finfo_background_jobs_detach => api::tables::detach;
    background_jobs_register_handler, pg_finfo_background_jobs_register_handler => api::handlers::register_handler;
    background_jobs_unregister_handler, pg_finfo_background_jobs_unregister_handler => api::handlers::unregister_handler;
    background_jobs_enqueue, pg_finfo_background_jobs_enqueue => api::enqueue::enqueue;
    background_jobs_cancel, pg_finfo_background_jobs_cancel => api::jobs::cancel;
    background_jobs_retry, pg_finfo_background_jobs_retry => api::jobs::retry;
    background_jobs_run_now, pg_finfo_background_jobs_run_now => api::jobs::run_now;
    background_jobs_wait, pg_finfo_background_jobs_wait => api::wait::wait;
    background_jobs_status, pg_finfo_background_jobs_status => api::status::status;
    background_jobs_set_progress, pg_finfo_background_jobs_set_progress => api::inside::set_progress;
    background_jobs_set_progress_double, pg_finfo_background_jobs_set_progress_double => api::inside::set_progress_double;
    background_jobs_current_job, pg_finfo_background_jobs_current_job => api::inside::current_job;
    background_jobs_check_cancelled, pg_finfo_background_jobs_check_cancelled => api::inside::check_cancelled;
    background_jobs_worker_state, pg_finfo_background_jobs_worker_state => api::workers::worker_state;
    background_jobs_announce, pg_finfo_background_jobs_announce => api::tables::announce;
}

trigger_functions! {
    "Attach a job table with background_jobs.attach().",
    background_jobs_submit, pg_finfo_background_jobs_submit => submit::submit;
    background_jobs_withdraw, pg_finfo_background_jobs_withdraw => submit::withdraw;
    background_jobs_guard_handlers, pg_finfo_background_jobs_guard_handlers => api::handlers::guard;
}

worker_mains! {
    background_jobs_launcher_main => worker::launcher::main;
    background_jobs_dispatcher_main => worker::dispatcher::main;
    background_jobs_executor_main => worker::executor::main;
    background_jobs_progress_writer_main => worker::progress_writer::main;
}
