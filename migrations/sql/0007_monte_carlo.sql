-- A Monte Carlo run: terms and seed give the same result for ever, whatever the figures have become since.
CREATE TABLE ecmc.monte_carlo (
    id     bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    asked  jsonb NOT NULL,   -- period, basis, method set, known time
    terms  jsonb NOT NULL,
    trials int NOT NULL,
    seed   bigint NOT NULL,
    who    text NOT NULL,
    at     timestamptz NOT NULL,
    result jsonb,            -- NULL: under way
    done   timestamptz
);
