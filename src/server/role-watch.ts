/**
 * Keeps what PostgreSQL says of the roles that tokens entered as no older than `role_check_interval`: one question
 * for each host and round, on a connection that some pool can spare. Says which roles may no longer be here; who is
 * sent away, and how, is the caller's part. A question without an answer changes nothing.
 */
import {
  checkRoleAttributes,
  type RoleAttributes,
  type RoleRefusal,
  roleRefused,
} from '../auth/role-policy.ts';
import type { Logger } from '../base/log.ts';
import type { TurnstileConfig } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import type { ParameterSet } from '../session/parameters.ts';
import { Pool } from './pool.ts';
import { type RoleAnswer, RoleLookup } from './role-lookup.ts';
import { ServerCapacity } from './server-capacity.ts';

/** A live session of a token, or of the anonymous role. */
export interface RoleUser {
  readonly pool: Pool;
  readonly identity: {
    readonly role: string;
    readonly token: { readonly subjectRole: string | null } | null;
  };
}

export interface RoleWatchOptions {
  readonly policy: Pick<
    TurnstileConfig,
    'roleCheckIntervalMs' | 'allowedPrivilegedRoles' | 'nologinRoles' | 'loginGroup'
  >;
  readonly emptyParameters: ParameterSet;
  readonly log: Logger;
  /** A pool of one connection to the same server, for one question: `sparePool`. */
  readonly makeSpare: (model: Pool) => Pool;
  /** The role may no longer be entered at this host: told once a round. */
  readonly onRefused: (role: string, hostKey: string, refusal: RoleRefusal) => void;
}

interface RoleFact {
  /** Null: there is no such role. */
  readonly attributes: RoleAttributes | null;
  /** Monotonic milliseconds. */
  readonly checkedMs: number;
}

interface Question {
  readonly lookup: RoleLookup;
  readonly waiting: ((answer: RoleAnswer) => void)[];
}

interface Host {
  readonly key: string;
  readonly facts: Map<string, RoleFact>;
  round: RoleLookup | null;
  /** Rounds that got no answer since, and when that was last said; null: the last one did. */
  unansweredSinceMs: number | null;
  warnedMs: number;
  /** Each round begins with another pool, so that no role's own settings can keep all of them from an answer. */
  turn: number;
}

/** Invariant: at most one round is under way for a host; facts older than the interval decide about no login. */
export class RoleWatch {
  readonly #options: RoleWatchOptions;
  readonly #hosts = new Map<string, Host>();
  /** Questions of logins, by host and names: those who come meanwhile wait for the same answer. */
  readonly #questions = new Map<string, Question>();
  #nextRoundMs = 0;

  constructor(options: RoleWatchOptions) {
    this.#options = options;
  }

