-- What certmagic keeps, by its path. Values are sealed above this package.
CREATE TABLE file (
    key      TEXT PRIMARY KEY,
    value    BLOB    NOT NULL,
    modified INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What a certificate's files, or an account's, held before they were replaced.
CREATE TABLE former (
    key      TEXT PRIMARY KEY,
    value    BLOB    NOT NULL,
    modified INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who may do what is named, and until when if nothing more is heard of it.
CREATE TABLE lease (
    name  TEXT PRIMARY KEY,
    owner TEXT    NOT NULL,
    taken INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
