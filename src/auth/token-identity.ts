/**
 * From a verified token to an identity: may this role enter this database here? Only the configuration is asked;
 * whether PostgreSQL knows the role comes later (`checkRoleAttributes`). Pure.
 */
import type { Config, UserConfig } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { harmlessText } from './harmless-text.ts';
import type { Identity } from './identity.ts';
import { checkRoleName, roleRefused } from './role-policy.ts';
import type { VerifiedToken } from './token-verifier.ts';

/** Whether a client of this name is asked for a token; `jwt_user_suffix` leaves the others to the static methods. */
export function takesToken(startupUser: string, config: Pick<Config, 'jwt' | 'turnstile'>): boolean {
  const suffix = config.jwt.userSuffix;
  if (suffix === null || startupUser.endsWith(suffix)) return true;
  return config.turnstile.userMatch === 'exact' && config.turnstile.placeholderUsers.includes(startupUser);
}

export interface TokenIdentityOptions {
  verified: VerifiedToken;
  config: Config;
  /** The user of the startup packet; null when there is none to compare (`token explain`). */
  startupUser: string | null;
  database: string;
}

/** The identity, or `PgError` FATAL 28000 (the role), 42501 (the database), 3D000 (a database that is not there). */
export function identityFromToken(options: TokenIdentityOptions): Identity {
  const { verified, config, startupUser, database } = options;
  const { role } = verified;
  const { turnstile, jwt } = config;
  const refusal = checkRoleName(role, { ...turnstile, adminUser: config.admin.user });
  if (refusal !== null) throw roleRefused(role, refusal);
  if (turnstile.userMatch === 'exact') {
    // A rule on names must hold for who the token says it is, not for what the client calls itself.
    if (jwt.userSuffix !== null && !role.endsWith(jwt.userSuffix)) throw roleRefused(role, 'role_suffix');
    if (startupUser !== null && startupUser !== role && !turnstile.placeholderUsers.includes(startupUser)) {
      throw roleRefused(startupUser, 'user_mismatch');
    }
  }
  const rows = config.users.filter((row) => row.name === role);
  if (rows.length === 0 && !jwt.userAutoProvision) throw roleRefused(role, 'role_not_a_user');
  const user = rows.find((row) => mayEnter(row, database)) ?? null;
  if (rows.length > 0 && user === null) throw databaseDenied(database);
  const hosts = config.databases.filter((row) => row.name === database);
  if (hosts.length === 0) throw databaseUnknown(database);
  const ofDatabase = hosts.some((row) => row.readOnly === true);
  const readOnly =
    user === null ? jwt.userAutoProvisionReadOnly || ofDatabase : (user.readOnly ?? ofDatabase);
  return { role, method: 'jwt', user, readOnly, token: verified.facts };
}

function mayEnter(user: UserConfig, database: string): boolean {
  return user.allDatabases || user.databases.includes(database);
}

function databaseDenied(database: string): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    severity: 'FATAL',
    message: `permission denied for database "${harmlessText(database)}"`,
    reason: 'database_denied',
  });
}

function databaseUnknown(database: string): PgError {
  return new PgError({
    code: SqlState.InvalidCatalogName,
    severity: 'FATAL',
    message: `database "${harmlessText(database)}" does not exist`,
    reason: 'database_unknown',
  });
}
