/**
 * Who somebody is that no token speaks for: a user of users.toml whose proof was right, or the one anonymous role.
 * Also which certificate belongs to which user. Decisions only; tokens have their own rules in auth/token-identity.ts.
 */
import { harmlessText } from '../auth/harmless-text.ts';
import type { Identity } from '../auth/identity.ts';
import { checkRoleName, roleRefused } from '../auth/role-policy.ts';
import type { Config, UserConfig } from '../config/config.ts';
import type { PeerCertificate } from '../net/peer-certificate.ts';
import { type PgError, SqlState } from '../protocol/pg-error.ts';
import { fatal } from './login-errors.ts';

/** What is known of a client before it is asked for a proof. */
export interface LoginRequest {
  /** User and database of the startup packet. */
  readonly user: string;
  readonly database: string;
  /** '' for a Unix socket. */
  readonly remoteAddress: string;
  readonly encrypted: boolean;
  /** What the client showed in the TLS handshake; its key is proved, its chain only where `verified`. */
  readonly certificate: PeerCertificate | null;
}

/**
 * The users.toml user whose proof was right. Throws FATAL 28000 (trust asks nobody, so an unknown user comes this
 * far), 42501 (not his database) or 3D000 (his, but it is not there).
 */
export function identityFromUser(
  request: LoginRequest,
  config: Config,
  method: 'scram' | 'md5' | 'plain' | 'trust' | 'cert',
): Identity {
  const user = method === 'cert' ? certifiedUser(request, config) : findUser(request, config);
  if (user === null) {
    throw fatal(
      SqlState.InvalidAuthorizationSpecification,
      `role "${harmlessText(request.user)}" does not exist`,
      'user_unknown',
    );
  }
  checkCertificate(user, request, config);
  if (!mayEnter(user, request.database)) throw databaseDenied(request.database);
  const readOnly = user.readOnly ?? isReadOnly(request.database, config);
  return { role: user.name, method, user, readOnly, token: null };
}

/**
 * The anonymous role, for a client that is asked for nothing. Throws FATAL 28000 when the policy keeps its name out
 * or it is a user of users.toml with a proof of its own, 42501 or 3D000 for the database.
 */
export function anonymousIdentity(request: LoginRequest, config: Config): Identity {
  const { turnstile, jwt } = config;
  const role = turnstile.anonymousRole ?? '';
  const refusal = checkRoleName(role, { ...turnstile, adminUser: config.admin.user });
  if (refusal !== null) throw roleRefused(role, refusal);
  const rows = config.users.filter((row) => row.name === role);
  const disabled = config.turnstileUsers.some((row) => row.name === role && row.disabled);
  if (disabled || rows.some((row) => row.passwords.length > 0 || row.identity !== null)) {
    throw fatal(
      SqlState.InvalidAuthorizationSpecification,
      `role "${harmlessText(role)}" is not permitted to log in through this pooler`,
      disabled ? 'role_disabled' : 'anonymous_role_is_a_user',
    );
  }
  const user = rows.find((row) => mayEnter(row, request.database)) ?? null;
  if (rows.length > 0 && user === null) throw databaseDenied(request.database);
  const ofDatabase = isReadOnly(request.database, config);
  const readOnly =
    user === null ? jwt.userAutoProvisionReadOnly || ofDatabase : (user.readOnly ?? ofDatabase);
  return { role, method: 'anonymous', user, readOnly, token: null };
}

/** The row for this user and database; a row for other databases when there is none, so that the proof is asked. */
export function findUser(
  request: Pick<LoginRequest, 'user' | 'database'>,
  config: Config,
): UserConfig | null {
  const rows = config.users.filter((row) => row.name === request.user);
  return rows.find((row) => mayEnter(row, request.database)) ?? rows[0] ?? null;
}

export function mayEnter(user: UserConfig, database: string): boolean {
  return user.allDatabases || user.databases.includes(database);
}

/** Whether the client showed the certificate that its user must show, whatever else it proves itself by. */
export function showsRequiredCertificate(user: UserConfig, request: LoginRequest, config: Config): boolean {
  const { identity, tlsClientCertificateRequired } = user;
  const hasAuthority = config.general.tlsClientCaCertificate !== null;
  if (!(tlsClientCertificateRequired ?? (hasAuthority && identity !== null))) return true;
  const { certificate } = request;
  return certificate?.verified === true && (identity === null || isNamed(certificate, identity));
}

/** Throws FATAL 28000 in PostgreSQL's words (clientcert in pg_hba.conf) for a user without its certificate. */
export function checkCertificate(user: UserConfig, request: LoginRequest, config: Config): void {
  if (showsRequiredCertificate(user, request, config)) return;
  throw certificateMissing();
}

/** For a client that needs a certificate with a chain to ours. */
export function certificateMissing(): PgError {
  return fatal(
    SqlState.InvalidAuthorizationSpecification,
    'connection requires a valid client certificate',
    'client_certificate',
  );
}

/** The row of the startup user that the certificate names. Throws FATAL 28000 when there is none. */
function certifiedUser(request: LoginRequest, config: Config): UserConfig {
  const { certificate, user } = request;
  if (certificate?.verified !== true) throw certificateMissing();
  const rows = config.users.filter(
    ({ name, identity }) => name === user && identity !== null && isNamed(certificate, identity),
  );
  const row = rows.find((candidate) => mayEnter(candidate, request.database)) ?? rows[0];
  if (row !== undefined) return row;
  throw fatal(
    SqlState.InvalidAuthorizationSpecification,
    `certificate authentication failed for user "${harmlessText(user)}"`,
    'certificate_user',
  );
}

/** Byte for byte: no wildcard and no folding, since a name is all that tells one service from another. */
function isNamed(certificate: PeerCertificate, identity: string): boolean {
  return certificate.commonName === identity || certificate.alternativeNames.includes(identity);
}

/** Throws FATAL 3D000 for a database that is not there. */
function isReadOnly(database: string, config: Config): boolean {
  const hosts = config.databases.filter((row) => row.name === database);
  if (hosts.length === 0) {
    throw fatal(
      SqlState.InvalidCatalogName,
      `database "${harmlessText(database)}" does not exist`,
      'database_unknown',
    );
  }
  return hosts.some((row) => row.readOnly === true);
}

/** In PostgreSQL's own words for a missing CONNECT privilege. */
export function databaseDenied(database: string): PgError {
  return fatal(
    SqlState.InsufficientPrivilege,
    `permission denied for database "${harmlessText(database)}"`,
    'database_denied',
  );
}
