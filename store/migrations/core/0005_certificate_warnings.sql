-- What will be wrong with a certificate that a component uses, though it is good now.
ALTER TABLE held_certificates ADD COLUMN warning TEXT NOT NULL DEFAULT '';
