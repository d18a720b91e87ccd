-- The readings of the points $1 before $2, none older than $3: the last one, the first of its plateau within $4, and
-- the one before that. `step` says which: 1 last, 2 first of the plateau, 3 before it.
SELECT p.id AS point_id, r.time, r.value, r.status, r.step
FROM unnest($1::int[]) AS p (id)
CROSS JOIN LATERAL (
    SELECT s.time, s.value FROM ecmc.sample AS s
    WHERE s.point_id = p.id AND s.time < $2 AND s.time >= $3 AND s.status >= 0
    ORDER BY s.time DESC LIMIT 1
) AS last
LEFT JOIN LATERAL (
    SELECT s.time FROM ecmc.sample AS s
    WHERE s.point_id = p.id AND s.time < last.time AND s.time >= last.time - $4::interval AND s.time >= $3
      AND s.time < $2 AND s.status >= 0 AND s.value <> last.value
    ORDER BY s.time DESC LIMIT 1
) AS broke ON true
CROSS JOIN LATERAL (
    SELECT s.time FROM ecmc.sample AS s
    WHERE s.point_id = p.id AND s.time <= last.time AND s.time >= $3 AND s.time < $2 AND s.status >= 0
      AND s.time >= coalesce(broke.time + interval '1 microsecond', last.time - $4::interval)
    ORDER BY s.time LIMIT 1
) AS first
CROSS JOIN LATERAL (
    (SELECT s.time, s.value, s.status, 3 AS step FROM ecmc.sample AS s
     WHERE s.point_id = p.id AND s.time < first.time AND s.time >= $3 AND s.time < $2 AND s.status >= 0
     ORDER BY s.time DESC LIMIT 1)
    UNION ALL
    (SELECT s.time, s.value, s.status, CASE WHEN s.time = last.time THEN 1 ELSE 2 END FROM ecmc.sample AS s
     WHERE s.point_id = p.id AND s.time IN (first.time, last.time) AND s.time >= $3 AND s.time < $2)
) AS r
