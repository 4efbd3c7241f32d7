/**
 * The SQL that lets a database check that claims come from the pooler: a key table, turnstile.claims() and an example
 * policy, as a script for psql. It writes text and connects to nothing.
 */
import { createHash } from 'node:crypto';
import type { Config } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { MAC_SETTING } from '../session/claim-settings.ts';
import { settingName } from '../sql/settings.ts';

/** Bytes of a block of SHA-256 (RFC 2104 section 2, FIPS 180-4). */
const BLOCK_BYTES = 64;

/**
 * A script for `psql --no-psqlrc --set ON_ERROR_STOP=1`; running it again changes nothing, and with another key adds
 * that key. It holds the key: the text belongs in a pipe, not in a file or a log. Throws PgError when
 * `claims_mac_key` is not set or `claims_setting` is none.
 */
export function claimsSql(config: Config): string {
  const { claimsMacKey, claimsMacKeyId, claimsSetting } = config.turnstile;
  if (claimsMacKey === null)
    throw missing('turnstile.claims_mac_key is not set: there is no key to check with');
  if (claimsSetting === 'none') throw missing('turnstile.claims_setting is "none": there is nothing to sign');
  const [inner, outer] = hmacPads(claimsMacKey.reveal());
  // Rows of COPY: neither a log of statements nor pg_stat_activity shows them.
  const keyRow = [claimsMacKeyId, `\\\\x${inner.toString('hex')}`, `\\\\x${outer.toString('hex')}`].join(
    '\t',
  );
  return `${HEAD}
${KEY_TABLE}
COPY turnstile_new_key FROM stdin;
${keyRow}
\\.
${STORE_KEY}
${claimsFunction(settingName(claimsSetting))}
${CLAIM_FUNCTION}
COMMIT;
${EXAMPLE}`;
}

/** The key for the inner and the outer hash, each a block (RFC 2104 section 2). */
function hmacPads(key: string): [inner: Buffer, outer: Buffer] {
  const given = Buffer.from(key);
  const block = Buffer.alloc(BLOCK_BYTES);
  (given.length > BLOCK_BYTES ? createHash('sha256').update(given).digest() : given).copy(block);
  return [block.map((byte) => byte ^ 0x36) as Buffer, block.map((byte) => byte ^ 0x5c) as Buffer];
}

function missing(message: string): PgError {
  return new PgError({ code: SqlState.InvalidParameterValue, message });
}

const HEAD = `-- Signed claims of pgturnstile. It holds the key in clear: pipe it to psql, keep it in no file.
--   pgturnstile sql claims | psql --no-psqlrc --set ON_ERROR_STOP=1 --dbname app
-- Run it in each database whose policies use it, as a superuser or as a member of pg_read_all_stats that may CREATE
-- in the database, and with no role that a token may become: whoever owns turnstile.mac_key can sign. It can be run
-- again, for a new key as well.
\\set QUIET on
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_encoding = 'UTF8';
DO $do$
BEGIN
  -- turnstile.claims() compares with the start of the connection, which belongs to another user.
  IF NOT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') THEN
    RAISE EXCEPTION 'the owner of turnstile.claims() must be a member of pg_read_all_stats';
  END IF;
END
$do$;`;

const KEY_TABLE = `CREATE SCHEMA IF NOT EXISTS turnstile;
-- A key is kept as the two blocks that HMAC-SHA256 begins with (RFC 2104).
CREATE TABLE IF NOT EXISTS turnstile.mac_key (
  id text PRIMARY KEY,
  inner_block bytea NOT NULL,
  outer_block bytea NOT NULL
);
REVOKE ALL ON TABLE turnstile.mac_key FROM PUBLIC;
REVOKE ALL ON SCHEMA turnstile FROM PUBLIC;
GRANT USAGE ON SCHEMA turnstile TO PUBLIC;
CREATE TEMPORARY TABLE turnstile_new_key (LIKE turnstile.mac_key) ON COMMIT DROP;`;

const STORE_KEY = `INSERT INTO turnstile.mac_key SELECT id, inner_block, outer_block FROM pg_temp.turnstile_new_key
  ON CONFLICT (id) DO UPDATE SET inner_block = excluded.inner_block, outer_block = excluded.outer_block;
-- When no pooler signs with an old key any more: DELETE FROM turnstile.mac_key WHERE id = 'its id';`;

/** In a parallel worker the process id is the worker's, hence PARALLEL RESTRICTED. */
function claimsFunction(setting: string): string {
  const name = `'${setting.replaceAll("'", "''")}'`;
  return `CREATE OR REPLACE FUNCTION turnstile.claims() RETURNS jsonb
  LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
  claims text := pg_catalog.current_setting(${name}, true);
  mac text := pg_catalog.current_setting('${MAC_SETTING}', true);
  signing record;
  expected bytea;
BEGIN
  SELECT k.inner_block, k.outer_block INTO signing
    FROM turnstile.mac_key AS k WHERE k.id = pg_catalog.split_part(mac, '.', 1);
  IF FOUND AND claims <> '' THEN
    SELECT pg_catalog.sha256(signing.outer_block || pg_catalog.sha256(signing.inner_block || pg_catalog.convert_to(
        a.pid::text || ':' || (pg_catalog.date_part('epoch', a.backend_start) * 1000000)::bigint::text || '|' || claims,
        'UTF8')))
      INTO expected FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) AS a;
    -- Hashed once more, so that the time of the comparison tells nothing.
    IF pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.encode(expected, 'hex'), 'UTF8'))
        = pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.split_part(mac, '.', 2), 'UTF8')) THEN
      RETURN claims::jsonb;
    END IF;
  END IF;
  RAISE EXCEPTION 'permission denied: no claims that pgturnstile has signed for this connection'
    USING ERRCODE = 'insufficient_privilege';
END
$function$;`;
}

const CLAIM_FUNCTION = `-- One claim as text; dots lead into nested objects, and a name with :// is taken whole.
CREATE OR REPLACE FUNCTION turnstile.claim(name text) RETURNS text
  LANGUAGE sql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS $function$
  SELECT CASE WHEN pg_catalog.strpos($1, '://') > 0 THEN turnstile.claims() ->> $1
    ELSE turnstile.claims() #>> pg_catalog.string_to_array($1, '.') END
$function$;`;

const EXAMPLE = `-- A policy. SELECT around the call lets PostgreSQL make it once for a statement instead of once for a row:
--   ALTER TABLE app.document ENABLE ROW LEVEL SECURITY;
--   CREATE POLICY tenant ON app.document
--     USING (tenant_id = (SELECT turnstile.claim('tenant_id')))
--     WITH CHECK (tenant_id = (SELECT turnstile.claim('tenant_id')));
`;
