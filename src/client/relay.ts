/**
 * The client's half of the relay: cuts what a client sends into messages, holds them until a whole request is
 * there, and sends them on with the names of prepared statements replaced. Answers come back through the server
 * connection's queue. Who may log in, where connections come from and when they go back is the session's business.
 *
 * Hot: no await, no promise, no closure per message. Values of any size pass as spans.
 */
import type { Clock } from '../base/clock.ts';
import type { Wire, WireHandler } from '../net/wire.ts';
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { FrontendMessage, TxStatus } from '../protocol/codes.ts';
import {
  CLOSE_COMPLETE,
  encodeErrorResponse,
  encodeParse,
  encodeQuery,
  encodeReadyForQuery,
  PARSE_COMPLETE,
} from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { ownBatch, sendParameters, sendRole, sendRoleUnnamed } from '../server/own-batch.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { Waiter } from '../server/pool.ts';
import {
  type FakeAnswer,
  type PendingData,
  type ServerConnection,
  UNNAMED_FOREIGN,
} from '../server/server-connection.ts';
import type { ParameterSet, ParameterSets } from '../session/parameters.ts';
import {
  PreparedStatement,
  SERVER_NAME_PREFIX,
  type StatementRegistry,
} from '../session/prepared-statements.ts';
import { changesHowSqlIsRead } from '../sql/settings.ts';
import { NO_EFFECTS, type StatementAnalyzer, type StatementEffects } from '../sql/statement.ts';
import { isHarmlessFunction } from './function-call.ts';

/** The session, as its relay sees it. */
export interface RelayHost {
  /** A linked connection, the error that makes it useless to wait, or null: it is waited for. */
  checkout(): ServerConnection | PgError | null;
  /** Nothing is pending on the linked connection. */
  onServerIdle(server: ServerConnection): void;
  /** A connection that was waited for is there. */
  link(server: ServerConnection): void;
  /** The client said goodbye, vanished or broke the protocol (`error`, to be told to it). */
  onClientGone(error: PgError | null): void;
  onServerLost(server: ServerConnection, fatalSent: boolean): void;
}

export interface RelayOptions {
  readonly wire: Wire;
  readonly host: RelayHost;
  readonly clock: Clock;
  readonly analyzer: StatementAnalyzer;
  readonly registry: StatementRegistry;
  readonly parameterSets: ParameterSets;
  readonly parameters: ParameterSet;
  /** Named statements are mapped: transaction mode and prepared_statements is not `disabled`. */
  readonly mapNamed: boolean;
  /** The unnamed statement is mapped too: `extended_anonymous`. */
  readonly mapUnnamed: boolean;
  /** The role that escapes are refused for and that DISCARD ALL must not drop; null where the login is the role. */
  readonly guardedRole: string | null;
  /** Statements that PostgreSQL has prepared for this role before. */
  readonly provenStatements: WeakSet<object>;
}

/** What a Parse or Close of the unnamed statement replaced, where PostgreSQL may still skip it. */
interface UnnamedChange {
  readonly parse: Buffer | null;
  readonly length: number;
  readonly effects: StatementEffects;
  readonly id: number;
  /** What the server held before. */
  readonly serverId: number;
}

/** What a Parse or Close changed in the client's names, so that it can be taken back. */
interface NameChange {
  readonly name: string | null;
  readonly statement: PreparedStatement;
  readonly restore: PreparedStatement | null;
}

/**
 * Invariants: a message is sent on at most once and in order; bytes wait in `#held` only while a request is
 * incomplete or a connection is awaited; `server` is null exactly while the session is not linked.
 */
export class Relay implements WireHandler, Waiter {
  waitingSinceMs = 0;
  readonly wire: Wire;
  server: ServerConnection | null = null;
  parameters: ParameterSet;
  /** Settings that the client changed and PostgreSQL does not report: to be read back. */
  dirtySettings: Set<string> | null = null;
  /** Some of them may not have been changed: only what differs from the defaults is the client's own. */
  dirtyInDoubt = false;
  /** State that binds the session to its server connection, by reason. */
  pins: Set<string> | null = null;
  /** The connection is waited for. */
  waiting = false;
  requestCount = 0;
  transactionCount = 0;
  lastActivityMs: number;

  readonly #host: RelayHost;
  readonly #clock: Clock;
  readonly #analyzer: StatementAnalyzer;
  readonly #registry: StatementRegistry;
  readonly #parameterSets: ParameterSets;
  readonly #mapNamed: boolean;
  readonly #mapUnnamed: boolean;
  readonly #guardedRole: string | null;
  readonly #provenStatements: WeakSet<object>;
  readonly #startupParameters: ParameterSet;
  #held: Buffer | null = null;
  #heldLength = 0;
  /** Bytes of the current message that still pass to the server, or are dropped. */
  #passLeft = 0;
  #dropLeft = 0;
  /** An error was answered without a server: everything up to Sync is dropped. */
  #skipToSync = false;
  #names: Map<string, PreparedStatement> | null = null;
  #unnamed: PreparedStatement | null = null;
  /** The Parse message of the unnamed statement, when it is not mapped. */
  #unnamedParse: Buffer | null = null;
  #unnamedParseLength = 0;
  #unnamedEffects: StatementEffects = NO_EFFECTS;
  /** Its number; another text has another. */
  #unnamedId = 0;
  /** Its Parse may be skipped, which would leave the server with somebody else's. */
  #unnamedInDoubt = false;
  #rawEffects: Map<string, StatementEffects> | null = null;
  #portalEffects: StatementEffects = NO_EFFECTS;
  #namedPortalEffects: Map<string, StatementEffects> | null = null;
  #localSettings = false;
  /** What the statements of the request say about the transaction. */
  #transaction: number = TransactionHint.None;
  #queryFailed = false;
  /** SQLSTATE of the last simple query that failed. */
  #errorCode = '';
  /** Statements that the current string has deallocated; Infinity is all of them. */
  #deallocated = 0;
  #serverSlow = false;
  /** More is unanswered than anybody needs; answers that we give ourselves cost PostgreSQL nothing, but memory. */
  #crowded = false;
  #closed = false;
  /** The current request, kept so that a stale plan can be prepared anew (0A000). */
  #batch: Buffer | null = null;
  #batchLength = 0;
  #batchState: number = BatchState.None;
  #replay = false;
  /** The statement whose plan went stale, and whether its request is to be sent again. */
  #stale: PreparedStatement | null = null;
  #again = false;
  /** A statement that drops all prepared ones is under way: nothing is sent behind it until it is answered. */
  #barrier = false;
  #barrierAtSync = false;
  /** The name in the last Bind or Describe. */
  #lastName = '';
  /** Names that an error gave back their old meaning, until its request is over. */
  #takenBack: Set<string> | null = null;
  /** Client names whose Parse was sent under the client's own name, to be closed after the request. */
  #strayNames: string[] | null = null;

  constructor(options: RelayOptions) {
    this.wire = options.wire;
    this.parameters = options.parameters;
    this.#host = options.host;
    this.#clock = options.clock;
    this.#analyzer = options.analyzer;
    this.#registry = options.registry;
    this.#parameterSets = options.parameterSets;
    this.#mapNamed = options.mapNamed;
    this.#mapUnnamed = options.mapUnnamed;
    this.#guardedRole = options.guardedRole;
    this.#provenStatements = options.provenStatements;
    this.#startupParameters = options.parameters;
    this.lastActivityMs = options.clock.nowMs;
  }

  get preparedStatementCount(): number {
    return this.#names?.size ?? 0;
  }

