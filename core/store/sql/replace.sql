-- A good value takes the place of a bad or uncertain one, unless that stands by a correction; with $1, any difference
-- takes its place. All of it lies in [$2, $3].
WITH replaced AS (
    UPDATE ecmc.sample AS s
    SET value = i.value, status = i.status
    FROM incoming AS i
    WHERE s.point_id = i.point_id AND s.time = i.time AND s.time BETWEEN $2 AND $3
      AND (
          (
              i.status BETWEEN 0 AND 16383 AND s.status NOT BETWEEN 0 AND 16383
              AND NOT EXISTS (SELECT FROM ecmc.correction AS c WHERE c.point_id = s.point_id AND c.time = s.time)
          )
          OR ($1 AND s.value <> i.value)
      )
    RETURNING s.point_id, s.time, s.value, s.status
)
SELECT point_id, time, value, status FROM replaced ORDER BY point_id, time
