/**
 * The server connections of one role on one database host. Lends them in the same tick when one is idle, queues
 * the session otherwise, opens and closes connections within its size and the shared caps. It does not know what
 * travels on them, nor how a login was proven.
 */
import type { ScramKeys } from '../auth/scram-keys.ts';
import { assert } from '../base/assert.ts';
import { Fifo } from '../base/fifo.ts';
import type { Logger } from '../base/log.ts';
import type { PoolerMode } from '../config/config.ts';
import { Wire } from '../net/wire.ts';
import { type PgError, SqlState } from '../protocol/pg-error.ts';
import type { ClaimSettings } from '../session/claim-settings.ts';
import type { ParameterSet, ParameterSets } from '../session/parameters.ts';
import {
  checkoutTimedOut,
  isPassing,
  isRoleRefusal,
  poolClosed,
  roleLoginRefused,
  roleRefused,
  toPgError,
} from './pool-errors.ts';
import type { CapacityUser, ServerCapacity } from './server-capacity.ts';
import { type CleaningPlan, cleanServer } from './server-cleaner.ts';
import { ServerConnection, type ServerListener, ServerState } from './server-connection.ts';
import type { RoleAttributes } from './server-identity.ts';
import { type OpenedServer, openServerConnection, type ServerTarget } from './server-login.ts';
import { ServerLoginError } from './server-login-error.ts';
import type { ServerOwner } from './server-owner.ts';

/** A client session that wants a server connection. */
export interface Waiter extends ServerOwner {
  /** A connection that carries these claims already is the better one; absent like null: none. */
  readonly claims?: ClaimSettings | null;
  /** When it began to wait; set by the pool. */
  waitingSinceMs: number;
  /** The connection is linked to the session already. */
  onCheckedOut(server: ServerConnection): void;
  onCheckoutFailed(error: PgError): void;
}

/** A startup packet's settings as PostgreSQL took them. */
export interface AcceptedStartup {
  readonly parameters: ParameterSet;
  /** The ParameterStatus messages that a client with these settings is told, ready to send. */
  readonly statusMessages: Buffer;
}

export interface PoolSettings {
  readonly sizeMax: number;
  readonly sizeMin: number;
  readonly mode: PoolerMode;
  readonly checkoutTimeoutMs: number;
  readonly connectAttempts: number;
  readonly connectAttemptDelayMs: number;
  readonly idleTimeoutMs: number;
  readonly serverLifetimeMs: number;
  readonly serverLifetimeJitterMs: number;
  readonly rollbackTimeoutMs: number;
  readonly preparedStatementsLimit: number;
}

export interface PoolOptions {
  /** The name that clients use for the database. */
  readonly databaseName: string;
  readonly role: string;
  readonly target: ServerTarget;
  readonly settings: PoolSettings;
  /** Made for a token's role, not for a row of users.toml: it goes when nobody uses it. */
  readonly provisioned: boolean;
  readonly readOnly: boolean;
  readonly capacity: ServerCapacity;
  readonly parameterSets: ParameterSets;
  /** Refuses a connection that came up with more rights than the policy lets through. */
  readonly vet: (opened: OpenedServer, pool: Pool) => PgError | null;
  readonly scramKeys: ScramKeys;
  /** `missing_role = "server_user"`: a role that PostgreSQL does not know is not taken, instead of refused. */
  readonly stayWhenRoleMissing: boolean;
  readonly now: () => number;
  readonly log: Logger;
}

/**
 * Invariants: every open connection is in exactly one of the three sets; their sizes and `connecting` add up to
 * what was reserved from the capacity and never exceed `sizeMax`.
 */
