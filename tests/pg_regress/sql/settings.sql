-- Names, units, ranges, defaults, and who may change them.
SELECT name, boot_val, unit, min_val, max_val, context, vartype FROM pg_settings
 WHERE name LIKE 'background\_jobs.%' ORDER BY name;
SELECT name, current_setting(name) AS shown FROM pg_settings WHERE name LIKE 'background\_jobs.%' ORDER BY name;
SELECT name, short_desc, extra_desc FROM pg_settings WHERE name LIKE 'background\_jobs.%'
   AND (short_desc !~ '^[A-Z].*\.$' OR (extra_desc <> '' AND extra_desc !~ '^[A-Z].*\.$'));
SET background_jobs.max_executors = 8; \echo :LAST_ERROR_SQLSTATE
SET background_jobs.enabled = off; \echo :LAST_ERROR_SQLSTATE
ALTER ROLE regress_app SET background_jobs.handler_timeout = '1 min'; \echo :LAST_ERROR_SQLSTATE
-- The message has units from PostgreSQL 17 on.
\set VERBOSITY sqlstate
ALTER SYSTEM SET background_jobs.poll_interval = '1 ms'; \echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default
ALTER SYSTEM SET background_jobs.max_attempts = 0; \echo :LAST_ERROR_SQLSTATE
ALTER SYSTEM SET background_jobs.handler_timeout = 'soon'; \echo :LAST_ERROR_SQLSTATE
-- The prefix is the extension's: a misspelt setting is an error.
SET background_jobs.no_such_setting = 1; \echo :LAST_ERROR_SQLSTATE
\c - regress_app
SET background_jobs.allow_superuser_jobs = on; \echo :LAST_ERROR_SQLSTATE
ALTER SYSTEM SET background_jobs.databases = 'none'; \echo :LAST_ERROR_SQLSTATE
