-- Up to where raw samples have been dropped, of points that feed no edge and of all: a roll-up of before is all that is
-- left of them, so late samples add to it and never take its place.
ALTER TABLE ecmc.seal_horizon
    ADD COLUMN thinned_until timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN dropped_until timestamptz NOT NULL DEFAULT '-infinity';
-- What has been dropped so far was so after thirty days and after ten years.
UPDATE ecmc.seal_horizon
SET thinned_until = now() - interval '30 days', dropped_until = now() - interval '3660 days'
WHERE EXISTS (SELECT FROM ecmc.latest);