export class Pool implements ServerListener, CapacityUser {
  readonly options: PoolOptions;
  readonly databaseKey: string;
  /** The server, whatever the database: roles are the same in all of them. */
  readonly hostKey: string;
  /** Sessions that are logged in to this pool. */
  readonly sessions: Set<object> = new Set();
  /** What a new session is told at login: the values PostgreSQL reported last; null before the first connection. */
  welcome: ReadonlyMap<string, string> | null = null;
  /** What PostgreSQL said of the role at the last login; null before the first. */
  roleAttributes: RoleAttributes | null = null;
  /** When it said so, monotonic milliseconds. */
  roleCheckedMs: number = Number.NEGATIVE_INFINITY;
  /** When the pool was last of use to anyone. */
  lastUsedMs: number;
  /** Startup settings that PostgreSQL accepted, by their raw text, and what they became. */
  readonly acceptedStartups: Map<string, AcceptedStartup> = new Map();
  /** Statements that PostgreSQL has prepared for this role once: a Parse of one needs no connection. */
  readonly provenStatements: WeakSet<object> = new WeakSet();
  readonly #idle: ServerConnection[] = [];
  readonly #active = new Set<ServerConnection>();
  readonly #cleaning = new Set<ServerConnection>();
  readonly #waiters = new Fifo<Waiter>();
  readonly #opening = new Set<AbortController>();
  #failure: { error: PgError; untilMs: number; count: number } | null = null;
  #closed = false;
  /** Connections are being handed to waiters. */
  #serving = false;
  /** `missing_role = "server_user"`, and PostgreSQL does not know the role. */
  #roleMissing = false;

  constructor(options: PoolOptions) {
    this.options = options;
    this.hostKey = `${options.target.host}:${options.target.port}`;
    this.databaseKey = `${this.hostKey}/${options.target.database}`;
    this.lastUsedMs = options.now();
    options.capacity.register(this);
  }

  get idleCount(): number {
    return this.#idle.length;
  }
  get activeCount(): number {
    return this.#active.size;
  }
  get cleaningCount(): number {
    return this.#cleaning.size;
  }
  get connectingCount(): number {
    return this.#opening.size;
  }
  get waitingCount(): number {
    return this.#waiters.length;
  }
  get serverCount(): number {
    return this.#idle.length + this.#active.size + this.#cleaning.size;
  }
  get idleSinceMs(): number {
    return this.#idle[0]?.lastUsedMs ?? Number.POSITIVE_INFINITY;
  }
  /** Milliseconds the oldest waiter has waited. */
  maxWaitMs(nowMs: number): number {
    const oldest = this.#waiters.peek();
    return oldest === undefined ? 0 : nowMs - oldest.waitingSinceMs;
  }
  starvedMs(nowMs: number): number {
    return this.serverCount + this.#opening.size > 0 ? 0 : this.maxWaitMs(nowMs);
  }
  /** The role that is assumed with SET ROLE, so that a session could leave it; null where the login is the role. */
  get guardedRole(): string | null {
    if (this.options.target.setRole === null) return null;
    return this.#roleMissing ? 'none' : this.options.target.setRole;
  }
  /**
   * What the connection has to become again before somebody else has it; null when it cannot be anybody else. Where
   * the login is the role it may have taken one that was granted to it, seen or by code that no text shows.
   */
  roleToAssert(server: ServerConnection): string | null {
    if (this.guardedRole !== null) return this.guardedRole;
    const maySetRole = this.roleAttributes?.maySetRole !== false;
    const provisioned = this.options.target.backendIdentity !== null;
    const inDoubt = provisioned ? maySetRole || server.roleInDoubt : maySetRole && server.roleInDoubt;
    return inDoubt ? 'none' : null;
  }
  get closed(): boolean {
    return this.#closed;
  }
  /** The last attempt to connect failed, not long ago: the count of failures must outlive a quiet moment. */
  failedRecently(nowMs: number): boolean {
    return this.#failure !== null && nowMs < this.#failure.untilMs + BACKOFF_MS_MAX;
  }
  *servers(): IterableIterator<ServerConnection> {
    yield* this.#idle;
    yield* this.#active;
    yield* this.#cleaning;
  }

