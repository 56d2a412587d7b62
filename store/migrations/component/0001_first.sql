-- The last good snapshot from core: one row, replaced whole.
CREATE TABLE snapshot (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    epoch      INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    body       BLOB    NOT NULL,
    saved      INTEGER NOT NULL
) STRICT;

-- What the component wants to know again after a restart.
CREATE TABLE memory (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
