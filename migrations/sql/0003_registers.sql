-- What people write down. An entry is never changed: it is approved by a second person, or withdrawn with a reason.

CREATE TABLE ecmc.entry (
    id           bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    register     text NOT NULL CHECK (register IN ('activity', 'production', 'green-power', 'factor')),
    subject      text NOT NULL,  -- standing entries of one subject do not overlap in time
    start_time   timestamptz NOT NULL,
    end_time     timestamptz NOT NULL CHECK (end_time > start_time),
    body         jsonb NOT NULL,
    who          text NOT NULL,
    at           timestamptz NOT NULL,
    approved_by  text CHECK (approved_by <> who),
    approved_at  timestamptz,
    withdrawn_by text,
    withdrawn_at timestamptz,
    why          text
);
CREATE INDEX ON ecmc.entry (register, subject, start_time) WHERE withdrawn_at IS NULL;
CREATE INDEX ON ecmc.entry (register, id);

-- A certificate as it stands, and below it everything that ever happened to it.
CREATE TABLE ecmc.certificate (
    serial     text PRIMARY KEY,
    generated  text NOT NULL,  -- month, 2026-03
    technology text NOT NULL,
    province   text NOT NULL,
    state      text NOT NULL,
    own        boolean NOT NULL,
    changed_on date NOT NULL,
    claim      text
);
CREATE INDEX ON ecmc.certificate (generated, state);

CREATE TABLE ecmc.certificate_event (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    serial     text NOT NULL,
    state      text NOT NULL,
    changed_on date NOT NULL,
    claim      text,
    who        text NOT NULL,
    at         timestamptz NOT NULL
);
CREATE INDEX ON ecmc.certificate_event (serial);

-- Files that back an entry, known by what is in them.
CREATE TABLE ecmc.evidence (
    sha256  text PRIMARY KEY CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    name    text NOT NULL,
    media   text NOT NULL,
    content bytea NOT NULL,
    who     text NOT NULL,
    at      timestamptz NOT NULL
);
