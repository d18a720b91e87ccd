-- A recomputation under way: how far it has come, so that one that was killed goes on where it was.
CREATE TABLE ecmc.recompute (
    id          bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    start_time  timestamptz NOT NULL,
    end_time    timestamptz NOT NULL,
    asked       text NOT NULL,         -- the known time and model asked for, as words
    known_at    timestamptz NOT NULL,  -- fixed when it began
    done_until  timestamptz NOT NULL,
    who         text NOT NULL,
    UNIQUE (start_time, end_time, asked)
);
