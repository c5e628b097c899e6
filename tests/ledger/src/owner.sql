-- What an owner has besides its job table and its handlers: the witnesses.

-- Written by a handler in its own transaction.
CREATE TABLE ledger (
    job     uuid NOT NULL,
    seq     int NOT NULL,
    attempt int NOT NULL,
    pid     int NOT NULL DEFAULT pg_backend_pid(),
    at      timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE INDEX ON ledger (job);

-- Every change of a row, in the transaction that changes it.
CREATE TABLE edges (
    n        bigserial PRIMARY KEY,
    job      uuid NOT NULL,
    seq      int,
    old      text NOT NULL,
    new      text NOT NULL,
    progress real NOT NULL,
    pid      int NOT NULL DEFAULT pg_backend_pid(),
    at       timestamptz NOT NULL DEFAULT clock_timestamp());

CREATE FUNCTION job_state(completed boolean, cancelled boolean, result jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN completed AND cancelled THEN 'completed and cancelled'
                WHEN completed AND COALESCE(result ? 'error', false) THEN 'failed'
                WHEN completed THEN 'completed'
                WHEN cancelled THEN 'cancelled'
                ELSE 'open' END $$;

CREATE FUNCTION edge() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = @owner@, pg_temp AS $$
DECLARE
    before text := 'none';
    after text := 'gone';
BEGIN
    IF TG_OP <> 'INSERT' THEN before := job_state(OLD.completed, OLD.cancelled, OLD.result); END IF;
    IF TG_OP <> 'DELETE' THEN after := job_state(NEW.completed, NEW.cancelled, NEW.result); END IF;
    INSERT INTO edges (job, seq, old, new, progress)
    VALUES (COALESCE(NEW.id, OLD.id), (COALESCE(NEW.payload, OLD.payload) ->> 'seq')::int, before, after,
            COALESCE(NEW.progress, OLD.progress));
    RETURN NULL;
END $$;
CREATE TRIGGER edge AFTER INSERT OR UPDATE OR DELETE ON background_jobs FOR EACH ROW EXECUTE FUNCTION edge();

CREATE TABLE pairs (n int PRIMARY KEY, hits bigint NOT NULL DEFAULT 0);
INSERT INTO pairs (n) SELECT generate_series(0, 6);

CREATE TABLE late (attempt int);
CREATE FUNCTION too_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE 'too late' USING ERRCODE = 'P0003';
END $$;
CREATE CONSTRAINT TRIGGER too_late AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION too_late();

-- Has the client's COMMIT take a while, for the nemesis to meet it there.
CREATE TABLE dawdle (n int);
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.05);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON dawdle DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION dawdle();

-- The start of a run goes to the server's log, at once and for good: it survives rollback and crash, needs no privilege, and
-- stands in one order with what all the others say there. With it comes what a session should not have at that point.
CREATE FUNCTION begin_job(payload jsonb) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    job record;
    dirt text := concat_ws('+',
        CASE WHEN EXISTS (SELECT FROM pg_prepared_statements) THEN 'statement' END,
        CASE WHEN EXISTS (SELECT FROM pg_cursors WHERE is_holdable) THEN 'cursor' END,
        CASE WHEN pg_my_temp_schema() <> 0 AND EXISTS (
            SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r') THEN 'table' END,
        CASE WHEN EXISTS (
            SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) THEN 'lock' END,
        CASE WHEN current_setting('work_mem') <> '5MB' OR current_setting('search_path') <> '"$user", public'
             THEN 'setting' END,
        CASE WHEN current_user <> '@owner@' OR session_user <> '@owner@' THEN 'user' END);
BEGIN
    SELECT * INTO STRICT job FROM background_jobs.current_job();
    RAISE LOG 'ledger start % % % % [%]', job.id, payload ->> 'seq', job.attempt, job.handler, dirt;
    RETURN job.attempt;
END $$;

CREATE FUNCTION effect(payload jsonb, attempt int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO @owner@.ledger (job, seq, attempt)
    SELECT id, (payload ->> 'seq')::int, effect.attempt FROM background_jobs.current_job() $$;

CREATE FUNCTION end_job(payload jsonb, attempt int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE LOG 'ledger end % % %', (SELECT id FROM background_jobs.current_job()), payload ->> 'seq', attempt;
END $$;

GRANT USAGE ON SCHEMA @owner@ TO client;
GRANT SELECT, INSERT, DELETE, UPDATE (cancelled) ON background_jobs TO client;
GRANT INSERT ON dawdle TO client;
