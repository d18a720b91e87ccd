-- The quarters of an hour in [$1, $2) of the gauges among $3 (NULL: of all), anew from the samples. Where samples have
-- been dropped a quarter stays as it is, unless there are as many as it was made of.
WITH gauge AS (
    SELECT p.id, CASE WHEN p.feeds THEN h.dropped_until ELSE h.thinned_until END AS kept_from
    FROM ecmc.point AS p CROSS JOIN ecmc.seal_horizon AS h
    WHERE p.kind = 'gauge' AND ($3::int[] IS NULL OR p.id = ANY($3))
),
gone AS (
    DELETE FROM ecmc.sample_15m AS r USING gauge AS g
    WHERE r.point_id = g.id AND r.start >= $1 AND r.start < $2 AND r.start >= g.kept_from
      AND NOT EXISTS (
          SELECT FROM ecmc.sample AS s
          WHERE s.point_id = r.point_id AND s.time >= r.start AND s.time < r.start + interval '15 minutes'
            AND s.time >= $1 AND s.time < $2 AND s.status >= 0
      )
)
INSERT INTO ecmc.sample_15m AS r (point_id, start, n, sum, min, max)
SELECT point_id, time_bucket(interval '15 minutes', time) AS start, count(*), sum(value), min(value), max(value)
FROM ecmc.sample
WHERE time >= $1 AND time < $2 AND status >= 0 AND point_id IN (SELECT id FROM gauge)
GROUP BY point_id, time_bucket(interval '15 minutes', time)
ON CONFLICT (point_id, start) DO UPDATE
SET n = excluded.n, sum = excluded.sum, min = excluded.min, max = excluded.max
WHERE (r.n, r.sum, r.min, r.max) IS DISTINCT FROM (excluded.n, excluded.sum, excluded.min, excluded.max)
  AND (excluded.n >= r.n OR r.start >= (SELECT g.kept_from FROM gauge AS g WHERE g.id = r.point_id))
