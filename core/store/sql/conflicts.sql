-- What differs from the value that stands and was not taken over.
SELECT s.point_id, s.time, s.value AS stored, s.status AS stored_status, i.value AS offered, i.status AS offered_status
FROM incoming AS i
JOIN ecmc.sample AS s ON s.point_id = i.point_id AND s.time = i.time
WHERE s.value <> i.value
ORDER BY s.point_id, s.time
