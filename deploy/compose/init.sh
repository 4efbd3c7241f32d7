#!/bin/sh
# Run once by the postgres image, as the superuser, when its data directory is empty.
set -eu

psql -v ON_ERROR_STOP=1 -v password="$(cat /secrets/turnstile-password)" \
  --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
-- Roles with LOGIN and no password: a token is the only way in.
CREATE ROLE alice LOGIN;
CREATE ROLE rita LOGIN;

-- Logs in for everybody, may become those two, has none of their rights itself and can grant nothing.
CREATE ROLE turnstile LOGIN NOINHERIT PASSWORD :'password';
GRANT alice, rita TO turnstile WITH INHERIT FALSE, SET TRUE, ADMIN FALSE;

CREATE TABLE customer (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL,
  created_by name NOT NULL DEFAULT current_user
);
INSERT INTO customer (name) VALUES ('Aurora Bakery'), ('Brass & Sons'), ('Casa Verde');
GRANT SELECT, INSERT, UPDATE, DELETE ON customer TO alice;
GRANT SELECT ON customer TO rita;
SQL