  /** A message was sent in part only; the connection cannot go back before its rest. */
  get sendingPart(): boolean {
    return this.#passLeft > 0;
  }

  // ---- from the client -------------------------------------------------------------------------------------

  onBytes(buffer: Buffer, start: number, end: number): void {
    this.lastActivityMs = this.#clock.nowMs;
    if (this.waiting || this.#barrier) return this.#hold(buffer, start, end);
    if (this.#held !== null) {
      this.#hold(buffer, start, end);
      this.#processHeld();
      return;
    }
    const at = this.#process(buffer, start, end);
    if (at < end && !this.#closed) this.#hold(buffer, at, end);
    this.#flush();
  }

  onDrain(): void {
    this.server?.wire.resume();
  }

  onClose(): void {
    this.#closed = true;
    this.#host.onClientGone(null);
  }

  // ---- Waiter ----------------------------------------------------------------------------------------------

  onCheckedOut(server: ServerConnection): void {
    this.waiting = false;
    this.#host.link(server);
    this.#processHeld();
  }

  onCheckoutFailed(error: PgError): void {
    this.refuse(error);
  }

  /** Answers the request that waited with an error, and goes on behind it. */
  refuse(error: PgError): void {
    this.waiting = false;
    const held = this.#held;
    if (held === null) return;
    const length = this.#heldLength;
    this.#held = null;
    let at = this.#refuseAt(error, held, 0);
    if (!this.#closed) at = this.#process(held, at, length);
    if (at < length && !this.#closed) this.#hold(held, at, length);
    this.#flush();
  }

  /** No more reading and no answers: the session is ending. */
  shut(): void {
    this.#closed = true;
  }

  // ---- holding ---------------------------------------------------------------------------------------------

  #hold(buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    let held = this.#held;
    const used = held === null ? 0 : this.#heldLength;
    if (held === null || held.length < used + length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(HELD_BYTES, roundUp(used + length)));
      if (held !== null) held.copy(larger, 0, 0, used);
      held = larger;
      this.#held = held;
    }
    buffer.copy(held, used, start, end);
    this.#heldLength = used + length;
    // A client that talks on while it waits is not read any more; a shorter one is, so that its leaving is seen.
    if ((this.waiting || this.#barrier) && this.#heldLength > WAITING_BYTES_MAX) this.wire.pause();
  }

  #processHeld(): void {
    const held = this.#held;
    if (held === null) {
      this.#flush();
      return;
    }
    const length = this.#heldLength;
    // While it is processed nothing may be added to it: callbacks run only after the loop.
    this.#held = null;
    const at = this.#process(held, 0, length);
    if (at < length && !this.#closed) {
      if (this.#held === null && held.length <= HELD_BYTES_KEPT_MAX) {
        held.copyWithin(0, at, length);
        this.#held = held;
        this.#heldLength = length - at;
      } else {
        this.#hold(held, at, length);
      }
    }
    this.#flush();
  }

  #flush(): void {
    const server = this.server;
    if (this.#guardedRole !== null && server !== null) this.#assertRoleAhead(server, this.#guardedRole);
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
    if (!this.waiting && !this.#serverSlow && !this.#barrier && !this.#crowded) this.wire.resume();
  }

  /** The janitor's visit: a client that had too much unanswered is read again. */
  tick(): void {
    if (!this.#crowded || (this.server !== null && this.server.pending.length > PENDING_MAX / 2)) return;
    this.#crowded = false;
    this.#flush();
  }

  // ---- messages --------------------------------------------------------------------------------------------

  /** Handles every message that can be handled; answers how far it came. */
  #process(buffer: Buffer, start: number, end: number): number {
    let at = start;
    while (at < end && !this.#closed && !this.#barrier) {
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
        this.#violate('invalid message length');
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
      const next = this.#linked(server, type, total, buffer, at, end);
      if (next < 0) break;
      at = next;
    }
    return at;
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
        this.#closed = true;
        this.#host.onClientGone(null);
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
      this.#violate(`invalid frontend message type ${type}`);
      return end;
    }
    if (!hasWholeRequest(buffer, at, end) && end - at < REQUEST_BYTES_HELD_MAX) return -1;
    if (this.#mapNamed && (type === FrontendMessage.Parse || type === FrontendMessage.Close)) {
      const next = this.#answerAlone(buffer, at, end);
      if (next > at) return next;
    }
    const server = this.#host.checkout();
    if (server === null) {
      this.waiting = true;
      return -1;
    }
    if (server instanceof PgError) return this.#refuseAt(server, buffer, at);
    return at;
  }

  /**
   * A request that only prepares statements PostgreSQL has prepared for this role before, or closes some, needs no
   * connection: a driver that prepares while all connections are in transactions does not wait for them. Answers
   * where the request ends, or `start` when it needs one.
   */
  #answerAlone(buffer: Buffer, start: number, end: number): number {
    const known: (PreparedStatement | null)[] = [];
    const names = new Set<string>();
    let at = start;
    while (buffer[at] !== FrontendMessage.Sync) {
      if (end - at < 7) return start;
      const next = at + readInt32(buffer, at + 1) + 1;
      if (buffer[at] === FrontendMessage.Close && buffer[at + 5] === STATEMENT && next > at + 7)
        known.push(null);
      else if (buffer[at] === FrontendMessage.Parse) {
        const statement = this.#findProven(buffer, at, next);
        if (statement === null) return start;
        known.push(statement);
      } else return start;
      // A name that stands there twice is PostgreSQL's to judge.
      const nameAt = buffer[at] === FrontendMessage.Close ? at + 6 : at + 5;
      names.add(buffer.toString('latin1', nameAt, buffer.indexOf(0, nameAt)));
      if (names.size < known.length) return start;
      at = next;
      if (end - at < 5) return start;
    }
    at = start;
    for (const statement of known) {
      const next = at + readInt32(buffer, at + 1) + 1;
      if (statement === null) {
        this.#names?.delete(buffer.toString('latin1', at + 6, next - 1));
        this.wire.write(CLOSE_COMPLETE);
      } else {
        this.#names ??= new Map();
        this.#names.set(buffer.toString('latin1', at + 5, buffer.indexOf(0, at + 5)), statement);
        this.wire.write(PARSE_COMPLETE);
      }
      at = next;
    }
    this.requestCount++;
    this.wire.write(READY_IDLE);
    return at + 5;
  }

  /** The statement of a named Parse, if its name is free and PostgreSQL has prepared the text before. */
  #findProven(buffer: Buffer, start: number, end: number): PreparedStatement | null {
    const nameEnd = buffer.indexOf(0, start + 5);
    if (nameEnd <= start + 5 || nameEnd + 4 > end) return null;
    const name = buffer.toString('latin1', start + 5, nameEnd);
    if (this.#names !== null && (this.#names.has(name) || this.#names.size >= NAMES_MAX)) return null;
    const statement = this.#registry.find(
      this.parameters.parseKey + buffer.toString('latin1', nameEnd + 1, end),
    );
    return statement !== undefined && this.#provenStatements.has(statement) ? statement : null;
  }

  #refuseAt(error: PgError, buffer: Buffer, at: number): number {
    if (error.severity === 'FATAL') {
      this.#closed = true;
      this.#host.onClientGone(error);
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
    if (!whole && !this.#mayStream(type, total)) {
      if (total > TEXT_BYTES_MAX) return this.#tooLarge(server, type, total, buffer, at, end);
      return -1;
    }
    if (server.pending.length === 0) server.requestStartedMs = this.#clock.nowMs;
    server.roleSafe = false;
    if (this.#mapNamed && !this.#replay) this.#record(server, type, buffer, at, whole ? at + total : -1);
    switch (type) {
      case FrontendMessage.Query:
        this.#onQuery(server, buffer, at, at + total);
        return at + total;
      case FrontendMessage.Parse:
        this.#onParse(server, buffer, at, at + total);
        return at + total;
      case FrontendMessage.Bind:
        return this.#onBind(server, buffer, at, end, total);
      case FrontendMessage.Execute:
        this.#onExecute(server, buffer, at, at + total);
        return at + total;
      case FrontendMessage.Sync:
        this.#onSync(server, buffer, at, at + total);
        return at + total;
      case FrontendMessage.Describe:
        this.#onDescribe(server, buffer, at, at + total);
        return at + total;
      case FrontendMessage.Close:
        this.#onClose(server, buffer, at, at + total);
        return at + total;
      case FrontendMessage.Flush:
        server.send(buffer, at, at + total);
        return at + total;
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
        return this.#onFunctionCall(server, buffer, at, end, total);
      case FrontendMessage.Terminate:
        this.#closed = true;
        this.#host.onClientGone(null);
        return end;
      default:
        this.#violate(`invalid frontend message type ${type}`);
        return end;
    }
  }

  /** A message that need not be whole before its first bytes go on. */
  #mayStream(type: number, total: number): boolean {
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

  /** A text that nobody holds whole: without an analysis it can neither be guarded nor mapped. */
  #tooLarge(
    server: ServerConnection,
    type: number,
    total: number,
    buffer: Buffer,
    at: number,
    end: number,
  ): number {
    if (type === FrontendMessage.Query && this.#guardedRole === null) {
      server.expect(PendingKind.Query, PendingAction.Forward, this, UNKNOWN_EFFECTS);
      this.#forgetUnnamed(server);
      this.#passLeft = total;
      return at;
    }
    if (type !== FrontendMessage.Query && type !== FrontendMessage.Parse) {
      this.#violate('message is too large');
      return end;
    }
    void buffer;
    this.#sendFailing(
      server,
      type,
      new PgError({
        code: SqlState.ProgramLimitExceeded,
        message: `statement is longer than ${TEXT_BYTES_MAX} bytes`,
      }),
    );
    this.#dropLeft = total;
    return at;
  }

