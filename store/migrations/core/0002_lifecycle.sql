-- What the life of certificates needs: which key of an identity counts, how far
-- the CA's rotation is, who knows of which revocation, what was reported and
-- alerted about, and where a restored database comes from.

-- made and restored tell of the newest restore: when the backup was made and
-- when it was restored. What was issued in between is not known here.
ALTER TABLE state ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN restored INTEGER NOT NULL DEFAULT 0;

-- grpc_tls is how a proxy's gRPC port shows itself, since core never guesses.
ALTER TABLE components ADD COLUMN cert_names TEXT NOT NULL DEFAULT '[]';
ALTER TABLE components ADD COLUMN grpc_tls TEXT NOT NULL DEFAULT 'internal';

-- root is the SHA-256 of the SubjectPublicKeyInfo of the root above it, NULL
-- where nobody said; holder is who has it and for what, empty when that was the
-- caller's business.
ALTER TABLE certificates ADD COLUMN root BLOB;
ALTER TABLE certificates ADD COLUMN holder TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN revoked_reason TEXT NOT NULL DEFAULT '';

CREATE INDEX certificates_holder ON certificates (holder) WHERE holder <> '';
CREATE INDEX certificates_identity ON certificates (identity);

UPDATE certificates SET revoked_reason = coalesce(
    (SELECT reason FROM revocations r WHERE r.serial = certificates.serial),
    (SELECT reason FROM revocations r WHERE r.serial = '' AND r.role = certificates.role AND r.name = certificates.name
        AND r.incarnation >= certificates.incarnation ORDER BY r.id LIMIT 1), '') WHERE revoked <> 0;

-- The keys of an incarnation of a component. One is confirmed, the last one
-- that a control session ran with, and at most one is pending, issued and not
-- seen yet; the engine refuses a second of either. Superseded ones are kept for
-- as long as their certificate could be shown to core (ends). chain is the
-- answer that a pending key got, since the same question gets it again.
CREATE TABLE identity_keys (
    role        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    spki        BLOB    NOT NULL CHECK (length(spki) = 32),
    state       TEXT    NOT NULL CHECK (state IN ('confirmed', 'pending', 'superseded')),
    since       INTEGER NOT NULL,
    serial      TEXT    NOT NULL,
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    root        BLOB,
    source      TEXT    NOT NULL,
    chain       TEXT    NOT NULL DEFAULT '[]',
    alarms      INTEGER NOT NULL DEFAULT 0,
    ends        INTEGER NOT NULL,
    PRIMARY KEY (role, name, incarnation, spki)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX identity_keys_one ON identity_keys (role, name, state) WHERE state <> 'superseded';

-- Until now an identity had the one key that it joined with.
INSERT INTO identity_keys (role, name, incarnation, spki, state, since, serial, not_before, not_after, source, ends)
SELECT c.role, c.name, c.incarnation, c.spki, 'confirmed', c.joined, x.serial, x.not_before, x.not_after, c.observed,
       x.not_after + 31 * 24 * 3600 * 1000000000
FROM components c JOIN certificates x ON x.rowid = (
    SELECT max(rowid) FROM certificates WHERE role = c.role AND name = c.name AND incarnation = c.incarnation AND spki = c.spki)
WHERE c.state = 'joined';

-- The list of revocations only grows. spki is the key of a single certificate.
ALTER TABLE revocations ADD COLUMN spki BLOB;

UPDATE revocations SET spki = (SELECT spki FROM certificates x WHERE x.serial = revocations.serial) WHERE serial <> '';

CREATE INDEX revocations_key ON revocations (spki) WHERE spki IS NOT NULL;

CREATE TRIGGER revocations_are_not_changed BEFORE UPDATE ON revocations
BEGIN SELECT RAISE(ABORT, 'revocations are never changed'); END;

CREATE TRIGGER revocations_are_not_deleted BEFORE DELETE ON revocations
BEGIN SELECT RAISE(ABORT, 'revocations are never deleted'); END;

-- What a component has acknowledged, and whether the rotation waits for it.
CREATE TABLE acknowledgements (
    role        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    bundle      BLOB,
    epoch       INTEGER NOT NULL DEFAULT 0,
    revocations INTEGER NOT NULL DEFAULT 0,
    skipped     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (role, name)
) STRICT, WITHOUT ROWID;

-- The CA's own files are the truth about its phase. This is what core was about
-- to do with them (intent, empty: nothing) and what it last found them to be.
CREATE TABLE rotation (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    phase    TEXT    NOT NULL,
    root     BLOB,
    since    INTEGER NOT NULL,
    wait     INTEGER NOT NULL,
    deadline INTEGER NOT NULL,
    intent   TEXT    NOT NULL,
    intended INTEGER NOT NULL
) STRICT;

INSERT INTO rotation (one, phase, since, wait, deadline, intent, intended) VALUES (1, '', 0, 0, 0, '', 0);

-- Certificates beside their identity that components say they use.
CREATE TABLE held_certificates (
    role       TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    what       TEXT    NOT NULL,
    subject    TEXT    NOT NULL,
    serial     TEXT    NOT NULL,
    not_before INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    error      TEXT    NOT NULL,
    reported   INTEGER NOT NULL,
    PRIMARY KEY (role, name, what)
) STRICT, WITHOUT ROWID;

-- What was alerted about, so that each thing is said once.
CREATE TABLE alerts (
    id  INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT    NOT NULL UNIQUE,
    at  INTEGER NOT NULL
) STRICT;
