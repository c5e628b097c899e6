-- DROP EXTENSION leaves the application's tables and their rows.
\c - regress_app
SELECT background_jobs.create_table();
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000001');
DROP EXTENSION background_jobs; \echo :LAST_ERROR_SQLSTATE
\c - postgres
DROP EXTENSION background_jobs; \echo :LAST_ERROR_SQLSTATE
DROP EXTENSION background_jobs CASCADE;
SELECT count(*) FROM pg_namespace WHERE nspname = 'background_jobs';
SELECT tgname FROM pg_trigger WHERE tgrelid = 'background_jobs'::regclass AND NOT tgisinternal;
-- The table is an ordinary one again, and the rows wait for whoever comes next.
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000002');
CREATE EXTENSION background_jobs;
\c - regress_app
SELECT background_jobs.attach('background_jobs');
CREATE FUNCTION echo(payload jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT payload';
SELECT background_jobs.register_handler('default', 'echo(jsonb)');
SELECT id, background_jobs.wait(id) FROM background_jobs ORDER BY id;
-- A rolled-back DROP is no DROP.
\c - postgres
BEGIN;
DROP EXTENSION background_jobs CASCADE;
ROLLBACK;
\c - regress_app
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000003');
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000003');
DROP TABLE background_jobs;
DROP FUNCTION echo;
\c - postgres
DROP FUNCTION await_state;
DROP FUNCTION pg_catalog.regress_built_in;
DROP EXTENSION background_jobs;
