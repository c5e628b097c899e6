-- What \d+, \df+ and \dn+ say. Functions that have one form are named without their arguments.

COMMENT ON SCHEMA background_jobs IS 'functions and views of extension background_jobs';

COMMENT ON FUNCTION background_jobs.create_table IS 'create a job table of the caller''s own, and attach it';
COMMENT ON FUNCTION background_jobs.attach IS 'make a table a job table, change its options or mend its triggers; returns the number of unfinished rows that were queued';
COMMENT ON FUNCTION background_jobs.detach IS 'drop the triggers and the queued jobs of a job table; its rows stay';
COMMENT ON FUNCTION background_jobs.register_handler IS 'bind a name to the function that runs such jobs of a job table';
COMMENT ON FUNCTION background_jobs.unregister_handler IS 'remove a handler; its jobs become unhandled';
COMMENT ON FUNCTION background_jobs.enqueue IS 'insert a job as the caller; returns its id';
COMMENT ON FUNCTION background_jobs.cancel IS 'cancel an unfinished job; false if there is none';
COMMENT ON FUNCTION background_jobs.retry IS 'run a completed, failed or cancelled job again, from attempt 1; false if it is unfinished';
COMMENT ON FUNCTION background_jobs.run_now IS 'drop the delay of a scheduled or retrying job; false if it is not queued';
COMMENT ON FUNCTION background_jobs.wait IS 'wait until a job is final; returns its result, or raises its error';
COMMENT ON FUNCTION background_jobs.status IS 'state of a job, finished or not';
COMMENT ON FUNCTION background_jobs.set_progress(real) IS 'in a handler: report progress, from 0 to 1';
COMMENT ON FUNCTION background_jobs.set_progress(double precision) IS 'in a handler: report progress, from 0 to 1';
COMMENT ON FUNCTION background_jobs.current_job IS 'in a handler: the job that it runs';
COMMENT ON FUNCTION background_jobs.check_cancelled IS 'in a handler: raise the interrupt that is pending, if one is';
COMMENT ON FUNCTION background_jobs.submit IS 'trigger function, internal: queue an inserted job';
COMMENT ON FUNCTION background_jobs.withdraw IS 'trigger function, internal: take a job out of the queue that is cancelled, finished or gone';
COMMENT ON FUNCTION background_jobs.guard_handlers IS 'trigger function, internal: keep all but superusers from the registry';
COMMENT ON FUNCTION background_jobs.announce IS 'internal: tell the launcher that the database has the extension';
COMMENT ON FUNCTION background_jobs.lane_of IS 'internal: number of a lane of the queue';
COMMENT ON FUNCTION background_jobs.worker_state IS 'internal: what the views show of processes and of the jobs that they run';

COMMENT ON VIEW background_jobs.queue IS 'unfinished jobs of the tables that the reader may select from';
COMMENT ON COLUMN background_jobs.queue.job_table IS 'table of the job';
COMMENT ON COLUMN background_jobs.queue.job_id IS 'id of the job''s row';
COMMENT ON COLUMN background_jobs.queue.handler IS 'name of the handler that the job asks for';
COMMENT ON COLUMN background_jobs.queue.queue IS 'label of the job, or else of its handler';
COMMENT ON COLUMN background_jobs.queue.priority IS 'lower runs first';
COMMENT ON COLUMN background_jobs.queue.run_at IS 'when the job is, or was, due';
COMMENT ON COLUMN background_jobs.queue.enqueued_at IS 'when the job was queued';
COMMENT ON COLUMN background_jobs.queue.state IS 'scheduled, available, unhandled, running or retrying';
COMMENT ON COLUMN background_jobs.queue.attempts IS 'attempts that are charged, and the one that runs';
COMMENT ON COLUMN background_jobs.queue.max_attempts IS 'attempts in all';
COMMENT ON COLUMN background_jobs.queue.last_error IS 'error of the last attempt that was charged: message, sqlstate, detail, hint, context; missing_since if the row was not found';

COMMENT ON VIEW background_jobs.workers IS 'processes of the extension in the whole server, and what executors run in this database';
COMMENT ON COLUMN background_jobs.workers.pid IS 'process ID';
COMMENT ON COLUMN background_jobs.workers.role IS 'launcher, dispatcher, executor or progress writer';
COMMENT ON COLUMN background_jobs.workers.database IS 'database of the process; null for the launcher';
COMMENT ON COLUMN background_jobs.workers.owner IS 'owner of the job tables that an executor or progress writer works for';
COMMENT ON COLUMN background_jobs.workers.state IS 'running; idle for an executor without a job; paused or restoring for a dispatcher that hands nothing out';
COMMENT ON COLUMN background_jobs.workers.job_table IS 'table of the running job; null if the reader may not select from it, as in the next columns';
COMMENT ON COLUMN background_jobs.workers.job_id IS 'id of the running job''s row';
COMMENT ON COLUMN background_jobs.workers.handler IS 'name of the handler that runs';
COMMENT ON COLUMN background_jobs.workers.attempt IS 'number of the attempt, from 1';
COMMENT ON COLUMN background_jobs.workers.started_at IS 'when the attempt started';
COMMENT ON COLUMN background_jobs.workers.progress IS 'progress that the handler has reported, from 0 to 1; the row may be behind';

