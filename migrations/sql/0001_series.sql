-- Registries, samples, results. Names stand once here, ids everywhere else; an id is never given to another name.

CREATE TABLE ecmc.plant_revision (
    fingerprint     text PRIMARY KEY,
    plant           text NOT NULL,
    name_zh         text NOT NULL,
    name_en         text NOT NULL,
    zone            text NOT NULL,
    base_interval_s int NOT NULL,
    method_set      text NOT NULL,  -- the default in answers
    adopted         timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ecmc.point (
    id       int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name     text NOT NULL UNIQUE,
    device   text,
    quantity text NOT NULL,
    unit     text NOT NULL,
    kind     text NOT NULL,
    feeds    boolean NOT NULL DEFAULT false  -- meters an edge, or lives from import alone: kept for years
);

CREATE TABLE ecmc.edge (
    id      int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name    text NOT NULL UNIQUE,
    source  text NOT NULL,
    target  text NOT NULL,
    carrier text NOT NULL
);

CREATE TABLE ecmc.node (
    id      int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name    text NOT NULL UNIQUE,  -- 'site' stands for the whole inventory
    kind    text NOT NULL,
    carrier text,
    area    text,
    name_zh text NOT NULL,
    name_en text NOT NULL
);

CREATE TABLE ecmc.flow (
    id         int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    scope      smallint NOT NULL,
    basis      text NOT NULL,
    method_set text NOT NULL,
    UNIQUE (scope, basis, method_set)
);

-- A missing value is NaN with a bad status, never NULL. This column order packs a row closest.
-- (sample itself is made by code: partitioned or a hypertable.)

CREATE TABLE ecmc.latest (
    point_id   int PRIMARY KEY REFERENCES ecmc.point,
    time       timestamptz NOT NULL,
    value      float8 NOT NULL,
    status     smallint NOT NULL,
    first_time timestamptz NOT NULL  -- no sample of the point is older; bounds every search backwards
) WITH (fillfactor = 50);

CREATE TABLE ecmc.correction (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    point_id   int NOT NULL REFERENCES ecmc.point,
    time       timestamptz NOT NULL,
    old_value  float8 NOT NULL,
    old_status smallint NOT NULL,
    new_value  float8 NOT NULL,
    new_status smallint NOT NULL,
    who        text NOT NULL,
    why        text NOT NULL,
    at         timestamptz NOT NULL
);
CREATE INDEX ON ecmc.correction (point_id, time);

-- [start_time, end_time] of sample times that changed and are still to be computed; point_ids NULL for many.
CREATE TABLE ecmc.dirty_range (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    start_time timestamptz NOT NULL,
    end_time   timestamptz NOT NULL,
    point_ids  int[],
    reason     text NOT NULL,
    created    timestamptz NOT NULL DEFAULT now()
);

-- The same for the roll-up of gauges, which has its own pace.
CREATE TABLE ecmc.dirty_gauge (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    start_time timestamptz NOT NULL,
    end_time   timestamptz NOT NULL,
    point_ids  int[]
);

-- Everything of an hour comes from one computation; this says which.
CREATE TABLE ecmc.run (
    hour               timestamptz PRIMARY KEY,
    known_at           timestamptz NOT NULL,
    plant_fingerprint  text NOT NULL,
    reason             text NOT NULL,
    conservation_error float8 NOT NULL,
    factor_ids         jsonb NOT NULL,
    computed           timestamptz NOT NULL DEFAULT now()
);

-- No foreign keys from here on: checked row by row they cost more than the write, and ids come from one registry.

-- Blocks: one row a series and hour, element i for base interval i of the hour, NaN where unknown.
CREATE TABLE ecmc.energy_block (
    edge_id       int NOT NULL,
    hour          timestamptz NOT NULL,
    energy_kwh    float8[] NOT NULL,
    covered       float8[] NOT NULL,
    estimated_kwh float8[] NOT NULL,
    mark          smallint[] NOT NULL,
    PRIMARY KEY (edge_id, hour)
);
CREATE TABLE ecmc.node_block (
    node_id      int NOT NULL,
    hour         timestamptz NOT NULL,
    in_kwh       float8[] NOT NULL,
    out_kwh      float8[] NOT NULL,
    residual_kwh float8[] NOT NULL,
    through_kwh  float8[] NOT NULL,
    covered      float8[] NOT NULL,
    PRIMARY KEY (node_id, hour)
);
CREATE TABLE ecmc.emission_block (
    node_id         int NOT NULL,
    flow_id         int NOT NULL,
    hour            timestamptz NOT NULL,
    emissions_kg    float8[] NOT NULL,
    through_kg      float8[] NOT NULL,
    PRIMARY KEY (node_id, flow_id, hour)
);

-- Roll-ups. No row: nothing was there to add up. NaN: something was there and is unknown; it spreads through sum().
CREATE TABLE ecmc.energy_15m (
    edge_id       int NOT NULL,
    start         timestamptz NOT NULL,
    energy_kwh    float8 NOT NULL,
    estimated_kwh float8 NOT NULL,
    covered_s     float8 NOT NULL,
    PRIMARY KEY (edge_id, start)
);
CREATE TABLE ecmc.node_15m (
    node_id      int NOT NULL,
    start        timestamptz NOT NULL,
    in_kwh       float8 NOT NULL,
    out_kwh      float8 NOT NULL,
    residual_kwh float8 NOT NULL,
    through_kwh  float8 NOT NULL,
    covered_s    float8 NOT NULL,
    PRIMARY KEY (node_id, start)
);
CREATE TABLE ecmc.emission_15m (
    node_id         int NOT NULL,
    flow_id         int NOT NULL,
    start           timestamptz NOT NULL,
    emissions_kg    float8 NOT NULL,
    through_kg      float8 NOT NULL,
    PRIMARY KEY (node_id, flow_id, start)
);
CREATE TABLE ecmc.energy_1h (LIKE ecmc.energy_15m INCLUDING ALL);
CREATE TABLE ecmc.node_1h (LIKE ecmc.node_15m INCLUDING ALL);
CREATE TABLE ecmc.emission_1h (LIKE ecmc.emission_15m INCLUDING ALL);

-- What a storage holds at an hour's start.
CREATE TABLE ecmc.stock (
    node_id int NOT NULL,
    hour    timestamptz NOT NULL,
    kwh     float8 NOT NULL,
    PRIMARY KEY (node_id, hour)
);
CREATE TABLE ecmc.stock_carbon (
    node_id int NOT NULL,
    flow_id int NOT NULL,
    hour    timestamptz NOT NULL,
    kg      float8 NOT NULL,
    PRIMARY KEY (node_id, flow_id, hour)
);

-- Gauges by quarter of an hour; bad samples are left out.
CREATE TABLE ecmc.sample_15m (
    point_id int NOT NULL,
    start    timestamptz NOT NULL,
    n        int NOT NULL,
    sum      float8 NOT NULL,
    min      float8 NOT NULL,
    max      float8 NOT NULL,
    PRIMARY KEY (point_id, start)
);

-- The alarm log: one row a transition, never changed. The newest of a rule is its state.
CREATE TABLE ecmc.alert_event (
    id    bigserial PRIMARY KEY,
    rule  text NOT NULL,
    time  timestamptz NOT NULL,
    state text NOT NULL,
    value float8,
    who   text,
    note  text,
    at    timestamptz NOT NULL DEFAULT now(),
    data  jsonb
);
CREATE INDEX ON ecmc.alert_event (rule, id);
CREATE INDEX ON ecmc.alert_event (time);
CREATE VIEW ecmc.alert_state AS
SELECT DISTINCT ON (rule) * FROM ecmc.alert_event ORDER BY rule, id DESC;

CREATE TABLE ecmc.meter_event (
    id            bigserial PRIMARY KEY,
    device        text NOT NULL,
    time          timestamptz NOT NULL,
    kind          text NOT NULL,
    final_reading float8,
    first_reading float8,
    ratio         float8,
    who           text NOT NULL,
    why           text NOT NULL,
    at            timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON ecmc.meter_event (device, time);

-- Figures hardly compress and an hour of minutes fits a page: kept in the row, as they are.
ALTER TABLE ecmc.energy_block SET (toast_tuple_target = 4080);
ALTER TABLE ecmc.node_block SET (toast_tuple_target = 4080);
ALTER TABLE ecmc.emission_block SET (toast_tuple_target = 4080);
