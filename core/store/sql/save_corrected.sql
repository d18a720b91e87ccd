-- Keep what a correction is about to replace, with who ($1), why ($2) and when ($3). All of it lies in [$4, $5].
INSERT INTO ecmc.correction (point_id, time, old_value, old_status, new_value, new_status, who, why, at)
SELECT s.point_id, s.time, s.value, s.status, i.value, i.status, $1, $2, $3
FROM incoming AS i
JOIN ecmc.sample AS s ON s.point_id = i.point_id AND s.time = i.time
WHERE s.time BETWEEN $4 AND $5 AND s.value <> i.value
