-- enqueue(): an INSERT as the caller, with what the table has no column for beside it.
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
CREATE FUNCTION echo(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
SELECT background_jobs.register_handler('echo', 'echo(jsonb)', max_attempts => 3, queue => 'slow', priority => 7);

SELECT background_jobs.enqueue('echo') AS id \gset
SELECT background_jobs.wait(:'id');
SELECT background_jobs.enqueue('echo', '{"image": 42, "handler": "overruled"}') AS id \gset
SELECT background_jobs.wait(:'id');
SELECT background_jobs.enqueue('echo', NULL) AS id \gset
SELECT background_jobs.wait(:'id');
-- The row is what a client would have inserted.
SELECT timestamp <= now() AND timestamp > now() - interval '1 min' AS recent, payload, completed, cancelled, progress, result
  FROM background_jobs WHERE id = :'id';

-- The handler's values, and the job's own.
SELECT background_jobs.enqueue('echo', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000001');
SELECT background_jobs.enqueue('echo', run_at => 'infinity', priority => -5, queue => 'fast', max_attempts => 9,
    id => '00000000-0000-0000-0000-000000000002', job_table => 'background_jobs');
SELECT background_jobs.enqueue('unknown', id => '00000000-0000-0000-0000-000000000003');
SELECT job_id, handler, queue, priority, run_at = 'infinity' AS never, state, attempts, max_attempts, last_error
  FROM background_jobs.queue ORDER BY job_id;
-- What is due long since runs at once.
SELECT background_jobs.enqueue('echo', run_at => '-infinity') AS id \gset
SELECT background_jobs.wait(:'id', '2 s');

-- job_key: at most one unfinished job of that key.
SELECT background_jobs.enqueue('echo', '{"n": 1}', run_at => 'infinity', job_key => 'k',
    id => '00000000-0000-0000-0000-000000000011');
SELECT background_jobs.enqueue('echo', '{"n": 2}', run_at => 'infinity', job_key => 'k', job_key_mode => 'keep',
    id => '00000000-0000-0000-0000-000000000012');
SELECT background_jobs.enqueue('echo', '{"n": 3}', run_at => 'infinity', job_key => 'other',
    id => '00000000-0000-0000-0000-000000000013');
SELECT background_jobs.enqueue('echo', '{"n": 4}', run_at => 'infinity', job_key => 'k',
    id => '00000000-0000-0000-0000-000000000014');
SELECT payload ->> 'n' AS n, completed, cancelled FROM background_jobs WHERE payload ? 'n' ORDER BY 1;
-- A finished job gives its key back.
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000014');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000014');
SELECT background_jobs.enqueue('echo', '{"n": 5}', job_key => 'k', job_key_mode => 'keep') AS id \gset
SELECT background_jobs.wait(:'id');
-- Keys belong to a table.
SELECT background_jobs.create_table('second');
SELECT background_jobs.enqueue('echo', run_at => 'infinity', job_key => 'other', job_table => 'second',
    id => '00000000-0000-0000-0000-000000000021');
SELECT job_table, job_id, state FROM background_jobs.queue WHERE job_id >= '00000000-0000-0000-0000-000000000013'
 ORDER BY job_id;
DROP TABLE second;

-- With columns of its own the table keeps the values, and the payload is the application's alone.
SELECT background_jobs.create_table('full_jobs', '{handler,queue,priority,run_at,job_key,max_attempts}');
SELECT background_jobs.register_handler('echo', 'echo(jsonb)', 'full_jobs');
SELECT background_jobs.enqueue('echo', '[1, 2]', 'infinity', 4, 'q', 'key', 'replace', 2,
    '00000000-0000-0000-0000-000000000031', 'full_jobs');
SELECT payload, handler, queue, priority, run_at, job_key, max_attempts FROM full_jobs;
SELECT handler, queue, priority, run_at, state, max_attempts FROM background_jobs.queue
 WHERE job_table = 'full_jobs'::regclass;
INSERT INTO full_jobs (id, handler, job_key) VALUES ('00000000-0000-0000-0000-000000000032', 'echo', 'key');
\echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000031', 'full_jobs');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000031', job_table => 'full_jobs');
DROP TABLE full_jobs;

-- Errors.
SELECT background_jobs.enqueue(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', '[]'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', '"text"'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', 'null'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', max_attempts => 0); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', priority => 32768); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('echo', 'echo(jsonb)', priority => -32769); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', job_key => 'k', job_key_mode => 'ignore'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', id => '00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', job_table => NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', job_table => 'pg_class'); \echo :LAST_ERROR_SQLSTATE
SET search_path = '';
SELECT background_jobs.enqueue('echo'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo', job_table => 'public.background_jobs', id => '00000000-0000-0000-0000-000000000041');
RESET search_path;
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000041');

-- The table's own constraints and triggers speak for themselves.
\set VERBOSITY terse
ALTER TABLE background_jobs ADD CONSTRAINT small CHECK (payload ->> 'size' IS NULL OR (payload ->> 'size')::int < 10);
SELECT background_jobs.enqueue('echo', '{"size": 11}'); \echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'not today' USING ERRCODE = 'ZX001', DETAIL = 'It is Sunday.', HINT = 'Come back tomorrow.';
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON background_jobs FOR EACH ROW WHEN (NEW.payload ? 'sunday') EXECUTE FUNCTION refuse();
SELECT background_jobs.enqueue('echo', '{"sunday": true}'); \echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER swallow BEFORE INSERT ON background_jobs FOR EACH ROW WHEN (NEW.payload ? 'gone') EXECUTE FUNCTION swallow();
SELECT background_jobs.enqueue('echo', '{"gone": true}'); \echo :LAST_ERROR_SQLSTATE
DROP TABLE background_jobs;
DROP FUNCTION echo, refuse, swallow;
