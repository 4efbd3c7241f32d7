/**
 * How long a session may live that a token opened: the deadline, what happens when it is reached, and the errors that
 * say why a session had to go. Time is given; it knows neither the session nor its connection.
 */
import type { TokenFacts } from '../auth/identity.ts';
import type { TurnstileConfig } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';

export type TokenLifePolicy = Pick<
  TurnstileConfig,
  'onTokenExpiry' | 'expiryGraceMs' | 'maxSessionMs' | 'jwtLeewaySeconds'
>;

/** Why a session has to end, and how: outside of a transaction, at the latest when the grace is over. */
export interface Eviction {
  readonly error: PgError;
  /** How long an open transaction or a running statement may go on, milliseconds; 0 ends it at once. */
  readonly graceMs: number;
}

/**
 * The deadline of one session. Invariant: it is monotonic time, so that a step of the wall clock moves it no more
 * after the token was judged.
 */
export class TokenLife {
  readonly #policy: TokenLifePolicy;
  /** When `max_session` ends the session, whatever its tokens say. */
  readonly #longestMs: number;
  #expiresMs: number;

  /** `nowMs` monotonic and `wallMs` since the epoch are the same moment. */
  constructor(policy: TokenLifePolicy, facts: TokenFacts, nowMs: number, wallMs: number) {
    this.#policy = policy;
    this.#longestMs = nowMs + policy.maxSessionMs;
    this.#expiresMs = this.#expiry(facts, nowMs, wallMs);
  }

  /** The session goes on with another token; `max_session` counts from its beginning all the same. */
  renew(facts: TokenFacts, nowMs: number, wallMs: number): void {
    this.#expiresMs = this.#expiry(facts, nowMs, wallMs);
  }

  /** From here on no server connection is lent to the session. Monotonic milliseconds; Infinity for none. */
  get deadlineMs(): number {
    return Math.min(this.#expiresMs, this.#longestMs);
  }

  /** True when the session could not go on with this token: it has expired since it was verified. */
  wouldBeOver(facts: TokenFacts, wallMs: number): boolean {
    return facts.expiresAtMs + this.#policy.jwtLeewaySeconds * 1_000 <= wallMs;
  }

  /** How the session ends at the deadline. */
  eviction(): Eviction {
    const { onTokenExpiry, expiryGraceMs } = this.#policy;
    const graceMs = onTokenExpiry === 'immediate' ? 0 : expiryGraceMs;
    return this.#expiresMs <= this.#longestMs
      ? { error: tokenExpired(), graceMs }
      : { error: terminating('the session reached its longest life', 'max_session'), graceMs };
  }

  /** As long as the verifier would take the token, leeway included. */
  #expiry(facts: TokenFacts, nowMs: number, wallMs: number): number {
    const { onTokenExpiry, jwtLeewaySeconds } = this.#policy;
    if (onTokenExpiry === 'ignore') return Number.POSITIVE_INFINITY;
    return nowMs + (facts.expiresAtMs + jwtLeewaySeconds * 1_000 - wallMs);
  }
}

export function tokenExpired(): PgError {
  return terminating('the access token expired', 'token_expired');
}

/** What `standing` says of a token that is no longer good, in words; null when the session may stay. */
export function withdrawnError(
  standing: 'good' | 'revoked' | 'key_removed' | 'issuer_removed',
  onKeyRemoved: TurnstileConfig['onKeyRemoved'],
): PgError | null {
  switch (standing) {
    case 'good':
      return null;
    case 'revoked':
      return terminating('the access token was revoked', 'token_revoked');
    case 'key_removed':
      return onKeyRemoved === 'ignore'
        ? null
        : terminating("the access token's key was withdrawn", 'key_removed');
    case 'issuer_removed':
      return terminating("the access token's issuer is no longer accepted", 'issuer_removed');
    default:
      return standing satisfies never;
  }
}

/** What a new token can call off: that the old one expired, or is no longer accepted. */
export function mayBeCalledOff(error: PgError): boolean {
  return error.reason !== undefined && CALLED_OFF.has(error.reason);
}

/** `role` passed the role policy, so it holds nothing that could not be shown. */
export function roleDisabled(role: string): PgError {
  return terminating(`role "${role}" may no longer log in`, 'role_disabled');
}

function terminating(why: string, reason: string): PgError {
  return new PgError({
    code: SqlState.AdminShutdown,
    message: `terminating connection because ${why}`,
    severity: 'FATAL',
    reason,
  });
}

const CALLED_OFF: ReadonlySet<string> = new Set(['token_expired', 'token_revoked', 'key_removed']);
