-- cancel(), retry() and run_now().
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
CREATE FUNCTION attempt(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF payload ? 'fail' THEN
        RAISE EXCEPTION 'no luck';
    END IF;
    RETURN (SELECT to_jsonb(attempt) FROM background_jobs.current_job());
END $$;
SELECT background_jobs.register_handler('attempt', 'attempt(jsonb)', max_attempts => 2, retry_delay => '5 ms');
SELECT background_jobs.register_handler('slow to retry', 'attempt(jsonb)', retry_delay => '1 h', max_retry_delay => '1 h');

-- cancel() tells whether it was this call that cancelled the job.
SELECT background_jobs.enqueue('attempt', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000001');
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001');
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001');
SELECT completed, cancelled, progress, result FROM background_jobs;
SELECT background_jobs.cancel('00000000-0000-0000-0000-0000000000ff');
SELECT background_jobs.cancel(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001', NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.cancel('not an id'); \echo :LAST_ERROR_SQLSTATE

-- run_now() drops the delay of a scheduled job, and of one that waits for its next attempt.
SELECT background_jobs.enqueue('attempt', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000002');
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000002');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002');
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000002');
SELECT background_jobs.enqueue('slow to retry', '{"fail": 1}', id => '00000000-0000-0000-0000-000000000003');
SELECT await_state('00000000-0000-0000-0000-000000000003', 'retrying');
SELECT handler, run_at > now() + interval '40 min' AS later, attempts, max_attempts, started_at, progress,
       last_error ->> 'message' AS message, last_error ->> 'sqlstate' AS sqlstate, pid
  FROM background_jobs.status('00000000-0000-0000-0000-000000000003');
UPDATE background_jobs SET payload = payload - 'fail' WHERE id = '00000000-0000-0000-0000-000000000003';
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000003');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000003');
SELECT background_jobs.run_now(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000003', NULL); \echo :LAST_ERROR_SQLSTATE

-- retry() runs a final job again, from attempt 1.
SELECT background_jobs.enqueue('attempt', '{"fail": 1}', id => '00000000-0000-0000-0000-000000000004');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000004'); \echo :LAST_ERROR_SQLSTATE
SELECT completed, cancelled, progress, result FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000004';
SELECT attempt, outcome, error ->> 'message' AS message FROM background_jobs.attempts
 WHERE job_id = '00000000-0000-0000-0000-000000000004' ORDER BY attempt;
UPDATE background_jobs SET payload = payload - 'fail' WHERE id = '00000000-0000-0000-0000-000000000004';
BEGIN;
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000004');
SELECT completed, cancelled, progress, result FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000004';
SELECT state FROM background_jobs.status('00000000-0000-0000-0000-000000000004');
COMMIT;
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000004');
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000001');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001');
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000001');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001');
-- What is unfinished is left alone.
SELECT background_jobs.enqueue('attempt', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000005');
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000005');
SELECT state FROM background_jobs.status('00000000-0000-0000-0000-000000000005');
SELECT background_jobs.retry('00000000-0000-0000-0000-0000000000ff'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.retry(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000001', NULL); \echo :LAST_ERROR_SQLSTATE
-- A limit below one attempt is one attempt, also for a job that is found by attach() or run again.
SELECT background_jobs.create_table('limited', '{max_attempts}');
SELECT background_jobs.register_handler('attempt', 'attempt(jsonb)', 'limited');
SELECT background_jobs.detach('limited');
INSERT INTO limited (id, payload, max_attempts) VALUES ('00000000-0000-0000-0000-000000000006', '{"handler": "attempt"}', 0);
SELECT background_jobs.attach('limited', '{max_attempts}');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000006', job_table => 'limited');
UPDATE limited SET max_attempts = -1;
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000006', 'limited');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000006', job_table => 'limited');
DROP TABLE background_jobs, limited;
DROP FUNCTION attempt;
