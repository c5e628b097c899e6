-- The owner's session runs the jobs, so it has to be one that can be opened. PostgreSQL 17 opens one of any role.
CREATE TABLE unopened_jobs (id uuid PRIMARY KEY, "timestamp" timestamptz, payload jsonb, completed boolean,
    cancelled boolean, progress real, result jsonb);
CREATE ROLE "regress no login";
ALTER TABLE unopened_jobs OWNER TO "regress no login";
SELECT background_jobs.attach('unopened_jobs'); \echo :SQLSTATE
DROP TABLE unopened_jobs;
DROP ROLE "regress no login";