  /**
   * An idle connection, linked to the session; or null, and the session waits for one of its two callbacks; or
   * the error that makes waiting useless.
   */
  checkout(waiter: Waiter, nowMs: number): ServerConnection | PgError | null {
    if (this.#closed) return poolClosed();
    this.lastUsedMs = nowMs;
    const server = this.#waiters.length === 0 ? this.#takeIdle(waiter.claims ?? null) : undefined;
    if (server !== undefined) {
      this.#link(server, waiter, nowMs);
      return server;
    }
    const failure = this.#failure;
    if (failure !== null && nowMs < failure.untilMs && this.serverCount === 0 && this.#opening.size === 0) {
      return failure.error;
    }
    waiter.waitingSinceMs = nowMs;
    this.#waiters.push(waiter);
    this.#openWhereWanted(nowMs);
    return null;
  }

  /** A lent connection is not to be used for another transaction: it is to be closed, or somebody waits for it. */
  wantsBack(server: ServerConnection): boolean {
    return server.retired || this.#waiters.length > 0 || this.options.capacity.wantedByOthers(this);
  }

  /** A session that no longer waits; false when it was not in the queue. */
  cancelWait(waiter: Waiter): boolean {
    return this.#waiters.remove(waiter);
  }

  /** The session is done with the connection. With a plan it is cleaned before anybody else gets it. */
  release(server: ServerConnection, plan: CleaningPlan | null): void {
    if (server.state === ServerState.Closed) return;
    assert(this.#active.delete(server), 'release of a connection that is not lent');
    server.linked = null;
    server.requestStartedMs = 0;
    // A client that is slow to read its last rows keeps nobody else's answers back.
    server.wire.resume();
    const nowMs = this.options.now();
    this.lastUsedMs = nowMs;
    if (server.retired || this.#closed) {
      this.#cleaning.add(server);
      server.state = ServerState.Cleaning;
      server.close('retired');
      return;
    }
    if (plan === null && server.cancelsInFlight === 0 && server.quiet) return this.#makeIdle(server, nowMs);
    server.state = ServerState.Cleaning;
    this.#cleaning.add(server);
    cleanServer(
      server,
      plan ?? { role: null, discard: false },
      this.options.settings.rollbackTimeoutMs,
      nowMs,
      (clean) => {
        if (server.state === ServerState.Closed) return;
        if (!clean) return server.close('cleaning failed');
        this.#cleaning.delete(server);
        this.#makeIdle(server, this.options.now());
      },
    );
  }

  /** Reconnect everything: idle ones now, the others when they come back. */
  retireAll(reason: string): void {
    for (const server of [...this.#idle]) server.close(reason);
    for (const server of this.#active) server.retired = true;
    for (const server of this.#cleaning) server.retired = true;
    this.#failure = null;
  }

  /** Ends the pool: waiting sessions get the error, idle connections close, lent ones close when they return. */
  close(error: PgError = poolClosed()): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const opening of this.#opening) opening.abort();
    this.#failWaiters(error);
    this.retireAll('pool closed');
    this.options.capacity.unregister(this);
  }

  /** Closes every connection at once. */
  destroy(): void {
    this.close();
    for (const server of [...this.servers()]) server.close('pooler is shutting down');
  }

  /** Opens connections ahead of demand, up to `sizeMin`. */
  warm(nowMs: number): void {
    if (this.#closed || !this.#mayTry(nowMs)) return;
    const missing = this.options.settings.sizeMin - this.serverCount - this.#opening.size;
    if (missing > 0) void this.#open();
  }

  /** The janitor's visit: deadlines of waiters, old and idle connections, the next attempt after a failure. */
  tick(nowMs: number): void {
    const { checkoutTimeoutMs, idleTimeoutMs, sizeMin } = this.options.settings;
    for (let waiter = this.#waiters.peek(); waiter !== undefined; waiter = this.#waiters.peek()) {
      if (nowMs - waiter.waitingSinceMs < checkoutTimeoutMs) break;
      this.#waiters.shift();
      this.#fail(waiter, this.#failure?.error ?? checkoutTimedOut(checkoutTimeoutMs));
    }
    for (const server of [...this.#idle]) {
      const surplus = this.serverCount > sizeMin;
      if (nowMs >= server.retireAtMs) server.close('server_lifetime');
      else if (surplus && nowMs - server.lastUsedMs >= idleTimeoutMs) server.close('idle_timeout');
    }
    for (const server of [...this.#cleaning, ...this.#active]) {
      if (nowMs >= server.retireAtMs) server.retired = true;
      if (nowMs >= server.cleanDeadlineMs) server.close('rollback_timeout');
    }
    if (this.#waiters.length > 0) {
      this.#serveWaiters(nowMs);
      this.#openWhereWanted(nowMs);
    }
    this.warm(nowMs);
  }

  // ---- ServerListener, CapacityUser ------------------------------------------------------------------------

  onServerClosed(server: ServerConnection, reason: string, fault: Error | null): void {
    const at = this.#idle.indexOf(server);
    if (at >= 0) this.#idle.splice(at, 1);
    this.#active.delete(server);
    this.#cleaning.delete(server);
    const fields = {
      database: this.options.databaseName,
      role: this.options.role,
      pid: server.processId,
      reason,
    };
    if (fault !== null)
      this.options.log.error({ ...fields, err: fault }, 'server connection closed by a fault');
    else this.options.log.debug(fields, 'server connection closed');
    this.options.capacity.release(this);
    if (this.#waiters.length > 0 && !this.#closed) this.#openWhereWanted(this.options.now());
  }

  onSessionUser(server: ServerConnection, user: string): void {
    // Under SET ROLE nobody may run a single statement more as whoever this is.
    if (this.guardedRole !== null && user !== this.options.target.user) {
      server.close('the session user changed');
    }
  }

  giveUpIdle(): void {
    this.#idle[0]?.close('its place is needed by another role');
  }

  onCapacity(): void {
    this.#openWhereWanted(this.options.now());
  }

  // ---- inside ----------------------------------------------------------------------------------------------

  #link(server: ServerConnection, waiter: Waiter, nowMs: number): void {
    server.state = ServerState.Active;
    server.cleanDeadlineMs = Number.POSITIVE_INFINITY;
    server.linked = waiter;
    server.lastUsedMs = nowMs;
    server.requestStartedMs = nowMs;
    this.#active.add(server);
  }

  /** The one used last, so that the others can grow old; before it one that carries the claims, then one without any. */
  #takeIdle(claims: ClaimSettings | null): ServerConnection | undefined {
    const idle = this.#idle;
    const last = idle.length - 1;
    if (last <= 0 || idle[last]?.claims.settings === claims) return idle.pop();
    let found = last;
    const lowest = Math.max(0, last - IDLE_LOOKED_AT_MAX);
    for (let at = last; at >= lowest; at--) {
      const carried = (idle[at] as ServerConnection).claims;
      if (carried.settings === claims) return idle.splice(at, 1)[0];
      if (found === last && carried.settings === null && !carried.tainted) found = at;
    }
    return idle.splice(found, 1)[0];
  }

  #makeIdle(server: ServerConnection, nowMs: number): void {
    server.assertIdle();
    server.lastUsedMs = nowMs;
    server.state = ServerState.Idle;
    this.#idle.push(server);
    if (nowMs >= server.retireAtMs || server.retired || this.#closed) return server.close('server_lifetime');
    if (this.#waiters.length > 0 && this.options.capacity.owedToOthers(this, nowMs))
      return server.close('its place is needed by another role');
    this.#serveWaiters(nowMs);
  }

  /**
   * Idle connections go to who waited longest, one after, not inside, the other: a waiter may give his back before
   * the call returns, and thousands of them would else stand on the stack together.
   */
  #serveWaiters(nowMs: number): void {
    if (this.#serving) return;
    this.#serving = true;
    try {
      while (this.#idle.length > 0 && this.#waiters.length > 0) {
        this.#hand(this.#idle.pop() as ServerConnection, this.#waiters.shift() as Waiter, nowMs);
      }
    } finally {
      this.#serving = false;
    }
    if (this.#idle.length > 0 && this.options.capacity.wantedByOthers(this)) this.giveUpIdle();
  }

  /** A fault of ours ends one session, not the wait of the others: its end is told by that of the connection. */
  #hand(server: ServerConnection, waiter: Waiter, nowMs: number): void {
    this.#link(server, waiter, nowMs);
    try {
      waiter.onCheckedOut(server);
    } catch (error) {
      if (server.linked === waiter) server.close('fault');
      this.#logFault(error);
    }
  }

  #fail(waiter: Waiter, error: PgError): void {
    try {
      waiter.onCheckoutFailed(error);
    } catch (fault) {
      this.#logFault(fault);
    }
  }

  #logFault(error: unknown): void {
    const { databaseName, role, log } = this.options;
    log.error({ database: databaseName, role, err: error }, 'a session could not go on: a fault of ours');
  }

  #mayTry(nowMs: number): boolean {
    if (this.#failure === null) return this.#opening.size < OPENING_MAX;
    return nowMs >= this.#failure.untilMs && this.#opening.size === 0;
  }

  #openWhereWanted(nowMs: number): void {
    while (
      !this.#closed &&
      this.#waiters.length > this.#opening.size &&
      this.serverCount + this.#opening.size < this.options.settings.sizeMax &&
      this.#mayTry(nowMs)
    ) {
      if (!this.#open()) return;
    }
  }

  #open(): boolean {
    if (!this.options.capacity.tryReserve(this)) return false;
    const opening = new AbortController();
    this.#opening.add(opening);
    void this.#openAttempts(opening.signal).then(
      (opened) => {
        this.#opening.delete(opening);
        try {
          this.#onOpened(opened);
        } catch (error) {
          opened.socket.destroy();
          this.#onOpenFailed(toPgError(error));
        }
      },
      (error: unknown) => {
        this.#opening.delete(opening);
        this.#onOpenFailed(toPgError(error));
      },
    );
    return true;
  }

  async #openAttempts(signal: AbortSignal): Promise<OpenedServer> {
    const { connectAttempts, connectAttemptDelayMs } = this.options.settings;
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#openOnce(signal);
      } catch (error) {
        const hopeless = !(error instanceof ServerLoginError) || !isPassing(error);
        if (attempt >= connectAttempts || hopeless || signal.aborted) throw error;
        await new Promise((resolve) => setTimeout(resolve, connectAttemptDelayMs));
      }
    }
  }

  async #openOnce(signal: AbortSignal): Promise<OpenedServer> {
    const { target, scramKeys, stayWhenRoleMissing } = this.options;
    try {
      const opened = await openServerConnection(target, { scramKeys, signal });
      this.#onRoleMissing(false);
      return opened;
    } catch (error) {
      if (!(error instanceof ServerLoginError)) throw error;
      const { backendIdentity, setRole } = target;
      if (setRole === null && backendIdentity !== null && error.code.startsWith('28')) {
        throw roleLoginRefused(target.user, backendIdentity, error);
      }
      if (setRole === null || !isRoleRefusal(error)) throw error;
      if (!stayWhenRoleMissing || error.code !== SqlState.InvalidParameterValue) {
        throw roleRefused(
          setRole,
          error.code === SqlState.InvalidParameterValue ? 'role_missing' : 'role_denied',
        );
      }
    }
    const opened = await openServerConnection({ ...target, setRole: null }, { scramKeys, signal });
    this.#onRoleMissing(true);
    this.options.log.warn(
      { database: this.options.databaseName, role: target.setRole, server_user: target.user },
      'missing_role: PostgreSQL does not know the role, the session runs as the server user',
    );
    return opened;
  }

