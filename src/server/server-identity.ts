/**
 * Who a fresh server connection acts as: the pipeline that takes the role and asks back, and the check of the
 * answer. Pure; server-login.ts sends and reads. Every name is pg_catalog-qualified and every value a parameter,
 * since search_path and settings may come from the role itself (ALTER ROLE … SET).
 */
import { encodeBind, encodeExecute, encodeParse, SYNC } from '../protocol/message-writer.ts';

const TEXT_OID = 25;

const SET_ROLE_SQL = "SELECT pg_catalog.set_config('role', $1, false)";

const WHO_SQL = `SELECT session_user::pg_catalog.text, current_user::pg_catalog.text, r.rolname::pg_catalog.text,
 r.rolsuper, r.rolbypassrls, r.rolreplication, r.rolcreaterole, r.rolcanlogin,
 pg_catalog.date_part('epoch', r.rolvaliduntil)
 FROM pg_catalog.pg_roles AS r
 WHERE r.rolname OPERATOR(pg_catalog.=) session_user OR r.rolname OPERATOR(pg_catalog.=) current_user`;

/** What pg_roles says of a role; the caller judges it. */
export interface RoleAttributes {
  readonly name: string;
  readonly superuser: boolean;
  readonly bypassRls: boolean;
  readonly replication: boolean;
  readonly createRole: boolean;
  readonly canLogin: boolean;
  /** `VALID UNTIL`, milliseconds since the epoch; null when there is none, or 'infinity'. */
  readonly validUntilMs: number | null;
}

export interface ServerIdentity {
  readonly sessionUser: string;
  readonly currentUser: string;
  /** Of the session user, and of the current role: the same object when they are one. */
  readonly attributes: { readonly sessionUser: RoleAttributes; readonly role: RoleAttributes };
}

/** One pipeline up to Sync: takes the role, if any, then asks who is here. */
export function encodeIdentityRequest(setRole: string | null): Buffer {
  const parts: Buffer[] = [];
  if (setRole !== null) {
    parts.push(encodeParse('', SET_ROLE_SQL, [TEXT_OID]), encodeBind('', '', [setRole]), encodeExecute(''));
  }
  parts.push(encodeParse('', WHO_SQL), encodeBind('', '', []), encodeExecute(''), SYNC);
  return Buffer.concat(parts);
}

/** Commands that the request runs, each with its CommandComplete. */
export function identityCommandCount(setRole: string | null): number {
  return setRole === null ? 1 : 2;
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
): ServerIdentity | string {
  const role = setRole ?? user;
  const found = new Map<string, RoleAttributes>();
  for (const row of rows) {
    if (row.length !== 9) return 'the server did not say who the session user is';
    if (row[0] !== user) return 'the session user is not the user of the login';
    if (row[1] !== role) return 'the current user is not the role that was asked for';
    const attributes = readAttributes(row);
    if (attributes === null) return 'the server describes a role in an unknown form';
    found.set(attributes.name, attributes);
  }
  const ofUser = found.get(user);
  const ofRole = found.get(role);
  if (ofUser === undefined || ofRole === undefined) return 'the server does not describe the role';
  return { sessionUser: user, currentUser: role, attributes: { sessionUser: ofUser, role: ofRole } };
}

function readAttributes(row: readonly (string | null)[]): RoleAttributes | null {
  const name = row[2];
  const flags = row.slice(3, 8);
  if (typeof name !== 'string' || flags.some((flag) => flag !== 't' && flag !== 'f')) return null;
  const seconds = row[8] === null ? Number.POSITIVE_INFINITY : Number(row[8]);
  if (Number.isNaN(seconds)) return null;
  const [superuser, bypassRls, replication, createRole, canLogin] = flags.map((flag) => flag === 't');
  return {
    name,
    superuser: superuser!,
    bypassRls: bypassRls!,
    replication: replication!,
    createRole: createRole!,
    canLogin: canLogin!,
    // '-infinity' stays: a date that is always past.
    validUntilMs: seconds === Number.POSITIVE_INFINITY ? null : seconds * 1000,
  };
}
