-- TimescaleDB's time_bucket where there is no TimescaleDB, so that every statement has one text.
-- Weeks and days count from Monday 2000-01-03, months and years from 2000-01-01, as there.

CREATE FUNCTION ecmc.time_bucket(width interval, at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN date_bin(width, at, timestamptz '2000-01-03 00:00:00+00');

CREATE FUNCTION ecmc.time_bucket(width interval, at timestamptz, zone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE
    WHEN extract(year FROM width) * 12 + extract(month FROM width) > 0 THEN
        (timestamp '2000-01-01' + make_interval(months => (
            floor(
                ((extract(year FROM at AT TIME ZONE zone) - 2000) * 12 + extract(month FROM at AT TIME ZONE zone) - 1)
                / (extract(year FROM width) * 12 + extract(month FROM width))
            ) * (extract(year FROM width) * 12 + extract(month FROM width))
        )::int)) AT TIME ZONE zone
    ELSE date_bin(width, at AT TIME ZONE zone, timestamp '2000-01-03 00:00:00') AT TIME ZONE zone
END;