COMMENT ON VIEW background_jobs.handlers IS 'registered handlers of the tables that the reader may select from';
COMMENT ON COLUMN background_jobs.handlers.job_table IS 'table whose jobs it runs';
COMMENT ON COLUMN background_jobs.handlers.name IS 'name by which jobs ask for it';
COMMENT ON COLUMN background_jobs.handlers.function IS 'function that is called';
COMMENT ON COLUMN background_jobs.handlers.owner IS 'owner of the job table at registration; nothing runs for another owner';
COMMENT ON COLUMN background_jobs.handlers.max_attempts IS 'attempts in all; null for the setting';
COMMENT ON COLUMN background_jobs.handlers.timeout IS 'limit of one attempt, 0 for none; null for the setting handler_timeout';
COMMENT ON COLUMN background_jobs.handlers.retry_delay IS 'delay before the second attempt; null for the setting';
COMMENT ON COLUMN background_jobs.handlers.max_retry_delay IS 'longest delay between attempts; null for the setting';
COMMENT ON COLUMN background_jobs.handlers.concurrency IS 'jobs that may run at a time; null for no limit';
COMMENT ON COLUMN background_jobs.handlers.queue IS 'label of its jobs';
COMMENT ON COLUMN background_jobs.handlers.priority IS 'priority of its jobs, lower runs first; null for 0';
COMMENT ON COLUMN background_jobs.handlers.synchronous_commit IS 'of the transaction that completes its jobs; null for the default of the owner';
COMMENT ON COLUMN background_jobs.handlers.registered_at IS 'when it was last registered';

COMMENT ON VIEW background_jobs.handler_stats IS 'counters of each handler; attempts that end with their process are not counted';
COMMENT ON COLUMN background_jobs.handler_stats.job_table IS 'table of the jobs';
COMMENT ON COLUMN background_jobs.handler_stats.handler IS 'name of the handler';
COMMENT ON COLUMN background_jobs.handler_stats.completed IS 'jobs that were completed';
COMMENT ON COLUMN background_jobs.handler_stats.failed IS 'jobs that failed for good';
COMMENT ON COLUMN background_jobs.handler_stats.retried IS 'attempts after which the job was put back to be tried again';
COMMENT ON COLUMN background_jobs.handler_stats.cancelled IS 'runs whose job was cancelled or deleted meanwhile; not jobs that were cancelled while they waited';
COMMENT ON COLUMN background_jobs.handler_stats.total_run_ms IS 'time in the handler, in ms';
COMMENT ON COLUMN background_jobs.handler_stats.mean_run_ms IS 'mean time in the handler, in ms';
COMMENT ON COLUMN background_jobs.handler_stats.max_run_ms IS 'longest time in the handler, in ms';
COMMENT ON COLUMN background_jobs.handler_stats.total_wait_ms IS 'time from being due to the start, in ms';
COMMENT ON COLUMN background_jobs.handler_stats.mean_wait_ms IS 'mean time from being due to the start, in ms';
COMMENT ON COLUMN background_jobs.handler_stats.max_wait_ms IS 'longest time from being due to the start, in ms';
COMMENT ON COLUMN background_jobs.handler_stats.since IS 'when counting began';

COMMENT ON VIEW background_jobs.attempts IS 'attempts that did not complete their job, kept for attempts_retention';
COMMENT ON COLUMN background_jobs.attempts.job_table IS 'table of the job';
COMMENT ON COLUMN background_jobs.attempts.job_id IS 'id of the job''s row';
COMMENT ON COLUMN background_jobs.attempts.attempt IS 'number of the attempt, from 1';
COMMENT ON COLUMN background_jobs.attempts.handler IS 'name of the handler';
COMMENT ON COLUMN background_jobs.attempts.outcome IS 'error, timeout, conflict, terminated or crashed';
COMMENT ON COLUMN background_jobs.attempts.error IS 'message, sqlstate, detail, hint, context';
COMMENT ON COLUMN background_jobs.attempts.started_at IS 'when the attempt started';
COMMENT ON COLUMN background_jobs.attempts.finished_at IS 'when its end was written down';
COMMENT ON COLUMN background_jobs.attempts.pid IS 'process ID of the executor, if that wrote it down itself';
COMMENT ON COLUMN background_jobs.attempts.superseded IS 'before a retry(), after which attempts are counted anew';

COMMENT ON TABLE background_jobs.queued_job IS 'private: unfinished jobs; see view queue';
COMMENT ON TABLE background_jobs.handler IS 'private: registered handlers; see view handlers';
COMMENT ON TABLE background_jobs.attempt IS 'private: attempts that did not complete their job; see view attempts';
COMMENT ON TABLE background_jobs.handler_stat IS 'private: counters of handlers; see view handler_stats';