  // ---- simple protocol -------------------------------------------------------------------------------------

  #onQuery(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    if (end - start < 6 || buffer[end - 1] !== 0) return this.#violate('malformed Query message');
    this.requestCount++;
    this.#forgetUnnamed(server);
    const effects = this.#analyzer.analyze(buffer.toString('latin1', start + 5, end - 1));
    if (effects.plain) {
      server.send(buffer, start, end);
      server.expect(PendingKind.Query, PendingAction.Forward, this, null);
      return;
    }
    if (this.#guardedRole !== null && effects.escape !== null) {
      return this.#sendFailing(server, FrontendMessage.Query, escapeError(effects));
    }
    if (effects.touchesLocalSettings) this.#localSettings = true;
    if (effects.copiesIn) {
      this.#transaction = TransactionHint.Open;
    } else if (effects.hasTransactionControl) {
      this.#transaction = effects.transaction === 'end' ? TransactionHint.Ends : TransactionHint.Open;
    }
    const gone = this.#mappedDeallocation(effects);
    if (gone !== null) {
      this.#sendGoneStatement(server, true);
      server.send(DEALLOCATE_GONE_QUERY);
    } else {
      if (effects.deallocates.length > 0 && this.#mapNamed) this.#sendStandIns(server, effects.deallocates);
      server.send(buffer, start, end);
    }
    server.expect(PendingKind.Query, PendingAction.Forward, this, effects);
    if (this.#strayNames !== null) this.#closeStrays(server);
    if (effects.discardsAll) this.#assertRoleAfterDiscard(server, true);
    this.#restoreStartupSettings(server, effects, true);
    if (effects.discardsAll || effects.deallocatesAll || effects.deallocates.length > 0) this.#barrier = true;
  }

  /** The unnamed statement does not outlive a simple Query (postgres.c, exec_simple_query). */
  #forgetUnnamed(server: ServerConnection): void {
    this.#unnamed = null;
    this.#unnamedParseLength = 0;
    server.unnamedId = 0;
  }

