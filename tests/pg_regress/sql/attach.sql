-- attach() and detach(): what may be a job table, and what becomes of its rows.
\c - regress_app
-- The recipe's own table: the seven columns, NOT NULL, no defaults.
CREATE TABLE background_jobs (
    id uuid PRIMARY KEY NOT NULL, timestamp timestamptz NOT NULL, payload jsonb NOT NULL, completed boolean NOT NULL,
    cancelled boolean NOT NULL, progress real NOT NULL, result jsonb);
INSERT INTO background_jobs
SELECT format('00000000-0000-0000-0000-%s', lpad(n::text, 12, '0'))::uuid, now() + n * interval '1 s', '{"n": 1}',
       n = 4, n = 5, 0, NULL
  FROM generate_series(1, 5) n;
SELECT background_jobs.attach('background_jobs');
\d background_jobs
-- The backlog: what is unfinished, in the order of the rows' timestamps.
SELECT job_id, handler, state FROM background_jobs.queue ORDER BY enqueued_at;
-- Once more is safe, and changes nothing but the options.
SELECT background_jobs.attach('background_jobs', handler_key => 'kind');
SELECT tgname, tgenabled, encode(tgargs, 'escape') AS arguments FROM pg_trigger
 WHERE tgrelid = 'background_jobs'::regclass AND NOT tgisinternal ORDER BY tgname;
INSERT INTO background_jobs VALUES
    ('00000000-0000-0000-0000-000000000006', now(), '{"kind": "resize", "handler": "other"}', false, false, 0);
SELECT job_id, handler, state FROM background_jobs.queue ORDER BY enqueued_at;

-- A key that is quoted in every way; the key is a key and not a path.
SELECT background_jobs.attach('background_jobs', handler_key => 'it''s {a,"b"} \ key');
INSERT INTO background_jobs VALUES
    ('00000000-0000-0000-0000-000000000007', now(), '{"it''s {a,\"b\"} \\ key": "found"}', false, false, 0);
SELECT handler FROM background_jobs.queue WHERE job_id = '00000000-0000-0000-0000-000000000007';
-- NULL keeps what it is.
SELECT background_jobs.attach('background_jobs', handler_key => NULL);
SELECT encode(tgargs, 'escape') AS arguments FROM pg_trigger
 WHERE tgrelid = 'background_jobs'::regclass AND tgname = 'background_jobs_submit';

-- detach() drops the triggers and the queued jobs, and nothing else.
SELECT background_jobs.detach('background_jobs');
SELECT count(*) AS queued FROM background_jobs.queue;
SELECT count(*) AS triggers FROM pg_trigger WHERE tgrelid = 'background_jobs'::regclass AND NOT tgisinternal;
SELECT count(*) AS rows, count(*) FILTER (WHERE completed) AS completed, count(*) FILTER (WHERE cancelled) AS cancelled
  FROM background_jobs;
