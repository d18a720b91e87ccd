-- The newest sample of each point, 64 points a row; see core/store/newest.py. Readers know it as the view `latest`.
CREATE TABLE ecmc.latest_block (
    block      int PRIMARY KEY,         -- of the points block * 64 up to block * 64 + 63
    before     bigint NOT NULL,         -- the version this one was made from; 0: of none
    version    bigint NOT NULL,         -- random, so that no other content ever had it
    time       timestamptz[] NOT NULL,  -- '-infinity' for a point without samples
    value      float8[] NOT NULL,
    status     smallint[] NOT NULL,
    first_time timestamptz[] NOT NULL   -- no sample of the point is older; bounds every search backwards
) WITH (fillfactor = 50, toast_tuple_target = 4080);
ALTER TABLE ecmc.latest_block
    ALTER time SET STORAGE PLAIN, ALTER value SET STORAGE PLAIN,
    ALTER status SET STORAGE PLAIN, ALTER first_time SET STORAGE PLAIN;

INSERT INTO ecmc.latest_block (block, before, version, time, value, status, first_time)
SELECT b.block, 0, 1,
       array_agg(coalesce(l.time, '-infinity') ORDER BY cell),
       array_agg(coalesce(l.value, 'NaN') ORDER BY cell),
       array_agg(coalesce(l.status, 0::smallint) ORDER BY cell),
       array_agg(coalesce(l.first_time, 'infinity') ORDER BY cell)
FROM (SELECT DISTINCT point_id / 64 AS block FROM ecmc.latest) AS b
CROSS JOIN generate_series(0, 63) AS cell
LEFT JOIN ecmc.latest AS l ON l.point_id = b.block * 64 + cell
GROUP BY b.block;

ALTER TABLE ecmc.latest RENAME TO latest_before;
CREATE VIEW ecmc.latest AS
SELECT (b.block * 64 + p.place - 1)::int AS point_id, p.time, p.value, p.status, p.first_time
FROM ecmc.latest_block AS b
CROSS JOIN LATERAL unnest(b.time, b.value, b.status, b.first_time)
    WITH ORDINALITY AS p (time, value, status, first_time, place)
WHERE p.time > '-infinity';

CREATE OR REPLACE VIEW board.latest AS
SELECT p.name AS point, p.device, p.quantity, p.unit, l.time, l.value, l.status,
       CASE WHEN l.status < 0 THEN 'bad' WHEN l.status >= 16384 THEN 'uncertain' ELSE 'good' END AS quality
FROM ecmc.latest AS l
JOIN ecmc.point AS p ON p.id = l.point_id;
DROP TABLE ecmc.latest_before;
