-- Times are nanoseconds since 1970, 0 for "never". Lists are JSON arrays.
-- Key hashes are SHA-256 of the DER SubjectPublicKeyInfo. No table holds a
-- private key, a token's seed or an API key's secret.

CREATE TABLE state (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    epoch          INTEGER NOT NULL CHECK (epoch > 0),
    audit_sequence INTEGER NOT NULL,
    audit_hash     BLOB    NOT NULL CHECK (length(audit_hash) = 32)
) STRICT;

INSERT INTO state (one, epoch, audit_sequence, audit_hash) VALUES (1, 1, 0, zeroblob(32));

-- hash tells whether a component's snapshot has other content than before.
CREATE TABLE generations (
    role       TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    hash       BLOB,
    PRIMARY KEY (role, name)
) STRICT, WITHOUT ROWID;

-- One row per name that was ever added: a removed one stays, so that its
-- incarnation is never given again. Instances of a reusable gateway have their
-- own rows, with the name that was added as parent.
CREATE TABLE components (
    role        TEXT    NOT NULL CHECK (role IN ('gateway', 'proxy')),
    name        TEXT    NOT NULL,
    incarnation INTEGER NOT NULL CHECK (incarnation > 0),
    parent      TEXT    NOT NULL DEFAULT '',
    peers       TEXT    NOT NULL,
    serve       TEXT    NOT NULL,
    address     TEXT    NOT NULL,
    server_name TEXT    NOT NULL,
    reusable    INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('invited', 'joined', 'removed')),
    added       INTEGER NOT NULL,
    joined      INTEGER NOT NULL DEFAULT 0,
    last_seen   INTEGER NOT NULL DEFAULT 0,
    spki        BLOB,
    not_after   INTEGER NOT NULL DEFAULT 0,
    version     TEXT    NOT NULL DEFAULT '',
    observed    TEXT    NOT NULL DEFAULT '',
    PRIMARY KEY (role, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX components_parent ON components (role, parent) WHERE parent <> '';

CREATE TABLE tokens (
    public_key  BLOB    PRIMARY KEY CHECK (length(public_key) = 32),
    role        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    added       INTEGER NOT NULL,
    expires     INTEGER NOT NULL,
    reusable    INTEGER NOT NULL,
    uses        INTEGER NOT NULL,
    withdrawn   INTEGER NOT NULL DEFAULT 0,
    alarms      INTEGER NOT NULL DEFAULT 0,
    FOREIGN KEY (role, name) REFERENCES components (role, name)
) STRICT;

CREATE INDEX tokens_component ON tokens (role, name);

-- The keys that a token was bound to, with the answer each of them got. sole
-- is 1 for a token that is not reusable and NULL otherwise, so that the engine
-- itself refuses a second key.
CREATE TABLE adoptions (
    token       BLOB    NOT NULL REFERENCES tokens (public_key),
    spki        BLOB    NOT NULL CHECK (length(spki) = 32),
    sole        INTEGER CHECK (sole = 1),
    name        TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    source      TEXT    NOT NULL,
    at          INTEGER NOT NULL,
    serial      TEXT    NOT NULL REFERENCES certificates (serial),
    chain       TEXT    NOT NULL,
    superseded  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (token, spki),
    UNIQUE (token, sole)
) STRICT;

CREATE TABLE certificates (
    serial      TEXT    PRIMARY KEY,
    identity    TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    subject     TEXT    NOT NULL,
    role        TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    incarnation INTEGER NOT NULL,
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    spki        BLOB    NOT NULL CHECK (length(spki) = 32),
    der         BLOB    NOT NULL,
    recorded    INTEGER NOT NULL,
    revoked     INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX certificates_owner ON certificates (role, name);
CREATE INDEX certificates_end ON certificates (not_after);

-- Either an identity's incarnations up to and including one, or one serial.
-- ends is when nothing that it covers could be accepted any more, 0 for never.
CREATE TABLE revocations (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    role        TEXT    NOT NULL DEFAULT '',
    name        TEXT    NOT NULL DEFAULT '',
    incarnation INTEGER NOT NULL DEFAULT 0,
    serial      TEXT    NOT NULL DEFAULT '',
    reason      TEXT    NOT NULL,
    at          INTEGER NOT NULL,
    ends        INTEGER NOT NULL DEFAULT 0,
    CHECK ((serial = '') = (role <> '' AND name <> '' AND incarnation > 0)),
    UNIQUE (role, name, incarnation, serial)
) STRICT;

CREATE TABLE api_keys (
    id      INTEGER PRIMARY KEY,
    name    TEXT    NOT NULL,
    sha256  BLOB    NOT NULL UNIQUE CHECK (length(sha256) = 32),
    prefix  TEXT    NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE UNIQUE INDEX api_keys_live ON api_keys (name) WHERE revoked = 0;

CREATE TABLE policies (
    version INTEGER PRIMARY KEY,
    text    BLOB    NOT NULL,
    actor   TEXT    NOT NULL,
    applied INTEGER NOT NULL
) STRICT;

-- owner is the gateway's parent, or itself: instances of one reusable gateway
-- hold a service together.
CREATE TABLE services (
    service    TEXT    NOT NULL,
    gateway    TEXT    NOT NULL,
    owner      TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('routed', 'waiting', 'refused')),
    methods    TEXT    NOT NULL,
    first_seen INTEGER NOT NULL,
    PRIMARY KEY (service, gateway)
) STRICT, WITHOUT ROWID;

CREATE INDEX services_gateway ON services (gateway);

CREATE TABLE service_permits (
    service TEXT NOT NULL,
    owner   TEXT NOT NULL,
    PRIMARY KEY (service, owner)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    time     INTEGER NOT NULL,
    actor    TEXT    NOT NULL,
    action   TEXT    NOT NULL,
    subject  TEXT    NOT NULL,
    detail   TEXT    NOT NULL,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END;

CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit rows are never deleted'); END;

CREATE TABLE denials (
    minute INTEGER NOT NULL,
    caller TEXT    NOT NULL,
    method TEXT    NOT NULL,
    reason TEXT    NOT NULL,
    code   TEXT    NOT NULL,
    count  INTEGER NOT NULL,
    PRIMARY KEY (minute, caller, method, reason)
) STRICT, WITHOUT ROWID;
