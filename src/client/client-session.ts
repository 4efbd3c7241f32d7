/**
 * The life of a client behind its login: which pool it draws from, when a server connection comes and goes, what
 * becomes of it when the client leaves, its deadlines. The bytes are the relay's business.
 */
import type { Identity } from '../auth/identity.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import type { GeneralConfig } from '../config/config.ts';
import type { Wire } from '../net/wire.ts';
import { TxStatus } from '../protocol/codes.ts';
import { encodeCopyFail, encodeErrorResponse } from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import {
  ownBatch,
  sendParameters,
  sendReadParameters,
  sendRole,
  sendRollback,
  sendSync,
} from '../server/own-batch.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { Pool } from '../server/pool.ts';
import { cancelServer } from '../server/server-cancel.ts';
import type { CleaningPlan } from '../server/server-cleaner.ts';
import { type ServerConnection, ServerState } from '../server/server-connection.ts';
import type { ClaimSettingSets, ClaimSettings } from '../session/claim-settings.ts';
import { type ParameterSet, type ParameterSets, parameterDifference } from '../session/parameters.ts';
import type { StatementRegistry } from '../session/prepared-statements.ts';
import type { StatementAnalyzer } from '../sql/statement.ts';
import { clearForeignClaims } from './claim-switch.ts';
import { Relay, type RelayHost } from './relay.ts';
import { SessionToken, type SessionTokens } from './session-token.ts';
import type { Eviction } from './token-life.ts';
import type { TokenOffer } from './token-renewal.ts';

/** What sessions share. */
export interface SessionServices {
  readonly clock: Clock;
  readonly analyzer: StatementAnalyzer;
  readonly registry: StatementRegistry;
  readonly parameterSets: ParameterSets;
  readonly claims: ClaimSettingSets;
  readonly log: Logger;
  /** For sessions that a token opened; null where no token is asked for. */
  readonly tokens: SessionTokens | null;
  /** Called once, when the client is gone. */
  onSessionEnd(session: ClientSession): void;
}

export interface SessionOptions {
  readonly id: number;
  readonly wire: Wire;
  readonly identity: Identity;
  readonly databaseName: string;
  readonly requestedUser: string;
  readonly pool: Pool;
  /** The settings of the startup packet as PostgreSQL took them. */
  readonly startupParameters: ParameterSet;
  readonly secretKey: Buffer;
  readonly general: GeneralConfig;
  readonly services: SessionServices;
}

/**
 * Invariants: `relay.server` is set exactly while a connection is linked; a session that ended has neither a
 * socket nor a place in a queue, and its connection is on its way to the pool or closed; behind the deadline of its
 * token a session gets no connection.
 */
export class ClientSession implements RelayHost {
  readonly id: number;
  readonly databaseName: string;
  readonly requestedUser: string;
  readonly pool: Pool;
  /** Of the cancel key: 4 bytes, or 32 since protocol 3.2. */
  readonly secretKey: Buffer;
  readonly relay: Relay;
  readonly connectedAtMs: number;
  readonly #options: SessionOptions;
  readonly #sessionMode: boolean;
  readonly #token: SessionToken;
  #ended = false;
  #draining = false;
  #cancelledForTimeout = false;
  /** Its settings are being read back. */
  #reading = false;

  constructor(options: SessionOptions) {
    const { pool, general, services } = options;
    this.id = options.id;
    this.databaseName = options.databaseName;
    this.requestedUser = options.requestedUser;
    this.pool = pool;
    this.secretKey = options.secretKey;
    this.connectedAtMs = services.clock.nowMs;
    this.#options = options;
    this.#sessionMode = pool.options.settings.mode === 'session';
    this.#token = new SessionToken(options);
    const mapped = !this.#sessionMode && general.preparedStatements !== 'disabled';
    this.relay = new Relay({
      wire: options.wire,
      host: this,
      clock: services.clock,
      analyzer: services.analyzer,
      registry: services.registry,
      parameterSets: services.parameterSets,
      parameters: options.startupParameters,
      mapNamed: mapped,
      mapUnnamed: mapped && general.preparedStatements === 'extended_anonymous',
      guardedRole: pool.guardedRole,
      guardsClaims: options.identity.token !== null,
      readOnly: pool.options.readOnly,
      claims: claimsOf(options.identity, services),
      provenStatements: pool.provenStatements,
    });
    pool.sessions.add(this);
    options.wire.setHandler(this.relay);
  }

