-- The row protocol: what a client may do with the rows, and what it comes to.
\c - regress_app
\pset null '(null)'
SELECT background_jobs.create_table();
CREATE TABLE runs (id uuid);
CREATE FUNCTION count_runs(id uuid, payload jsonb) RETURNS jsonb LANGUAGE sql AS
    'INSERT INTO runs VALUES ($1) RETURNING ''"ran"''::jsonb';
SELECT background_jobs.register_handler('default', 'count_runs(uuid, jsonb)');

-- Rows that arrive final are not run; neither is one that a client sets back.
INSERT INTO background_jobs (id, completed, cancelled) VALUES
    ('00000000-0000-0000-0000-000000000001', true, false), ('00000000-0000-0000-0000-000000000002', false, true),
    ('00000000-0000-0000-0000-000000000003', true, true);
UPDATE background_jobs SET completed = false, cancelled = false;
SELECT count(*) AS queued FROM background_jobs.queue;
-- They are found by attach(), which is how a table is taken over.
SELECT background_jobs.attach('background_jobs');
SELECT id, background_jobs.wait(id) FROM background_jobs ORDER BY id;

-- One statement, many rows; one row, many ways.
INSERT INTO background_jobs (id) SELECT format('00000000-0000-0000-0000-%s', lpad(n::text, 12, '0'))::uuid
  FROM generate_series(11, 15) n;
COPY background_jobs (id, payload) FROM stdin;
00000000-0000-0000-0000-000000000016	{}
00000000-0000-0000-0000-000000000017	[]
\.
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000018') ON CONFLICT (id) DO NOTHING;
SELECT count(background_jobs.wait(id)) FROM background_jobs WHERE id >= '00000000-0000-0000-0000-000000000011';
-- An upsert that meets a row submits nothing.
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000018')
    ON CONFLICT (id) DO UPDATE SET payload = '{"again": true}';
SELECT count(*) AS queued FROM background_jobs.queue;
-- What is rolled back was never there.
BEGIN;
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000021');
SAVEPOINT s;
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000022');
ROLLBACK TO s;
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000023');
COMMIT;
BEGIN;
INSERT INTO background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000024');
ROLLBACK;
SELECT id, background_jobs.wait(id) FROM background_jobs WHERE id >= '00000000-0000-0000-0000-000000000021' ORDER BY id;
-- Triggers fire for replication, and where the search_path is empty.
\c - postgres
SET session_replication_role = replica;
SET search_path = '';
INSERT INTO public.background_jobs (id) VALUES ('00000000-0000-0000-0000-000000000031');
RESET session_replication_role;
RESET search_path;
SELECT background_jobs.wait('00000000-0000-0000-0000-000000000031');
\c - regress_app
-- Every row ran as often as it was submitted.
SELECT id, count(*) FROM runs GROUP BY id HAVING count(*) <> 1;
SELECT count(*) FROM runs;

-- Cancelling: any UPDATE that sets cancelled on an unfinished row. The first one counts.
INSERT INTO background_jobs (id, payload) VALUES ('00000000-0000-0000-0000-000000000041', '{"handler": "later"}');
UPDATE background_jobs SET cancelled = true WHERE id = '00000000-0000-0000-0000-000000000041' AND completed = false
    RETURNING completed, cancelled, progress, result;
SELECT count(*) AS queued FROM background_jobs.queue;
UPDATE background_jobs SET cancelled = false WHERE id = '00000000-0000-0000-0000-000000000041';
SELECT count(*) AS queued FROM background_jobs.queue;
-- Cancelling what is completed changes nothing in the engine.
UPDATE background_jobs SET cancelled = true WHERE id = '00000000-0000-0000-0000-000000000031' RETURNING completed, result;
SELECT state FROM background_jobs.status('00000000-0000-0000-0000-000000000031');
-- DELETE and TRUNCATE of unfinished rows cancel, too; a client that completes a row itself takes it over.
INSERT INTO background_jobs (id, payload) SELECT format('00000000-0000-0000-0000-%s', lpad(n::text, 12, '0'))::uuid,
    '{"handler": "later"}' FROM generate_series(51, 55) n;
DELETE FROM background_jobs WHERE id = '00000000-0000-0000-0000-000000000051';
UPDATE background_jobs SET completed = true, result = '"by hand"' WHERE id = '00000000-0000-0000-0000-000000000052';
SELECT job_id, state FROM background_jobs.queue ORDER BY job_id;
-- A new id is a new job, in the place of the old one.
UPDATE background_jobs SET id = '00000000-0000-0000-0000-000000000056' WHERE id = '00000000-0000-0000-0000-000000000053';
SELECT job_id, state FROM background_jobs.queue ORDER BY job_id;
-- A client that writes every column changes nothing by it.
UPDATE background_jobs SET "timestamp" = "timestamp", payload = payload, completed = completed, cancelled = cancelled,
    progress = progress, result = result WHERE id = '00000000-0000-0000-0000-000000000054';
SELECT job_id, state FROM background_jobs.queue ORDER BY job_id;
TRUNCATE background_jobs;
SELECT count(*) AS queued FROM background_jobs.queue;

-- Which handler: the column, then the key of the payload, then default; text as it stands in the JSON.
SELECT background_jobs.attach('background_jobs');
INSERT INTO background_jobs (payload)
SELECT p::jsonb FROM unnest(ARRAY['{"handler": "a"}', '{"handler": null}', '{"other": 1}', '[{"handler": "a"}]', '"handler"', 'null',
    '{"handler": 42}', '{"handler": true}', '{"handler": {"a": 1}}', '{"handler": ""}', '{"handler": "Default"}']) p;
SELECT r.payload, q.handler FROM background_jobs r LEFT JOIN background_jobs.queue q ON q.job_id = r.id
 WHERE r.payload ->> 'handler' IS NOT NULL ORDER BY r.payload;
SELECT count(*), count(background_jobs.wait(id)) FROM background_jobs WHERE payload ->> 'handler' IS NULL;
DROP TABLE background_jobs, runs;
DROP FUNCTION count_runs;
