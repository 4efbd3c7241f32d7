/**
 * A new token for a session that a token opened: verified like the one of a login, and good only when it speaks of
 * the same identity in the same database. It knows nothing of the statements that bring it, nor when the session
 * goes on with it. The token itself is not kept here, nor is it in any error.
 */
import { ownClaim } from '../auth/claim-path.ts';
import type { Identity, TokenFacts } from '../auth/identity.ts';
import { identityFromToken } from '../auth/token-identity.ts';
import { TokenRejected } from '../auth/token-rejected.ts';
import type { VerifiedToken } from '../auth/token-verifier.ts';
import type { Config } from '../config/config.ts';
import type { PeerCertificate } from '../net/peer-certificate.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';

/** What became of a token that a client handed over: the identity to go on with, or the error. */
export type TokenOffer =
  | { readonly identity: Identity; readonly facts: TokenFacts; readonly error: null }
  | { readonly error: PgError };

/** The part of a TokenAuthority that a session needs. */
export interface RenewalAuthority {
  verify(token: string, nowMs: number, mayCheck?: () => boolean): Promise<VerifiedToken>;
  isVerified(token: string, nowMs: number): boolean;
}

/** What a session may spend on tokens; the same purse as that of the logins. */
export interface RenewalBudget {
  mayProve(remoteAddress: string): PgError | null;
  takeCheck(): boolean;
  giveCheckBack(): void;
  onFailure(remoteAddress: string): void;
}

/** Whose token it would be. */
export interface RenewalSession {
  readonly identity: Identity;
  /** User and database of the startup packet. */
  readonly requestedUser: string;
  readonly databaseName: string;
  readonly remoteAddress: string;
  readonly certificate: PeerCertificate | null;
}

export interface TokenRenewalOptions {
  readonly config: Config;
  readonly authority: RenewalAuthority;
  readonly budget: RenewalBudget;
}

/** One per worker. */
export class TokenRenewal {
  readonly #options: TokenRenewalOptions;

  constructor(options: TokenRenewalOptions) {
    this.#options = options;
  }

  /** Never rejects. `nowMs` is since the epoch. */
  async check(token: string, session: RenewalSession, nowMs: number): Promise<TokenOffer> {
    const { authority, budget } = this.#options;
    try {
      if (!authority.isVerified(token, nowMs)) {
        const refusal = budget.mayProve(session.remoteAddress);
        if (refusal !== null) return { error: asStatementError(refusal) };
      }
      let isTaken = false;
      const verified = await authority.verify(token, nowMs, () => {
        isTaken = budget.takeCheck();
        return isTaken;
      });
      // As at the door: only what comes to nothing is held against the rest.
      if (isTaken) budget.giveCheckBack();
      return this.#judge(verified, session);
    } catch (error) {
      if (!(error instanceof TokenRejected)) return { error: refused('verifier_failed') };
      if (error.kind !== 'invalid') return { error: unavailable(error) };
      budget.onFailure(session.remoteAddress);
      return { error: refused(error.reason) };
    }
  }

  #judge(verified: VerifiedToken, session: RenewalSession): TokenOffer {
    const { config } = this.#options;
    const { identity: known } = session;
    if (known.token === null) return { error: refused('no_token') };
    let identity: Identity;
    try {
      identity = identityFromToken({
        verified,
        config,
        startupUser: session.requestedUser,
        database: session.databaseName,
        method: known.method === 'oauth' ? 'oauth' : 'jwt',
        certificate: session.certificate,
      });
    } catch (error) {
      if (error instanceof PgError) return { error: refused(error.reason ?? error.code) };
      return { error: refused(error instanceof TokenRejected ? error.reason : 'verifier_failed') };
    }
    const facts = identity.token;
    if (facts === null) return { error: refused('no_token') };
    const difference = differenceOf(known, known.token, identity, facts);
    return difference === null ? { identity, facts, error: null } : { error: refused(difference) };
  }
}

/** What a token must not change, as a reason for the log; null when it is all the same. */
function differenceOf(known: Identity, old: TokenFacts, next: Identity, facts: TokenFacts): string | null {
  if (facts.source !== old.source || !isSameClaim('iss', old, facts)) return 'other_issuer';
  if (!isSameClaim('sub', old, facts)) return 'other_subject';
  if (facts.actor !== old.actor || facts.subjectRole !== old.subjectRole) return 'other_actor';
  if (next.role !== known.role || next.user !== known.user) return 'other_role';
  // The pool was chosen by it: a session cannot become another one on the way.
  return next.readOnly === known.readOnly ? null : 'other_access';
}

/** The claim as it was written: the facts leave out what is too long for a log line, or no string. */
function isSameClaim(name: 'iss' | 'sub', old: TokenFacts, next: TokenFacts): boolean {
  const [one, other] = [old, next].map(({ claims }) => JSON.stringify(ownClaim(claims, name)));
  return one === other;
}

/** The one answer to every token that is not taken; the reason is for the log. */
function refused(reason: string): PgError {
  return new PgError({
    code: SqlState.InvalidPassword,
    message: 'the new access token was not accepted',
    reason,
  });
}

/** Nothing is said of the token: the same one may be tried again. */
function unavailable({ kind, reason }: TokenRejected): PgError {
  return new PgError({
    code: kind === 'overloaded' ? SqlState.TooManyConnections : SqlState.CannotConnectNow,
    message: 'the new access token cannot be verified at this moment',
    reason,
  });
}

/** A refusal of a login ends a connection; that of a statement does not. */
function asStatementError(error: PgError): PgError {
  const { code, message, reason } = error;
  return new PgError({ code, message, ...(reason === undefined ? {} : { reason }) });
}
