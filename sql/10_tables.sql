-- The extension's own tables. Private: nobody but the extension's owner has a privilege on them, users see the views.
-- Job tables are named by regclass (it survives dump, rename and pg_upgrade) and roles by regrole; functions by schema
-- and name, because a regprocedure column would make pg_upgrade refuse the cluster.

-- A lane of a job table in one number, so that an insert into the queue compares numbers only: 46 bits for the handler's name,
-- 16 for the priority, 2 for the timing. Lanes of one handler lie side by side in order. Different names that share their
-- 46 bits would share lanes, so readers look at the name, too. To find a name that shares another's takes some 2^46 hashes.
CREATE FUNCTION background_jobs.lane_of(handler text, priority smallint, timing smallint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (('x' OPERATOR(pg_catalog.||) pg_catalog.encode(pg_catalog.substring(pg_catalog.sha256(
                 pg_catalog.replace(handler, E'\\', E'\\\\')::pg_catalog.bytea), 1, 8), 'hex'))::pg_catalog.bit(64)::pg_catalog.int8
            OPERATOR(pg_catalog.&) (-262144)::pg_catalog.int8)
           OPERATOR(pg_catalog.|) ((priority::pg_catalog.int8 OPERATOR(pg_catalog.+) 32768) OPERATOR(pg_catalog.<<) 2)
           OPERATOR(pg_catalog.|) timing::pg_catalog.int8
$$;
REVOKE ALL ON FUNCTION background_jobs.lane_of(text, smallint, smallint) FROM PUBLIC;

-- The working set: a row per unfinished job, deleted in the transaction that finishes the job. That DELETE is the fence
-- of the exactly-once guarantee: an attempt that finds no row to delete has no effects.
-- Columns of fixed width come first: their places need not be searched for in every row.
CREATE TABLE background_jobs.queued_job (
    job_id       uuid NOT NULL,
    job_table    regclass NOT NULL,
    priority     smallint NOT NULL,
    -- 0 immediate, 1 scheduled, 2 retry, 3 quarantine (src/job.rs, Timing)
    timing       smallint NOT NULL,
    run_at       timestamptz NOT NULL,
    -- with job_table and job_id the identity of one submission; no two of a server are alike (submit::arrival)
    enqueued_at  timestamptz NOT NULL,
    lane         bigint NOT NULL GENERATED ALWAYS AS (background_jobs.lane_of(handler, priority, timing)) STORED,
    attempts     integer NOT NULL DEFAULT 0,
    conflicts    smallint NOT NULL DEFAULT 0,
    -- where the job's row was when it was inserted: whoever goes there has to see whether it still is
    row_tid      tid,
    handler      text COLLATE "C" NOT NULL,
    max_attempts integer,
    queue        text,
    job_key      text,
    last_error   jsonb,
    -- the partition that row_tid is in, if it is in one. An OID that may be nobody's any more, so no regclass; and at the end, where a
    -- row of a table without partitions has nothing of it
    row_partition oid,
    -- the id first: it decides nearly every comparison by itself; no two rows are alike, so there is nothing to deduplicate
    PRIMARY KEY (job_id, job_table) WITH (deduplicate_items = off)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);

-- Of a queue with a job for each of a few tables ANALYZE would learn that a table has one job; then an index that begins with the table
-- seems to find a job by its id as well as the key does, when there are a million.
ALTER TABLE background_jobs.queued_job ALTER COLUMN job_table SET STATISTICS 0;

-- The order in which jobs are handed out, lane by lane.
CREATE INDEX queued_job_order
    ON background_jobs.queued_job (job_table, lane, run_at, enqueued_at) WITH (deduplicate_items = off);

CREATE UNIQUE INDEX queued_job_key
    ON background_jobs.queued_job (job_table, job_key) WHERE job_key IS NOT NULL;

CREATE TABLE background_jobs.handler (
    job_table          regclass NOT NULL,
    name               text COLLATE "C" NOT NULL,
    function_schema    name NOT NULL,
    function_name      name NOT NULL,
    takes_id           boolean NOT NULL,
    -- whose function it was: the name alone could be taken by somebody else's after a DROP FUNCTION
    function_owner     regrole NOT NULL,
    -- whoever owned the job table at registration: a later owner never runs what an earlier one chose
    owner              regrole NOT NULL,
    max_attempts       integer,
    timeout            interval,
    retry_delay        interval,
    max_retry_delay    interval,
    concurrency        integer,
    queue              text,
    priority           smallint,
    synchronous_commit text,
    registered_at      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (job_table, name)
);

-- Attempts that did not complete their job; pruned after attempts_retention.
CREATE TABLE background_jobs.attempt (
    job_table   regclass NOT NULL,
    job_id      uuid NOT NULL,
    attempt     integer NOT NULL,
    handler     text COLLATE "C" NOT NULL,
    outcome     text NOT NULL,
    error       jsonb NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL,
    pid         integer,
    -- before a retry(), after which attempts are counted anew
    superseded  boolean NOT NULL DEFAULT false
);
-- A publication FOR ALL TABLES would forbid to delete from it otherwise.
ALTER TABLE background_jobs.attempt REPLICA IDENTITY FULL;
CREATE INDEX attempt_job ON background_jobs.attempt (job_table, job_id, attempt);
CREATE INDEX attempt_finished_at ON background_jobs.attempt (finished_at);

-- Counters, added to by executors now and then; times in milliseconds.
CREATE TABLE background_jobs.handler_stat (
    job_table  regclass NOT NULL,
    handler    text COLLATE "C" NOT NULL,
    completed  bigint NOT NULL DEFAULT 0,
    failed     bigint NOT NULL DEFAULT 0,
    retried    bigint NOT NULL DEFAULT 0,
    cancelled  bigint NOT NULL DEFAULT 0,
    total_run  double precision NOT NULL DEFAULT 0,
    max_run    double precision NOT NULL DEFAULT 0,
    total_wait double precision NOT NULL DEFAULT 0,
    max_wait   double precision NOT NULL DEFAULT 0,
    since      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (job_table, handler)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

REVOKE ALL ON background_jobs.queued_job, background_jobs.handler, background_jobs.attempt,
    background_jobs.handler_stat FROM PUBLIC;

-- A dump carries them: unfinished jobs keep their schedule and their attempts.
SELECT pg_catalog.pg_extension_config_dump('background_jobs.queued_job', '');
SELECT pg_catalog.pg_extension_config_dump('background_jobs.handler', '');
SELECT pg_catalog.pg_extension_config_dump('background_jobs.attempt', '');
SELECT pg_catalog.pg_extension_config_dump('background_jobs.handler_stat', '');
