/**
 * Which roles may be entered through the pooler: by their name before PostgreSQL is asked, and by their attributes
 * once it has answered. Pure; the query is here, running it is the caller's part.
 */
import type { TurnstileConfig } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { harmlessText, hasLoneSurrogate } from './harmless-text.ts';

/** NAMEDATALEN - 1. PostgreSQL cuts longer names, by which two identities would become one. */
export const ROLE_BYTES_MAX = 63;

/**
 * Words that SET ROLE, GRANT or pg_hba.conf read as something else than a role. `SET ROLE "none"` succeeds and
 * leaves the service user in place, so it is refused in every spelling.
 */
const RESERVED_WORDS: readonly string[] = ['public', 'current_user', 'session_user', 'user', 'current_role'];

export type RoleRefusal =
  | 'role_empty'
  | 'role_too_long'
  | 'role_bad_character'
  | 'role_reserved'
  | 'role_is_admin'
  | 'role_pattern'
  | 'role_unknown'
  | 'role_nologin'
  | 'role_expired'
  | 'role_privileged'
  | 'role_suffix'
  | 'role_not_a_user'
  | 'user_mismatch';

export interface RoleNamePolicy extends Pick<TurnstileConfig, 'rolePattern' | 'reservedRoles'> {
  /** The user of the admin console; no token ever becomes it. */
  readonly adminUser: string;
}

/** Why no one may enter under this name, or null when the name is fine. */
export function checkRoleName(role: string, policy: RoleNamePolicy): RoleRefusal | null {
  if (role === '') return 'role_empty';
  if (Buffer.byteLength(role) > ROLE_BYTES_MAX) return 'role_too_long';
  if (/\p{Cc}/u.test(role) || hasLoneSurrogate(role)) return 'role_bad_character';
  if (role.toLowerCase() === 'none' || RESERVED_WORDS.includes(role) || role.startsWith('pg_')) {
    return 'role_reserved';
  }
  if (role === policy.adminUser) return 'role_is_admin';
  if (policy.reservedRoles.includes(role)) return 'role_reserved';
  // search() and not test(): a pattern with the g flag must not remember where it stopped.
  return role.search(policy.rolePattern) === -1 ? 'role_pattern' : null;
}

/**
 * The attributes of one role, every column as text in the order `decodeRoleRow` expects; no row for an unknown role.
 * $1 is the name, at most 63 bytes, else the cast would cut it. Everything is qualified: the search_path of
 * the connection may be the client's.
 */
export const ROLE_ATTRIBUTES_SQL: string =
  'SELECT rolcanlogin::pg_catalog.text, rolsuper::pg_catalog.text, rolbypassrls::pg_catalog.text, ' +
  'rolreplication::pg_catalog.text, rolcreaterole::pg_catalog.text, ' +
  "pg_catalog.date_part('epoch', rolvaliduntil)::pg_catalog.text AS rolvaliduntil " +
  'FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name';

/** What PostgreSQL says of a role. */
export interface RoleAttributes {
  readonly canLogin: boolean;
  readonly superuser: boolean;
  readonly bypassRls: boolean;
  readonly replication: boolean;
  readonly createRole: boolean;
  /** `VALID UNTIL`, milliseconds since the epoch; null when there is none, or 'infinity'. */
  readonly validUntilMs: number | null;
}

/** The row of `ROLE_ATTRIBUTES_SQL`. Throws `PgError` XX000 for any other shape: a guess here could let a superuser in. */
export function decodeRoleRow(columns: readonly (string | null)[]): RoleAttributes {
  const seconds = columns[5] === null ? Number.POSITIVE_INFINITY : Number(columns[5] || Number.NaN);
  const flags = columns.slice(0, 5);
  const isWhole = flags.every((flag) => flag === 'true' || flag === 'false') && !Number.isNaN(seconds);
  if (columns.length !== 6 || !isWhole) {
    throw new PgError({
      code: SqlState.InternalError,
      message: 'unexpected answer to the query for role attributes',
      reason: 'role_row_malformed',
    });
  }
  return {
    canLogin: flags[0] === 'true',
    superuser: flags[1] === 'true',
    bypassRls: flags[2] === 'true',
    replication: flags[3] === 'true',
    createRole: flags[4] === 'true',
    validUntilMs: seconds === Number.POSITIVE_INFINITY ? null : seconds * 1_000,
  };
}

/** Why PostgreSQL's own word on the role forbids it, or null. `attributes` is null when there is no such role. */
export function checkRoleAttributes(
  role: string,
  attributes: RoleAttributes | null,
  policy: Pick<TurnstileConfig, 'allowedPrivilegedRoles'>,
  nowMs: number,
): RoleRefusal | null {
  if (attributes === null) return 'role_unknown';
  if (!attributes.canLogin) return 'role_nologin';
  // PostgreSQL looks at VALID UNTIL for passwords only; behind the pooler nobody else would.
  if (attributes.validUntilMs !== null && attributes.validUntilMs < nowMs) return 'role_expired';
  const { superuser, bypassRls, replication, createRole } = attributes;
  const privileged = superuser || bypassRls || replication || createRole;
  return privileged && !policy.allowedPrivilegedRoles.includes(role) ? 'role_privileged' : null;
}

/** The one answer to every refused role: FATAL 28000. The reason is for the log. */
export function roleRefused(role: string, reason: RoleRefusal): PgError {
  return new PgError({
    code: SqlState.InvalidAuthorizationSpecification,
    severity: 'FATAL',
    message: `role "${harmlessText(role)}" is not permitted to log in through this pooler`,
    reason,
  });
}
