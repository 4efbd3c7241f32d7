/**
 * What a token would be here, in lines for a person: the `token explain` command. It runs the very code of the login
 * and shows claims, since whoever runs it holds the token and the configuration; it never prints the token.
 */
import { AssertionError } from '../base/assert.ts';
import type { Config } from '../config/config.ts';
import { hasFlatKeySource } from '../config/token-use.ts';
import { PgError } from '../protocol/pg-error.ts';
import { backendIdentityOf } from './backend-identity.ts';
import { claimAt } from './claim-path.ts';
import { harmlessText } from './harmless-text.ts';
import type { Identity } from './identity.ts';
import type { SkippedJwk } from './jwks-document.ts';
import { TOKEN_ALGORITHMS } from './key-source.ts';
import type { RoleRefusal } from './role-policy.ts';
import { TokenAuthority, type TokenListeners } from './token-authority.ts';
import { decodeTokenForm } from './token-form.ts';
import { identityFromToken } from './token-identity.ts';
import { TokenRejected, TokenRejection } from './token-rejected.ts';
import type { VerifiedToken } from './token-verifier.ts';
import { KeyFileFault } from './watched-file.ts';

const CLAIM_CHARS_MAX = 200;

const ROLE_REFUSALS: Readonly<Record<RoleRefusal, string>> = {
  role_empty: 'the role is empty',
  role_too_long: 'the role has more than 63 bytes',
  role_bad_character: 'the role has control characters',
  role_reserved: 'the role is reserved (reserved_roles, pg_* or a word of SQL)',
  role_is_admin: 'the role is the user of the admin console',
  role_pattern: 'the role does not match role_pattern',
  role_unknown: 'PostgreSQL has no such role',
  role_nologin: 'the role has no LOGIN attribute',
  role_expired: 'the VALID UNTIL of the role has passed',
  role_privileged: 'the role is privileged and not in allowed_privileged_roles',
  role_not_in_group: 'the role is no member of login_group',
  role_not_allowed: 'the role is not in allowed_roles of the issuer',
  role_disabled: 'the role is disabled (turnstile.users)',
  role_suffix: 'the role does not end with jwt_user_suffix',
  role_not_a_user: 'the role is no user of users.toml, and jwt_user_auto_provision is off',
  user_mismatch: 'the user of the startup packet is another one (user_match)',
};

const DATABASE_REFUSALS: Readonly<Record<string, string>> = {
  database_denied: 'the row of the role in users.toml does not have the database',
  database_not_of_issuer: 'the database is not in databases of the issuer',
  database_claim_missing: 'the token names no database, and database_claim_required is on',
  database_not_in_claim: 'the claims of the token do not have the database',
  database_unknown: 'no row of [[databases]] has this name',
};

export interface ExplainTokenOptions {
  config: Config;
  token: string;
  /** Null takes the first database that the configuration names. */
  database: string | null;
  nowMs: number;
}

export interface TokenExplanation {
  readonly accepted: boolean;
  readonly lines: string[];
}

/** Explains a token. Never rejects because of the token, the keys or the configuration: all of that is the answer. */
export async function explainToken(options: ExplainTokenOptions): Promise<TokenExplanation> {
  const { config, token, nowMs } = options;
  const shown = describeClaims(token, config, nowMs);
  const faults: string[] = [];
  let verified: VerifiedToken;
  if (config.issuers.length === 0 && !hasFlatKeySource(config)) {
    const sentence = 'no jwt_public_key_file, no jwt_jwks_url and no row of turnstile.issuers is set';
    return refused('keys_unavailable', sentence, shown);
  }
  try {
    const authority = await TokenAuthority.open(config, noting(faults));
    try {
      verified = await authority.verify(token, nowMs);
    } finally {
      authority.stop();
    }
  } catch (error) {
    return explainFailure(error, [...shown, ...faults.map((fault) => `note: ${fault}`)]);
  }
  const database = options.database ?? config.databases[0]?.name ?? '';
  try {
    const identity = identityFromToken({ verified, config, startupUser: null, database });
    return { accepted: true, lines: [...describeIdentity(identity, verified, options, database), ...shown] };
  } catch (error) {
    if (error instanceof TokenRejected) return explainFailure(error, shown);
    if (!(error instanceof PgError)) throw error;
    const reason = error.reason ?? error.code;
    const role = harmlessText(verified.role);
    const why = (ROLE_REFUSALS[reason as RoleRefusal] as string | undefined) ?? DATABASE_REFUSALS[reason];
    return refused(reason, why ?? error.message, [`role: ${role}`, ...shown]);
  }
}

/** What went wrong on the way to the keys; of other issuers than the token's as well, since nobody knows yet. */
function noting(faults: string[]): TokenListeners {
  const of = (issuer: string | null): string => (issuer === null ? '' : `${harmlessText(issuer)}: `);
  const onSkipped = (issuer: string | null, skipped: readonly SkippedJwk[]): void => {
    for (const { keyId, reason } of skipped) {
      faults.push(`${of(issuer)}key ${keyId ?? '(no kid)'}: ${reason}`);
    }
  };
  return {
    onFileLoaded: (issuer, _description, skipped) => onSkipped(issuer, skipped),
    onJwksEvent: (issuer, event) => {
      if (event.type === 'fetch_failed') faults.push(`${of(issuer)}${event.message}`);
      else onSkipped(issuer, event.skipped);
    },
  };
}

