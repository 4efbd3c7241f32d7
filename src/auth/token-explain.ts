/**
 * What a token would be here, in lines for a person: the `token explain` command. It runs the very code of the login
 * and shows claims, since whoever runs it holds the token and the configuration; it never prints the token.
 */
import { AssertionError } from '../base/assert.ts';
import type { Config } from '../config/config.ts';
import { PgError } from '../protocol/pg-error.ts';
import { harmlessText } from './harmless-text.ts';
import { type KeySource, TOKEN_ALGORITHMS } from './key-source.ts';
import { openKeySource } from './open-key-source.ts';
import { KeyFileFault } from './pem-key-source.ts';
import type { RoleRefusal } from './role-policy.ts';
import { decodeTokenForm } from './token-form.ts';
import { identityFromToken } from './token-identity.ts';
import { TokenRejected, TokenRejection } from './token-rejected.ts';
import { claimAt, TokenVerifier, type VerifiedToken } from './token-verifier.ts';

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
  role_suffix: 'the role does not end with jwt_user_suffix',
  role_not_a_user: 'the role is no user of users.toml, and jwt_user_auto_provision is off',
  user_mismatch: 'the user of the startup packet is another one (user_match)',
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
  let verified: VerifiedToken;
  try {
    const faults: string[] = [];
    const keys = await openKeySource(config, {
      onJwksEvent: (event) => {
        if (event.type === 'fetch_failed') faults.push(event.message);
        else
          for (const { keyId, reason } of event.skipped) faults.push(`key ${keyId ?? '(no kid)'}: ${reason}`);
      },
    });
    if (keys === null)
      return refused('keys_unavailable', 'no jwt_public_key_file and no jwt_jwks_url is set', shown);
    verified = await verifyOnce(config, keys, token, nowMs).catch((error: unknown) => {
      shown.push(...faults.map((fault) => `note: ${fault}`));
      throw error;
    });
  } catch (error) {
    return explainFailure(error, shown);
  }
  const database = options.database ?? config.databases[0]?.name ?? '';
  try {
    const identity = identityFromToken({ verified, config, startupUser: null, database });
    const left = Math.floor((verified.facts.expiresAtMs - nowMs) / 1_000);
    return {
      accepted: true,
      lines: [
        'accepted',
        `role: ${harmlessText(identity.role)}`,
        `database: ${harmlessText(database)}`,
        `access: ${identity.readOnly ? 'read-only' : 'read-write'}`,
        `user: ${identity.user === null ? 'provisioned at login' : 'of users.toml'}`,
        `expires: in ${left} s`,
        `key: ${verified.keyDescription}, ${verified.facts.algorithm}`,
        ...shown,
        'note: PostgreSQL is asked about the role at login (it must exist, not have expired and have no special rights)',
      ],
    };
  } catch (error) {
    if (!(error instanceof PgError)) throw error;
    const why = ROLE_REFUSALS[error.reason as RoleRefusal] as string | undefined;
    return refused(error.reason ?? error.code, why ?? error.message, shown);
  }
}

function verifyOnce(config: Config, keys: KeySource, token: string, nowMs: number): Promise<VerifiedToken> {
  return new TokenVerifier({ config: { ...config.jwt, ...config.turnstile }, keys }).verify(token, nowMs);
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
    const lines = [
      `header: alg ${header.alg}${header.kid === null ? '' : `, kid ${harmlessText(header.kid)}`}`,
    ];
    const names = new Set(['iss', 'sub', 'aud', config.jwt.usernameClaim]);
    for (const name of names) {
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

function describeMoment(seconds: number, nowMs: number): string {
  const difference = Math.round(seconds - nowMs / 1_000);
  return difference >= 0 ? `in ${difference} s` : `${-difference} s ago`;
}
