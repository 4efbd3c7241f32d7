/**
 * From a verified token to an identity: may this role, and the one on whose behalf it acts, enter this database here?
 * Only the token and the configuration are asked; whether PostgreSQL knows the roles comes later
 * (`checkRoleAttributes`). Pure.
 */
import type { Config, UserConfig } from '../config/config.ts';
import { compileNames } from '../config/name-pattern.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { harmlessText } from './harmless-text.ts';
import type { Identity } from './identity.ts';
import { checkRoleName, type RoleRefusal, roleRefused } from './role-policy.ts';
import { type Access, namesAudience } from './token-claims.ts';
import { TokenRejected, type TokenRejection } from './token-rejected.ts';
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
  /** Default `jwt`. */
  method?: 'jwt' | 'oauth';
  /** What the client showed, null for nothing, to be compared with `cnf`; absent when the caller has done that. */
  certificate?: { readonly thumbprint: string } | null;
}

/**
 * The identity. Throws `TokenRejected` for a token that was made for another database (`bad_audience`) or another
 * client (`certificate_mismatch`), and `PgError` FATAL 28000 (the role), 42501 (the database, there or not) or 3D000 (it is not there, and the token may enter it).
 */
export function identityFromToken(options: TokenIdentityOptions): Identity {
  const { verified, config, startupUser, database } = options;
  const { role, facts } = verified;
  const { turnstile, jwt } = config;
  judgeAudience(verified, config, database);
  judgeCertificate(verified, config, options.certificate);
  const user = admit(role, options);
  // Who acts for somebody comes in only if that somebody could.
  if (facts.subjectRole !== null) admit(facts.subjectRole, options);
  if (turnstile.userMatch === 'exact' && startupUser !== null) {
    if (startupUser !== role && !turnstile.placeholderUsers.includes(startupUser)) {
      throw roleRefused(startupUser, 'user_mismatch');
    }
  }
  if (user === 'denied') throw databaseDenied(database, 'database_denied');
  const access = accessOf(verified, config, database);
  const hosts = config.databases.filter((row) => row.name === database);
  if (hosts.length === 0) throw databaseUnknown(database);
  const ofDatabase = hosts.some((row) => row.readOnly === true);
  const ofConfig =
    user === null ? jwt.userAutoProvisionReadOnly || ofDatabase : (user.readOnly ?? ofDatabase);
  return { role, method: options.method ?? 'jwt', user, readOnly: ofConfig || access === 'ro', token: facts };
}

/**
 * Throws `TokenRejected` `bad_audience` unless the token was made for this database: one may want an audience of its
 * own, and a token that lacks it was made for something else (RFC 7519 section 4.1.3).
 */
export function judgeAudience(verified: VerifiedToken, config: Config, database: string): void {
  const { facts } = verified;
  const row = config.turnstileDatabases.find((candidate) => candidate.name === database);
  const wanted =
    row === undefined || row.audiences.length === 0 ? issuerAudiences(config, facts.source) : row.audiences;
  if (wanted.length === 0 || namesAudience(verified.claims, wanted)) return;
  throw rejected('bad_audience', verified, config);
}

/** RFC 8705 section 3.1: such a token is worth nothing to whoever does not hold the certificate's key. */
export function judgeCertificate(
  verified: VerifiedToken,
  config: Config,
  certificate: TokenIdentityOptions['certificate'],
): void {
  const { certificateThumbprint: wanted } = verified;
  if (wanted === null || certificate === undefined || certificate?.thumbprint === wanted) return;
  throw rejected('certificate_mismatch', verified, config);
}

function rejected(reason: TokenRejection, verified: VerifiedToken, config: Config): TokenRejected {
  const { algorithm: alg, keyId: kid, issuer, source } = verified.facts;
  const isKnown = source !== null || config.turnstile.jwtIssuer === issuer;
  return new TokenRejected(reason).describe({ alg, kid }).describeIssuer(issuer, isKnown);
}

function issuerAudiences(config: Config, source: string | null): readonly string[] {
  const row = source === null ? undefined : config.issuers.find((candidate) => candidate.issuer === source);
  if (row !== undefined && row.audiences.length > 0) return row.audiences;
  return config.jwt.audience === null ? [] : [config.jwt.audience];
}

/** The row of users.toml for the role, `denied` if none of its rows has the database, null if it is provisioned. */
function admit(role: string, options: TokenIdentityOptions): UserConfig | 'denied' | null {
  const { verified, config, database } = options;
  const { turnstile, jwt } = config;
  const refusal = findRoleRefusal(role, verified.facts.source, config);
  if (refusal !== null) throw roleRefused(role, refusal);
  // A rule on names must hold for who the token says it is, not for what the client calls itself.
  if (turnstile.userMatch === 'exact' && jwt.userSuffix !== null && !role.endsWith(jwt.userSuffix)) {
    throw roleRefused(role, 'role_suffix');
  }
  const rows = config.users.filter((row) => row.name === role);
  if (rows.length === 0 && !jwt.userAutoProvision) throw roleRefused(role, 'role_not_a_user');
  if (rows.length === 0) return null;
  const user = rows.find((row) => mayEnter(row, database));
  // The subject's own database list counts as well.
  if (user === undefined && role !== verified.role) throw databaseDenied(database, 'database_denied');
  return user ?? 'denied';
}

/** Why no token of this issuer (`TokenFacts.source`) makes this role, wherever it would go; null when it may. */
export function findRoleRefusal(role: string, source: string | null, config: Config): RoleRefusal | null {
  const { rolePattern, reservedRoles } = config.turnstile;
  const refusal = checkRoleName(role, { rolePattern, reservedRoles, adminUser: config.admin.user });
  if (refusal !== null) return refusal;
  const issuer = config.issuers.find((row) => row.issuer === source);
  if (issuer !== undefined && issuer.allowedRoles.length > 0 && !compileNames(issuer.allowedRoles)(role)) {
    return 'role_not_allowed';
  }
  const isDisabled = config.turnstileUsers.some((row) => row.name === role && row.disabled);
  return isDisabled ? 'role_disabled' : null;
}

/** What the token and its issuer say of the database; throws `PgError` 42501. Null: nothing about access. */
export function accessOf(verified: VerifiedToken, config: Config, database: string): Access | null {
  const { facts, databases, permissions } = verified;
  const issuer = config.issuers.find((row) => row.issuer === facts.source);
  if (issuer !== undefined && issuer.databases.length > 0 && !issuer.databases.includes(database)) {
    throw databaseDenied(database, 'database_not_of_issuer');
  }
  if (config.turnstile.databaseClaimRequired && databases.length === 0 && permissions === null) {
    throw databaseDenied(database, 'database_claim_missing');
  }
  if (!databases.every((list) => list.includes(database))) {
    throw databaseDenied(database, 'database_not_in_claim');
  }
  const permitted = permissions?.get(database);
  if (permissions !== null && permitted === undefined) {
    throw databaseDenied(database, 'database_not_in_claim');
  }
  return permitted === 'ro' ? 'ro' : verified.access;
}

function mayEnter(user: UserConfig, database: string): boolean {
  return user.allDatabases || user.databases.includes(database);
}

type DatabaseRefusal =
  | 'database_denied'
  | 'database_not_of_issuer'
  | 'database_claim_missing'
  | 'database_not_in_claim';

function databaseDenied(database: string, reason: DatabaseRefusal): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    severity: 'FATAL',
    message: `permission denied for database "${harmlessText(database)}"`,
    reason,
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
