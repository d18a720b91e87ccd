-- What a recomputation under way has to keep, so that one that was killed says at its end all that it changed. As JSON,
-- in text: numbers to the last digit.
ALTER TABLE ecmc.recompute
    ADD COLUMN made text,   -- the figures so far; NULL of one begun before these columns were
    ADD COLUMN begun text;  -- the pieces under way as they stood before, which nobody can read once they are written
