-- wait() and status().
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
CREATE FUNCTION outcome(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF payload ? 'sqlstate' THEN
        RAISE EXCEPTION 'as asked for' USING ERRCODE = payload ->> 'sqlstate', DETAIL = 'the detail', HINT = 'the hint';
    END IF;
    RETURN payload -> 'return';
END $$;
SELECT background_jobs.register_handler('outcome', 'outcome(jsonb)', max_attempts => 1);

-- The result, NULL where the handler returned NULL, and a JSON null where it returned that.
SELECT background_jobs.enqueue('outcome', '{"return": {"a": [1, null, 12345678901234567890.10, "\u0041"]}}') AS id \gset
SELECT background_jobs.wait(:'id');
SELECT background_jobs.enqueue('outcome', '{}') AS id \gset
SELECT background_jobs.wait(:'id', '10 s', 'background_jobs');
SELECT background_jobs.enqueue('outcome', '{"return": null}') AS id \gset
SELECT background_jobs.wait(:'id', timeout => '1 month');
-- A result that looks a little like a failure is a result.
SELECT background_jobs.enqueue('outcome', '{"return": {"error": "none"}}') AS id \gset
SELECT background_jobs.wait(:'id');
SELECT state FROM background_jobs.status(:'id');

-- The job's own error.
SELECT background_jobs.enqueue('outcome', '{"sqlstate": "23514"}') AS id \gset
SELECT background_jobs.wait(:'id'); \echo :LAST_ERROR_SQLSTATE
SELECT state, attempts, progress, last_error - 'context' AS last_error, pid FROM background_jobs.status(:'id');
SELECT background_jobs.enqueue('outcome', '{"sqlstate": "ZX001"}') AS id \gset
SELECT background_jobs.wait(:'id'); \echo :LAST_ERROR_SQLSTATE

-- No end in sight, and ends of another kind.
SELECT background_jobs.enqueue('outcome', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000001');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001', '20 ms'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001', '0'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001', NULL); \echo :LAST_ERROR_SQLSTATE
SET statement_timeout = '20 ms';
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
RESET statement_timeout;
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
DELETE FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000001';
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
SELECT * FROM background_jobs.status('00000000-0000-0000-0000-000000000001');
SELECT background_jobs.wait(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001', '1 s', NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.status(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.status('00000000-0000-0000-0000-000000000001', NULL); \echo :LAST_ERROR_SQLSTATE
-- Nobody else can see the job before the commit, or complete a row that this transaction has changed.
BEGIN;
SELECT background_jobs.enqueue('outcome', id => '00000000-0000-0000-0000-000000000002');
SELECT state FROM background_jobs.status('00000000-0000-0000-0000-000000000002');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002'); \echo :LAST_ERROR_SQLSTATE
ROLLBACK;
SELECT background_jobs.enqueue('outcome', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000003');
BEGIN;
UPDATE background_jobs SET payload = payload WHERE id = '00000000-0000-0000-0000-000000000003';
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000003'); \echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000003'); \echo :LAST_ERROR_SQLSTATE
ROLLBACK;

-- status() of a job in every state that lasts.
SELECT background_jobs.enqueue('nobody', id => '00000000-0000-0000-0000-000000000004');
SELECT background_jobs.create_table('kept', '{attempts,started_at,finished_at}');
SELECT background_jobs.register_handler('outcome', 'outcome(jsonb)', 'kept', max_attempts => 2, retry_delay => '5 ms');
SELECT background_jobs.enqueue('outcome', id => '00000000-0000-0000-0000-000000000005', job_table => 'kept');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000005', job_table => 'kept');
SELECT background_jobs.enqueue('outcome', '{"sqlstate": "P0001"}', id => '00000000-0000-0000-0000-000000000006', job_table => 'kept');
SELECT await_state('00000000-0000-0000-0000-000000000006', 'failed', 'kept');
SELECT state, handler, queue, priority, run_at, attempts, max_attempts, started_at, finished_at, progress, last_error, pid
  FROM background_jobs.status('00000000-0000-0000-0000-000000000003');
SELECT state, handler, priority, attempts, max_attempts, started_at, finished_at, progress, last_error, pid
  FROM background_jobs.status('00000000-0000-0000-0000-000000000004');
-- Of a final job it says what the row says.
SELECT state, handler, attempts, started_at <= finished_at AS times, progress, last_error ->> 'message' AS message, pid
  FROM background_jobs.status('00000000-0000-0000-0000-000000000005', 'kept');
SELECT state, handler, attempts, started_at <= finished_at AS times, progress, last_error ->> 'message' AS message, pid
  FROM background_jobs.status('00000000-0000-0000-0000-000000000006', 'kept');
SELECT attempts, started_at <= finished_at AS times FROM kept ORDER BY id;
DROP TABLE background_jobs, kept;
DROP FUNCTION outcome;
