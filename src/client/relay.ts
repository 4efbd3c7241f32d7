/**
 * The client's half of the relay: cuts what a client sends into messages, holds them until a whole request is
 * there, gives each to its handler and keeps the pace of both sides. Answers come back through the server
 * connection's queue. Who may log in, where connections come from and when they go back is the session's business;
 * what a message means is the business of query-relay and statement-relay.
 *
 * Hot: no await, no promise, no closure per message. Values of any size pass as spans.
 */
import type { Clock } from '../base/clock.ts';
import type { Wire, WireHandler } from '../net/wire.ts';
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { FrontendMessage, TxStatus } from '../protocol/codes.ts';
import { hasWholeRequest, isRequestType, readInt32 } from '../protocol/frames.ts';
import { encodeErrorResponse, encodeReadyForQuery } from '../protocol/message-writer.ts';
import { PgError } from '../protocol/pg-error.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { Waiter } from '../server/pool.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { PendingData } from '../server/server-owner.ts';
import type { ClaimSettings } from '../session/claim-settings.ts';
import type { ParameterSet, ParameterSets } from '../session/parameters.ts';
import type { StatementNames } from '../session/statement-names.ts';
import { changesHowSqlIsRead, widensAccess } from '../sql/settings.ts';
import { upholdClaims } from './claim-upkeep.ts';
import { HeldBytes } from './held-bytes.ts';
import { KnownPrepares } from './known-prepares.ts';
import { QueryRelay } from './query-relay.ts';
import { assertAhead } from './reassert.ts';
import { internalFault, protocolViolation, unreadableSql, widened } from './refusals.ts';
import { type FrameLoop, makeRelayParts, type RelayOptions, type RelayParts } from './relay-parts.ts';
import type { RequestRecord } from './request-record.ts';
import { type SessionEffects, TransactionHint } from './session-effects.ts';
import { StatementAnswers } from './statement-answers.ts';
import { StatementRelay } from './statement-relay.ts';
import { beginsWithSet, type TokenHost, type TokenInText } from './token-statements.ts';

/** The session, as its relay sees it. */
export interface RelayHost extends TokenHost {
  /** A linked connection, the error that makes it useless to wait, or null: it is waited for. */
  checkout(): ServerConnection | PgError | null;
  /** Nothing is pending on the linked connection. */
  onServerIdle(server: ServerConnection): void;
  /** A connection that was waited for is there. */
  link(server: ServerConnection): boolean;
  /** Others wait for the connection that the session holds and will give back. */
  readonly contended: boolean;
  /** The role that connections go back with; null where the login is the role. */
  readonly guardedRole: string | null;
  /** The linked connection has to come to rest before more is sent on it. */
  mustRest(server: ServerConnection): boolean;
  /** The client said goodbye, vanished or broke the protocol (`error`, to be told to it). */
  onClientGone(error: PgError | null): void;
  onServerLost(server: ServerConnection, fatalSent: boolean): void;
}

/**
 * Invariants: a message is sent on at most once and in order; bytes wait in `#held` only while a request is
 * incomplete or a connection is awaited; `server` is null exactly while the session is not linked.
 */
export class Relay implements WireHandler, Waiter, FrameLoop {
  waitingSinceMs: number;
  readonly wire: Wire;
  server: ServerConnection | null;
  parameters: ParameterSet;
  /** What its statements run with; another object from the next message on when a new token was taken. */
  claims: ClaimSettings | null;
  /** What the client's statements did to its session. */
  readonly effects: SessionEffects;
  /** The connection is waited for. */
  waiting: boolean;
  /** Nothing more is taken from the client, nor given to it. */
  closed: boolean;
  requestCount: number;
  transactionCount: number;
  lastActivityMs: number;

