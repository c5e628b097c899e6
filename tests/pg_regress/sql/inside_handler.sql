-- set_progress(), current_job() and check_cancelled(), and what else a handler's code meets.
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
-- Outside a handler there is no job.
SELECT background_jobs.set_progress(0.5); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.set_progress(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT * FROM background_jobs.current_job(); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.check_cancelled(); \echo :LAST_ERROR_SQLSTATE

-- A handler that runs the SQL of its payload, and what became of it as the client sees it.
CREATE FUNCTION run(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    result jsonb;
BEGIN
    EXECUTE payload ->> 'sql' INTO result;
    RETURN result;
END $$;
SELECT background_jobs.register_handler('run', 'run(jsonb)', max_attempts => 1);
CREATE PROCEDURE try(statement text) LANGUAGE plpgsql AS $$
DECLARE
    job uuid := background_jobs.enqueue('run', jsonb_build_object('sql', statement));
    state text;
    shown text;
BEGIN
    COMMIT;
    BEGIN
        PERFORM background_jobs.wait(job, '10 s');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    SELECT s.state INTO state FROM background_jobs.status(job) s;
    SELECT coalesce(result -> 'error' ->> 'sqlstate' || ' ' || (result -> 'error' ->> 'message')
                        || coalesce(' / ' || (result -> 'error' ->> 'detail'), '')
                        || coalesce(' / ' || (result -> 'error' ->> 'hint'), ''), result::text, 'no result')
      INTO shown FROM background_jobs WHERE id = job;
    RAISE INFO '%, progress %: %', state, (SELECT progress FROM background_jobs WHERE id = job), replace(shown, job::text, 'ID');
END $$;

CALL try('SELECT to_jsonb(j) - ''id'' FROM background_jobs.current_job() j');
CALL try('SELECT to_jsonb(id IN (SELECT id FROM background_jobs)) FROM background_jobs.current_job()');
CALL try('SELECT to_jsonb(background_jobs.check_cancelled()::text)');
CALL try('SELECT to_jsonb(background_jobs.set_progress(0)::text)');
CALL try('SELECT to_jsonb(background_jobs.set_progress(1)::text)');
-- It never falls: the lower value is no error, and changes nothing.
CALL try('SELECT jsonb_agg(background_jobs.set_progress(p)::text) FROM (VALUES (0.5::real), (0.1)) v(p)');
CALL try('SELECT to_jsonb(background_jobs.set_progress(NULL)::text)');
CALL try('SELECT to_jsonb(background_jobs.set_progress(''NaN'')::text)');
CALL try('SELECT to_jsonb(background_jobs.set_progress(-0.001)::text)');
CALL try('SELECT to_jsonb(background_jobs.set_progress(1.001)::text)');
CALL try('SELECT to_jsonb(background_jobs.set_progress(''Infinity'')::text)');

-- The session is the owner's.
CALL try('SELECT jsonb_build_array(session_user, current_user, current_setting(''is_superuser''), current_schemas(false))');
CALL try('SELECT to_jsonb(application_name) FROM pg_stat_activity WHERE pid = pg_backend_pid()');
CALL try('SELECT to_jsonb(backend_type) FROM pg_stat_activity WHERE pid = pg_backend_pid()');

-- Errors arrive whole, made-up SQLSTATEs too.
CREATE FUNCTION fail(message text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', message USING ERRCODE = 'ZX001', DETAIL = 'the detail', HINT = 'the hint';
END $$;
CALL try('SELECT fail(''out of paper'')');
CALL try('SELECT 1/0');
CALL try('SELECT to_jsonb(1) FROM no_such_table');
-- A function cannot end its transaction.
CALL try('COMMIT');
CALL try('ROLLBACK');

-- A handler may submit jobs; they start when it is committed.
SELECT background_jobs.register_handler('leaf', 'pg_catalog.regress_built_in(jsonb)');
CALL try('SELECT to_jsonb(background_jobs.enqueue(''leaf'', id => ''00000000-0000-0000-0000-000000000001''))');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000001');
CALL try('SELECT to_jsonb(background_jobs.enqueue(''leaf'')) WHERE 1/0 = 0');
-- Its own job is running, and stays so as long as it does.
CALL try('SELECT to_jsonb(s.state) FROM background_jobs.current_job() j, background_jobs.status(j.id) s');
CALL try('SELECT to_jsonb(background_jobs.retry(id)) FROM background_jobs.current_job()');
-- A handler that finishes, cancels or deletes its own job has it rolled back with everything else, and that is an attempt.
CREATE PROCEDURE end_of(statement text) LANGUAGE plpgsql AS $$
DECLARE
    job uuid := background_jobs.enqueue('run', jsonb_build_object('sql', statement));
BEGIN
    COMMIT;
    RAISE INFO '%', await_state(job, 'failed');
END $$;
CALL end_of('SELECT to_jsonb(background_jobs.cancel(id)) FROM background_jobs.current_job()');
CALL end_of('DELETE FROM background_jobs WHERE id = (SELECT id FROM background_jobs.current_job()) RETURNING ''1''::jsonb');
CALL end_of('UPDATE background_jobs SET completed = true WHERE id = (SELECT id FROM background_jobs.current_job())
                RETURNING ''1''::jsonb');

-- The log of attempts has the context, too.
SELECT background_jobs.enqueue('run', '{"sql": "SELECT fail(''again'')"}', id => '00000000-0000-0000-0000-000000000002');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002'); \echo :LAST_ERROR_SQLSTATE
\pset format unaligned
SELECT attempt, handler, outcome, error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message,
       error ->> 'detail' AS detail, error ->> 'hint' AS hint, error ->> 'context' AS context
  FROM background_jobs.attempts WHERE job_id = '00000000-0000-0000-0000-000000000002';
\pset format aligned
SELECT jsonb_pretty(result) FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000002';
-- What an attempt has reported is taken back before the next one, however it ended.
CREATE FUNCTION dies(payload jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM background_jobs.set_progress(0.75);
    WHILE (SELECT progress FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000003') = 0 LOOP
        PERFORM pg_sleep(0.005);
    END LOOP;
    PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(60);
    RETURN NULL;
END $$;
SELECT background_jobs.register_handler('dies', 'dies(jsonb)', retry_delay => '1 h');
SELECT background_jobs.enqueue('dies', id => '00000000-0000-0000-0000-000000000003');
SELECT await_state('00000000-0000-0000-0000-000000000003', 'retrying');
-- An executor does that a moment after the dispatcher has charged the attempt.
DO $$ BEGIN
    WHILE (SELECT progress FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000003') > 0 LOOP
        COMMIT;
        PERFORM pg_sleep(0.005);
    END LOOP;
END $$;
SELECT completed, progress FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000003';
SELECT attempt, outcome, error - 'context' AS error FROM background_jobs.attempts
 WHERE job_id = '00000000-0000-0000-0000-000000000003';
DROP TABLE background_jobs;
DROP FUNCTION run, fail, dies;
DROP PROCEDURE try, end_of;