-- Nothing to do is no error.
SELECT background_jobs.detach('background_jobs');
-- What needs an attached table says so.
SELECT background_jobs.enqueue('resize'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000004'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('f', 'pg_catalog.regress_built_in(jsonb)'); \echo :LAST_ERROR_SQLSTATE
-- The rows are found again.
SELECT background_jobs.attach('background_jobs');
DROP TABLE background_jobs;
SELECT count(*) AS queued FROM background_jobs.queue;

-- What cannot be a job table.
SELECT background_jobs.attach('no_such_table'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.attach(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach(NULL); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.attach(0); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach(0); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.attach('pg_class'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach('pg_class'); \echo :LAST_ERROR_SQLSTATE
CREATE TABLE t (id uuid, "timestamp" timestamptz, payload jsonb, completed boolean, cancelled boolean, progress real,
    result jsonb);
-- The id must be found by an index: a missing key makes every completion a scan of the table.
SELECT background_jobs.attach('t'); \echo :LAST_ERROR_SQLSTATE
CREATE INDEX i ON t (id) WHERE NOT completed;
SELECT background_jobs.attach('t'); \echo :LAST_ERROR_SQLSTATE
DROP INDEX i;
ALTER TABLE t ADD PRIMARY KEY (id);
SELECT background_jobs.attach('t_pkey'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach('t_pkey'); \echo :LAST_ERROR_SQLSTATE
CREATE VIEW v AS SELECT * FROM t;
SELECT background_jobs.attach('v'); \echo :LAST_ERROR_SQLSTATE
CREATE TEMPORARY TABLE tt (LIKE t INCLUDING ALL);
SELECT background_jobs.attach('tt'); \echo :LAST_ERROR_SQLSTATE
ALTER TABLE t RENAME COLUMN result TO outcome;
SELECT background_jobs.attach('t'); \echo :LAST_ERROR_SQLSTATE
ALTER TABLE t RENAME COLUMN outcome TO result;
DROP VIEW v;
ALTER TABLE t ALTER COLUMN progress TYPE numeric;
SELECT background_jobs.attach('t'); \echo :LAST_ERROR_SQLSTATE
ALTER TABLE t ALTER COLUMN progress TYPE real;
ALTER TABLE t DROP COLUMN cancelled, ADD COLUMN cancelled boolean GENERATED ALWAYS AS (completed) STORED;
SELECT background_jobs.attach('t'); \echo :LAST_ERROR_SQLSTATE
ALTER TABLE t DROP COLUMN cancelled, ADD COLUMN cancelled boolean;
-- Optional columns are checked like the others.
SELECT background_jobs.attach('t', '{priority}'); \echo :LAST_ERROR_SQLSTATE
ALTER TABLE t ADD COLUMN priority integer;
SELECT background_jobs.attach('t', '{priority}'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.attach('t', '{payload}'); \echo :LAST_ERROR_SQLSTATE
-- A column of that name that is not named is the application's own.
SELECT background_jobs.attach('t', '{}');
ALTER TABLE t ALTER COLUMN priority TYPE smallint;
SELECT background_jobs.attach('t', '{priority}');
-- Whoever attaches again to mend something keeps the columns, disabled triggers or not; an empty list drops them.
CREATE VIEW columns_of_t AS SELECT tgenabled, split_part(encode(tgargs, 'escape'), E'\\000', 2) AS columns
  FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname = 'background_jobs_submit';
SELECT background_jobs.attach('t');
TABLE columns_of_t;
ALTER TABLE t DISABLE TRIGGER USER;
SELECT background_jobs.attach('t', handler_key => 'kind');
TABLE columns_of_t;
INSERT INTO t (id, "timestamp", payload, priority) VALUES ('00000000-0000-0000-0000-000000000001', now(), '{"kind": "k"}', 3);
SELECT handler, priority FROM background_jobs.queue;
SELECT background_jobs.attach('t', '{}');
TABLE columns_of_t;
DROP VIEW columns_of_t;
DROP TABLE t;
-- The key names one job at any time, and every job.
CREATE TABLE t (id uuid UNIQUE, "timestamp" timestamptz, payload jsonb, completed boolean, cancelled boolean, progress real,
    result jsonb);
SELECT background_jobs.attach('t'); \echo :LAST_ERROR_SQLSTATE
ALTER TABLE "public"."t" ALTER COLUMN id SET NOT NULL;
SELECT background_jobs.attach('t');
SELECT background_jobs.detach('t');
ALTER TABLE t DROP CONSTRAINT t_id_key, ADD PRIMARY KEY (id) DEFERRABLE;
SELECT background_jobs.attach('t'); \echo :LAST_ERROR_SQLSTATE
ALTER TABLE "public"."t" ADD UNIQUE (id);
SELECT background_jobs.attach('t');
DROP TABLE t;

-- Partitioned tables are attached as a whole.
CREATE TABLE parted (id uuid, "timestamp" timestamptz, payload jsonb, completed boolean, cancelled boolean, progress real,
    result jsonb, PRIMARY KEY (id, "timestamp")) PARTITION BY RANGE ("timestamp");
CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
SELECT background_jobs.attach('parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach('parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.attach('parted');
INSERT INTO parted VALUES ('00000000-0000-0000-0000-000000000001', now(), '{}', false, false, 0);
INSERT INTO parted VALUES ('00000000-0000-0000-0000-000000000002', now(), '{}', true, false, 1);
SELECT job_table, job_id, handler, state FROM background_jobs.queue;
-- A partition is not a job table of its own, though it has the triggers.
SELECT background_jobs.enqueue('resize', job_table => 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.cancel('00000000-0000-0000-0000-000000000001', 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.retry('00000000-0000-0000-0000-000000000002', 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.run_now('00000000-0000-0000-0000-000000000001', 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000002', job_table => 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT * FROM background_jobs.status('00000000-0000-0000-0000-000000000001', 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.register_handler('f', 'pg_catalog.regress_built_in(jsonb)', 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.unregister_handler('f', 'parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach('parted_rest'); \echo :LAST_ERROR_SQLSTATE
SELECT background_jobs.detach('parted');
DROP TABLE parted;
-- Its key has the columns that it is partitioned by, too.
CREATE TABLE parted (id uuid NOT NULL, "timestamp" timestamptz, payload jsonb, completed boolean, cancelled boolean,
    progress real, result jsonb, "the region" text) PARTITION BY RANGE ("the region", "timestamp");
SELECT background_jobs.attach('parted'); \echo :LAST_ERROR_SQLSTATE
DROP TABLE parted;
CREATE TABLE parted (id uuid NOT NULL, "timestamp" timestamptz, payload jsonb, completed boolean, cancelled boolean,
    progress real, result jsonb) PARTITION BY LIST ((payload ->> 'region'));
SELECT background_jobs.attach('parted'); \echo :LAST_ERROR_SQLSTATE
DROP TABLE parted;
-- One that became a partition after it was attached can still be detached.
CREATE TABLE parted (id uuid, "timestamp" timestamptz, payload jsonb, completed boolean, cancelled boolean, progress real,
    result jsonb, PRIMARY KEY (id, "timestamp")) PARTITION BY RANGE ("timestamp");
CREATE TABLE parted_rest (LIKE parted, PRIMARY KEY (id));
ALTER TABLE parted DROP CONSTRAINT parted_pkey;
SELECT background_jobs.attach('parted_rest');
ALTER TABLE parted ATTACH PARTITION parted_rest DEFAULT;
SELECT background_jobs.detach('parted_rest');
DROP TABLE parted;

-- The owner's session runs the jobs, so it must not be a superuser's.
\c - postgres
CREATE TABLE admin_jobs (id uuid PRIMARY KEY, "timestamp" timestamptz, payload jsonb, completed boolean,
    cancelled boolean, progress real, result jsonb);
SELECT background_jobs.attach('admin_jobs'); \echo :LAST_ERROR_SQLSTATE
DROP TABLE admin_jobs;