  /**
   * The janitor's visit: ends questions that take too long, and begins the rounds that are due. `users` is asked for
   * only then.
   */
  tick(nowMs: number, users: () => Iterable<RoleUser>): void {
    for (const { lookup } of this.#questions.values()) lookup.tick(nowMs);
    for (const host of this.#hosts.values()) host.round?.tick(nowMs);
    if (nowMs < this.#nextRoundMs) return;
    this.#nextRoundMs = nowMs + this.#options.policy.roleCheckIntervalMs;
    const wanted = new Map<string, { names: Set<string>; pools: Set<Pool> }>();
    for (const user of users()) {
      const { hostKey } = user.pool;
      let entry = wanted.get(hostKey);
      if (entry === undefined) {
        entry = { names: new Set(), pools: new Set() };
        wanted.set(hostKey, entry);
      }
      entry.pools.add(user.pool);
      for (const name of rolesOf(user)) entry.names.add(name);
    }
    for (const [key, entry] of wanted) {
      const host = this.#host(key);
      if (host.round === null) this.#beginRound(host, [...entry.names], [...entry.pools], nowMs);
    }
    this.#forgetOld(nowMs, wanted);
  }

  /**
   * Whether a login may go on: its own role and, for a delegated token, the subject's. `done` is called once, at once
   * when both are known already; with FATAL 28000 when one may not be entered, 57P03 when the subject's is not known
   * and cannot be asked for now.
   */
  admit(user: RoleUser, nowMs: number, wallMs: number, done: (error: PgError | null) => void): void {
    const { pool, identity } = user;
    const host = this.#host(pool.hostKey);
    this.#noteOwn(host, pool);
    const missing: string[] = [];
    for (const name of rolesOf(user)) {
      const fact = host.facts.get(name);
      if (fact === undefined || nowMs - fact.checkedMs > this.#freshMs) missing.push(name);
      else {
        const refusal = this.#refusal(name, fact.attributes, wallMs);
        if (refusal !== null) return done(roleRefused(name, refusal));
      }
    }
    if (missing.length === 0) return done(null);
    const subjectRole = identity.token?.subjectRole ?? null;
    // A pool that somebody logs in to is not one that may go.
    const guest = {};
    pool.sessions.add(guest);
    this.#ask(host, pool, missing, nowMs, (answer) => {
      pool.sessions.delete(guest);
      done(this.#judge(missing, subjectRole, answer, wallMs));
    });
  }

  #ask(
    host: Host,
    pool: Pool,
    names: readonly string[],
    nowMs: number,
    done: (answer: RoleAnswer) => void,
  ): void {
    const key = JSON.stringify([host.key, ...names]);
    const known = this.#questions.get(key);
    if (known !== undefined) {
      known.waiting.push(done);
      return;
    }
    const lookup = new RoleLookup({
      pool,
      names,
      loginGroup: this.#options.policy.loginGroup,
      emptyParameters: this.#options.emptyParameters,
      done: (answer) => {
        this.#questions.delete(key);
        if (answer.roles !== null) this.#note(host, names, answer.roles, nowMs);
        for (const told of question.waiting) told(answer);
      },
    });
    const question: Question = { lookup, waiting: [done] };
    this.#questions.set(key, question);
    lookup.start(nowMs);
  }

  // ---- rounds ----------------------------------------------------------------------------------------------

  #beginRound(host: Host, names: string[], pools: Pool[], nowMs: number): void {
    const spare = this.#makeSpare(host, pools, nowMs);
    const pool = spare ?? pick(pools, host.turn);
    host.turn++;
    if (pool === null) return this.#onUnanswered(host, 'busy', '', nowMs);
    const round = new RoleLookup({
      pool,
      names,
      loginGroup: this.#options.policy.loginGroup,
      emptyParameters: this.#options.emptyParameters,
      done: (answer) => {
        host.round = null;
        spare?.destroy();
        if (answer.roles === null) this.#onUnanswered(host, answer.failure, answer.code, nowMs);
        else this.#onRound(host, names, answer.roles, nowMs);
      },
    });
    host.round = round;
    round.start(nowMs);
  }

  /**
   * Clients that keep every connection for themselves must not keep the watch from looking: after some rounds without
   * an answer it gets one of its own, beyond the limits, for this one question. Null before.
   */
  #makeSpare(host: Host, pools: readonly Pool[], nowMs: number): Pool | null {
    const patienceMs = this.#options.policy.roleCheckIntervalMs * ROUNDS_SKIPPED_MAX;
    if (host.unansweredSinceMs === null || nowMs - host.unansweredSinceMs < patienceMs) return null;
    return this.#options.makeSpare(pools[host.turn % pools.length] as Pool);
  }

