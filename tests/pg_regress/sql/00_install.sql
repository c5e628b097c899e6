-- Installing the extension: by whom, where, and what is there afterwards. The roles and the helper are for the other scripts.
CREATE ROLE regress_app LOGIN;
CREATE ROLE regress_stranger LOGIN;
GRANT CREATE ON DATABASE regression TO regress_app;
GRANT CREATE ON SCHEMA public TO regress_app, regress_stranger;

SELECT superuser, trusted, relocatable, schema FROM pg_available_extension_versions WHERE name = 'background_jobs';

-- An owner of the database is not enough.
SET ROLE regress_app;
CREATE EXTENSION background_jobs; \echo :LAST_ERROR_SQLSTATE
-- A schema made beforehand would let its owner put objects in front of the extension's.
CREATE SCHEMA background_jobs;
RESET ROLE;
\set SHOW_CONTEXT never
CREATE EXTENSION background_jobs; \echo :LAST_ERROR_SQLSTATE
\set SHOW_CONTEXT errors
DROP SCHEMA background_jobs;
CREATE EXTENSION background_jobs SCHEMA public; \echo :LAST_ERROR_SQLSTATE
CREATE EXTENSION background_jobs;
ALTER EXTENSION background_jobs SET SCHEMA public; \echo :LAST_ERROR_SQLSTATE

-- The functions. None runs with anybody else's privileges.
\pset tuples_only on
\pset format unaligned
SELECT proname || '(' || pg_get_function_arguments(oid) || ') RETURNS ' || pg_get_function_result(oid)
       || CASE WHEN prosecdef THEN ' SECURITY DEFINER' ELSE '' END
       || CASE WHEN has_function_privilege('regress_stranger', oid, 'EXECUTE') THEN '' ELSE ' (not for everybody)' END
  FROM pg_proc WHERE pronamespace = 'background_jobs'::regnamespace ORDER BY proname, pg_get_function_arguments(oid);
-- The views.
SELECT c.relname || ': ' || string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
 WHERE c.relnamespace = 'background_jobs'::regnamespace AND c.relkind = 'v'
 GROUP BY c.relname ORDER BY c.relname;
-- What a role without any grant may do with the relations.
SELECT c.relname, c.relkind, string_agg(p, ', ' ORDER BY p)
  FROM pg_class c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
 WHERE c.relnamespace = 'background_jobs'::regnamespace AND c.relkind IN ('r', 'v', 'S', 'm', 'p')
   AND has_table_privilege('regress_stranger', c.oid, p)
 GROUP BY 1, 2 ORDER BY 1;
SELECT has_schema_privilege('regress_stranger', 'background_jobs', 'USAGE'),
       has_schema_privilege('regress_stranger', 'background_jobs', 'CREATE');
-- No column has a type that pg_upgrade refuses.
SELECT a.attrelid::regclass, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
 WHERE c.relnamespace = 'background_jobs'::regnamespace AND c.relkind = 'r'
   AND a.atttypid IN ('regproc'::regtype, 'regprocedure'::regtype, 'regoper'::regtype, 'regoperator'::regtype,
                      'regconfig'::regtype, 'regdictionary'::regtype, 'regnamespace'::regtype, 'regcollation'::regtype);
\pset format aligned
\pset tuples_only off

-- For the other scripts: a built-in function that can be a handler. From PostgreSQL 18 on the server has none itself.
CREATE FUNCTION pg_catalog.regress_built_in(jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT jsonb_strip_nulls($1)';
-- For the other scripts: waits until the job is in that state, and returns the state seen last.
CREATE FUNCTION await_state(id uuid, wanted text, job_table regclass DEFAULT to_regclass('background_jobs'))
    RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    seen text;
    deadline timestamptz := clock_timestamp() + interval '30 s';
BEGIN
    LOOP
        SELECT s.state INTO seen FROM background_jobs.status($1, $3) s;
        EXIT WHEN seen = wanted OR clock_timestamp() > deadline;
        PERFORM pg_sleep(0.005);
    END LOOP;
    RETURN seen;
END $$;
