-- What stands at no key yet.
WITH inserted AS (
    INSERT INTO ecmc.sample (time, value, point_id, status)
    SELECT time, value, point_id, status FROM incoming ORDER BY point_id, time
    ON CONFLICT (point_id, time) DO NOTHING
    RETURNING point_id, time, value, status
)
SELECT point_id, time, value, status FROM inserted ORDER BY point_id, time
