-- What differs from the value that stands and was not taken over. All of it lies in [$1, $2].
SELECT s.point_id, s.time, s.value AS stored, s.status AS stored_status, i.value AS offered, i.status AS offered_status
FROM incoming AS i
JOIN ecmc.sample AS s ON s.point_id = i.point_id AND s.time = i.time
WHERE s.time BETWEEN $1 AND $2 AND s.value <> i.value
ORDER BY s.point_id, s.time
