-- create_table(): the caller's own plain table, attached.
\c - regress_app
SELECT background_jobs.create_table();
\d background_jobs
SELECT pg_get_userbyid(relowner) AS owner FROM pg_class WHERE oid = 'background_jobs'::regclass;
-- It is a job table at once.
INSERT INTO background_jobs DEFAULT VALUES;
SELECT handler, state FROM background_jobs.queue WHERE job_table = 'background_jobs'::regclass;
SELECT background_jobs.create_table(); \echo :LAST_ERROR_SQLSTATE
DROP TABLE background_jobs;

-- The name is read as SQL reads names.
SELECT background_jobs.create_table('MyJobs');
SELECT background_jobs.create_table('"My ""Jobs""%s"');
CREATE SCHEMA regress_schema;
SELECT background_jobs.create_table(name => 'regress_schema.jobs');
SELECT background_jobs.create_table('a.b.c'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('my jobs'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table(''); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('no_such_schema.jobs'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('pg_catalog.jobs'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('background_jobs.jobs'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('pg_temp.jobs'); \echo :LAST_ERROR_SQLSTATE
SET search_path = '';
SELECT background_jobs.create_table('jobs'); \echo :LAST_ERROR_SQLSTATE
RESET search_path;

-- The table that is attached is the one that was created, whatever else has that name.
CREATE TEMPORARY TABLE shadowed (a int);
SELECT background_jobs.create_table('shadowed');
DROP TABLE pg_temp.shadowed;
SELECT schemaname, tablename, tableowner FROM pg_tables WHERE tablename = 'shadowed';

-- The optional columns; a name given twice counts once.
SELECT background_jobs.create_table('everything',
    '{handler,queue,priority,run_at,job_key,max_attempts,attempts,started_at,finished_at}');
\d everything
SELECT background_jobs.create_table('few_columns', columns => '{run_at,handler,run_at}');
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull FROM pg_attribute a
 WHERE a.attrelid = 'few_columns'::regclass AND a.attnum > 7 ORDER BY a.attname;
SELECT background_jobs.create_table('no_columns', columns => NULL);
SELECT background_jobs.create_table('wrong', columns => '{handler,colour}'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('wrong', columns => '{id}'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('wrong', columns => '{""}'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.create_table('wrong', columns => '{HANDLER}'); \echo :LAST_ERROR_SQLSTATE

-- Nothing is left of a table that was refused.
SELECT to_regclass('wrong'), to_regclass('jobs');
DROP TABLE myjobs, "My ""Jobs""%s", regress_schema.jobs, everything, few_columns, no_columns;
DROP TABLE IF EXISTS shadowed;
DROP SCHEMA regress_schema;

-- A superuser's table would run its handlers in a superuser session.
\c - postgres
SELECT background_jobs.create_table(); \echo :LAST_ERROR_SQLSTATE
SELECT to_regclass('background_jobs');
