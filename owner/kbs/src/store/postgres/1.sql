-- Names, ids and contents are bytes, whatever the database's encoding and collation are.
CREATE SCHEMA IF NOT EXISTS sealpod;

CREATE TABLE sealpod.version (number integer NOT NULL);
INSERT INTO sealpod.version VALUES (1);

CREATE TABLE sealpod.entry (
    kind text NOT NULL,
    name bytea NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (kind, name)
);

-- One row, another after every change of settings and reference values.
CREATE TABLE sealpod.revision (mark uuid NOT NULL);
INSERT INTO sealpod.revision VALUES (gen_random_uuid());

CREATE TABLE sealpod.audit_class (
    class text PRIMARY KEY,
    -- The position of its latest entry.
    latest bigint NOT NULL
);
INSERT INTO sealpod.audit_class VALUES ('guest', 0), ('anybody', 0);

CREATE TABLE sealpod.audit (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id bytea NOT NULL,
    class text NOT NULL,
    -- In its class, without gaps.
    position bigint NOT NULL,
    entry bytea NOT NULL,
    UNIQUE (class, position)
);
CREATE INDEX ON sealpod.audit (id);

CREATE TABLE sealpod.session (
    id bytea PRIMARY KEY,
    expires timestamptz NOT NULL,
    challenge bytea NOT NULL,
    answered boolean NOT NULL DEFAULT false,
    attested bytea
);
CREATE INDEX ON sealpod.session (expires);
