/**
 * Who a fresh server connection acts as: the pipeline that takes the role and asks back, and the check of the
 * answer. Pure; server-login.ts sends and reads. Every name is pg_catalog-qualified and every value a parameter,
 * since search_path and settings may come from the role itself (ALTER ROLE … SET).
 */
import type { RoleAttributes as JudgedAttributes } from '../auth/role-policy.ts';
import { encodeBind, encodeExecute, encodeParse, SYNC } from '../protocol/message-writer.ts';
import { VALID_UNTIL_SQL } from './role-facts.ts';

const TEXT_OID = 25;

const SET_ROLE_SQL = "SELECT pg_catalog.set_config('role', $1, false)";

/**
 * One row for the session user and one for the current role. $1 is `login_group` or NULL; members of members count,
 * as in pg_hba.conf's `+group`, and a longer name would be cut to another group's. `set_option` is there since
 * PostgreSQL 16; before, every membership had it.
 */
const WHO_SQL = `SELECT session_user::pg_catalog.text, current_user::pg_catalog.text, r.rolname::pg_catalog.text,
 r.rolsuper, r.rolbypassrls, r.rolreplication, r.rolcreaterole, r.rolcanlogin,
 ${VALID_UNTIL_SQL},
 EXISTS (SELECT FROM pg_catalog.pg_roles AS g
 WHERE g.rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name
 AND pg_catalog.octet_length($1) OPERATOR(pg_catalog.<) 64 AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER')),
 r.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m WHERE m.member OPERATOR(pg_catalog.=) r.oid
 AND COALESCE((pg_catalog.to_jsonb(m) OPERATOR(pg_catalog.->>) 'set_option')::pg_catalog.bool, true))
 FROM pg_catalog.pg_roles AS r
 WHERE r.rolname OPERATOR(pg_catalog.=) session_user OR r.rolname OPERATOR(pg_catalog.=) current_user`;
const COLUMN_COUNT = 11;

/** What pg_roles says of a role; the caller judges it. */
export interface RoleAttributes extends JudgedAttributes {
  readonly name: string;
  /** It may SET ROLE to some other role. */
  readonly maySetRole: boolean;
}

export interface ServerIdentity {
  readonly sessionUser: string;
  readonly currentUser: string;
  /** Of the session user, and of the current role: the same object when they are one. */
  readonly attributes: { readonly sessionUser: RoleAttributes; readonly role: RoleAttributes };
}

/**
 * One pipeline up to Sync: takes the role, if any (`none` gives up one that ALTER ROLE … SET took), then asks who is
 * here.
 */
export function encodeIdentityRequest(roleSetting: string | null, loginGroup: string | null): Buffer {
  const parts: Buffer[] = [];
  if (roleSetting !== null) {
    parts.push(
      encodeParse('', SET_ROLE_SQL, [TEXT_OID]),
      encodeBind('', '', [roleSetting]),
      encodeExecute(''),
    );
  }
  parts.push(encodeParse('', WHO_SQL, [TEXT_OID]), encodeBind('', '', [loginGroup]), encodeExecute(''), SYNC);
  return Buffer.concat(parts);
}

/** Commands that the request runs, each with its CommandComplete. */
export function identityCommandCount(roleSetting: string | null): number {
  return roleSetting === null ? 1 : 2;
}

/**
 * Reads the answer's rows. Returns a fault in words when it is not exactly the user and the role expected:
 * `SET ROLE none` succeeds and changes nothing, and a role may carry settings of its own, so only the
 * server's own word counts.
 */
export function readIdentity(
  rows: readonly (readonly (string | null)[])[],
  user: string,
  setRole: string | null,
  loginGroup: string | null,
): ServerIdentity | string {
  const role = setRole ?? user;
  const found = new Map<string, RoleAttributes>();
  for (const row of rows) {
    if (row.length !== COLUMN_COUNT) return 'the server did not say who the session user is';
    if (row[0] !== user) return 'the session user is not the user of the login';
    if (row[1] !== role) return 'the current user is not the role that was asked for';
    const attributes = readAttributes(row, loginGroup !== null);
    if (attributes === null) return 'the server describes a role in an unknown form';
    found.set(attributes.name, attributes);
  }
  const ofUser = found.get(user);
  const ofRole = found.get(role);
  if (ofUser === undefined || ofRole === undefined) return 'the server does not describe the role';
  return { sessionUser: user, currentUser: role, attributes: { sessionUser: ofUser, role: ofRole } };
}

function readAttributes(row: readonly (string | null)[], hasGroup: boolean): RoleAttributes | null {
  const name = row[2];
  const flags = [...row.slice(3, 8), row[9], row[10]];
  if (typeof name !== 'string' || flags.some((flag) => flag !== 't' && flag !== 'f')) return null;
  const validUntil = row[8]!;
  if (validUntil !== null && !/^-?\d{1,15}$/.test(validUntil)) return null;
  const [superuser, bypassRls, replication, createRole, canLogin, inGroup, maySetRole] = flags.map(
    (flag) => flag === 't',
  );
  return {
    name,
    superuser: superuser!,
    bypassRls: bypassRls!,
    replication: replication!,
    createRole: createRole!,
    canLogin: canLogin!,
    validUntilMs: validUntil === null ? null : Number(validUntil) * 1_000,
    inLoginGroup: hasGroup ? inGroup! : null,
    maySetRole: maySetRole!,
  };
}