  /**
   * A request that PostgreSQL is made to fail, so that the transaction is in the state that the error claims;
   * its words are replaced by ours.
   */
  #sendFailing(server: ServerConnection, type: number, error: PgError): void {
    const data: ReplacedError = { replacedError: encodeErrorResponse(error) };
    if (type === FrontendMessage.Query) {
      server.send(REFUSED_QUERY);
      server.expect(PendingKind.Query, PendingAction.Forward, this, data);
    } else {
      server.send(REFUSED_PARSE);
      server.unnamedId = 0;
      server.expect(PendingKind.Parse, PendingAction.Forward, this, data);
    }
  }

  // ---- extended protocol -----------------------------------------------------------------------------------

  #onParse(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    const nameEnd = buffer.indexOf(0, start + 5);
    const textEnd = nameEnd < 0 || nameEnd >= end ? -1 : buffer.indexOf(0, nameEnd + 1);
    if (textEnd < 0 || textEnd + 3 > end || end - textEnd - 3 !== 4 * buffer.readUInt16BE(textEnd + 1)) {
      return this.#violate('malformed Parse message');
    }
    if (this.#replay) return;
    const unnamed = nameEnd === start + 5;
    if (unnamed ? !this.#mapUnnamed : !this.#mapNamed) {
      return this.#onRawParse(server, buffer, start, end, nameEnd, textEnd);
    }
    const tail = buffer.subarray(nameEnd + 1, end);
    // Inside a transaction with local settings a text may mean something else: then it is nobody else's.
    const key = this.#localSettings
      ? null
      : this.parameters.parseKey + buffer.toString('latin1', nameEnd + 1, end);
    let statement = key === null ? undefined : this.#registry.find(key);
    if (statement === undefined) {
      const effects = this.#analyzer.analyze(buffer.toString('latin1', nameEnd + 1, textEnd));
      const substitute = this.#mappedDeallocation(effects) !== null;
      statement = this.#registry.make(
        substitute ? null : key,
        substitute ? DEALLOCATE_GONE_TAIL : tail,
        effects,
      );
    }
    if (this.#guardedRole !== null && statement.effects.escape !== null) {
      return this.#sendFailing(server, FrontendMessage.Parse, escapeError(statement.effects));
    }
    let restore: PreparedStatement | null = null;
    const name = unnamed ? '' : buffer.toString('latin1', start + 5, nameEnd);
    if (unnamed) {
      restore = this.#unnamed;
      this.#unnamed = statement;
    } else {
      if (name.startsWith(SERVER_NAME_PREFIX)) {
        return this.#sendFailing(server, FrontendMessage.Parse, reservedName());
      }
      this.#names ??= new Map();
      if (this.#names.has(name)) return this.#sendDuplicate(server, buffer, start, end, name);
      if (this.#names.size >= NAMES_MAX) {
        const message = 'too many prepared statements in one session';
        return this.#sendFailing(
          server,
          FrontendMessage.Parse,
          new PgError({ code: SqlState.OutOfMemory, message }),
        );
      }
      this.#names.set(name, statement);
    }
    if (server.statements.use(statement)) {
      if (
        server.txStatus === TxStatus.Failed &&
        !statement.effects.hasTransactionControl &&
        staysFailed(server)
      ) {
        return this.#sendDoomedParse(server, statement, name);
      }
      const change = server.pending.length === 0 ? null : { name, statement, restore };
      server.fake(this, PARSE_COMPLETE, change);
      return;
    }
    this.#sendParse(server, statement, PendingAction.Forward, { name, statement, restore });
  }

  #onRawParse(
    server: ServerConnection,
    buffer: Buffer,
    start: number,
    end: number,
    nameEnd: number,
    textEnd: number,
  ): void {
    const effects = this.#analyzer.analyze(buffer.toString('latin1', nameEnd + 1, textEnd));
    if (this.#guardedRole !== null && effects.escape !== null) {
      return this.#sendFailing(server, FrontendMessage.Parse, escapeError(effects));
    }
    if (nameEnd !== start + 5) {
      const name = buffer.toString('latin1', start + 5, nameEnd);
      if (name.startsWith(SERVER_NAME_PREFIX))
        return this.#sendFailing(server, FrontendMessage.Parse, reservedName());
      if (effects.plain) this.#rawEffects?.delete(name);
      else {
        this.#rawEffects ??= new Map();
        if (this.#rawEffects.size < NAMES_MAX) this.#rawEffects.set(name, effects);
      }
      server.send(buffer, start, end);
      server.expect(PendingKind.Parse, PendingAction.Forward, this, null);
      return;
    }
    const length = end - start;
    // What PostgreSQL reads first it cannot skip; in a pipeline the old statement may turn out to be still there.
    const change = server.pending.length === 0 ? UNNAMED : this.#replaceUnnamed(server);
    this.#unnamedEffects = effects;
    if (
      this.#unnamedParse === null ||
      this.#unnamedParse.length < length ||
      this.#unnamedParse.length > KEPT_MAX
    ) {
      this.#unnamedParse = Buffer.allocUnsafeSlow(Math.max(UNNAMED_BYTES, length));
    }
    buffer.copy(this.#unnamedParse, 0, start, end);
    this.#unnamedParseLength = length;
    this.#unnamedId = this.#registry.takeUnnamedId();
    server.unnamedId = this.#unnamedId;
    this.#unnamedInDoubt = change !== UNNAMED;
    if (this.#mappedDeallocation(effects) !== null) {
      server.send(DEALLOCATE_GONE_PARSE);
      DEALLOCATE_GONE_PARSE.copy(this.#ensureUnnamedBytes(DEALLOCATE_GONE_PARSE.length));
      this.#unnamedParseLength = DEALLOCATE_GONE_PARSE.length;
    } else {
      server.send(buffer, start, end);
    }
    server.expect(PendingKind.Parse, PendingAction.Forward, this, change);
  }

  /** Gives the kept Parse away, so that the next one cannot overwrite it. */
  #replaceUnnamed(server: ServerConnection): UnnamedChange {
    const change: UnnamedChange = {
      parse: this.#unnamedParse,
      length: this.#unnamedParseLength,
      effects: this.#unnamedEffects,
      id: this.#unnamedId,
      serverId: server.unnamedId,
    };
    this.#unnamedParse = null;
    this.#unnamedParseLength = 0;
    return change;
  }

  #ensureUnnamedBytes(length: number): Buffer {
    if (this.#unnamedParse === null || this.#unnamedParse.length < length) {
      this.#unnamedParse = Buffer.allocUnsafeSlow(Math.max(UNNAMED_BYTES, length));
    }
    return this.#unnamedParse;
  }

  /** Sends Parse under our name, making room for it where the server holds too many. */
  #sendParse(
    server: ServerConnection,
    statement: PreparedStatement,
    action: PendingAction,
    change: NameChange | PreparedStatement,
  ): void {
    if (statement === this.#stale) {
      this.#stale = null;
      this.#sendCloseStatement(server, statement);
    }
    const evicted = server.statements.add(statement);
    if (evicted !== null) this.#sendCloseStatement(server, evicted);
    server.sendByte(FrontendMessage.Parse);
    server.sendInt32(4 + statement.serverNameBytes.length + statement.parseTail.length);
    server.send(statement.serverNameBytes);
    server.send(statement.parseTail);
    server.expect(PendingKind.Parse, action, this, change);
  }

  #sendCloseStatement(server: ServerConnection, statement: PreparedStatement): void {
    server.sendByte(FrontendMessage.Close);
    server.sendInt32(5 + statement.serverNameBytes.length);
    server.sendByte(STATEMENT);
    server.send(statement.serverNameBytes);
    server.expect(PendingKind.Close, PendingAction.Quiet, this, statement);
  }

  /** In a failed transaction PostgreSQL refuses a Parse of most statements: it shall do so here too. */
  #sendDoomedParse(server: ServerConnection, statement: PreparedStatement, name: string): void {
    if (name === '') this.#unnamed = null;
    else this.#names?.delete(name);
    server.sendByte(FrontendMessage.Parse);
    server.sendInt32(4 + statement.serverNameBytes.length + statement.parseTail.length);
    server.send(statement.serverNameBytes);
    server.send(statement.parseTail);
    server.expect(PendingKind.Parse, PendingAction.Forward, this, null);
  }

  /**
   * The client prepares a name twice. PostgreSQL says so itself when it sees the same: both under the client's
   * own name, so that a fault in the text comes first, as it does there. The stray is closed after the request.
   */
  #sendDuplicate(server: ServerConnection, buffer: Buffer, start: number, end: number, name: string): void {
    server.send(buffer, start, end);
    server.expect(PendingKind.Parse, PendingAction.Quiet, this, null);
    server.send(buffer, start, end);
    server.expect(PendingKind.Parse, PendingAction.Forward, this, null);
    this.#strayNames ??= [];
    this.#strayNames.push(name);
  }

  #onBind(server: ServerConnection, buffer: Buffer, start: number, end: number, total: number): number {
    const limit = Math.min(start + total, end);
    const portalEnd = buffer.indexOf(0, start + 5);
    const nameEnd = portalEnd < 0 || portalEnd >= limit ? -1 : buffer.indexOf(0, portalEnd + 1);
    if (nameEnd < 0 || nameEnd >= limit) {
      if (start + total <= end || end - start > REQUEST_BYTES_HELD_MAX)
        this.#violate('malformed Bind message');
      return -1;
    }
    const unnamed = nameEnd === portalEnd + 1;
    let statement: PreparedStatement | null | undefined = null;
    let effects = NO_EFFECTS;
    if (unnamed ? this.#mapUnnamed : this.#mapNamed) {
      this.#lastName = unnamed ? '' : buffer.toString('latin1', portalEnd + 1, nameEnd);
      statement = unnamed ? this.#unnamed : this.#names?.get(this.#lastName);
      if (statement !== null && statement !== undefined) {
        effects = statement.effects;
        this.#ensureStatement(server, statement);
      }
    } else if (unnamed) {
      effects = this.#unnamedEffects;
    } else if (this.#rawEffects !== null) {
      effects = this.#rawEffects.get(buffer.toString('latin1', portalEnd + 1, nameEnd)) ?? NO_EFFECTS;
    }
    if (portalEnd === start + 5) this.#portalEffects = effects;
    else this.#notePortal(buffer.toString('latin1', start + 5, portalEnd), effects);
    if (statement === null || statement === undefined) {
      if (unnamed) this.#ensureUnnamed(server);
      else if (isReservedName(buffer, portalEnd + 1)) {
        this.#sendFailing(
          server,
          FrontendMessage.Parse,
          missingStatement(buffer.toString('latin1', portalEnd + 1, nameEnd)),
        );
        this.#dropLeft = total;
        return start;
      }
      server.expect(PendingKind.Bind, PendingAction.Forward, this, null);
      this.#passLeft = total;
      return start;
    }
    const name = statement.serverNameBytes;
    server.sendByte(FrontendMessage.Bind);
    server.sendInt32(total - 1 - (nameEnd - portalEnd) + name.length);
    server.send(buffer, start + 5, portalEnd + 1);
    server.send(name);
    server.expect(PendingKind.Bind, PendingAction.Forward, this, statement);
    this.#passLeft = start + total - (nameEnd + 1);
    return nameEnd + 1;
  }

  #notePortal(name: string, effects: StatementEffects): void {
    if (effects.plain && this.#namedPortalEffects === null) return;
    this.#namedPortalEffects ??= new Map();
    if (this.#namedPortalEffects.size < NAMES_MAX) this.#namedPortalEffects.set(name, effects);
  }

  #ensureStatement(server: ServerConnection, statement: PreparedStatement): void {
    if (!server.statements.use(statement)) this.#sendParse(server, statement, PendingAction.Quiet, statement);
  }

  /** The server's unnamed statement must be this client's last one, or none at all. */
  #ensureUnnamed(server: ServerConnection): void {
    if (this.#unnamedParseLength > 0 && this.#unnamedParse !== null) {
      if (server.unnamedId === this.#unnamedId) return;
      server.send(this.#unnamedParse, 0, this.#unnamedParseLength);
      server.expect(PendingKind.Parse, PendingAction.Quiet, this, UNNAMED_AGAIN);
      server.unnamedId = this.#unnamedId;
      return;
    }
    if (server.unnamedId === 0) return;
    server.send(CLOSE_UNNAMED);
    server.expect(PendingKind.Close, PendingAction.Quiet, this, UNNAMED_AGAIN);
    server.unnamedId = 0;
  }

  #onDescribe(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    if (end - start < 7 || buffer[end - 1] !== 0) return this.#violate('malformed Describe message');
    if (buffer[start + 5] !== STATEMENT) {
      server.send(buffer, start, end);
      server.expect(PendingKind.Describe, PendingAction.Forward, this, null);
      return;
    }
    const unnamed = end === start + 7;
    if (unnamed ? this.#mapUnnamed : this.#mapNamed) {
      const name = buffer.toString('latin1', start + 6, end - 1);
      this.#lastName = name;
      const statement = unnamed ? this.#unnamed : this.#names?.get(name);
      if (statement !== null && statement !== undefined) {
        this.#ensureStatement(server, statement);
        server.sendByte(FrontendMessage.Describe);
        server.sendInt32(5 + statement.serverNameBytes.length);
        server.sendByte(STATEMENT);
        server.send(statement.serverNameBytes);
        server.expect(PendingKind.Describe, PendingAction.Forward, this, statement);
        return;
      }
      if (isReservedName(buffer, start + 6)) {
        return this.#sendFailing(server, FrontendMessage.Parse, missingStatement(name));
      }
    }
    if (unnamed) this.#ensureUnnamed(server);
    server.send(buffer, start, end);
    server.expect(PendingKind.Describe, PendingAction.Forward, this, null);
  }

  #onClose(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    if (end - start < 7 || buffer[end - 1] !== 0) return this.#violate('malformed Close message');
    const unnamed = end === start + 7;
    if (buffer[start + 5] === STATEMENT && (unnamed ? this.#mapUnnamed : this.#mapNamed)) {
      const name = buffer.toString('latin1', start + 6, end - 1);
      const statement = (unnamed ? this.#unnamed : this.#names?.get(name)) ?? null;
      if (statement !== null || unnamed || isReservedName(buffer, start + 6)) {
        if (unnamed) this.#unnamed = null;
        else this.#names?.delete(name);
        const undo = statement !== null && server.pending.length > 0;
        server.fake(this, CLOSE_COMPLETE, undo ? { name, statement, restore: statement } : null);
        return;
      }
    } else if (buffer[start + 5] === STATEMENT && unnamed) {
      const change = server.pending.length === 0 ? null : this.#replaceUnnamed(server);
      this.#unnamedParseLength = 0;
      server.unnamedId = 0;
      server.send(buffer, start, end);
      server.expect(PendingKind.Close, PendingAction.Forward, this, change);
      return;
    }
    server.send(buffer, start, end);
    server.expect(PendingKind.Close, PendingAction.Forward, this, null);
  }

  #onExecute(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    if (end - start < 10) return this.#violate('malformed Execute message');
    const effects =
      end === start + 10
        ? this.#portalEffects
        : (this.#namedPortalEffects?.get(buffer.toString('latin1', start + 5, end - 5)) ?? NO_EFFECTS);
    if (effects.plain) {
      server.send(buffer, start, end);
      server.expect(PendingKind.Execute, PendingAction.Forward, this, null);
      return;
    }
    if (effects.touchesLocalSettings) this.#localSettings = true;
    if (effects.copiesIn) {
      this.#transaction = TransactionHint.Open;
    } else if (effects.hasTransactionControl) {
      this.#transaction = effects.transaction === 'end' ? TransactionHint.Ends : TransactionHint.Open;
    }
    if (this.#mappedDeallocation(effects) !== null) this.#sendGoneStatement(server, false);
    server.send(buffer, start, end);
    server.expect(PendingKind.Execute, PendingAction.Forward, this, effects);
    if (effects.discardsAll) this.#assertRoleAfterDiscard(server, false);
    this.#restoreStartupSettings(server, effects, false);
    if (effects.discardsAll || effects.deallocatesAll || effects.deallocates.length > 0) {
      this.#barrierAtSync = true;
    }
  }

  #onSync(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    if (end - start !== 5) return this.#violate('malformed Sync message');
    this.requestCount++;
    server.send(buffer, start, end);
    server.expect(PendingKind.Sync, PendingAction.Forward, this, null);
    if (this.#unnamedInDoubt) {
      // Behind this Sync PostgreSQL listens again, whatever became of the Parse: it is sent anew if it is needed.
      this.#unnamedInDoubt = false;
      server.unnamedId = UNNAMED_FOREIGN;
    }
    if (this.#strayNames !== null) this.#closeStrays(server);
    if (!this.#barrierAtSync) return;
    this.#barrierAtSync = false;
    this.#barrier = true;
  }

  #closeStrays(server: ServerConnection): void {
    const batch = ownBatch(() => {});
    for (const name of this.#strayNames ?? []) {
      const bytes = Buffer.from(`S${name}\0`, 'latin1');
      server.sendByte(FrontendMessage.Close);
      server.sendInt32(4 + bytes.length);
      server.send(bytes);
      server.expect(PendingKind.Close, PendingAction.Own, null, batch);
    }
    this.#strayNames = null;
    server.send(SYNC);
    server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
  }

  #onFunctionCall(server: ServerConnection, buffer: Buffer, at: number, end: number, total: number): number {
    if (this.#guardedRole !== null) {
      if (total < 9) {
        this.#violate('malformed FunctionCall message');
        return at;
      }
      // Behind `end` stands what the buffer was used for before.
      if (end - at < 9) return -1;
      if (!isHarmlessFunction(buffer.readUInt32BE(at + 5))) {
        this.#sendFailing(
          server,
          FrontendMessage.Query,
          new PgError({
            code: SqlState.InsufficientPrivilege,
            message: 'this function cannot be called by function call protocol through this pooler',
            reason: 'escape',
          }),
        );
        this.#dropLeft = total;
        return at;
      }
    }
    this.requestCount++;
    server.expect(PendingKind.FunctionCall, PendingAction.Forward, this, null);
    this.#passLeft = total;
    return at;
  }

  // ---- statements that end statements ----------------------------------------------------------------------

  /** The mapped name that a single DEALLOCATE names; PostgreSQL knows it under another one. */
  #mappedDeallocation(effects: StatementEffects): string | null {
    if (!this.#mapNamed || effects.deallocates.length !== 1 || effects.statementCount !== 1) return null;
    const name = effects.deallocates[0] as string;
    return this.#names?.has(name) ? name : null;
  }

  /** PostgreSQL gets a statement to deallocate in the place of the one that only we know by that name. */
  #sendGoneStatement(server: ServerConnection, sync: boolean): void {
    server.send(GONE_PARSE);
    if (!sync) {
      server.expect(PendingKind.Parse, PendingAction.Quiet, this, null);
      return;
    }
    const batch = ownBatch(() => {});
    server.expect(PendingKind.Parse, PendingAction.Own, null, batch);
    server.send(SYNC);
    server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
  }

  /**
   * Where a request ends the transaction as far as its text tells, the role is asserted in the same write, so that
   * the connection comes back ready for the next owner. Where it does not, the release does it.
   */
  #assertRoleAhead(server: ServerConnection, role: string): void {
    const last = server.pending.length - 1;
    if (last < 0 || server.roleSafe || server.skippingToSync || server.copyIn || this.#passLeft > 0) return;
    if (this.#transaction === TransactionHint.Open) return;
    if (server.txStatus !== TxStatus.Idle && this.#transaction !== TransactionHint.Ends) return;
    const kind = server.pending.kindAt(last);
    if (kind !== PendingKind.Sync && kind !== PendingKind.Query) return;
    if (server.pending.actionAt(last) !== PendingAction.Forward) return;
    const batch = ownBatch((error) => {
      server.roleSafe = error === null && server.pending.length === 0;
    });
    sendRole(server, role, batch, true);
  }

  /** The same for a string of several statements: under the client's own names, what is left is closed after it. */
  #sendStandIns(server: ServerConnection, names: readonly string[]): void {
    const batch = ownBatch(() => {});
    for (const name of names) {
      if (this.#names?.has(name) !== true) continue;
      const bytes = Buffer.from(`${name}\0SELECT\0\0\0`, 'latin1');
      server.sendByte(FrontendMessage.Parse);
      server.sendInt32(4 + bytes.length);
      server.send(bytes);
      server.expect(PendingKind.Parse, PendingAction.Own, null, batch);
      this.#strayNames ??= [];
      this.#strayNames.push(name);
    }
    if (this.#strayNames === null) return;
    server.send(SYNC);
    server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
  }

  /** DISCARD ALL takes the role away: it is there again before the next byte of the client. */
  #assertRoleAfterDiscard(server: ServerConnection, sync: boolean): void {
    if (this.#guardedRole === null) return;
    const batch = ownBatch((error) => {
      // Inside a transaction DISCARD ALL is refused, so the role is still there; outside there is no such error.
      if (error === null || error.get('C') === SqlState.InFailedSqlTransaction) return;
      server.close('the role could not be assumed again');
    });
    sendRoleUnnamed(server, this.#guardedRole, batch, sync);
    if (!sync) batch.error = null;
  }

  /**
   * RESET goes back to what the startup packet said; on a shared connection PostgreSQL does not know that, so it
   * is said again behind the RESET, in the same transaction.
   */
  #restoreStartupSettings(server: ServerConnection, effects: StatementEffects, sync: boolean): void {
    const startup = this.#startupParameters.values;
    if (startup.size === 0) return;
    const all = effects.resetsAll || effects.discardsAll;
    const names = (all ? [...startup.keys()] : effects.resets).filter((name) => startup.has(name));
    if (names.length === 0) return;
    const values = names.map((name) => startup.get(name) ?? null);
    sendParameters(
      server,
      names,
      values,
      ownBatch(() => {}, undefined, this),
      sync,
    );
  }

  // ---- a stale plan ------------------------------------------------------------------------------------------

  /** Keeps the bytes of a request that could be prepared anew: one Sync, outside a transaction, not too long. */
  #record(server: ServerConnection, type: number, buffer: Buffer, start: number, end: number): void {
    if (server.quiet) {
      this.#batchState = BatchState.Recording;
      this.#batchLength = 0;
    }
    if (this.#batchState === BatchState.None) return;
    const replayable =
      type === FrontendMessage.Bind ||
      type === FrontendMessage.Execute ||
      type === FrontendMessage.Sync ||
      type === FrontendMessage.Describe ||
      type === FrontendMessage.Parse;
    const length = end - start;
    if (
      this.#batchState !== BatchState.Recording ||
      !replayable ||
      end < 0 ||
      this.#batchLength + length > BATCH_MAX
    ) {
      this.#batchState = BatchState.None;
      return;
    }
    if (this.#batch === null || this.#batch.length < this.#batchLength + length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(BATCH_BYTES, roundUp(this.#batchLength + length)));
      this.#batch?.copy(larger, 0, 0, this.#batchLength);
      this.#batch = larger;
    }
    buffer.copy(this.#batch, this.#batchLength, start, end);
    this.#batchLength += length;
    if (type === FrontendMessage.Sync) this.#batchState = BatchState.Whole;
  }

  /** Sends the request again behind a fresh Parse. What the client was told already is not told twice. */
  #sendAgain(server: ServerConnection): void {
    this.#batchState = BatchState.None;
    this.#replay = true;
    this.#process(this.#batch as Buffer, 0, this.#batchLength);
    this.#replay = false;
    server.flush();
  }

  // ---- ServerOwner -----------------------------------------------------------------------------------------

  onServerBytes(view: Buffer): boolean {
    if (this.#closed) return true;
    const taken = this.wire.writeView(view);
    if (this.wire.writeBlocked) this.server?.wire.pause();
    return taken;
  }

  onCompleted(kind: PendingKind, data: PendingData): void {
    switch (kind) {
      case PendingKind.Query: {
        const failed = this.#queryFailed;
        this.#queryFailed = false;
        if (isReplacedError(data)) return;
        const effects = data as StatementEffects;
        this.#apply(effects, failed);
        if (failed) this.#applyDeallocated(effects);
        this.#deallocated = 0;
        return;
      }
      case PendingKind.Execute:
        return this.#apply(data as StatementEffects, false);
      case PendingKind.Bind:
      case PendingKind.Describe:
        this.#batchState = BatchState.None;
        return;
      case PendingKind.Parse:
        if (data instanceof PreparedStatement) this.#provenStatements.add(data);
        else if (
          data !== UNNAMED &&
          data !== UNNAMED_AGAIN &&
          !isUnnamedChange(data) &&
          !isReplacedError(data)
        ) {
          this.#provenStatements.add((data as NameChange).statement);
        }
        return;
      default:
    }
  }

  /** What of a string was done although it failed: statements that are gone do not come back by a rollback. */
  onCommand(tag: string): void {
    if (tag === 'DEALLOCATE') this.#deallocated++;
    else if (tag === 'DEALLOCATE ALL') this.#deallocated = Number.POSITIVE_INFINITY;
  }

  #applyDeallocated(effects: StatementEffects): void {
    if (this.#deallocated === Number.POSITIVE_INFINITY) this.#forgetStatements();
    else for (const name of effects.deallocates.slice(0, this.#deallocated)) this.#names?.delete(name);
  }

  #forgetStatements(): void {
    this.#names?.clear();
    this.#rawEffects = null;
    this.server?.statements.clear();
    this.server?.ownStatements.clear();
  }

  onNotCompleted(kind: PendingKind, data: PendingData, failed: boolean, code: string): void {
    const server = this.server;
    switch (kind) {
      case PendingKind.Query:
        if (failed) {
          this.#queryFailed = true;
          this.#errorCode = code;
        }
        return;
      case PendingKind.Fake: {
        const change = (data as FakeAnswer).change;
        if (change !== null) this.#takeBack(change as NameChange);
        return;
      }
      case PendingKind.Parse:
        if (data === UNNAMED_AGAIN) {
          if (server !== null) server.unnamedId = failed ? 0 : UNNAMED_FOREIGN;
        } else if (data === UNNAMED || isUnnamedChange(data)) {
          this.#unnamedNotParsed(server, data, failed);
        } else if (data instanceof PreparedStatement) {
          server?.statements.delete(data);
        } else if (!isReplacedError(data)) {
          const change = data as NameChange;
          server?.statements.delete(change.statement);
          // A Parse of the unnamed statement drops the old one before it looks at the new (exec_parse_message).
          this.#takeBack(failed && change.name === '' ? { ...change, restore: null } : change);
        } else if (!failed && server !== null) {
          server.unnamedId = UNNAMED_FOREIGN;
        }
        return;
      case PendingKind.Close:
        if (isUnnamedChange(data)) this.#unnamedNotParsed(server, data, false);
        else if (data instanceof PreparedStatement) server?.statements.restore(data);
        else if (server !== null) server.unnamedId = UNNAMED_FOREIGN;
        return;
      case PendingKind.Bind:
      case PendingKind.Describe:
        // Someone took the statement away behind our back, e.g. DEALLOCATE ALL in a DO block. Which others are gone
        // nobody knows: each is found out by itself, on this connection by nobody but this client.
        if (
          failed &&
          code === SqlState.InvalidSqlStatementName &&
          data instanceof PreparedStatement &&
          server !== null
        ) {
          server.statements.delete(data);
          server.retired = true;
        }
        return;
      default:
    }
  }

  /** Failed: PostgreSQL has no unnamed statement now. Skipped: it still has the one that was there before. */
  #unnamedNotParsed(server: ServerConnection | null, data: PendingData, failed: boolean): void {
    if (this.#takenBack?.has('') === true) return;
    this.#takenBack ??= new Set();
    this.#takenBack.add('');
    if (failed || !isUnnamedChange(data)) {
      this.#unnamedParseLength = 0;
      if (server !== null) server.unnamedId = 0;
      return;
    }
    this.#unnamedParse = data.parse;
    this.#unnamedParseLength = data.length;
    this.#unnamedEffects = data.effects;
    this.#unnamedId = data.id;
    if (server !== null) server.unnamedId = data.serverId;
  }

  /** Of several changes of one name that are taken back together, the first knows what was there before. */
  #takeBack(change: NameChange): void {
    if (change.name === null || this.#takenBack?.has(change.name) === true) return;
    this.#takenBack ??= new Set();
    this.#takenBack.add(change.name);
    if (change.name === '') this.#unnamed = change.restore;
    else if (change.restore === null) this.#names?.delete(change.name);
    else this.#names?.set(change.name, change.restore);
  }

  onError(
    server: ServerConnection,
    kind: PendingKind,
    data: PendingData,
    fields: ErrorFields,
    frame: Buffer,
  ): Buffer | null {
    if (isReplacedError(data)) return data.replacedError;
    if (!(data instanceof PreparedStatement) || (kind !== PendingKind.Bind && kind !== PendingKind.Describe))
      return null;
    if (fields.get('C') !== SqlState.FeatureNotSupported || fields.get('R') !== 'RevalidateCachedQuery') {
      return fields.get('M')?.includes(data.serverName) === true ? this.#withClientName(frame, data) : null;
    }
    // "cached plan must not change result type": the statement goes, and comes back with the new type.
    server.statements.delete(data);
    this.#stale = data;
    if (this.#batchState !== BatchState.Whole || this.#closed) return null;
    this.#again = true;
    // What the client sends from here on comes behind the request that goes out again.
    this.#barrier = true;
    return NOTHING;
  }

  /** PostgreSQL speaks of a statement by our name for it; the client hears his own. */
  #withClientName(frame: Buffer, statement: PreparedStatement): Buffer {
    let own = this.#lastName;
    const known = own === '' ? this.#unnamed : this.#names?.get(own);
    // Another request is on its way already: any name of the statement is better than ours.
    if (known !== statement)
      for (const [name, other] of this.#names ?? []) if (other === statement) own = name;
    const text = frame.toString('latin1').replace(`"${statement.serverName}"`, () => `"${own}"`);
    const renamed = Buffer.from(text, 'latin1');
    renamed.writeInt32BE(renamed.length - 1, 1);
    return renamed;
  }

  onReadyForQuery(server: ServerConnection, status: number): boolean {
    // A client is idle from the end of its statement on, not from its beginning.
    this.lastActivityMs = this.#clock.nowMs;
    this.#takenBack = null;
    if (status === TxStatus.Idle) {
      this.#localSettings = false;
      if (server.pending.length === 0) this.#transaction = TransactionHint.None;
      this.transactionCount++;
    }
    if (this.#barrier && !server.pending.hasOwner(this)) this.#liftBarrier();
    if (this.#stale !== null && this.#passLeft > 0) {
      // Nothing may be put into the client's message; the statement goes with the connection.
      server.retired = true;
    } else if (this.#stale !== null) {
      this.#sendCloseStatement(server, this.#stale);
      this.#stale = null;
      if (!this.#again) {
        const batch = ownBatch(() => {});
        server.send(SYNC);
        server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
        server.flush();
      }
    }
    if (!this.#again) return true;
    this.#again = false;
    this.#sendAgain(server);
    return false;
  }

  #liftBarrier(): void {
    this.#barrier = false;
    // The answers of this tick go out first.
    queueMicrotask(() => {
      if (!this.#closed && !this.waiting) this.#processHeld();
    });
  }

  onParameterStatus(name: string, value: string): void {
    if (this.#guardedRole !== null && changesHowSqlIsRead(name, value)) return this.#endUnreadable(name);
    this.parameters = this.#parameterSets.with(this.parameters, name, value);
    if (this.server !== null) this.server.parameters = this.parameters;
  }

  onServerIdle(server: ServerConnection): void {
    if (this.#passLeft > 0) return;
    this.#namedPortalEffects = null;
    // PostgreSQL has answered, so what is still queued is for it to drop, and its drain is not ours to wait for.
    if (this.#serverSlow) this.onServerDrain();
    this.#host.onServerIdle(server);
  }

  onServerDrain(): void {
    this.#serverSlow = false;
    if (!this.waiting && !this.#crowded) this.wire.resume();
  }

  onServerLost(server: ServerConnection, fatalSent: boolean): void {
    this.#passLeft = 0;
    this.#serverSlow = false;
    this.#host.onServerLost(server, fatalSent);
  }

  // ---- what a statement did to the session -------------------------------------------------------------------

  #apply(effects: StatementEffects, failed: boolean): void {
    const server = this.server;
    if (server === null) return;
    // A string that fails takes its settings back, unless it ended a transaction before; and PostgreSQL may never
    // let this role set what it just refused to.
    if (failed && (!effects.hasTransactionControl || this.#errorCode === SqlState.SyntaxError)) return;
    if (failed && effects.settings.length > 0) this.dirtyInDoubt = true;
    for (const name of effects.settings) this.#noteDirty(server, name);
    if (effects.unknownSettings || effects === UNKNOWN_EFFECTS) this.#pin('settings that cannot be told');
    if (effects.resetsAll || effects.discardsAll) {
      for (const name of this.parameters.values.keys()) this.#noteDirty(server, name);
    }
    if (failed) return;
    for (const reason of effects.pins) this.#pin(reason);
    for (const name of effects.deallocates) this.#names?.delete(name);
    if (effects.deallocatesAll || effects.discardsAll) this.#forgetStatements();
    if (effects.discardsAll) this.pins = null;
  }

  #noteDirty(server: ServerConnection, name: string): void {
    for (const reported of server.reported.keys()) if (reported.toLowerCase() === name) return;
    this.dirtySettings ??= new Set();
    this.dirtySettings.add(name);
  }

  #pin(reason: string): void {
    this.pins ??= new Set();
    this.pins.add(reason);
  }

  /** From here on texts mean something else to PostgreSQL than to the guard: nothing more may be sent. */
  #endUnreadable(name: string): void {
    this.#closed = true;
    this.#host.onClientGone(
      new PgError({
        code: SqlState.InsufficientPrivilege,
        message: `parameter "${name}" cannot be changed through this pooler`,
        severity: 'FATAL',
        reason: 'unreadable_sql',
      }),
    );
  }

  #violate(message: string): void {
    this.#closed = true;
    this.#host.onClientGone(
      new PgError({
        code: SqlState.ProtocolViolation,
        message,
        severity: 'FATAL',
        reason: 'protocol_violation',
      }),
    );
  }
}

function isUnnamedChange(data: PendingData | null): data is UnnamedChange {
  return data !== null && (data as Partial<UnnamedChange>).parse !== undefined;
}

/** True when nothing that is under way could end the failed transaction. */
function staysFailed(server: ServerConnection): boolean {
  const { pending } = server;
  for (let index = 0; index < pending.length; index++) {
    const kind = pending.kindAt(index);
    if (kind < PendingKind.Parse || kind === PendingKind.Execute) return false;
  }
  return true;
}

interface ReplacedError {
  readonly replacedError: Buffer;
}

function isReplacedError(data: PendingData | null): data is ReplacedError {
  return data !== null && (data as Partial<ReplacedError>).replacedError !== undefined;
}

/** True when `buffer[at, end)` holds all messages of a request, up to Query, Sync, Flush or FunctionCall. */
function hasWholeRequest(buffer: Buffer, start: number, end: number): boolean {
  let at = start;
  while (end - at >= 5) {
    const next = at + readInt32(buffer, at + 1) + 1;
    if (next <= at) return true;
    if (next > end) return false;
    switch (buffer[at]) {
      case FrontendMessage.Query:
      case FrontendMessage.Sync:
      case FrontendMessage.Flush:
      case FrontendMessage.FunctionCall:
      case FrontendMessage.Terminate:
        return true;
      default:
        at = next;
    }
  }
  return false;
}

function isRequestType(type: number): boolean {
  switch (type) {
    case FrontendMessage.Query:
    case FrontendMessage.Parse:
    case FrontendMessage.Bind:
    case FrontendMessage.Describe:
    case FrontendMessage.Execute:
    case FrontendMessage.Close:
    case FrontendMessage.Sync:
    case FrontendMessage.Flush:
    case FrontendMessage.FunctionCall:
      return true;
    default:
      return false;
  }
}

function isReservedName(buffer: Buffer, at: number): boolean {
  return (
    buffer.toString('latin1', at, Math.min(at + SERVER_NAME_PREFIX.length, buffer.length)) ===
    SERVER_NAME_PREFIX
  );
}

function escapeError(effects: StatementEffects): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: effects.escape?.message ?? 'permission denied',
    reason: 'escape',
  });
}

function missingStatement(name: string): PgError {
  return new PgError({
    code: SqlState.InvalidSqlStatementName,
    message: `prepared statement "${Buffer.from(name, 'latin1').toString('utf8')}" does not exist`,
  });
}

function reservedName(): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: `names of prepared statements must not begin with "${SERVER_NAME_PREFIX}"`,
  });
}

