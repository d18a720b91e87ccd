-- The newest sample by time of each point; one at the same time takes its place.
INSERT INTO ecmc.latest AS l (point_id, time, value, status, first_time)
SELECT point_id, time, value, status, first_time FROM newest ORDER BY point_id
ON CONFLICT (point_id) DO UPDATE
SET first_time = least(l.first_time, excluded.first_time),
    time = greatest(l.time, excluded.time),
    value = CASE WHEN excluded.time >= l.time THEN excluded.value ELSE l.value END,
    status = CASE WHEN excluded.time >= l.time THEN excluded.status ELSE l.status END
