-- The views: one row for what there is, seen by who may see it.
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
CREATE FUNCTION work(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF payload ? 'fail' THEN
        RAISE EXCEPTION 'no luck' USING ERRCODE = 'ZX001', DETAIL = 'the detail', HINT = 'the hint';
    END IF;
    IF payload ? 'hold' THEN
        PERFORM background_jobs.set_progress(0.25);
        PERFORM pg_sleep(600);
    END IF;
    RETURN NULL;
END $$;
SELECT background_jobs.register_handler('work', 'work(jsonb)', max_attempts => 2, retry_delay => '1 h', queue => 'q',
    priority => 3::smallint);
-- A job in every unfinished state.
SELECT background_jobs.enqueue('work', '{"hold": 1}', id => '00000000-0000-0000-0000-000000000001');
SELECT background_jobs.enqueue('work', '{"fail": 1}', id => '00000000-0000-0000-0000-000000000002');
SELECT background_jobs.enqueue('work', run_at => 'infinity', queue => 'own', id => '00000000-0000-0000-0000-000000000003');
SELECT background_jobs.enqueue('nobody', max_attempts => 1, id => '00000000-0000-0000-0000-000000000004');
SELECT await_state('00000000-0000-0000-0000-000000000001', 'running'),
       await_state('00000000-0000-0000-0000-000000000002', 'retrying');
SELECT job_table, job_id, handler, queue, priority, run_at > now() AS later, enqueued_at <= now() AS enqueued, state, attempts,
       max_attempts, last_error ->> 'message' AS message
  FROM background_jobs.queue ORDER BY job_id;
-- The same, as status() says it.
SELECT q.job_id, q.state = s.state AS state, q.handler = s.handler AS handler, q.queue IS NOT DISTINCT FROM s.queue AS queue,
       q.priority = s.priority AS priority, q.run_at = s.run_at AS run_at, q.attempts = s.attempts AS attempts,
       q.max_attempts = s.max_attempts AS max_attempts, q.last_error IS NOT DISTINCT FROM s.last_error AS last_error
  FROM background_jobs.queue q CROSS JOIN LATERAL background_jobs.status(q.job_id, q.job_table) s ORDER BY q.job_id;
-- The process that runs a job shows it.
SELECT role, database, owner, state, job_table, job_id, handler, attempt, started_at <= clock_timestamp() AS started,
       progress IN (0, 0.25) AS progress, pid IS NOT NULL AS pid
  FROM background_jobs.workers WHERE job_id IS NOT NULL;
SELECT role, count(*) > 0 AS some FROM background_jobs.workers WHERE role <> 'progress writer' GROUP BY role ORDER BY role;
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001');
-- The log of attempts has what failed, and nothing else.
SELECT job_table, job_id, attempt, handler, outcome, error - 'context' AS error, error ? 'context' AS context,
       started_at <= finished_at AS times, pid IS NOT NULL AS pid
  FROM background_jobs.attempts ORDER BY job_id, attempt;
-- Counts are written now and then; milliseconds, of runs and of the waits before them.
SELECT background_jobs.enqueue('work', id => '00000000-0000-0000-0000-000000000005');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000005');
DO $$
BEGIN
    FOR i IN 1..6000 LOOP
        EXIT WHEN EXISTS (SELECT FROM background_jobs.handler_stats WHERE completed = 1 AND retried = 1 AND cancelled = 1);
        PERFORM pg_sleep(0.005);
    END LOOP;
END $$;
SELECT job_table, handler, completed, failed, retried, cancelled, total_run_ms > 0 AS total_run, mean_run_ms > 0 AS mean_run,
       max_run_ms BETWEEN mean_run_ms AND total_run_ms AS max_run, mean_wait_ms <= max_wait_ms AS max_wait, since < now() AS since
  FROM background_jobs.handler_stats;
-- Nobody writes through a view.
DELETE FROM background_jobs.handlers; \echo :LAST_ERROR_SQLSTATE
-- A table that is gone leaves nothing behind to see.
DROP TABLE background_jobs;
SELECT count(*) FROM background_jobs.queue;
SELECT count(*) FROM background_jobs.handlers;
SELECT count(*) FROM background_jobs.attempts;
SELECT count(*) FROM background_jobs.handler_stats;
DROP FUNCTION work;