  /** Connections that came up as somebody else are not lent again. */
  #onRoleMissing(missing: boolean): void {
    if (this.#roleMissing === missing) return;
    this.#roleMissing = missing;
    this.retireAll(missing ? 'the role is gone' : 'the role is there now');
  }

  #onOpened(opened: OpenedServer): void {
    const nowMs = this.options.now();
    const refused = this.#closed ? poolClosed() : this.options.vet(opened, this);
    if (refused !== null) {
      opened.socket.destroy();
      this.#onOpenFailed(refused);
      return;
    }
    const server = this.#takeOver(opened, nowMs);
    try {
      if (opened.leftover.length > 0) server.onBytes(opened.leftover, 0, opened.leftover.length);
      if (server.state !== ServerState.Closed) this.#makeIdle(server, nowMs);
    } catch (error) {
      server.close('fault');
      this.#logFault(error);
    }
  }

  #takeOver(opened: OpenedServer, nowMs: number): ServerConnection {
    this.#failure = null;
    this.roleAttributes = opened.attributes.role;
    this.roleCheckedMs = nowMs;
    const { serverLifetimeMs, serverLifetimeJitterMs, preparedStatementsLimit } = this.options.settings;
    const jitterMs = serverLifetimeJitterMs * (Math.random() * 2 - 1);
    const server = new ServerConnection({
      openWire: (handler) => Wire.adopt(opened.socket, handler, null),
      listener: this,
      processId: opened.processId,
      secretKey: opened.secretKey,
      backendStart: opened.backendStart,
      reported: opened.parameters,
      emptyParameters: this.options.parameterSets.empty,
      preparedStatementsLimit,
      nowMs,
      retireAtMs: nowMs + serverLifetimeMs + jitterMs,
    });
    // The role came or went while this one came up.
    const { user, setRole } = this.options.target;
    const expected = this.#roleMissing ? user : setRole;
    if (setRole !== null && opened.attributes.role.name !== expected) server.retired = true;
    if (this.welcome === null || !sameValues(this.welcome, opened.parameters)) {
      this.welcome = new Map(opened.parameters);
      this.acceptedStartups.clear();
    }
    return server;
  }

  #onOpenFailed(error: PgError): void {
    this.options.capacity.release(this);
    if (this.#closed) return;
    const nowMs = this.options.now();
    const count = (this.#failure?.count ?? 0) + 1;
    const delayMs = Math.min(BACKOFF_MS_MIN * 2 ** Math.min(count - 1, 16), BACKOFF_MS_MAX);
    this.#failure = { error, untilMs: nowMs + delayMs, count };
    this.options.log.warn(
      {
        database: this.options.databaseName,
        role: this.options.role,
        code: error.code,
        attempt: count,
        next_ms: delayMs,
        ...(error.reason === undefined ? {} : { reason: error.reason }),
        // Our own words name the host and say what TLS or the network did; the client was told less.
        ...(error.cause instanceof ServerLoginError &&
          error.cause.message !== error.message && { why: error.cause.message }),
      },
      `cannot connect to PostgreSQL: ${error.message}`,
    );
    if (this.serverCount === 0 && this.#opening.size === 0) this.#failWaiters(error);
  }

  #failWaiters(error: PgError): void {
    for (let count = this.#waiters.length; count > 0; count--) {
      const waiter = this.#waiters.shift();
      if (waiter !== undefined) this.#fail(waiter, error);
    }
  }
}

function sameValues(left: ReadonlyMap<string, string>, right: ReadonlyMap<string, string>): boolean {
  if (left.size !== right.size) return false;
  for (const [name, value] of left) if (right.get(name) !== value) return false;
  return true;
}

/** Idle connections that are looked at for the claims that they carry. */
const IDLE_LOOKED_AT_MAX = 16;
/** Connections of one pool that come up at the same time; more only make PostgreSQL slower. */
const OPENING_MAX = 4;
const BACKOFF_MS_MIN = 50;
const BACKOFF_MS_MAX = 5_000;
