/**
 * The token side of one session: who it is now, until when it may have server connections, why it has to go, and the
 * new token that calls that off. It tells the session when to end and never touches its connection.
 */
import { harmlessText } from '../auth/harmless-text.ts';
import type { Identity, TokenFacts } from '../auth/identity.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import { peerCertificateOf } from '../net/peer-certificate.ts';
import type { Wire } from '../net/wire.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { type Eviction, mayBeCalledOff, TokenLife, type TokenLifePolicy } from './token-life.ts';
import type { TokenOffer, TokenRenewal } from './token-renewal.ts';

/** What sessions of tokens share. */
export interface SessionTokens {
  readonly policy: TokenLifePolicy;
  readonly renewal: TokenRenewal;
  /** Why the token is no longer good, besides its expiry; null when it is. */
  readonly withdrawn: (facts: TokenFacts) => PgError | null;
  /** Milliseconds since the epoch. */
  readonly wallMs: () => number;
}

export interface SessionTokenOptions {
  /** The session's, for the log. */
  readonly id: number;
  readonly wire: Wire;
  readonly identity: Identity;
  readonly databaseName: string;
  readonly requestedUser: string;
  readonly services: {
    readonly clock: Clock;
    readonly log: Logger;
    /** Null where no token is asked for. */
    readonly tokens: SessionTokens | null;
  };
}

/** Invariant: once it has to go, or behind the deadline, `refusal` is never null. */
export class SessionToken {
  readonly #options: SessionTokenOptions;
  /** Null for a session without a token. */
  readonly #life: TokenLife | null;
  #identity: Identity;
  /** The deadline, as a number that the path of every checkout compares. */
  #deadlineMs: number;
  /** It has to end where no transaction is open, and when that may no longer be waited for. */
  #evicted: PgError | null = null;
  #evictAtMs: number = Number.POSITIVE_INFINITY;
  /** A new token is being verified: what it may call off waits for it, within the grace. */
  #verifying = false;

  constructor(options: SessionTokenOptions) {
    this.#options = options;
    this.#identity = options.identity;
    this.#life = makeLife(options);
    this.#deadlineMs = this.#life?.deadlineMs ?? Number.POSITIVE_INFINITY;
  }

  /** A new token replaces its facts; role, user and access stay what they were. */
  get identity(): Identity {
    return this.#identity;
  }

  /** Why the session gets no connection from here on, or null. */
  refusal(): PgError | null {
    if (this.#evicted !== null) return this.#evicted;
    return this.#isOver() ? this.#expired() : null;
  }

  /** Why it ends now that nothing is under way and no transaction open, or null. */
  endAtRest(): PgError | null {
    return this.#verifying && this.#evicted !== null && mayBeCalledOff(this.#evicted) ? null : this.#evicted;
  }

  /** The janitor's visit: why the session ends now, or null. `resting`: no transaction is open. */
  tick(nowMs: number, resting: boolean): PgError | null {
    if (this.#evicted === null) {
      if (nowMs < this.#deadlineMs || this.#life === null) return null;
      this.evict(this.#life.eviction(), nowMs);
    }
    if (nowMs >= this.#evictAtMs) return this.#evicted;
    return resting ? this.endAtRest() : null;
  }

  /** It has to go. False when it had to already. */
  evict({ error, graceMs }: Eviction, nowMs: number): boolean {
    if (this.#evicted !== null) return false;
    this.#evicted = error;
    this.#evictAtMs = nowMs + graceMs;
    return true;
  }

  // ---- a new token -----------------------------------------------------------------------------------------

  /** Has it looked at; `done` is called once, never before this returns. */
  verify(token: string, done: (offer: TokenOffer) => void): void {
    const { id, services, wire, requestedUser, databaseName } = this.#options;
    const { tokens, log } = services;
    if (tokens === null || this.#life === null) return queueMicrotask(() => done({ error: noToken() }));
    this.#verifying = true;
    const certificate = wire.tlsSocket === null ? null : peerCertificateOf(wire.tlsSocket);
    const { remoteAddress } = wire;
    const session = { identity: this.#identity, requestedUser, databaseName, remoteAddress, certificate };
    void tokens.renewal.check(token, session, tokens.wallMs()).then((offer) => {
      this.#verifying = false;
      if (offer.error !== null) {
        const { reason, code } = offer.error;
        log.warn({ client: id, reason, code }, 'a new access token was refused');
      }
      done(offer);
    });
  }

  /** Why the session cannot go on with it now, or null: what was good when it was verified may have expired. */
  refusalOf(offer: TokenOffer): PgError | null {
    if (offer.error !== null) return offer.error;
    const { tokens } = this.#options.services;
    if (tokens === null || this.#life === null) return noToken();
    const withdrawn = tokens.withdrawn(offer.facts) !== null;
    return withdrawn || this.#life.wouldBeOver(offer.facts, tokens.wallMs()) ? staleToken() : null;
  }

  /** The session goes on with it. False for an offer that is none. */
  renew(offer: TokenOffer): boolean {
    const { id, services } = this.#options;
    const { tokens, clock, log } = services;
    if (offer.error !== null || tokens === null || this.#life === null) return false;
    this.#identity = offer.identity;
    this.#life.renew(offer.facts, clock.precise(), tokens.wallMs());
    this.#deadlineMs = this.#life.deadlineMs;
    if (this.#evicted !== null && mayBeCalledOff(this.#evicted) && !this.#isOver()) {
      this.#evicted = null;
      this.#evictAtMs = Number.POSITIVE_INFINITY;
    }
    const { jti, kid, exp } = tokenForLog(offer.facts);
    log.info({ client: id, jti, kid, exp }, 'the session goes on with a new access token');
    return true;
  }

  // ---- inside ----------------------------------------------------------------------------------------------

  /** The coarse clock says when it is worth asking the exact one. */
  #isOver(): boolean {
    const { clock } = this.#options.services;
    return clock.nowMs + CLOCK_SLACK_MS >= this.#deadlineMs && clock.precise() >= this.#deadlineMs;
  }

  #expired(): PgError | null {
    return this.#life === null ? null : this.#life.eviction().error;
  }
}

/** Whose token it was, for a log line: as an issuer wrote it, who may not have chosen the text himself. */
export function tokenForLog(facts: TokenFacts): {
  iss: string | null;
  sub: string | null;
  jti: string | null;
  kid: string | null;
  exp: number;
} {
  const shown = (text: string | null): string | null => (text === null ? null : harmlessText(text, 1_024));
  const { issuer, subject, tokenId, keyId, expiresAtMs: exp } = facts;
  return { iss: shown(issuer), sub: shown(subject), jti: shown(tokenId), kid: shown(keyId), exp };
}

function makeLife({ identity, services }: SessionTokenOptions): TokenLife | null {
  const { token } = identity;
  const { tokens, clock } = services;
  if (token === null || tokens === null) return null;
  return new TokenLife(tokens.policy, token, clock.precise(), tokens.wallMs());
}

function noToken(): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: 'parameter "turnstile.token" can only be set in a session that an access token opened',
    reason: 'no_token',
  });
}

/** It was good when it was looked at. */
function staleToken(): PgError {
  return new PgError({
    code: SqlState.InvalidPassword,
    message: 'the new access token was not accepted',
    reason: 'stale',
  });
}

/** More than the coarse clock is ever behind. */
const CLOCK_SLACK_MS = 1_000;
