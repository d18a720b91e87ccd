-- The rows of `newest` in place of the version each was made from. One that somebody else has changed meanwhile, or
-- taken away, is left as it is and not counted. In the order of the key, so that writers never wait in a circle.
INSERT INTO ecmc.latest_block AS b (block, before, version, time, value, status, first_time)
SELECT n.block, n.before, n.version, n.time, n.value, n.status, n.first_time
FROM newest AS n
WHERE n.before = 0 OR EXISTS (SELECT FROM ecmc.latest_block AS old WHERE old.block = n.block)
ORDER BY n.block
ON CONFLICT (block) DO UPDATE
SET before = excluded.before, version = excluded.version, time = excluded.time, value = excluded.value,
    status = excluded.status, first_time = excluded.first_time
WHERE b.version = excluded.before