  readonly #host: RelayHost;
  readonly #clock: Clock;
  readonly #parameterSets: ParameterSets;
  readonly #mapNamed: boolean;
  readonly #guardedRole: string | null;
  /** Texts are judged, so that they must be read as PostgreSQL reads them. */
  readonly #guards: boolean;
  readonly #readOnly: boolean;
  readonly #parts: RelayParts;
  readonly #names: StatementNames;
  readonly #record: RequestRecord;
  readonly #queries: QueryRelay;
  readonly #statements: StatementRelay;
  readonly #answers: StatementAnswers;
  readonly #knownPrepares: KnownPrepares;
  readonly #held: HeldBytes;
  /** Bytes of the current message that still pass to the server, or are dropped. */
  #passLeft: number;
  #dropLeft: number;
  /** An error was answered without a server: everything up to Sync is dropped. */
  #skipToSync: boolean;
  #serverSlow: boolean;
  /** More is unanswered than anybody needs; answers that we give ourselves cost PostgreSQL nothing, but memory. */
  #crowded: boolean;
  /** A statement that drops prepared ones is under way: nothing is sent behind it until it is answered. */
  #barrier: boolean;
  /** An access token is being verified: the message that brought it comes again. */
  #parked: boolean;
  /** The client was told that its transaction is over, and what is pending now is ours alone. */
  #settling: boolean;

  constructor(options: RelayOptions) {
    const parts = makeRelayParts(this, options);
    this.waitingSinceMs = 0;
    this.wire = options.wire;
    this.server = null;
    this.parameters = options.parameters;
    this.claims = options.claims;
    this.effects = parts.effects;
    this.waiting = false;
    this.closed = false;
    this.requestCount = 0;
    this.transactionCount = 0;
    this.lastActivityMs = options.clock.nowMs;
    this.#host = options.host;
    this.#clock = options.clock;
    this.#parameterSets = options.parameterSets;
    this.#mapNamed = options.mapNamed;
    this.#guardedRole = options.guardedRole;
    this.#guards = options.guardedRole !== null || options.guardsClaims;
    this.#readOnly = options.readOnly;
    this.#parts = parts;
    this.#names = parts.names;
    this.#record = parts.record;
    this.#queries = new QueryRelay(parts);
    this.#statements = new StatementRelay(parts);
    this.#answers = new StatementAnswers(parts);
    this.#knownPrepares = new KnownPrepares({ ...options, names: parts.names });
    this.#held = new HeldBytes();
    this.#passLeft = 0;
    this.#dropLeft = 0;
    this.#skipToSync = false;
    this.#serverSlow = false;
    this.#crowded = false;
    this.#barrier = false;
    this.#parked = false;
    this.#settling = false;
  }

  get preparedStatementCount(): number {
    return this.#names.size;
  }

  /** A message was sent in part only; the connection cannot go back before its rest. */
  get sendingPart(): boolean {
    return this.#passLeft > 0;
  }

  // ---- from the client -------------------------------------------------------------------------------------

  onBytes(buffer: Buffer, start: number, end: number): void {
    this.lastActivityMs = this.#clock.nowMs;
    if (this.waiting || this.#barrier || this.#parked) return this.#hold(buffer, start, end);
    if (this.#held.length > 0) {
      this.#hold(buffer, start, end);
      this.#processHeld();
      return;
    }
    const at = this.#process(buffer, start, end);
    if (at < end && !this.closed) this.#hold(buffer, at, end);
    this.#flush();
  }

  onDrain(): void {
    this.server?.wire.resume();
  }

  onClose(error: Error | null): void {
    // An error without a system call behind it is a fault of ours, which ends this session and no other.
    this.#leave(error === null || 'syscall' in error || 'code' in error ? null : internalFault(error));
  }

  // ---- Waiter ----------------------------------------------------------------------------------------------

  onCheckedOut(server: ServerConnection): void {
    this.waiting = !this.#host.link(server);
    if (!this.waiting) this.#processHeld();
  }

  onCheckoutFailed(error: PgError): void {
    this.refuse(error);
  }

  /** Answers the request that waited with an error, and goes on behind it. */
  refuse(error: PgError): void {
    this.waiting = false;
    const { length } = this.#held;
    const held = this.#held.take();
    if (held === null) return;
    const at = this.#refuseAt(error, held, 0);
    this.#processTaken(held, at, length);
  }

  /** No more reading and no answers: the session is ending. */
  shut(): void {
    this.closed = true;
  }

  // ---- holding ---------------------------------------------------------------------------------------------

  #hold(buffer: Buffer, start: number, end: number): void {
    this.#held.add(buffer, start, end);
    // A client that talks on while it waits is not read any more; a shorter one is, so that its leaving is seen.
    if (this.#stopped && this.#held.length > WAITING_BYTES_MAX) this.wire.pause();
  }

  /** Nothing more of the client's is sent for now. */
  get #stopped(): boolean {
    return this.waiting || this.#barrier || this.#parked || (this.#settling && this.#held.length > 0);
  }