  /** A new token replaces its facts; role, user and access stay what they were. */
  get identity(): Identity {
    return this.#token.identity;
  }

  /** For the console: waiting for a connection, using one, or idle. */
  get state(): 'waiting' | 'active' | 'idle' {
    if (this.relay.waiting) return 'waiting';
    return this.relay.server === null ? 'idle' : 'active';
  }

  get ended(): boolean {
    return this.#ended;
  }

  // ---- RelayHost -------------------------------------------------------------------------------------------

  checkout(): ServerConnection | PgError | null {
    if (this.#draining) return shuttingDown();
    const refusal = this.#token.refusal();
    if (refusal !== null) return refusal;
    const server = this.pool.checkout(this.relay, this.#options.services.clock.nowMs);
    if (server === null || server instanceof PgError) return server;
    return this.link(server) ? server : null;
  }

  get contended(): boolean {
    return !this.#sessionMode && this.relay.effects.pins === null && this.pool.waitingCount > 0;
  }

  /** The pool's at this moment: a role that PostgreSQL did not know may be there by now. */
  get guardedRole(): string | null {
    return this.pool.guardedRole;
  }

  /** True when what is to be done where nothing is pending must not be put off by the client's next request. */
  mustRest(server: ServerConnection): boolean {
    if (this.#draining || this.#token.endAtRest() !== null) return true;
    if (this.#sessionMode) return false;
    const { dirtySettings, pins } = this.relay.effects;
    if (this.#reading || dirtySettings !== null) return true;
    return pins === null && this.pool.wantsBack(server);
  }

  /**
   * The connection is the session's: what differs in its settings goes in front of the request. False when it has
   * to wait until another token's claims are gone from it; then it is linked again.
   */
  link(server: ServerConnection): boolean {
    const relay = this.relay;
    relay.server = server;
    this.#cancelledForTimeout = false;
    const refusal = this.#token.refusal();
    if (refusal !== null) {
      this.#endSoon(refusal);
      return true;
    }
    const { parameterSets } = this.#options.services;
    const ready = clearForeignClaims(server, relay.claims, parameterSets.empty, () => {
      if (!this.#ended && relay.server === server) relay.onCheckedOut(server);
    });
    if (ready && server.parameters !== relay.parameters) this.#sendDifference(server, relay.parameters);
    return ready;
  }

  onServerIdle(server: ServerConnection): void {
    if (this.#ended) return;
    const relay = this.relay;
    const { dirtySettings, pins } = relay.effects;
    if (dirtySettings !== null && !this.#sessionMode) return this.#readSettings(server, dirtySettings);
    if (this.#draining) return this.end(terminated());
    const error = this.#token.endAtRest();
    if (error !== null) return this.end(error);
    if (this.#sessionMode || pins !== null) return this.#keepRole(server);
    relay.server = null;
    this.pool.release(server, this.#plan(server, false));
  }

  /** The connection stays the client's: a guarded role that its request may have left is there again before the next. */
  #keepRole(server: ServerConnection): void {
    const role = this.pool.guardedRole;
    if (role === null || server.roleSafe) return;
    const batch = ownBatch((error) => {
      if (error !== null) server.close('the role could not be assumed again');
      else server.roleSafe = server.pending.length === 0;
    });
    sendRole(server, role, batch, true);
    server.flush();
  }

  onClientGone(error: PgError | null): void {
    this.end(error);
  }

  onServerLost(server: ServerConnection, fatalSent: boolean): void {
    if (this.relay.server !== server) return;
    this.relay.server = null;
    if (this.#ended) return;
    if (fatalSent) return this.#finish(null);
    this.#finish(
      new PgError({
        code: SqlState.ConnectionFailure,
        message: 'connection to PostgreSQL was lost',
        severity: 'FATAL',
        reason: 'server_lost',
      }),
    );
  }

  // ---- settings --------------------------------------------------------------------------------------------

  #sendDifference(server: ServerConnection, wanted: ParameterSet): void {
    const difference = parameterDifference(server.parameters, wanted);
    server.parameters = wanted;
    if (difference === null) return;
    const batch = ownBatch((error) => {
      if (error === null || server.state === ServerState.Closed) return;
      this.#options.services.log.error(
        { client: this.id, code: error.get('C') },
        'the settings of a session could not be restored',
      );
      server.close('settings were refused');
    });
    sendParameters(server, difference.names, difference.values, batch);
  }

  /** Asks what the settings are now: whatever the transaction did to them, this is what the client keeps. */
  #readSettings(server: ServerConnection, names: ReadonlySet<string>): void {
    const relay = this.relay;
    const doubt = relay.effects.dirtyInDoubt;
    relay.effects.forgetDirty();
    let parameters = relay.parameters;
    const batch = ownBatch(
      (error) => {
        this.#reading = false;
        if (server.state === ServerState.Closed) return;
        if (error !== null) return server.close('settings could not be read');
        relay.parameters = parameters;
        server.parameters = parameters;
      },
      ([name, value]) => {
        if (typeof name !== 'string') return;
        parameters = this.#options.services.parameterSets.with(parameters, name, value ?? null);
      },
    );
    this.#reading = true;
    sendReadParameters(server, [...names], doubt, batch);
    server.flush();
  }

  // ---- cancel ----------------------------------------------------------------------------------------------

  /** A CancelRequest with this session's key came. An idle session has nothing to cancel. */
  async cancel(): Promise<void> {
    const server = this.relay.server;
    if (server !== null) {
      if (server.pending.hasOwner(this.relay)) await cancelServer(server, this.pool.options.target);
      return;
    }
    if (!this.relay.waiting || !this.pool.cancelWait(this.relay)) return;
    this.relay.refuse(
      new PgError({ code: SqlState.QueryCanceled, message: 'canceling statement due to user request' }),
    );
  }

  // ---- the token -------------------------------------------------------------------------------------------

  /**
   * Ends the session at the next point without an open transaction, and at the latest when the grace is over. False
   * when it is ending already.
   */
  evict(eviction: Eviction, nowMs: number): boolean {
    if (this.#ended || !this.#token.evict(eviction, nowMs)) return false;
    this.#tickToken(nowMs);
    return true;
  }

  #tickToken(nowMs: number): void {
    const server = this.relay.server;
    const resting = this.relay.waiting || server === null || server.quiet;
    const error = this.#token.tick(nowMs, resting);
    if (error !== null) this.end(error);
  }

  /** A connection came too late. Its pool is in the middle of lending it, so that it goes back a moment later. */
  #endSoon(error: PgError): void {
    this.relay.shut();
    queueMicrotask(() => this.end(error));
  }

  verifyToken(token: string, done: (offer: TokenOffer) => void): void {
    this.#token.verify(token, (offer) => {
      if (!this.#ended) done(offer);
    });
  }

  refusalOf(offer: TokenOffer): PgError | null {
    return this.#token.refusalOf(offer);
  }

  renew(offer: TokenOffer): void {
    // In force from the next message on: the difference is sent in front of it.
    if (this.#token.renew(offer)) this.relay.claims = claimsOf(this.identity, this.#options.services);
  }

  // ---- deadlines -------------------------------------------------------------------------------------------

  /** The janitor's visit. */
  tick(nowMs: number): void {
    if (this.#ended) return;
    this.relay.tick();
    this.#tickToken(nowMs);
    if (this.#ended) return;
    const { general } = this.#options;
    const server = this.relay.server;
    const quietMs = nowMs - this.relay.lastActivityMs;
    if (server === null) {
      if (!this.relay.waiting && quietMs >= general.clientIdleTimeoutMs) this.end(idleTooLong());
      return;
    }
    if (server.pending.length > 0) {
      this.#checkQueryTimeout(server, nowMs);
      return;
    }
    if (server.txStatus !== TxStatus.Idle) {
      if (quietMs >= general.clientIdleInTransactionTimeoutMs) this.end(idleInTransaction());
    } else if (quietMs >= general.clientIdleTimeoutMs) {
      this.end(idleTooLong());
    }
  }

  #checkQueryTimeout(server: ServerConnection, nowMs: number): void {
    const { queryTimeoutMs, rollbackTimeoutMs } = this.#options.general;
    const runningMs = nowMs - server.requestStartedMs;
    if (runningMs < queryTimeoutMs) return;
    if (!this.#cancelledForTimeout) {
      this.#cancelledForTimeout = true;
      this.#options.services.log.warn(
        { client: this.id, running_ms: Math.round(runningMs) },
        'query_timeout: cancelling',
      );
      void cancelServer(server, this.pool.options.target);
    } else if (runningMs >= queryTimeoutMs + rollbackTimeoutMs) {
      this.end(
        new PgError({
          code: SqlState.QueryCanceled,
          message: 'query_timeout',
          severity: 'FATAL',
          reason: 'query_timeout',
        }),
      );
    }
  }

  // ---- end -------------------------------------------------------------------------------------------------

  /** The pooler is going down: idle sessions end now, the others when their transaction does. */
  drain(): void {
    this.#draining = true;
    const server = this.relay.server;
    if (this.relay.waiting) return;
    if (server === null || server.quiet) this.end(terminated());
  }

  /** Ends the session: the client is told `error`, if any, and the connection is left as the next owner wants it. */
  end(error: PgError | null): void {
    if (this.#ended) return;
    const server = this.relay.server;
    this.#finish(error);
    if (server !== null) this.#leave(server);
  }

  #finish(error: PgError | null): void {
    if (this.#ended) return;
    this.#ended = true;
    const { wire } = this.#options;
    this.relay.shut();
    if (this.relay.waiting) this.pool.cancelWait(this.relay);
    wire.resume();
    if (error === null || this.relay.server?.isPartWayTo(this.relay)) wire.end();
    else wire.end(encodeErrorResponse(error, { severity: 'FATAL' }));
    this.pool.sessions.delete(this);
    this.#options.services.onSessionEnd(this);
    const { log } = this.#options.services;
    if (error !== null && error.code === SqlState.InternalError) {
      log.error({ client: this.id, reason: error.reason, err: error.cause }, error.message);
    } else if (error !== null && error.reason !== undefined) {
      log.info({ client: this.id, reason: error.reason, code: error.code }, error.message);
    }
  }

  /**
   * The client is gone. Quiet connections go back, an open transaction is rolled back, a running statement is
   * cancelled and its answers read to the end; whatever does not end in time is closed.
   */
  #leave(server: ServerConnection): void {
    if (server.state === ServerState.Closed) return;
    if (this.relay.sendingPart) return server.close('client left in the middle of a message');
    if (server.pending.length === 0 && !server.skippingToSync) {
      this.relay.server = null;
      this.pool.release(server, this.#plan(server, this.#leavesState()));
      return;
    }
    server.cleanDeadlineMs =
      this.#options.services.clock.precise() + this.pool.options.settings.rollbackTimeoutMs;
    // A cancel would meet what is ours: the role's assertion behind the last request, or settings on their way.
    const running = server.pending.hasOwner(this.relay);
    if (server.copyIn) {
      server.send(CLIENT_LEFT);
      server.expect(PendingKind.CopyEnd, PendingAction.Forward, null, null);
    }
    // Without a Sync of the client nothing may be committed by ours; PostgreSQL drops this while it skips to it.
    if (server.unsynced && !server.skippingToSync)
      sendRollback(
        server,
        ownBatch(() => {}),
      );
    sendSync(
      server,
      ownBatch(() => {
        if (server.state === ServerState.Closed) return;
        this.relay.server = null;
        this.pool.release(server, this.#plan(server, this.#leavesState()));
      }),
    );
    server.wire.resume();
    server.flush();
    if (running) void cancelServer(server, this.pool.options.target);
  }

  /** What its last statements did is known only when they are answered: not to be asked before. */
  #leavesState(): boolean {
    const { dirtySettings, pins } = this.relay.effects;
    return this.#sessionMode || pins !== null || dirtySettings !== null;
  }

  #plan(server: ServerConnection, discard: boolean): CleaningPlan | null {
    const role = server.roleSafe && server.quiet && !discard ? null : this.pool.roleToAssert(server);
    if (role === null && !discard) return null;
    return { role, discard, emptyParameters: this.#options.services.parameterSets.empty };
  }
}

function claimsOf({ token }: Identity, { claims }: SessionServices): ClaimSettings | null {
  return token === null ? null : claims.of(token);
}

function shuttingDown(): PgError {
  return new PgError({
    code: SqlState.CannotConnectNow,
    message: 'the pooler is shutting down',
    severity: 'FATAL',
  });
}

function terminated(): PgError {
  return new PgError({
    code: SqlState.AdminShutdown,
    message: 'terminating connection due to administrator command',
    severity: 'FATAL',
  });
}

function idleTooLong(): PgError {
  return new PgError({
    code: SqlState.IdleSessionTimeout,
    message: 'terminating connection due to idle-session timeout',
    severity: 'FATAL',
    reason: 'client_idle_timeout',
  });
}

function idleInTransaction(): PgError {
  return new PgError({
    code: SqlState.IdleInTransactionSessionTimeout,
    message: 'terminating connection due to idle-in-transaction timeout',
    severity: 'FATAL',
    reason: 'client_idle_in_transaction_timeout',
  });
}

const CLIENT_LEFT: Buffer = encodeCopyFail('the client left');
