-- Where figures come from and when they close: models in time, seals, figures as older revisions had them.

ALTER TABLE ecmc.plant_revision ADD COLUMN documents bytea;      -- the plant folder's files, packed
ALTER TABLE ecmc.plant_revision ADD COLUMN method_sets text[];

-- Which model holds when. At a time t holds the newest row with valid_from <= t < valid_to; NULL: since, for ever.
CREATE TABLE ecmc.plant_validity (
    id          bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    fingerprint text NOT NULL REFERENCES ecmc.plant_revision,
    valid_from  timestamptz,
    valid_to    timestamptz,
    stated      timestamptz,  -- valid_from as the folder says it
    who         text NOT NULL,
    why         text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Seals, chained: `chain` is the SHA-256 over the chain before and this row. Rows are added, never changed.
CREATE TABLE ecmc.seal (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    period     text NOT NULL,        -- day | month
    label      text NOT NULL,        -- 2026-10-05 | 2026-10
    start_time timestamptz NOT NULL,
    end_time   timestamptz NOT NULL,
    revision   int NOT NULL,
    digest     bytea NOT NULL,       -- of the period's canonical rows; of a month of its days' digests
    factors    jsonb NOT NULL,       -- the factor rows behind it, as they were: id -> what it said
    who        text NOT NULL,
    why        text NOT NULL,
    sealed_at  timestamptz NOT NULL,
    chain      bytea NOT NULL,
    UNIQUE (period, label, revision)
);
CREATE INDEX ON ecmc.seal (start_time);

-- Up to where days are closed. Who writes samples older than that holds this row shared while doing so.
CREATE TABLE ecmc.seal_horizon (closed_until timestamptz NOT NULL);
INSERT INTO ecmc.seal_horizon VALUES ('-infinity');

-- Readings that came, or changed, after their day was closed: without them a closed day is computed as it was.
CREATE TABLE ecmc.late_sample (
    point_id   int NOT NULL,
    time       timestamptz NOT NULL,
    at         timestamptz NOT NULL,
    old_value  float8,  -- NULL: there was none
    old_status smallint,
    PRIMARY KEY (point_id, time, at)
);
CREATE INDEX ON ecmc.late_sample (at);

-- Closed hours as revision `revision` of their day had them, kept when they were computed anew.
-- A row in run_archive says that the hour was kept; where it has no known_at, there were no figures.
CREATE TABLE ecmc.run_archive (
    hour               timestamptz NOT NULL,
    revision           int NOT NULL,
    known_at           timestamptz,
    plant_fingerprint  text,
    reason             text,
    conservation_error float8,
    factor_ids         jsonb,
    computed           timestamptz,
    PRIMARY KEY (hour, revision)
);
CREATE TABLE ecmc.energy_block_archive (
    LIKE ecmc.energy_block, revision int NOT NULL, PRIMARY KEY (edge_id, hour, revision)
);
CREATE TABLE ecmc.node_block_archive (
    LIKE ecmc.node_block, revision int NOT NULL, PRIMARY KEY (node_id, hour, revision)
);
CREATE TABLE ecmc.emission_block_archive (
    LIKE ecmc.emission_block, revision int NOT NULL, PRIMARY KEY (node_id, flow_id, hour, revision)
);
CREATE TABLE ecmc.stock_archive (
    LIKE ecmc.stock, revision int NOT NULL, PRIMARY KEY (node_id, hour, revision)
);
CREATE TABLE ecmc.stock_carbon_archive (
    LIKE ecmc.stock_carbon, revision int NOT NULL, PRIMARY KEY (node_id, flow_id, hour, revision)
);
