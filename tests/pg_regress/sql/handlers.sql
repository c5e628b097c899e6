-- register_handler() and unregister_handler().
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
CREATE FUNCTION echo(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
CREATE FUNCTION echo(id uuid, payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(id)';
CREATE FUNCTION nothing(payload jsonb) RETURNS void LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION out_argument(payload jsonb, OUT result jsonb) LANGUAGE sql AS 'SELECT payload';
CREATE SCHEMA "Regress Schema";
CREATE FUNCTION "Regress Schema"."a "".""(b)"(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';

SELECT background_jobs.register_handler('plain', 'echo(jsonb)');
SELECT background_jobs.register_handler('with id', 'echo(uuid, jsonb)', 'background_jobs');
SELECT background_jobs.register_handler('nothing', 'nothing(jsonb)');
SELECT background_jobs.register_handler('out', 'out_argument(jsonb)');
SELECT background_jobs.register_handler('quoted "name"', '"Regress Schema"."a "".""(b)"(jsonb)');
SELECT background_jobs.register_handler('built in', 'regress_built_in');
SELECT background_jobs.register_handler('built in', 'regress_built_in(jsonb)');
SELECT background_jobs.register_handler('full', 'echo(jsonb)', 'background_jobs', 3, '1 min', '2 s', '1 h', 2, 'slow',
    5::smallint, 'off');
SELECT job_table, name, function, owner, max_attempts, timeout, retry_delay, max_retry_delay, concurrency, queue, priority,
       synchronous_commit
  FROM background_jobs.handlers ORDER BY name;
-- They run.
SELECT background_jobs.enqueue('plain') AS plain, background_jobs.enqueue('out', '{"a": 1}') AS out,
       background_jobs.enqueue('nothing') AS nothing, background_jobs.enqueue('quoted "name"', '{"b": 2}') AS quoted,
       background_jobs.enqueue('built in', '{"c": null}') AS builtin, background_jobs.enqueue('full') AS full,
       background_jobs.enqueue('with id', id => '00000000-0000-0000-0000-000000000001') AS with_id \gset
SELECT background_jobs.wait(id) FROM unnest(ARRAY[:'plain', :'with_id', :'nothing', :'out', :'quoted', :'builtin', :'full']::uuid[])
    WITH ORDINALITY u(id, n) ORDER BY n;

-- Registering again replaces everything; what is left out is the settings' business again.
SELECT background_jobs.register_handler('full', 'echo(uuid, jsonb)');
SELECT function, max_attempts, timeout, retry_delay, max_retry_delay, concurrency, queue, priority, synchronous_commit
  FROM background_jobs.handlers WHERE name = 'full';
-- A job that names no handler is for the one named default.
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000002');
SELECT handler, state FROM background_jobs.queue;
SELECT background_jobs.register_handler('default', 'echo(uuid, jsonb)');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002');

SELECT background_jobs.enqueue('plain', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000003');
SELECT background_jobs.unregister_handler('plain');
SELECT background_jobs.unregister_handler('plain');
SELECT handler, state FROM background_jobs.queue;
SELECT background_jobs.unregister_handler('no such handler');
SELECT background_jobs.unregister_handler(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.unregister_handler('full', NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.unregister_handler('full', 'pg_class'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.unregister_handler('full', 'no_such_table'); \echo :LAST_ERROR_SQLSTATE

-- The name.
SELECT background_jobs.register_handler(NULL, 'echo(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('', 'echo(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler(repeat('n', 64), 'echo(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler(repeat('ü', 32), 'echo(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler(repeat('ü', 31) || 'n', 'echo(jsonb)');
-- The table.
SELECT background_jobs.register_handler('x', 'echo(jsonb)', NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'echo(jsonb)', 'pg_class'); \echo :LAST_ERROR_SQLSTATE
CREATE TABLE plain_table (a int);
SELECT background_jobs.register_handler('x', 'echo(jsonb)', 'plain_table'); \echo :LAST_ERROR_SQLSTATE
DROP TABLE plain_table;

-- The function.
CREATE FUNCTION text_argument(payload text) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(payload)';
CREATE FUNCTION text_result(payload jsonb) RETURNS text LANGUAGE sql AS 'SELECT payload::text';
CREATE FUNCTION no_argument() RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION one_more(payload jsonb, n int DEFAULT 1) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
CREATE FUNCTION turned(payload jsonb, id uuid) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
CREATE FUNCTION any_argument(payload anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(payload)';
CREATE FUNCTION a_set(payload jsonb) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT payload';
CREATE FUNCTION a_table(payload jsonb) RETURNS TABLE (a jsonb) LANGUAGE sql AS 'SELECT payload';
CREATE FUNCTION a_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE PROCEDURE steps(payload jsonb) LANGUAGE plpgsql AS 'BEGIN COMMIT; END';
CREATE AGGREGATE an_aggregate(jsonb) (sfunc = jsonb_concat, stype = jsonb);
SELECT background_jobs.register_handler('x', NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 0); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'no_such_function(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'text_argument(text)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'text_result(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'no_argument()'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'one_more(jsonb, int)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'turned(jsonb, uuid)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'any_argument(anyelement)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'a_set(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'a_table(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'a_trigger()'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'steps(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'an_aggregate(jsonb)'); \echo :LAST_ERROR_SQLSTATE

-- The other arguments.
SELECT background_jobs.register_handler('x', 'echo(jsonb)', max_attempts => 0); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'echo(jsonb)', concurrency => 0); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'echo(jsonb)', timeout => '-1 ms'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'echo(jsonb)', retry_delay => '-1 day'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'echo(jsonb)', max_retry_delay => '-1 month'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('x', 'echo(jsonb)', synchronous_commit => 'maybe'); \echo :LAST_ERROR_SQLSTATE
SELECT name FROM background_jobs.handlers WHERE name = 'x';

-- Whatever is made of an interval that is far too long, other handlers' jobs run.
DO $$
BEGIN
    PERFORM background_jobs.register_handler('too long', 'echo(jsonb)', timeout => '1000000 years');
EXCEPTION WHEN OTHERS THEN
    NULL;
END $$;
SELECT background_jobs.enqueue('full', id => '00000000-0000-0000-0000-000000000004');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000004', '10 s');
SELECT background_jobs.unregister_handler('too long') IS NOT NULL AS unregistered;

-- A handler that is gone or has changed its shape fails its jobs, and says why.
SELECT background_jobs.register_handler('gone', 'out_argument(jsonb)', max_attempts => 1);
DROP FUNCTION out_argument;
SELECT background_jobs.enqueue('gone', id => '00000000-0000-0000-0000-000000000005');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000005'); \echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION out_argument(payload jsonb) RETURNS text LANGUAGE sql AS 'SELECT payload::text';
SELECT background_jobs.enqueue('gone', id => '00000000-0000-0000-0000-000000000006');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000006'); \echo :LAST_ERROR_SQLSTATE

-- Dropping the table takes its handlers with it.
DROP TABLE background_jobs;
SELECT count(*) FROM background_jobs.handlers;
DROP FUNCTION echo(jsonb), echo(uuid, jsonb), nothing, out_argument, text_argument, text_result, no_argument, one_more, turned,
    any_argument, a_set, a_table, a_trigger;
DROP PROCEDURE steps;
DROP AGGREGATE an_aggregate(jsonb);
\set VERBOSITY terse
DROP SCHEMA "Regress Schema" CASCADE;
