/**
 * What PostgreSQL says of many roles at once: the query behind the role watch and behind the look-up of a token's
 * subject, and the reading of its rows. Pure; who sends it, and where, is the caller's part. The judgement is
 * role-policy's.
 */
import type { RoleAttributes } from '../auth/role-policy.ts';

/**
 * `VALID UNTIL` of `r` as whole seconds since the epoch: NULL for none and for 'infinity', 0 for '-infinity'. A
 * float's text depends on extra_float_digits, which a role may have set for itself (ALTER ROLE … SET): with -15 a
 * date of this year reads as one of the next decade. An integer's text does not.
 */
export const VALID_UNTIL_SQL: string =
  'CASE WHEN pg_catalog.isfinite(r.rolvaliduntil)' +
  " THEN pg_catalog.floor(pg_catalog.date_part('epoch', r.rolvaliduntil))::pg_catalog.int8" +
  ' WHEN r.rolvaliduntil OPERATOR(pg_catalog.<) pg_catalog.now() THEN 0::pg_catalog.int8 END';

/**
 * $1 is a text[] of role names, $2 the `login_group` or NULL; none longer than 63 bytes, else the cast would cut it.
 * One row for each role that exists. Members of members count, as in pg_hba.conf's `+group`.
 */
export const ROLE_FACTS_SQL: string = `SELECT r.rolname::pg_catalog.text, r.rolcanlogin, r.rolsuper, r.rolbypassrls,
 r.rolreplication, r.rolcreaterole, ${VALID_UNTIL_SQL},
 EXISTS (SELECT FROM pg_catalog.pg_roles AS g
 WHERE g.rolname OPERATOR(pg_catalog.=) $2::pg_catalog.text::pg_catalog.name
 AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER'))
 FROM pg_catalog.pg_roles AS r
 WHERE r.rolname OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]::pg_catalog.name[])`;

/** One row of `ROLE_FACTS_SQL`: name and attributes; null when it is not what the query answers. */
export function readRoleRow(
  row: readonly (string | null)[],
  asksForGroup: boolean,
): [name: string, attributes: RoleAttributes] | null {
  const name = row[0];
  const validUntil = row[6];
  const flags = [...row.slice(1, 6), row[7]];
  if (row.length !== COLUMN_COUNT || typeof name !== 'string' || validUntil === undefined) return null;
  if (flags.some((flag) => flag !== 't' && flag !== 'f')) return null;
  if (validUntil !== null && !/^-?\d{1,15}$/.test(validUntil)) return null;
  const [canLogin, superuser, bypassRls, replication, createRole, inGroup] = flags.map(
    (flag) => flag === 't',
  );
  return [
    name,
    {
      canLogin: canLogin!,
      superuser: superuser!,
      bypassRls: bypassRls!,
      replication: replication!,
      createRole: createRole!,
      validUntilMs: validUntil === null ? null : Number(validUntil) * 1_000,
      inLoginGroup: asksForGroup ? inGroup! : null,
    },
  ];
}

const COLUMN_COUNT = 8;