function readInt32(buffer: Buffer, at: number): number {
  return (
    ((buffer[at] as number) << 24) |
    ((buffer[at + 1] as number) << 16) |
    ((buffer[at + 2] as number) << 8) |
    (buffer[at + 3] as number)
  );
}

function roundUp(length: number): number {
  let size = HELD_BYTES;
  while (size < length) size *= 2;
  return size;
}

const BatchState = { None: 0, Recording: 1, Whole: 2 } as const;
const TransactionHint = { None: 0, Open: 1, Ends: 2 } as const;

/** Marks the Parse of the unnamed statement. */
const UNNAMED: object = Object.freeze({ unnamed: true });
/** Marks what is put in front of a Bind so that the server's unnamed statement is the client's. */
const UNNAMED_AGAIN: object = Object.freeze({ unnamed: true });
/** A text that was never analysed: all we know is that it may have done anything. */
const UNKNOWN_EFFECTS: StatementEffects = Object.freeze({
  ...NO_EFFECTS,
  plain: false,
  unknownSettings: true,
});
const NOTHING: Buffer = Buffer.alloc(0);
const STATEMENT = 0x53;
const SYNC = Buffer.from([0x53, 0, 0, 0, 4]);
const CLOSE_UNNAMED = Buffer.from([0x43, 0, 0, 0, 6, STATEMENT, 0]);
const READY_IDLE: Buffer = encodeReadyForQuery(TxStatus.Idle);
/** No SQL at all: PostgreSQL answers a syntax error, whose words are then replaced. */
const REFUSED_QUERY: Buffer = encodeQuery('refused by pgturnstile');
const REFUSED_PARSE: Buffer = encodeParse('', 'refused by pgturnstile');
const GONE_NAME = `${SERVER_NAME_PREFIX}gone`;
const GONE_PARSE: Buffer = encodeParse(GONE_NAME, 'SELECT');
const DEALLOCATE_GONE_QUERY: Buffer = encodeQuery(`DEALLOCATE ${GONE_NAME}`);
const DEALLOCATE_GONE_PARSE: Buffer = encodeParse('', `DEALLOCATE ${GONE_NAME}`);
const DEALLOCATE_GONE_TAIL: Buffer = DEALLOCATE_GONE_PARSE.subarray(6);
/** A request is held this far before it gets a connection without being whole. */
const REQUEST_BYTES_HELD_MAX = 64 * 1024;
/** What a client may send while it waits for a connection before it is not read any more. */
const WAITING_BYTES_MAX = 64 * 1024;
/** Texts are held whole up to here; PostgreSQL's own limit is 1 GiB. */
export const TEXT_BYTES_MAX: number = 16 * 1024 * 1024;
/** Longer values pass in parts. */
const STREAM_BYTES_MIN = 8 * 1024;
const MESSAGE_BYTES_MAX = 0x3fffffff;
const NAMES_MAX = 65_536;
/** Unanswered messages of one client before he is not read any more. */
const PENDING_MAX = 16_384;
const HELD_BYTES = 256;
const HELD_BYTES_KEPT_MAX = 64 * 1024;
const UNNAMED_BYTES = 256;
const KEPT_MAX = 64 * 1024;
const BATCH_BYTES = 256;
const BATCH_MAX = 16 * 1024;
