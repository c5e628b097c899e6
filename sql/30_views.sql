-- The views show each reader the jobs of the tables that the reader may SELECT from. They belong to the extension's owner,
-- whose privileges reach the private tables; security_barrier keeps a reader's own functions behind the filter. To a reader
-- whom row-level security shows only some rows of a table, they show none of its jobs, unless it is its owner.

CREATE VIEW background_jobs.queue WITH (security_barrier) AS
SELECT q.job_table, q.job_id, q.handler,
       COALESCE(q.queue, h.queue) AS queue,
       q.priority,
       q.run_at, q.enqueued_at,
       CASE WHEN w.pid IS NOT NULL THEN 'running'
            WHEN h.name IS NULL THEN 'unhandled'
            WHEN q.timing OPERATOR(pg_catalog.>=) 2 THEN 'retrying'
            WHEN q.timing OPERATOR(pg_catalog.=) 1 AND q.run_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
                THEN 'scheduled'
            ELSE 'available' END AS state,
       q.attempts OPERATOR(pg_catalog.+) (CASE WHEN w.pid IS NOT NULL THEN 1 ELSE 0 END) AS attempts,
       COALESCE(q.max_attempts, h.max_attempts,
                pg_catalog.current_setting('background_jobs.max_attempts', true)::pg_catalog.int4) AS max_attempts,
       q.last_error
  FROM background_jobs.queued_job q
  -- a handler that a former owner of the table registered is not for the present owner to run
  LEFT JOIN (background_jobs.handler h JOIN pg_catalog.pg_class c
             ON c.oid OPERATOR(pg_catalog.=) h.job_table AND c.relowner OPERATOR(pg_catalog.=) h.owner)
    ON h.job_table OPERATOR(pg_catalog.=) q.job_table AND h.name OPERATOR(pg_catalog.=) q.handler
  LEFT JOIN background_jobs.worker_state() w
    ON w.job_table OPERATOR(pg_catalog.=) q.job_table AND w.job_id OPERATOR(pg_catalog.=) q.job_id
 WHERE pg_catalog.has_table_privilege(q.job_table, 'SELECT')
   AND (NOT pg_catalog.row_security_active(q.job_table)
        OR pg_catalog.pg_has_role((SELECT o.relowner FROM pg_catalog.pg_class o
                                    WHERE o.oid OPERATOR(pg_catalog.=) q.job_table), 'USAGE'));

-- worker_state() itself shows a caller only jobs of tables that the caller may SELECT from.
CREATE VIEW background_jobs.workers WITH (security_barrier) AS
SELECT w.pid, w.role, d.datname AS database, r.rolname AS owner, w.state,
       w.job_table::pg_catalog.regclass AS job_table, w.job_id, w.handler, w.attempt, w.started_at, w.progress
  FROM background_jobs.worker_state() w
  LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) w.database
  LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) w.owner;

CREATE VIEW background_jobs.handlers WITH (security_barrier) AS
SELECT h.job_table, h.name,
       pg_catalog.format('%I.%I(%s)', h.function_schema, h.function_name,
                         CASE WHEN h.takes_id THEN 'uuid,jsonb' ELSE 'jsonb' END) AS function,
       h.owner, h.max_attempts, h.timeout, h.retry_delay, h.max_retry_delay, h.concurrency, h.queue, h.priority,
       h.synchronous_commit, h.registered_at
  FROM background_jobs.handler h
 WHERE pg_catalog.has_table_privilege(h.job_table, 'SELECT');

CREATE VIEW background_jobs.handler_stats WITH (security_barrier) AS
SELECT s.job_table, s.handler, s.completed, s.failed, s.retried, s.cancelled,
       s.total_run AS total_run_ms,
       s.total_run OPERATOR(pg_catalog./) runs.n AS mean_run_ms,
       s.max_run AS max_run_ms,
       s.total_wait AS total_wait_ms,
       s.total_wait OPERATOR(pg_catalog./) runs.n AS mean_wait_ms,
       s.max_wait AS max_wait_ms,
       s.since
  FROM background_jobs.handler_stat s
 CROSS JOIN LATERAL (
       SELECT CASE WHEN total.n OPERATOR(pg_catalog.>) 0 THEN total.n::pg_catalog.float8 END AS n
         FROM (SELECT s.completed OPERATOR(pg_catalog.+) s.failed OPERATOR(pg_catalog.+) s.retried
                      OPERATOR(pg_catalog.+) s.cancelled AS n) total) runs
 WHERE pg_catalog.has_table_privilege(s.job_table, 'SELECT');

CREATE VIEW background_jobs.attempts WITH (security_barrier) AS
SELECT a.job_table, a.job_id, a.attempt, a.handler, a.outcome, a.error, a.started_at, a.finished_at, a.pid,
       a.superseded
  FROM background_jobs.attempt a
 WHERE pg_catalog.has_table_privilege(a.job_table, 'SELECT')
   AND (NOT pg_catalog.row_security_active(a.job_table)
        OR pg_catalog.pg_has_role((SELECT o.relowner FROM pg_catalog.pg_class o
                                    WHERE o.oid OPERATOR(pg_catalog.=) a.job_table), 'USAGE'));

-- Everybody may ask; the answer depends on who asks.
GRANT USAGE ON SCHEMA background_jobs TO PUBLIC;
GRANT SELECT ON background_jobs.queue, background_jobs.workers, background_jobs.handlers,
    background_jobs.handler_stats, background_jobs.attempts TO PUBLIC;