  #processHeld(): void {
    const { length } = this.#held;
    const held = this.#held.take();
    if (held === null) this.#flush();
    else this.#processTaken(held, 0, length);
  }

  /** While it is processed nothing may be added to it: callbacks run only after the loop. */
  #processTaken(held: Buffer, start: number, end: number): void {
    const at = this.#process(held, start, end);
    if (at < end && !this.closed) {
      this.#held.putBack(held, at, end);
      if (this.#stopped && this.#held.length > WAITING_BYTES_MAX) this.wire.pause();
    }
    this.#flush();
  }

  #flush(): void {
    const server = this.server;
    // Behind a barrier more of the request may follow, and the role be taken by it.
    if (server !== null && !this.#barrier && (this.#guardedRole !== null || this.claims !== null)) {
      const clears = this.claims !== null && this.#host.contended;
      assertAhead(server, this.#host.guardedRole, clears, this.effects.transaction, this.#passLeft > 0);
    }
    if (server !== null && !server.flush()) {
      this.#serverSlow = true;
      this.wire.pause();
      return;
    }
    if (server !== null && server.pending.length > PENDING_MAX) {
      this.#crowded = true;
      this.wire.pause();
      return;
    }
    if (!this.#stopped && !this.#serverSlow && !this.#crowded) this.wire.resume();
  }

  /** The janitor's visit: a client that had too much unanswered is read again. */
  tick(): void {
    if (this.server !== null) this.#tryLiftBarrier(this.server);
    if (!this.#crowded || (this.server !== null && this.server.pending.length > PENDING_MAX / 2)) return;
    this.#crowded = false;
    this.#flush();
  }

  // ---- the frame loop --------------------------------------------------------------------------------------

  /** Handles every message that can be handled; answers how far it came. */
  #process(buffer: Buffer, start: number, end: number): number {
    let at = start;
    while (at < end && !this.closed && !this.#barrier && !this.#parked) {
      if (this.#passLeft > 0) {
        at = this.#pass(buffer, at, end);
        continue;
      }
      if (this.#dropLeft > 0) {
        const take = Math.min(this.#dropLeft, end - at);
        this.#dropLeft -= take;
        at += take;
        continue;
      }
      const available = end - at;
      if (available < 5) break;
      const type = buffer[at] as number;
      const length = readInt32(buffer, at + 1);
      if (length < 4 || length > MESSAGE_BYTES_MAX) {
        this.violate('invalid message length');
        return end;
      }
      const total = length + 1;
      const server = this.server;
      if (server === null) {
        const next = this.#unlinked(type, total, buffer, at, end);
        if (next < 0) break;
        at = next;
        continue;
      }
      if (server.skippingToSync && type !== FrontendMessage.Sync && type !== FrontendMessage.Terminate) {
        // PostgreSQL would read and drop it (postgres.c, ignore_till_sync).
        this.#dropLeft = total;
        continue;
      }
      if (server.pending.length > 0 && this.#letsRest(server)) break;
      const next = this.#linked(server, type, total, buffer, at, end);
      if (next < 0) break;
      at = next;
    }
    return at;
  }

  /**
   * True when the next request waits until the connection has come to rest: a client whose requests always come ahead
   * of the answers to our batches would else keep a connection that others wait for, or that is to be closed, and
   * its settings would never be read back.
   */
  #letsRest(server: ServerConnection): boolean {
    if (this.#settling) {
      this.#settling = this.#host.mustRest(server);
      return this.#settling;
    }
    // A pipeline ends where no transaction is open, once it had its time.
    if (server.txStatus !== TxStatus.Idle || server.unsynced || server.skippable) return false;
    if (this.effects.transaction === TransactionHint.Open || this.#record.replaying) return false;
    const hasHadTime = this.#clock.nowMs - server.lastUsedMs >= PIPELINE_MS_MAX;
    if (!hasHadTime && this.effects.dirtySettings === null) return false;
    if (!this.#host.mustRest(server) || !server.pending.owesReady(this)) return false;
    this.#barrier = true;
    return true;
  }

  #pass(buffer: Buffer, start: number, end: number): number {
    const take = this.#passLeft < end - start ? this.#passLeft : end - start;
    const server = this.server;
    if (server !== null) server.send(buffer, start, start + take);
    this.#passLeft -= take;
    if (this.#passLeft === 0 && server !== null && server.settleLate) server.settleCopy();
    if (this.#passLeft === 0 && server !== null && server.quiet) {
      server.flush();
      this.onServerIdle(server);
    }
    return start + take;
  }

  /** No connection yet. Answers where to go on, or -1 to wait for more bytes or for a connection. */
  #unlinked(type: number, total: number, buffer: Buffer, at: number, end: number): number {
    switch (type) {
      case FrontendMessage.Terminate:
        this.wire.hangUp();
        this.#leave(null);
        return end;
      case FrontendMessage.CopyData:
      case FrontendMessage.CopyDone:
      case FrontendMessage.CopyFail:
        // Left over from a COPY that failed; PostgreSQL ignores them outside COPY (postgres.c, PostgresMain).
        this.#dropLeft = total;
        return at;
      default:
    }
    if (this.#skipToSync) {
      if (type === FrontendMessage.Sync) {
        this.#skipToSync = false;
        this.wire.write(READY_IDLE);
      }
      this.#dropLeft = total;
      return at;
    }
    if (!isRequestType(type)) {
      this.violate(`invalid frontend message type ${type}`);
      return end;
    }
    if (!hasWholeRequest(buffer, at, end) && end - at < REQUEST_BYTES_HELD_MAX) return -1;
    if (this.#mapNamed && (type === FrontendMessage.Parse || type === FrontendMessage.Close)) {
      const sync = this.#knownPrepares.answer(this.parameters.parseKey, buffer, at, end);
      if (sync > at) {
        this.requestCount++;
        this.wire.write(READY_IDLE);
        return sync + 5;
      }
    }
    if (type === FrontendMessage.Query && total <= end - at && beginsWithSet(buffer, at + 5)) {
      const token = this.#queries.tokenIn(buffer, at, at + total);
      if (token !== null) return this.#takeToken(token) ? at + total : -1;
    }
    const server = this.#host.checkout();
    if (server === null) {
      this.waiting = true;
      return -1;
    }
    if (server instanceof PgError) return this.#refuseAt(server, buffer, at);
    return at;
  }

  /** A request that is nothing but an access token needs no connection. False: it comes again. */
  #takeToken(token: TokenInText): boolean {
    const answer = this.#parts.tokens.answerQuery(token);
    if (answer === null) return false;
    this.wire.write(answer);
    return true;
  }

  #refuseAt(error: PgError, buffer: Buffer, at: number): number {
    if (error.severity === 'FATAL') {
      this.#leave(error);
      return at;
    }
    const type = buffer[at] as number;
    this.wire.write(encodeErrorResponse(error));
    if (type === FrontendMessage.Query || type === FrontendMessage.FunctionCall) this.wire.write(READY_IDLE);
    else this.#skipToSync = true;
    if (type !== FrontendMessage.Sync) this.#dropLeft = readInt32(buffer, at + 1) + 1;
    return at;
  }

  /** With a connection. Answers where to go on, or -1 to wait for more bytes. */
  #linked(
    server: ServerConnection,
    type: number,
    total: number,
    buffer: Buffer,
    at: number,
    end: number,
  ): number {
    const whole = total <= end - at;
    if (!whole && !mayStream(type, total)) {
      if (total <= TEXT_BYTES_MAX) return -1;
      this.#queries.onTooLong(server, type, total, TEXT_BYTES_MAX);
      return at;
    }
    if (server.pending.length === 0) server.requestStartedMs = this.#clock.nowMs;
    server.roleSafe = false;
    const next = at + total;
    if (this.#mapNamed && !this.#record.replaying) {
      this.#record.add(server.quiet, type, buffer, at, whole ? next : -1);
    }
    const carried = server.claims;
    if (carried.stale || carried.settings !== this.claims) {
      // Behind a Query inside a request nothing of ours may go out before it is known that it was not skipped.
      if (server.skippable && !server.unsynced && server.pending.owesReady(this)) {
        this.#barrier = true;
        return at;
      }
      upholdClaims(server, this.claims, this);
    }
    switch (type) {
      case FrontendMessage.Query:
        return this.#queries.onQuery(server, buffer, at, next) ? next : at;
      case FrontendMessage.Parse:
        return this.#statements.onParse(server, buffer, at, next) ? next : at;
      case FrontendMessage.Bind:
        return this.#statements.onBind(server, buffer, at, end, total);
      case FrontendMessage.Execute:
        this.#statements.onExecute(server, buffer, at, next);
        return next;
      case FrontendMessage.Sync:
        this.#statements.onSync(server, buffer, at, next);
        return next;
      case FrontendMessage.Describe:
        return this.#statements.onDescribe(server, buffer, at, next) ? next : at;
      case FrontendMessage.Close:
        this.#statements.onClose(server, buffer, at, next);
        return next;
      case FrontendMessage.Flush:
        server.send(buffer, at, next);
        return next;
      case FrontendMessage.CopyDone:
      case FrontendMessage.CopyFail:
        // Outside of a COPY PostgreSQL ignores it; behind a request it may be the end of that one's data.
        if (server.pending.length > 0) server.expect(PendingKind.CopyEnd, PendingAction.Forward, this, null);
        this.#passLeft = total;
        return at;
      case FrontendMessage.CopyData:
        this.#passLeft = total;
        return at;
      case FrontendMessage.FunctionCall:
        return this.#queries.onFunctionCall(server, buffer, at, end, total) ? at : -1;
      case FrontendMessage.Terminate:
        this.#leave(null);
        return end;
      default:
        this.violate(`invalid frontend message type ${type}`);
        return end;
    }
  }

  // ---- FrameLoop -------------------------------------------------------------------------------------------

  passOn(byteCount: number): void {
    this.#passLeft = byteCount;
  }

  drop(byteCount: number): void {
    this.#dropLeft = byteCount;
  }

  holdBack(): void {
    this.#barrier = true;
  }

  park(): void {
    this.#parked = true;
    // Verifying may take a request to the issuer, through which an idle connection is not kept from others.
    queueMicrotask(() => {
      const server = this.server;
      if (this.#parked && !this.closed && server?.quiet === true) this.#rest(server);
    });
  }

  unpark(): void {
    this.#parked = false;
    this.#goOnLater();
  }

  violate(message: string): void {
    this.#leave(protocolViolation(message));
  }

  #leave(error: PgError | null): void {
    this.closed = true;
    this.#host.onClientGone(error);
  }

  // ---- ServerOwner -----------------------------------------------------------------------------------------

  onServerBytes(view: Buffer): boolean {
    if (this.closed) return true;
    const taken = this.wire.writeView(view);
    if (this.wire.writeBlocked) this.server?.wire.pause();
    return taken;
  }

  onCommand(tag: string): void {
    this.#answers.onCommand(tag);
  }

  onCompleted(kind: PendingKind, data: PendingData): void {
    this.#answers.onCompleted(this.server, kind, data);
  }

  onNotCompleted(kind: PendingKind, data: PendingData, failed: boolean, code: string): void {
    this.#answers.onNotCompleted(this.server, kind, data, failed, code);
  }

  onSkipping(server: ServerConnection): void {
    // Queries that are skipped have no ReadyForQuery.
    this.#tryLiftBarrier(server);
  }

  onError(
    server: ServerConnection,
    kind: PendingKind,
    data: PendingData,
    fields: ErrorFields,
    frame: Buffer,
  ): Buffer | null {
    return this.#answers.onError(server, kind, data, fields, frame);
  }

  onReadyForQuery(server: ServerConnection, status: number): boolean {
    // A client is idle from the end of its statement on, not from its beginning.
    this.lastActivityMs = this.#clock.nowMs;
    if (status === TxStatus.Idle) {
      this.effects.onTransactionEnd(server.pending.length === 0);
      this.transactionCount++;
    }
    this.#tryLiftBarrier(server);
    this.#parts.standIns.closeStraysLate(server);
    if (this.#parts.reassertion.onReady(server, status)) return false;
    this.#parts.sender.closeStale(server, this.#passLeft > 0, this.#record.again);
    if (!this.#record.again) {
      const { pending } = server;
      this.#settling =
        status === TxStatus.Idle && pending.length > 0 && !server.unsynced && !pending.hasOwner(this);
      if (this.#passLeft > 0) this.#settling = false;
      return true;
    }
    this.#record.again = false;
    this.#sendAgain(server);
    return false;
  }

  #tryLiftBarrier(server: ServerConnection): void {
    if (!this.#barrier || server.pending.owesReady(this)) return;
    this.#barrier = false;
    // The answers of this tick go out first.
    this.#goOnLater();
  }

  /** Sends the request again behind a fresh Parse. What the client was told already is not told twice. */
  #sendAgain(server: ServerConnection): void {
    const record = this.#record;
    record.drop();
    record.replaying = true;
    this.#process(record.bytes, 0, record.length);
    record.replaying = false;
    server.flush();
  }

  onParameterStatus(name: string, value: string): boolean {
    // From here on texts would mean something else to PostgreSQL than to the guard: nothing more may be sent.
    if (this.#guards && changesHowSqlIsRead(name, value)) {
      this.#leave(unreadableSql(name));
      return false;
    }
    if (this.#readOnly && widensAccess(name, value)) {
      if (this.server !== null) this.server.retired = true;
      this.#leave(widened());
      return false;
    }
    const told = this.parameters.values.get(name);
    const head = this.server === null ? null : this.server.pending.data;
    if (!this.#parts.reassertion.mayTell(name, value, told, head)) return false;
    this.parameters = this.#parameterSets.with(this.parameters, name, value);
    if (this.server !== null) this.server.parameters = this.parameters;
    return true;
  }

  onServerIdle(server: ServerConnection): void {
    if (this.#passLeft > 0) return;
    this.#tryLiftBarrier(server);
    this.#statements.forgetPortals();
    this.#parts.names.settle();
    this.#parts.unnamed.settle();
    this.#parts.reassertion.drop();
    server.statements.settle();
    // PostgreSQL has answered, so what is still queued is for it to drop, and its drain is not ours to wait for.
    if (this.#serverSlow) this.onServerDrain();
    this.#rest(server);
  }

  /** Nothing is pending: the session does with the connection what it has to, and what was held goes on behind it. */
  #rest(server: ServerConnection): void {
    const wasSettling = this.#settling;
    this.#settling = false;
    this.#host.onServerIdle(server);
    if (this.closed) return;
    if (this.server !== null && this.server.pending.length > 0) this.#settling = true;
    else if (wasSettling && this.#held.length > 0) this.#goOnLater();
  }

  #goOnLater(): void {
    queueMicrotask(() => {
      if (!this.closed && !this.waiting) this.#processHeld();
    });
  }

  onServerDrain(): void {
    this.#serverSlow = false;
    if (!this.#stopped && !this.#crowded) this.wire.resume();
  }

  onServerLost(server: ServerConnection, fatalSent: boolean): void {
    this.#passLeft = 0;
    this.#serverSlow = false;
    this.#settling = false;
    this.#host.onServerLost(server, fatalSent);
  }
}

/** A message that need not be whole before its first bytes go on. */
function mayStream(type: number, total: number): boolean {
  switch (type) {
    case FrontendMessage.CopyData:
    case FrontendMessage.CopyFail:
      return true;
    case FrontendMessage.Bind:
    case FrontendMessage.FunctionCall:
      return total > STREAM_BYTES_MIN;
    default:
      return false;
  }
}

const READY_IDLE: Buffer = encodeReadyForQuery(TxStatus.Idle);
/** A request is held this far before it gets a connection without being whole. */
const REQUEST_BYTES_HELD_MAX = 64 * 1024;
/** What a client may send while it waits for a connection before it is not read any more. */
const WAITING_BYTES_MAX = 64 * 1024;
/** Texts are held whole up to here; PostgreSQL's own limit is 1 GiB. */
export const TEXT_BYTES_MAX: number = 16 * 1024 * 1024;
/** Longer values pass in parts. */
const STREAM_BYTES_MIN = 8 * 1024;
const MESSAGE_BYTES_MAX = 0x3fffffff;
/** Unanswered messages of one client before he is not read any more. */
const PENDING_MAX = 16_384;
/** So long a client that never waits for its answers keeps a connection that others wait for. */
const PIPELINE_MS_MAX = 100;