function describeIdentity(
  identity: Identity,
  verified: VerifiedToken,
  options: ExplainTokenOptions,
  database: string,
): string[] {
  const { config, nowMs } = options;
  const { facts } = verified;
  const onBehalf = facts.subjectRole === null ? '' : `, for ${harmlessText(facts.subjectRole)}`;
  return [
    'accepted',
    `role: ${harmlessText(identity.role)}${onBehalf}`,
    `database: ${harmlessText(database)}`,
    `databases: ${openDatabases(verified, config)
      .map((name) => harmlessText(name))
      .join(', ')}`,
    `access: ${identity.readOnly ? 'read-only' : 'read-write'}`,
    `user: ${identity.user === null ? 'provisioned at login' : 'of users.toml'}`,
    `backend: ${describeBackend(identity, config, database)}`,
    `issuer: ${facts.source === null ? 'the jwt_* keys' : harmlessText(facts.source)}`,
    `expires: in ${Math.floor((facts.expiresAtMs - nowMs) / 1_000)} s`,
    `key: ${verified.keyDescription}, ${facts.algorithm}`,
    ...(verified.certificateThumbprint === null
      ? []
      : ['note: it serves only a client with the certificate that cnf names']),
    'note: PostgreSQL is asked about the role at login (it must exist, not have expired and have no special rights)',
  ];
}

/** Every configured database that the token may enter. */
function openDatabases(verified: VerifiedToken, config: Config): string[] {
  const names = [...new Set(config.databases.map((row) => row.name))];
  return names.filter((database) => {
    try {
      identityFromToken({ verified, config, startupUser: null, database });
      return true;
    } catch {
      return false;
    }
  });
}

function describeBackend(identity: Identity, config: Config, database: string): string {
  const { user, role } = identity;
  if (
    user !== null &&
    (user.serverUser !== null || user.serverPassword !== null || user.passwords.length > 0)
  ) {
    return `logs in as ${harmlessText(user.serverUser ?? user.name)}, as its row of users.toml says`;
  }
  const way = backendIdentityOf(config, role, database);
  switch (way) {
    case 'set_role': {
      const hosts = config.databases.find((row) => row.name === database);
      const service = hosts?.user ?? config.jwt.serverUser;
      return `logs in as ${service === null ? 'nobody' : harmlessText(service)}, then SET ROLE (set_role)`;
    }
    case 'login_map':
      return 'logs in as the role, by the certificate of tls_server_certificate (login_map)';
    case 'login_password':
      return 'logs in as the role, by its derived password (login_password)';
    default:
      return way satisfies never;
  }
}

function explainFailure(error: unknown, shown: string[]): TokenExplanation {
  if (error instanceof TokenRejected) return refused(error.reason, TokenRejection[error.reason], shown);
  if (error instanceof KeyFileFault || error instanceof RangeError) {
    return refused('keys_unavailable', error.message, shown);
  }
  throw new AssertionError('token explain failed for a reason of its own');
}

function refused(reason: string, sentence: string, shown: string[]): TokenExplanation {
  return { accepted: false, lines: [`refused: ${reason}: ${sentence}`, ...shown] };
}

/** What the token says of itself, verified or not; empty when it cannot even be read. */
function describeClaims(token: string, config: Config, nowMs: number): string[] {
  try {
    const { header, claims } = decodeTokenForm(token, TOKEN_ALGORITHMS);
    const typ = typeof header.typ === 'string' ? `, typ ${harmlessText(header.typ)}` : '';
    const kid = header.kid === null ? '' : `, kid ${harmlessText(header.kid)}`;
    const lines = [`header: alg ${header.alg}${kid}${typ}`];
    for (const name of claimsOfInterest(config)) {
      const value = claimAt(claims, name);
      if (value !== undefined)
        lines.push(`claim ${name}: ${harmlessText(JSON.stringify(value), CLAIM_CHARS_MAX)}`);
    }
    for (const name of ['iat', 'nbf', 'exp']) {
      const value = claims[name];
      if (typeof value === 'number') lines.push(`claim ${name}: ${value} (${describeMoment(value, nowMs)})`);
    }
    return lines;
  } catch {
    return [];
  }
}

/** The claims by which something is decided here. */
function claimsOfInterest(config: Config): Set<string> {
  const { turnstile, jwt, issuers, roleRules } = config;
  const ofRoles = [jwt.usernameClaim, ...issuers.flatMap((row) => row.usernameClaim ?? [])];
  const ofDatabases = [...turnstile.databaseClaims, turnstile.accessClaim, turnstile.permissionsClaim];
  const fixed = ['iss', 'sub', 'aud', 'azp', 'client_id', 'jti', 'sid', 'act', 'cnf', 'email_verified'];
  return new Set([...fixed, ...ofRoles, ...roleRules.map((rule) => rule.claim), ...ofDatabases]);
}

function describeMoment(seconds: number, nowMs: number): string {
  const difference = Math.round(seconds - nowMs / 1_000);
  return difference >= 0 ? `in ${difference} s` : `${-difference} s ago`;
}