  #onRound(
    host: Host,
    names: readonly string[],
    roles: ReadonlyMap<string, RoleAttributes>,
    askedMs: number,
  ): void {
    host.unansweredSinceMs = null;
    this.#note(host, names, roles, askedMs);
    for (const name of names) {
      const refusal = this.#refusal(name, roles.get(name) ?? null, Date.now());
      if (refusal !== null) this.#options.onRefused(name, host.key, refusal);
    }
  }

  #onUnanswered(host: Host, failure: string, code: string, nowMs: number): void {
    host.unansweredSinceMs ??= nowMs;
    const forMs = nowMs - host.unansweredSinceMs;
    if (failure !== 'error' && forMs < UNANSWERED_WARN_MS) return;
    if (nowMs - host.warnedMs < UNANSWERED_WARN_MS) return;
    host.warnedMs = nowMs;
    this.#options.log.warn(
      { server: host.key, reason: failure, for_ms: Math.round(forMs), ...(code === '' ? {} : { code }) },
      'the roles with live sessions could not be looked up',
    );
  }

  // ---- facts -----------------------------------------------------------------------------------------------

  #judge(
    names: readonly string[],
    subjectRole: string | null,
    answer: RoleAnswer,
    wallMs: number,
  ): PgError | null {
    if (answer.roles === null) {
      // The session's own role was looked at when the pool came up, and the rounds look again.
      return subjectRole !== null && names.includes(subjectRole) ? roleUnknownNow() : null;
    }
    for (const name of names) {
      const refusal = this.#refusal(name, answer.roles.get(name) ?? null, wallMs);
      if (refusal !== null) return roleRefused(name, refusal);
    }
    return null;
  }

  #refusal(name: string, attributes: RoleAttributes | null, wallMs: number): RoleRefusal | null {
    return checkRoleAttributes(name, attributes, this.#options.policy, wallMs);
  }

  /** Facts are as old as the question: its answer may have taken a while. */
  #note(
    host: Host,
    names: readonly string[],
    roles: ReadonlyMap<string, RoleAttributes>,
    askedMs: number,
  ): void {
    for (const name of names) {
      host.facts.set(name, { attributes: roles.get(name) ?? null, checkedMs: askedMs });
    }
  }

  /** What a connection that came up told of its role, where that is newer. */
  #noteOwn(host: Host, pool: Pool): void {
    const { roleAttributes, roleCheckedMs } = pool;
    if (roleAttributes === null) return;
    const known = host.facts.get(roleAttributes.name);
    if (known !== undefined && known.checkedMs >= roleCheckedMs) return;
    host.facts.set(roleAttributes.name, { attributes: roleAttributes, checkedMs: roleCheckedMs });
  }

  get #freshMs(): number {
    return this.#options.policy.roleCheckIntervalMs + ROUND_SLACK_MS;
  }

  #host(key: string): Host {
    let host = this.#hosts.get(key);
    if (host === undefined) {
      host = {
        key,
        facts: new Map(),
        round: null,
        unansweredSinceMs: null,
        warnedMs: Number.NEGATIVE_INFINITY,
        turn: 0,
      };
      this.#hosts.set(key, host);
    }
    return host;
  }

  #forgetOld(nowMs: number, wanted: ReadonlyMap<string, unknown>): void {
    for (const [key, host] of this.#hosts) {
      for (const [name, fact] of host.facts) {
        if (nowMs - fact.checkedMs > this.#freshMs * 2) host.facts.delete(name);
      }
      if (host.facts.size === 0 && host.round === null && !wanted.has(key)) this.#hosts.delete(key);
    }
  }
}

/** A pool like the other, but for one connection that counts towards no limit. The caller destroys it. */
export function sparePool({ options }: Pool): Pool {
  return new Pool({
    ...options,
    settings: { ...options.settings, sizeMax: 1, sizeMin: 0, connectAttempts: 1 },
    capacity: new ServerCapacity(1, 1),
    vet: () => null,
  });
}

/**
 * The roles that decide about a session. With `missing_role = "server_user"` it may run as the service user, about
 * whom this policy says nothing.
 */
function rolesOf(user: RoleUser): string[] {
  const { pool, identity } = user;
  const names: string[] = [];
  const own = pool.roleAttributes?.name ?? identity.role;
  if (!pool.options.provisioned || own === identity.role) names.push(own);
  const subjectRole = identity.token?.subjectRole ?? null;
  if (subjectRole !== null && subjectRole !== own) names.push(subjectRole);
  return names;
}

/** A pool with a connection to spare, or one that nobody waits for; null when clients wait everywhere. */
function pick(pools: readonly Pool[], turn: number): Pool | null {
  let second: Pool | null = null;
  for (let index = 0; index < pools.length; index++) {
    const pool = pools[(index + turn) % pools.length] as Pool;
    if (pool.closed) continue;
    if (pool.idleCount > 0 && pool.waitingCount === 0) return pool;
    if (pool.waitingCount === 0) second ??= pool;
  }
  return second;
}

function roleUnknownNow(): PgError {
  return new PgError({
    code: SqlState.CannotConnectNow,
    message: 'the roles of the access token cannot be looked up at this moment',
    severity: 'FATAL',
    reason: 'roles_unknown',
  });
}

/** What the janitor's step and PostgreSQL's answer may add to the age of a fact. */
const ROUND_SLACK_MS = 500;
/** Rounds that wait for the clients' connections before one is opened for the watch alone. */
const ROUNDS_SKIPPED_MAX = 3;
/** So long rounds may go without an answer before the log says so, and says so again. */
const UNANSWERED_WARN_MS = 60_000;
