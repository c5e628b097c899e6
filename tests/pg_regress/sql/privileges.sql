-- Who may do what: the owner everything, others what they were granted on the job table.
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
CREATE FUNCTION echo(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(session_user::text)';
SELECT background_jobs.register_handler('echo', 'echo(jsonb)');
SELECT background_jobs.enqueue('echo', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000001');
SELECT background_jobs.enqueue('echo', id => '00000000-0000-0000-0000-000000000002');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002');

-- Nothing was granted.
\c - regress_stranger
SELECT background_jobs.attach('background_jobs'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach('background_jobs'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('mine', 'echo(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.unregister_handler('echo'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000002'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002'); \echo :LAST_ERROR_SQLSTATE
SELECT * FROM background_jobs.status('00000000-0000-0000-0000-000000000002'); \echo :LAST_ERROR_SQLSTATE
SELECT (SELECT count(*) FROM background_jobs.queue) AS queue, (SELECT count(*) FROM background_jobs.handlers) AS handlers,
       (SELECT count(*) FROM background_jobs.attempts) AS attempts;
SELECT background_jobs.announce(); \echo :LAST_ERROR_SQLSTATE
TABLE background_jobs.queued_job; \echo :LAST_ERROR_SQLSTATE
-- The trigger functions are for the triggers that attach() creates.
SELECT background_jobs.submit(); \echo :LAST_ERROR_SQLSTATE
CREATE TABLE own (id uuid);
CREATE TRIGGER early BEFORE INSERT ON own FOR EACH ROW EXECUTE FUNCTION background_jobs.submit();
CREATE TRIGGER wrong AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION background_jobs.withdraw();
INSERT INTO own VALUES ('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
DROP TRIGGER early ON own;
INSERT INTO own VALUES ('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
DROP TABLE own;

-- SELECT: to watch.
\c - regress_app
GRANT SELECT ON background_jobs TO regress_stranger;
\c - regress_stranger
SELECT state FROM background_jobs.status('00000000-0000-0000-0000-000000000002');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002');
SELECT job_id, handler, state FROM background_jobs.queue;
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE

-- UPDATE (cancelled): to cancel.
\c - regress_app
GRANT UPDATE (cancelled) ON background_jobs TO regress_stranger;
\c - regress_stranger
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001');
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000001'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.enqueue('echo'); \echo :LAST_ERROR_SQLSTATE

-- INSERT: to run the registered handlers, as the owner and not as the one who asks.
\c - regress_app
GRANT INSERT ON background_jobs TO regress_stranger;
\c - regress_stranger
SELECT background_jobs.enqueue('echo', id => '00000000-0000-0000-0000-000000000003');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000003');
SELECT background_jobs.enqueue('pg_read_file', id => '00000000-0000-0000-0000-000000000004');
SELECT await_state('00000000-0000-0000-0000-000000000004', 'unhandled');

-- Row level security: who does not see the row does not see the job.
\c - regress_app
ALTER TABLE background_jobs ENABLE ROW LEVEL SECURITY;
\c - regress_stranger
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000003'); \echo :LAST_ERROR_SQLSTATE
SELECT state FROM background_jobs.status('00000000-0000-0000-0000-000000000003');
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000004');
SELECT background_jobs.enqueue('echo'); \echo :LAST_ERROR_SQLSTATE

-- All of it still leaves the handlers to the owner.
\c - regress_app
ALTER TABLE background_jobs DISABLE ROW LEVEL SECURITY;
GRANT ALL ON background_jobs TO regress_stranger;
\c - regress_stranger
SELECT background_jobs.attach('background_jobs'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('mine', 'echo(jsonb)'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000003'); \echo :LAST_ERROR_SQLSTATE

-- A function that the owner may not execute cannot be a handler, whoever registers it.
CREATE FUNCTION theirs(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
REVOKE EXECUTE ON FUNCTION theirs FROM PUBLIC;
\c - regress_app
SELECT background_jobs.register_handler('theirs', 'theirs(jsonb)'); \echo :LAST_ERROR_SQLSTATE
\c - postgres
SELECT background_jobs.register_handler('theirs', 'theirs(jsonb)', 'public.background_jobs'); \echo :LAST_ERROR_SQLSTATE
-- A member of the owner may do what the owner may.
GRANT regress_app TO regress_stranger;
\c - regress_stranger
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000003');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000003');
\c - postgres
REVOKE regress_app FROM regress_stranger;
\c - regress_stranger
DROP FUNCTION theirs;
-- A new owner runs nothing that an old one has registered.
\c - regress_app
SELECT background_jobs.enqueue('echo', run_at => 'infinity', id => '00000000-0000-0000-0000-000000000005');
\c - postgres
ALTER TABLE background_jobs OWNER TO regress_stranger;
SELECT state FROM background_jobs.queue WHERE job_id = '00000000-0000-0000-0000-000000000005';
SELECT state FROM background_jobs.status('00000000-0000-0000-0000-000000000005');
\c - regress_stranger
GRANT ALL ON background_jobs TO regress_app;
SELECT background_jobs.register_handler('echo', 'echo(jsonb)');
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000005');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000005');
\c - postgres
ALTER TABLE background_jobs OWNER TO regress_app;
\c - regress_app
DROP TABLE background_jobs;
DROP FUNCTION echo;
