-- A key can be revoked by itself: an API key, by the SHA-256 of it, or that of a
-- certificate whose number the list does not say. So the list that components
-- keep names API keys too, and a core that is restored learns of them.
--
-- A row is one of: an identity's incarnations up to one, a serial number, of
-- which spki is the key, or a key alone.

CREATE TABLE revocations_next (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    role        TEXT    NOT NULL DEFAULT '',
    name        TEXT    NOT NULL DEFAULT '',
    incarnation INTEGER NOT NULL DEFAULT 0,
    serial      TEXT    NOT NULL DEFAULT '',
    reason      TEXT    NOT NULL,
    at          INTEGER NOT NULL,
    ends        INTEGER NOT NULL DEFAULT 0,
    spki        BLOB    CHECK (spki IS NULL OR length(spki) = 32),
    CHECK (CASE
        WHEN role <> ''   THEN name <> '' AND incarnation > 0 AND serial = '' AND spki IS NULL
        WHEN serial <> '' THEN name = '' AND incarnation = 0
        ELSE name = '' AND incarnation = 0 AND spki IS NOT NULL END)
) STRICT;

INSERT INTO revocations_next (id, role, name, incarnation, serial, reason, at, ends, spki)
SELECT id, role, name, incarnation, serial, reason, at, ends, spki FROM revocations ORDER BY id;

DROP TABLE revocations;
ALTER TABLE revocations_next RENAME TO revocations;

CREATE UNIQUE INDEX revocations_one ON revocations (role, name, incarnation, serial) WHERE role <> '' OR serial <> '';
CREATE UNIQUE INDEX revocations_one_key ON revocations (spki) WHERE role = '' AND serial = '';
CREATE INDEX revocations_key ON revocations (spki) WHERE spki IS NOT NULL;

CREATE TRIGGER revocations_are_not_changed BEFORE UPDATE ON revocations
BEGIN SELECT RAISE(ABORT, 'revocations are never changed'); END;

CREATE TRIGGER revocations_are_not_deleted BEFORE DELETE ON revocations
BEGIN SELECT RAISE(ABORT, 'revocations are never deleted'); END;

-- Those that were revoked until now. One that has ended by itself is no matter.
INSERT INTO revocations (reason, at, ends, spki)
SELECT 'API key ' || name, revoked, expires, sha256 FROM api_keys
WHERE revoked <> 0 AND (expires = 0 OR revoked < expires) ORDER BY id;
