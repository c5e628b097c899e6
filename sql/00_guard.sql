-- A schema of this name that somebody else has made would let its owner put objects in front of ours.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_namespace n
         WHERE n.nspname OPERATOR(pg_catalog.=) 'background_jobs'
           AND n.nspowner OPERATOR(pg_catalog.=)
               (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) CURRENT_USER)) THEN
        RAISE EXCEPTION 'schema "background_jobs" belongs to another role'
            USING ERRCODE = 'duplicate_schema',
                  HINT = 'Rename or drop that schema before CREATE EXTENSION background_jobs.';
    END IF;
END
$$;
