-- What boards may read: a versioned contract. Columns are added, never renamed or taken away.
-- A view reads with its owner's rights, so a reader needs nothing but SELECT here:
--   SELECT ecmc.grant_boards('grafana');
-- Grant each role by itself: a member of another role can put that one on by SET ROLE.

CREATE VIEW board.plant AS
SELECT plant, name_zh, name_en, zone, base_interval_s, method_set, adopted
FROM ecmc.plant_revision
ORDER BY adopted DESC
LIMIT 1;
COMMENT ON VIEW board.plant IS 'The plant as it stands: names, IANA zone, base interval, default method set';

CREATE VIEW board.point AS
SELECT name AS point, device, quantity, unit, kind FROM ecmc.point;
COMMENT ON VIEW board.point IS 'Every measuring point there ever was';

CREATE VIEW board.node AS
SELECT name AS node, kind, carrier, area, name_zh, name_en FROM ecmc.node;
COMMENT ON VIEW board.node IS 'Nodes of the energy network; site is the whole inventory';

CREATE VIEW board.edge AS
SELECT name AS edge, source, target, carrier FROM ecmc.edge;
COMMENT ON VIEW board.edge IS 'Edges of the energy network, from node to node';

CREATE VIEW board.latest AS
SELECT p.name AS point, p.device, p.quantity, p.unit, l.time, l.value, l.status,
       CASE WHEN l.status < 0 THEN 'bad' WHEN l.status >= 16384 THEN 'uncertain' ELSE 'good' END AS quality
FROM ecmc.latest AS l
JOIN ecmc.point AS p ON p.id = l.point_id;
COMMENT ON VIEW board.latest IS 'Newest sample of each point; a missing value is NaN with quality bad';

CREATE VIEW board.power_latest AS
SELECT point, device, time, value AS power_kw, quality
FROM board.latest
WHERE unit = 'kW';
COMMENT ON VIEW board.power_latest IS 'Newest power of each point that delivers kW';

CREATE VIEW board.energy_15m AS
SELECT r.start AS time, e.name AS edge, e.source, e.target, e.carrier,
       r.energy_kwh, r.estimated_kwh, r.covered_s / 900 AS coverage
FROM ecmc.energy_15m AS r
JOIN ecmc.edge AS e ON e.id = r.edge_id;
COMMENT ON VIEW board.energy_15m IS 'Energy of each edge by quarter of an hour, kWh';

CREATE VIEW board.energy_1h AS
SELECT r.start AS time, e.name AS edge, e.source, e.target, e.carrier,
       r.energy_kwh, r.estimated_kwh, r.covered_s / 3600 AS coverage
FROM ecmc.energy_1h AS r
JOIN ecmc.edge AS e ON e.id = r.edge_id;
COMMENT ON VIEW board.energy_1h IS 'Energy of each edge by hour, kWh';

CREATE VIEW board.balance_15m AS
SELECT r.start AS time, n.name AS node, n.kind, r.in_kwh, r.out_kwh, r.residual_kwh, r.through_kwh,
       r.covered_s / 900 AS coverage
FROM ecmc.node_15m AS r
JOIN ecmc.node AS n ON n.id = r.node_id;
COMMENT ON VIEW board.balance_15m IS 'Energy in, out and unexplained of each node by quarter of an hour, kWh';

CREATE VIEW board.balance_1h AS
SELECT r.start AS time, n.name AS node, n.kind, r.in_kwh, r.out_kwh, r.residual_kwh, r.through_kwh,
       r.covered_s / 3600 AS coverage
FROM ecmc.node_1h AS r
JOIN ecmc.node AS n ON n.id = r.node_id;
COMMENT ON VIEW board.balance_1h IS 'Energy in, out and unexplained of each node by hour, kWh';

CREATE VIEW board.emission_15m AS
SELECT r.start AS time, n.name AS node, n.kind, f.scope, f.basis, f.method_set,
       r.emissions_kg AS emissions_kgco2e, r.through_kg AS through_kgco2e, k.through_kwh,
       k.covered_s / 900 AS coverage
FROM ecmc.emission_15m AS r
JOIN ecmc.node AS n ON n.id = r.node_id
JOIN ecmc.flow AS f ON f.id = r.flow_id
LEFT JOIN ecmc.node_15m AS k ON k.node_id = r.node_id AND k.start = r.start;
COMMENT ON VIEW board.emission_15m IS 'Emissions of each node, scope, basis and method set by quarter of an hour; NaN is unknown';

CREATE VIEW board.emission_1h AS
SELECT r.start AS time, n.name AS node, n.kind, f.scope, f.basis, f.method_set,
       r.emissions_kg AS emissions_kgco2e, r.through_kg AS through_kgco2e, k.through_kwh,
       k.covered_s / 3600 AS coverage
FROM ecmc.emission_1h AS r
JOIN ecmc.node AS n ON n.id = r.node_id
JOIN ecmc.flow AS f ON f.id = r.flow_id
LEFT JOIN ecmc.node_1h AS k ON k.node_id = r.node_id AND k.start = r.start;
COMMENT ON VIEW board.emission_1h IS 'Emissions of each node, scope, basis and method set by hour; NaN is unknown';

CREATE VIEW board.sample_15m AS
SELECT r.start AS time, p.name AS point, p.quantity, p.unit, r.n, r.sum / r.n AS mean, r.min, r.max
FROM ecmc.sample_15m AS r
JOIN ecmc.point AS p ON p.id = r.point_id;
COMMENT ON VIEW board.sample_15m IS 'Gauges by quarter of an hour: mean, least and greatest of the samples that were not bad';

CREATE VIEW board.alert AS
SELECT rule, time, state, value, who, note, at FROM ecmc.alert_state;
COMMENT ON VIEW board.alert IS 'The state each alarm is in';

CREATE VIEW board.alert_event AS
SELECT id, rule, time, state, value, who, note, at FROM ecmc.alert_event;
COMMENT ON VIEW board.alert_event IS 'Every transition of every alarm';

CREATE FUNCTION ecmc.grant_boards(reader regrole) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA board TO %s', reader);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA board TO %s', reader);
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA board GRANT SELECT ON TABLES TO %s', reader);
END
$$;
