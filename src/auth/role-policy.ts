/**
 * Which roles may be entered through the pooler: by their name before PostgreSQL is asked, and by their attributes
 * once it has answered. Pure: who asks PostgreSQL, and how, is the caller's part.
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
  | 'role_not_in_group'
  | 'role_not_allowed'
  | 'role_disabled'
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

/** What PostgreSQL says of a role. */
export interface RoleAttributes {
  readonly canLogin: boolean;
  readonly superuser: boolean;
  readonly bypassRls: boolean;
  readonly replication: boolean;
  readonly createRole: boolean;
  /** `VALID UNTIL`, milliseconds since the epoch; null when there is none, or 'infinity'. */
  readonly validUntilMs: number | null;
  /** Member of `login_group`, directly or through other roles; null when there is no such question. */
  readonly inLoginGroup: boolean | null;
}

/** What of the configuration decides whether a role may be entered. */
export type RoleAttributePolicy = Pick<
  TurnstileConfig,
  'allowedPrivilegedRoles' | 'nologinRoles' | 'loginGroup'
>;

/** Why PostgreSQL's own word on the role forbids it, or null. `attributes` is null when there is no such role. */
export function checkRoleAttributes(
  role: string,
  attributes: RoleAttributes | null,
  policy: RoleAttributePolicy,
  nowMs: number,
): RoleRefusal | null {
  if (attributes === null) return 'role_unknown';
  if (!attributes.canLogin && policy.nologinRoles === 'reject') return 'role_nologin';
  // PostgreSQL looks at VALID UNTIL for passwords only; behind the pooler nobody else would.
  if (attributes.validUntilMs !== null && attributes.validUntilMs < nowMs) return 'role_expired';
  if (policy.loginGroup !== null && attributes.inLoginGroup !== true) return 'role_not_in_group';
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
