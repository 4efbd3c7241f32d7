/**
 * Looks after the sessions that tokens opened, from outside of them: tokens that were revoked, keys that were
 * withdrawn, roles that PostgreSQL would not let in any more. It says which session has to go; how a session goes is
 * its own business, when its token expires too.
 */
import type { TokenFacts } from '../auth/identity.ts';
import { type RoleRefusal, roleRefused } from '../auth/role-policy.ts';
import type { Logger } from '../base/log.ts';
import type { TurnstileConfig } from '../config/config.ts';
import type { PgError } from '../protocol/pg-error.ts';
import type { PoolDirectory } from '../server/pool-directory.ts';
import { type RoleUser, RoleWatch, sparePool } from '../server/role-watch.ts';
import type { ParameterSets } from '../session/parameters.ts';
import type { ClientSession } from './client-session.ts';
import { roleDisabled, withdrawnError } from './token-life.ts';

/** The part of a TokenAuthority that live sessions need. */
export interface StandingAuthority {
  standing(facts: TokenFacts): 'good' | 'revoked' | 'key_removed' | 'issuer_removed';
  onChange(listener: () => void): void;
  insecureReasons(): string[];
}

export interface SessionWatchOptions {
  readonly policy: TurnstileConfig;
  /** Null when nobody is asked for a token. */
  readonly authority: StandingAuthority | null;
  readonly pools: PoolDirectory;
  readonly parameterSets: ParameterSets;
  readonly sessions: () => Iterable<ClientSession>;
  readonly log: Logger;
}

/** One per worker. */
export class SessionWatch {
  readonly #options: SessionWatchOptions;
  readonly #roles: RoleWatch;
  #sweepMs = 0;
  #warnMs = 0;

  constructor(options: SessionWatchOptions) {
    this.#options = options;
    this.#roles = new RoleWatch({
      policy: options.policy,
      emptyParameters: options.parameterSets.empty,
      log: options.log,
      makeSpare: sparePool,
      onRefused: (role, hostKey, refusal) => this.#onRoleRefused(role, hostKey, refusal),
    });
    // What changed is acted upon at once, in the next visit.
    options.authority?.onChange(() => {
      this.#sweepMs = 0;
    });
  }

  /** The janitor's visit. */
  tick(nowMs: number): void {
    this.#roles.tick(nowMs, () => this.#strangers());
    const { authority } = this.#options;
    if (authority === null) return;
    if (nowMs >= this.#sweepMs) {
      this.#sweepMs = nowMs + SWEEP_INTERVAL_MS;
      this.#sweep(nowMs);
    }
    if (nowMs < this.#warnMs) return;
    this.#warnMs = nowMs + WARN_INTERVAL_MS;
    for (const reason of authority.insecureReasons()) {
      this.#options.log.warn({ reason }, INSECURE.get(reason) ?? 'the rules for tokens are open');
    }
  }

  /** Why the token is no longer good, besides its expiry; null when it is. */
  withdrawn(facts: TokenFacts): PgError | null {
    const { authority, policy } = this.#options;
    return authority === null ? null : withdrawnError(authority.standing(facts), policy.onKeyRemoved);
  }

  /** Whether PostgreSQL lets the roles of a login in: see RoleWatch. For an identity that no token stands for, at once. */
  admit(user: RoleUser, nowMs: number, done: (error: PgError | null) => void): void {
    this.#roles.admit(user, nowMs, Date.now(), done);
  }

  #sweep(nowMs: number): void {
    for (const session of [...this.#options.sessions()]) {
      const { token } = session.identity;
      const error = token === null ? null : this.withdrawn(token);
      if (error !== null) session.evict({ error, graceMs: this.#graceMs }, nowMs);
    }
  }

  get #graceMs(): number {
    const { onTokenExpiry, expiryGraceMs } = this.#options.policy;
    return onTokenExpiry === 'immediate' ? 0 : expiryGraceMs;
  }

  #onRoleRefused(role: string, hostKey: string, reason: RoleRefusal): void {
    const { pools, log } = this.#options;
    let count = 0;
    const nowMs = performance.now();
    for (const session of [...this.#strangers()]) {
      const { identity, pool } = session;
      if (pool.hostKey !== hostKey) continue;
      const own = pool.roleAttributes?.name ?? identity.role;
      if (own !== role && identity.role !== role && identity.token?.subjectRole !== role) continue;
      if (session.evict({ error: roleDisabled(role), graceMs: this.#graceMs }, nowMs)) count++;
    }
    // Those in a transaction are still there in the next round.
    if (count > 0) log.warn({ role, server: hostKey, reason, clients: count }, 'a role may no longer log in');
    pools.forgetRole(role, hostKey, roleRefused(role, reason));
  }

  /** The sessions that the role policy is for. */
  *#strangers(): Iterable<ClientSession> {
    for (const session of this.#options.sessions()) {
      if (session.identity.token !== null || session.identity.method === 'anonymous') yield session;
    }
  }
}

const INSECURE: ReadonlyMap<string, string> = new Map([
  ['any_issuer', 'tokens of any issuer are accepted: no issuer is configured (jwt_issuer)'],
  ['any_audience', 'tokens for any audience are accepted (jwt_audience)'],
  ['any_database', 'a token that names no database enters all of them (database_claim_required)'],
  ['unverified_email', 'roles come from an e-mail claim that need not be verified (require_verified_email)'],
]);
/** Also without word of a change, such as facts of another authority. */
const SWEEP_INTERVAL_MS = 5_000;
const WARN_INTERVAL_MS = 3_600_000;
