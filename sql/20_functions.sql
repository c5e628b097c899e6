-- The functions. None is SECURITY DEFINER: what they have to do to the extension's own tables they do around fixed
-- statements, after they have checked the caller.

-- Triggers of a job table; created by attach(), their arguments are its options.
CREATE FUNCTION background_jobs.submit() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'background_jobs_submit';
CREATE FUNCTION background_jobs.withdraw() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'background_jobs_withdraw';

-- A member of pg_write_all_data has no other way to have code run as somebody else.
CREATE FUNCTION background_jobs.guard_handlers() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'background_jobs_guard_handlers';
REVOKE ALL ON FUNCTION background_jobs.guard_handlers() FROM PUBLIC;
CREATE TRIGGER guard AFTER INSERT OR UPDATE OR DELETE ON background_jobs.handler
    FOR EACH STATEMENT EXECUTE FUNCTION background_jobs.guard_handlers();

CREATE FUNCTION background_jobs.create_table(
    name text DEFAULT 'background_jobs',
    columns name[] DEFAULT '{}') RETURNS regclass
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_create_table';

CREATE FUNCTION background_jobs.attach(
    job_table regclass,
    -- null: as it is attached already, else none and 'handler'. Whoever calls again to mend something keeps what was chosen
    columns name[] DEFAULT NULL,
    handler_key text DEFAULT NULL) RETURNS bigint
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_attach';

CREATE FUNCTION background_jobs.detach(job_table regclass) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_detach';

CREATE FUNCTION background_jobs.register_handler(
    name text,
    function regprocedure,
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs'),
    max_attempts integer DEFAULT NULL,
    timeout interval DEFAULT NULL,
    retry_delay interval DEFAULT NULL,
    max_retry_delay interval DEFAULT NULL,
    concurrency integer DEFAULT NULL,
    queue text DEFAULT NULL,
    -- within smallint; a literal would not be converted to it
    priority integer DEFAULT NULL,
    synchronous_commit text DEFAULT NULL) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_register_handler';

CREATE FUNCTION background_jobs.unregister_handler(
    name text,
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs')) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_unregister_handler';

CREATE FUNCTION background_jobs.enqueue(
    handler text,
    payload jsonb DEFAULT '{}',
    run_at timestamptz DEFAULT NULL,
    -- within smallint; a literal would not be converted to it
    priority integer DEFAULT NULL,
    queue text DEFAULT NULL,
    job_key text DEFAULT NULL,
    job_key_mode text DEFAULT 'replace',
    max_attempts integer DEFAULT NULL,
    id uuid DEFAULT NULL,
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs')) RETURNS uuid
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_enqueue';

CREATE FUNCTION background_jobs.cancel(
    id uuid,
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs')) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_cancel';

CREATE FUNCTION background_jobs.retry(
    id uuid,
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs')) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_retry';

CREATE FUNCTION background_jobs.run_now(
    id uuid,
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs')) RETURNS boolean
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_run_now';

CREATE FUNCTION background_jobs.wait(
    id uuid,
    timeout interval DEFAULT '30 s',
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs')) RETURNS jsonb
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_wait';

CREATE FUNCTION background_jobs.status(
    id uuid,
    job_table regclass DEFAULT pg_catalog.to_regclass('background_jobs'),
    OUT state text,
    OUT handler text,
    OUT queue text,
    OUT priority smallint,
    OUT run_at timestamptz,
    OUT attempts integer,
    OUT max_attempts integer,
    OUT started_at timestamptz,
    OUT finished_at timestamptz,
    OUT progress real,
    OUT last_error jsonb,
    OUT pid integer) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'background_jobs_status';

-- Inside a handler.
CREATE FUNCTION background_jobs.set_progress(progress real) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_set_progress';
-- for expressions, which tend to be of this type and are not converted to real by themselves
CREATE FUNCTION background_jobs.set_progress(progress double precision) RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_set_progress_double';

CREATE FUNCTION background_jobs.current_job(
    OUT job_table regclass,
    OUT id uuid,
    OUT handler text,
    OUT attempt integer,
    OUT max_attempts integer) RETURNS SETOF record
    LANGUAGE c STABLE ROWS 1 AS 'MODULE_PATHNAME', 'background_jobs_current_job';

CREATE FUNCTION background_jobs.check_cancelled() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_check_cancelled';

-- What the views are made of: the extension's processes, and the jobs that they run in this database as far as the caller
-- may SELECT from the job's table.
CREATE FUNCTION background_jobs.worker_state(
    OUT pid integer,
    OUT role text,
    OUT database oid,
    OUT owner oid,
    OUT state text,
    OUT job_table oid,
    OUT job_id uuid,
    OUT handler text,
    OUT attempt integer,
    OUT started_at timestamptz,
    OUT progress real) RETURNS SETOF record
    LANGUAGE c VOLATILE ROWS 10 AS 'MODULE_PATHNAME', 'background_jobs_worker_state';

-- Tells the launcher, at commit, that this database has the extension now.
CREATE FUNCTION background_jobs.announce() RETURNS void
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'background_jobs_announce';
REVOKE ALL ON FUNCTION background_jobs.announce() FROM PUBLIC;
SELECT background_jobs.announce();
