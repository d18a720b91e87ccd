-- The readings of the points $1 from $2 on, none younger than $3: the first one and, within $4 of it, the first with
-- another value, and the one after that. `step`: 1 first, 2 the other value, 3 after it.
SELECT p.id AS point_id, r.time, r.value, r.status, r.step
FROM unnest($1::int[]) AS p (id)
CROSS JOIN LATERAL (
    SELECT s.time, s.value FROM ecmc.sample AS s
    WHERE s.point_id = p.id AND s.time >= $2 AND s.time <= $3 AND s.status >= 0
    ORDER BY s.time LIMIT 1
) AS next
LEFT JOIN LATERAL (
    SELECT s.time FROM ecmc.sample AS s
    WHERE s.point_id = p.id AND s.time > next.time AND s.time <= next.time + $4::interval AND s.time <= $3
      AND s.time >= $2 AND s.status >= 0 AND s.value <> next.value
    ORDER BY s.time LIMIT 1
) AS other ON true
CROSS JOIN LATERAL (
    (SELECT s.time, s.value, s.status, 3 AS step FROM ecmc.sample AS s
     WHERE s.point_id = p.id AND s.time > other.time AND s.time >= $2 AND s.time <= $3 AND s.status >= 0
     ORDER BY s.time LIMIT 1)
    UNION ALL
    (SELECT s.time, s.value, s.status, CASE WHEN s.time = next.time THEN 1 ELSE 2 END FROM ecmc.sample AS s
     WHERE s.point_id = p.id AND s.time IN (next.time, other.time) AND s.time >= $2 AND s.time <= $3)
) AS r
