/**
 * One connection to PostgreSQL: sends what it is given, cuts what comes back into messages, and gives each answer
 * to the owner that the queue of pending responses names. It does not know pools, routing or client protocol
 * state; it tells its owner when it is idle and its pool when it is gone.
 *
 * Hot: no await, no promise, no closure per message. Rows of any size pass as spans of the read buffer.
 */
import { assert } from '../base/assert.ts';
import type { Wire, WireHandler } from '../net/wire.ts';
import {
  decodeDataRow,
  decodeErrorFields,
  decodeParameterStatus,
  type ErrorFields,
} from '../protocol/backend-messages.ts';
import { BackendMessage, TxStatus } from '../protocol/codes.ts';
import { PgError } from '../protocol/pg-error.ts';
import { isSessionSetting, ParameterSet } from '../session/parameters.ts';
import { type PreparedStatement, ServerStatements } from '../session/prepared-statements.ts';
import { PendingAction, PendingKind, PendingResponses } from './pending-responses.ts';

/** Whoever's bytes travel on the connection. The relay of a client session implements it. */
export interface ServerOwner {
  /** A message of the owner was sent in part: nothing may be put in front of its rest. */
  readonly sendingPart: boolean;
  /**
   * Bytes for the client. The view lives until the call returns: false means that it is still referred to, and
   * the connection gives its read buffer away.
   */
  onServerBytes(view: Buffer): boolean;
  /** A command of a simple query whose entry carries something is complete; its tag. */
  onCommand(tag: string): void;
  /** An answer of this owner is complete; called for entries whose `data` is not null. */
  onCompleted(kind: PendingKind, data: PendingData): void;
  /**
   * The entry failed (`failed`) or PostgreSQL skips it because an earlier one did. `code` is the SQLSTATE.
   */
  onNotCompleted(kind: PendingKind, data: PendingData, failed: boolean, code: string): void;
  /** An error is about to be forwarded: null lets it pass, other bytes take its place (none: it is kept back). */
  onError(
    server: ServerConnection,
    kind: PendingKind,
    data: PendingData,
    fields: ErrorFields,
    frame: Buffer,
  ): Buffer | null;
  /** A setting reported while the owner's request was running. */
  onParameterStatus(name: string, value: string): void;
  /** Nothing is pending and no transaction is open. Called once per such moment, after the bytes went out. */
  onServerIdle(server: ServerConnection): void;
  /** The owner's request is over; false keeps ReadyForQuery from the client, who will get another one. */
  onReadyForQuery(server: ServerConnection, status: number): boolean;
  /** The socket to PostgreSQL takes bytes again. */
  onServerDrain(): void;
  /**
   * The connection is gone. `fatalSent`: PostgreSQL's own FATAL was forwarded already, or the owner got a message
   * in part, so that an error of ours would be read as its rest.
   */
  onServerLost(server: ServerConnection, fatalSent: boolean): void;
}

/** A request of our own. Its answers reach nobody else. */
export interface OwnBatch {
  onRow(values: (string | null)[]): void;
  /** ReadyForQuery came; `error` is what PostgreSQL said, if it refused. */
  onEnd(error: ErrorFields | null): void;
  error: ErrorFields | null;
  /** The named statement of ours that it prepares, if any. */
  parses: string;
  /** Gets the settings that the batch changes, as messages for its client; null keeps them quiet. */
  readonly statusTo: ServerOwner | null;
}

/** The `data` of a Fake entry: the bytes, and what the owner must know when they are dropped. */
export interface FakeAnswer {
  readonly bytes: Buffer;
  readonly change: object | null;
}

/** What an entry of the queue may carry: see PendingResponses. */
export type PendingData = OwnBatch | PreparedStatement | Buffer | object;

/** The pool, as the connection sees it. */
export interface ServerListener {
  onServerClosed(server: ServerConnection, reason: string): void;
}

/** The unnamed statement is one of ours, or not known. */
export const UNNAMED_FOREIGN: number = -1;

export const ServerState = {
  Idle: 'idle',
  Active: 'active',
  Cleaning: 'cleaning',
  Closed: 'closed',
} as const;
export type ServerState = (typeof ServerState)[keyof typeof ServerState];

export interface ServerConnectionOptions {
  /** Makes the wire with the connection as its handler. */
  readonly openWire: (handler: WireHandler) => Wire;
  readonly listener: ServerListener;
  readonly processId: number;
  readonly secretKey: Buffer;
  readonly reported: Map<string, string>;
  readonly emptyParameters: ParameterSet;
  readonly preparedStatementsLimit: number;
  readonly nowMs: number;
  /** After this moment the connection is not lent again. */
  readonly retireAtMs: number;
}

/**
 * Invariants: `linked` is set exactly while the state is Active; the connection is idle only when
 * ReadyForQuery said 'I', the queue is empty, the last request had its Sync and PostgreSQL is not skipping to one.
 */
export class ServerConnection implements WireHandler {
  readonly pending: PendingResponses<ServerOwner, PendingData> = new PendingResponses();
  readonly statements: ServerStatements;
  readonly processId: number;
  readonly secretKey: Buffer;
  /** Every value PostgreSQL reported last. */
  readonly reported: Map<string, string>;
  readonly connectedAtMs: number;
  readonly retireAtMs: number;
  readonly wire: Wire;
  /** Settings in force beyond the defaults of the connection. */
  parameters: ParameterSet;
  state: ServerState = ServerState.Active;
  linked: ServerOwner | null = null;
  txStatus: number = TxStatus.Idle;
  /** PostgreSQL drops what it reads until a Sync. */
  skippingToSync = false;
  /** What was sent last is not ended by a Sync: an implicit transaction may be open (manual, "Pipelining"). */
  unsynced = false;
  /** PostgreSQL waits for COPY data. */
  copyIn = false;
  /** A COPY failed while Syncs stood behind it, and it is not known which of them are answered. */
  copyInDoubt = false;
  /** `settleCopy` waits for the rest of the owner's message. */
  settleLate = false;
  /** Which unnamed statement the server holds, by the number its relay gave it; 0 when it holds none. */
  unnamedId: number = UNNAMED_FOREIGN;
  /** Our own named statements that exist on the server. */
  readonly ownStatements: Set<string> = new Set();
  /** Cancel requests that are on their way to PostgreSQL. */
  cancelsInFlight = 0;
  /** Called when the last of them is done, once. */
  onCancelsDone: (() => void) | null = null;
  /** While cleaning: when patience ends. */
  cleanDeadlineMs: number = Number.POSITIVE_INFINITY;
  /** The guarded role was asserted after everything that a client sent. */
  roleSafe = true;
  /** Not to be lent again. */
  retired = false;
  lastUsedMs: number;
  requestStartedMs = 0;

  readonly #listener: ServerListener;
  /** Requests wait here until the end of the tick's work on this connection. */
  #out: Buffer = Buffer.allocUnsafeSlow(OUT_BYTES);
  #outLength = 0;
  /** A message or header that came in parts. */
  #held: Buffer | null = null;
  #heldLength = 0;
  /** Bytes of a streamed message that are still to come, and who gets them (null: nobody). */
  #bodyLeft = 0;
  #bodyOwner: ServerOwner | null = null;
  /** The message at hand is only the first part of a streamed one. */
  #streaming = false;
  /** The contiguous view that waits to be given to `#viewOwner`. */
  #view: Buffer | null = null;
  #viewStart = 0;
  #viewEnd = 0;
  #viewOwner: ServerOwner | null = null;
  #readBuffer: Buffer | null = null;
  #parts: Buffer[] = [];
  #partsOwner: ServerOwner | null = null;
  #fatalSent = false;
  #idleAnnounced = true;

  constructor(options: ServerConnectionOptions) {
    this.#listener = options.listener;
    this.processId = options.processId;
    this.secretKey = options.secretKey;
    this.reported = options.reported;
    this.parameters = options.emptyParameters;
    this.statements = new ServerStatements(options.preparedStatementsLimit);
    this.connectedAtMs = options.nowMs;
    this.lastUsedMs = options.nowMs;
    this.retireAtMs = options.retireAtMs;
    this.wire = options.openWire(this);
  }

  /** True when nothing is under way and no transaction is open. */
  get quiet(): boolean {
    return (
      this.pending.length === 0 && this.txStatus === TxStatus.Idle && !this.unsynced && !this.skippingToSync
    );
  }

  /** The owner got the first part of a message and not its rest: nothing else may be written behind it. */
  isPartWayTo(owner: ServerOwner): boolean {
    return this.#bodyLeft > 0 && this.#bodyOwner === owner;
  }

  // ---- sending -------------------------------------------------------------------------------------------

  /** Adds bytes of a request; they are copied, and leave with `flush()`. */
  send(buffer: Uint8Array, start = 0, end: number = buffer.length): void {
    const length = end - start;
    if (length > OUT_BYTES - this.#outLength) {
      this.flush();
      if (length > OUT_BYTES) {
        this.wire.write(Buffer.from(buffer.subarray(start, end)));
        return;
      }
    }
    // A short copy is cheaper by hand than by a call into the runtime.
    if (length < 48) {
      let at = this.#outLength;
      for (let from = start; from < end; from++) this.#out[at++] = buffer[from] as number;
    } else {
      this.#out.set(
        start === 0 && end === buffer.length ? buffer : buffer.subarray(start, end),
        this.#outLength,
      );
    }
    this.#outLength += length;
  }

  sendByte(byte: number): void {
    if (this.#outLength === OUT_BYTES) this.flush();
    this.#out[this.#outLength++] = byte;
  }

  sendInt32(value: number): void {
    if (OUT_BYTES - this.#outLength < 4) this.flush();
    this.#outLength = this.#out.writeInt32BE(value, this.#outLength);
  }

  /** Notes what PostgreSQL will answer. Must be called in the order of the sends. */
  expect(
    kind: PendingKind,
    action: PendingAction,
    owner: ServerOwner | null,
    data: PendingData | null,
  ): void {
    this.pending.push(kind, action, owner, data);
    if (kind !== PendingKind.CopyEnd) this.unsynced = kind >= PendingKind.Parse;
    this.#idleAnnounced = false;
  }

  /** Gives the owner bytes in his turn without asking PostgreSQL; `change` comes back to him if they are dropped. */
  fake(owner: ServerOwner, bytes: Buffer, change: object | null): void {
    this.unsynced = true;
    this.#idleAnnounced = false;
    if (this.pending.length === 0) this.#emit(owner, bytes, 0, bytes.length);
    else this.pending.push(PendingKind.Fake, PendingAction.Forward, owner, { bytes, change });
  }

  /** Writes what was sent. Answers false when PostgreSQL is slow and the sender should pause. */
  flush(): boolean {
    if (this.#outLength > 0) {
      const bytes = this.#out.subarray(0, this.#outLength);
      this.#outLength = 0;
      if (!this.wire.writeView(bytes)) this.#out = Buffer.allocUnsafeSlow(OUT_BYTES);
    }
    if (this.#parts.length > 0 || this.#view !== null) this.#deliver();
    return !this.wire.writeBlocked;
  }

  /** A request of our own, ended by its own Sync. `send` the bytes first, then call this with their kinds. */
  expectOwn(kinds: readonly PendingKind[], batch: OwnBatch): void {
    for (const kind of kinds) this.expect(kind, PendingAction.Own, null, batch);
  }

  // ---- receiving -----------------------------------------------------------------------------------------

  onBytes(buffer: Buffer, start: number, end: number): void {
    this.#readBuffer = buffer;
    try {
      this.#scan(buffer, start, end);
    } catch (error) {
      if (!(error instanceof PgError)) throw error;
      this.#fail('malformed message from server');
    }
    if (this.state === ServerState.Closed) return;
    this.#deliver();
    this.#readBuffer = null;
    if (!this.#idleAnnounced && this.quiet) {
      this.#idleAnnounced = true;
      this.linked?.onServerIdle(this);
    }
  }

  #scan(buffer: Buffer, start: number, end: number): void {
    let at = start;
    if (this.#held !== null) {
      at = this.#continueHeld(buffer, at, end);
      if (this.state === ServerState.Closed) return;
    }
    if (this.#bodyLeft > 0 && at < end) {
      const take = this.#bodyLeft < end - at ? this.#bodyLeft : end - at;
      this.#emit(this.#bodyOwner, buffer, at, at + take);
      this.#bodyLeft -= take;
      at += take;
    }
    while (at < end) {
      const available = end - at;
      if (available < 5) {
        this.#hold(buffer, at, end);
        break;
      }
      const type = buffer[at] as number;
      const length = readInt32(buffer, at + 1);
      if (length < 4 || length > MESSAGE_BYTES_MAX) return this.#fail('invalid message length from server');
      const total = length + 1;
      if (total <= available) {
        this.#onMessage(type, buffer, at, at + total);
        at += total;
      } else if (this.#streams(type, total)) {
        this.#startStream(type, buffer, at, end, total);
        at = end;
      } else {
        if (total > HELD_BYTES_MAX) return this.#fail('message from server is too large');
        this.#hold(buffer, at, end);
        break;
      }
      if (this.state === ServerState.Closed) return;
    }
  }

  onDrain(): void {
    this.linked?.onServerDrain();
  }

  onClose(error: Error | null): void {
    this.close(
      error === null ? 'server closed the connection' : `connection to server failed: ${errorCode(error)}`,
    );
  }

  // ---- end -----------------------------------------------------------------------------------------------

  /** Closes the socket and tells owner and pool. Safe to call at any time, more than once. */
  close(reason: string): void {
    if (this.state === ServerState.Closed) return;
    this.#deliver();
    this.state = ServerState.Closed;
    if (this.quiet) this.wire.end(TERMINATE);
    else this.wire.destroy();
    const owner = this.linked;
    this.linked = null;
    this.unnamedId = 0;
    for (let batch = this.#nextOwnBatch(); batch !== null; batch = this.#nextOwnBatch()) {
      batch.onEnd(batch.error ?? LOST);
    }
    this.#listener.onServerClosed(this, reason);
    owner?.onServerLost(this, this.#fatalSent || this.isPartWayTo(owner));
  }

  #nextOwnBatch(): OwnBatch | null {
    while (this.pending.length > 0) {
      const kind = this.pending.kind;
      const ends = kind === PendingKind.Sync || kind === PendingKind.MaybeSync || kind === PendingKind.Query;
      const own = this.pending.action === PendingAction.Own && ends;
      const batch = this.pending.data as OwnBatch | null;
      this.pending.pop();
      if (own && batch !== null) return batch;
    }
    return null;
  }

  #fail(reason: string): void {
    this.retired = true;
    this.close(reason);
  }

  // ---- messages ------------------------------------------------------------------------------------------

  /** Types whose body nobody here reads, so that it need not be whole; large errors pass unread too. */
  #streams(type: number, total: number): boolean {
    switch (type) {
      case BackendMessage.DataRow:
        return this.pending.length === 0 || this.pending.action !== PendingAction.Own;
      case BackendMessage.CopyData:
      case BackendMessage.FunctionCallResponse:
        return true;
      case BackendMessage.NoticeResponse:
      case BackendMessage.NotificationResponse:
      case BackendMessage.ErrorResponse:
        return total > ERROR_BYTES_HELD_MAX;
      default:
        return false;
    }
  }

  /** A message whose rest is still to come goes to whoever it belongs to now, whatever the queue says later. */
  #startStream(type: number, buffer: Buffer, start: number, end: number, total: number): void {
    this.#bodyOwner = this.#headOwner();
    this.#bodyLeft = total - (end - start);
    this.#streaming = true;
    this.#onMessage(type, buffer, start, end);
    this.#streaming = false;
  }

  /** One message, `buffer[start, end)`; only its first part when it streams. */
  #onMessage(type: number, buffer: Buffer, start: number, end: number): void {
    const pending = this.pending;
    switch (type) {
      case BackendMessage.DataRow:
        if (pending.length > 0 && pending.action === PendingAction.Own) {
          (pending.data as OwnBatch).onRow(decodeDataRow(buffer, start + 5, end));
          return;
        }
        if (pending.kind !== PendingKind.Execute && pending.kind !== PendingKind.Query) this.#outOfStep(type);
        else this.#emit(pending.owner, buffer, start, end);
        return;
      case BackendMessage.CopyData:
      case BackendMessage.CopyDone:
      case BackendMessage.ParameterDescription:
      case BackendMessage.CopyOutResponse:
      case BackendMessage.CopyBothResponse:
      case BackendMessage.FunctionCallResponse:
        this.#emitUnlessOwn(buffer, start, end);
        return;
      case BackendMessage.RowDescription:
      case BackendMessage.NoData:
        if (pending.kind === PendingKind.MaybeSync) this.#dropMaybeSyncs();
        this.#emitUnlessOwn(buffer, start, end);
        if (pending.kind === PendingKind.Describe) this.#complete();
        return;
      case BackendMessage.CommandComplete:
      case BackendMessage.EmptyQueryResponse:
      case BackendMessage.PortalSuspended:
        if (pending.kind === PendingKind.MaybeSync) this.#dropMaybeSyncs();
        this.#emitUnlessOwn(buffer, start, end);
        if (this.copyIn) this.#onCopyInCompleted();
        if (pending.kind === PendingKind.Execute) this.#complete();
        else if (pending.kind !== PendingKind.Query) this.#outOfStep(type);
        else if (pending.data !== null && pending.action === PendingAction.Forward) {
          pending.owner?.onCommand(buffer.toString('latin1', start + 5, end - 1));
        }
        return;
      case BackendMessage.BindComplete:
        return this.#onComplete(PendingKind.Bind, buffer, start, end);
      case BackendMessage.ParseComplete:
        return this.#onComplete(PendingKind.Parse, buffer, start, end);
      case BackendMessage.CloseComplete:
        return this.#onComplete(PendingKind.Close, buffer, start, end);
      case BackendMessage.ReadyForQuery:
        return this.#onReadyForQuery(buffer, start, end);
      case BackendMessage.ErrorResponse:
        return this.#onErrorResponse(buffer, start, end);
      case BackendMessage.CopyInResponse:
        if (pending.kind === PendingKind.MaybeSync) this.#dropMaybeSyncs();
        this.copyIn = true;
        this.#emitUnlessOwn(buffer, start, end);
        return;
      case BackendMessage.ParameterStatus:
        return this.#onParameterStatus(buffer, start, end);
      case BackendMessage.NoticeResponse:
        if (pending.length === 0) this.#emit(this.linked, buffer, start, end);
        else this.#emitUnlessOwn(buffer, start, end);
        return;
      case BackendMessage.NotificationResponse:
        this.#emit(this.linked, buffer, start, end);
        return;
      default:
        this.#fail(`unexpected message type 0x${type.toString(16)} from server`);
    }
  }

  #onComplete(kind: PendingKind, buffer: Buffer, start: number, end: number): void {
    const pending = this.pending;
    if (pending.kind === PendingKind.MaybeSync) this.#dropMaybeSyncs();
    const head: number = pending.kind;
    if (head !== kind) return this.#outOfStep(buffer[start] as number);
    if (pending.action === PendingAction.Forward) this.#emit(pending.owner, buffer, start, end);
    this.#complete();
  }

  /** The head entry is answered: its owner hears of it when it carries something, then fakes behind it go out. */
  #complete(): void {
    const pending = this.pending;
    const owner = pending.owner;
    const data = pending.data;
    const kind = pending.kind as PendingKind;
    pending.pop();
    if (owner !== null && data !== null) owner.onCompleted(kind, data);
    if (pending.kind >= PendingKind.Fake) this.#drainFakes();
  }

  #drainFakes(): void {
    const pending = this.pending;
    while (pending.kind >= PendingKind.Fake) {
      if (pending.kind === PendingKind.Fake) {
        const { bytes } = pending.data as FakeAnswer;
        this.#emit(pending.owner, bytes, 0, bytes.length);
      }
      pending.pop();
    }
  }

  #onReadyForQuery(buffer: Buffer, start: number, end: number): void {
    const pending = this.pending;
    if (end - start !== 6) return this.#fail('invalid ReadyForQuery from server');
    const status = buffer[start + 5] as number;
    if (status !== TxStatus.Idle && status !== TxStatus.InTransaction && status !== TxStatus.Failed) {
      return this.#fail('invalid transaction status from server');
    }
    const kind = pending.kind;
    if (kind !== PendingKind.Query && kind !== PendingKind.Sync) {
      if (kind !== PendingKind.MaybeSync && kind !== PendingKind.FunctionCall) {
        return this.#outOfStep(BackendMessage.ReadyForQuery);
      }
    }
    this.txStatus = status;
    this.skippingToSync = false;
    this.copyIn = false;
    const owner = pending.owner;
    const action = pending.action;
    const data = pending.data;
    pending.pop();
    if (action === PendingAction.Own) {
      const batch = data as OwnBatch;
      batch.onEnd(batch.error);
    } else if (owner !== null) {
      if (data !== null) owner.onCompleted(kind, data);
      if (owner.onReadyForQuery(this, status)) this.#emit(owner, buffer, start, end);
    }
    if (pending.kind >= PendingKind.Fake) this.#drainFakes();
    if (this.copyInDoubt) this.settleCopy();
  }

  #onErrorResponse(buffer: Buffer, start: number, end: number): void {
    const pending = this.pending;
    const fields = this.#streaming ? EMPTY_FIELDS : tryDecodeErrorFields(buffer, start + 5, end);
    if (fields === null) return this.#fail('malformed ErrorResponse from server');
    if (pending.kind === PendingKind.MaybeSync) this.#dropMaybeSyncs();
    const severity = fields.get('V') ?? fields.get('S');
    const fatal = severity === 'FATAL' || severity === 'PANIC';
    const code = fields.get('C') ?? '';
    if (pending.length === 0) {
      // Unsolicited: the server is about to close, by its own timeout or an administrator's wish.
      this.retired = true;
      if (this.linked === null) return this.#fail('the server is ending the connection');
      if (fatal) {
        this.#emit(this.linked, buffer, start, end);
        this.#fatalSent = true;
      }
      return;
    }
    if (pending.action === PendingAction.Own) {
      const batch = pending.data as OwnBatch;
      batch.error = fields;
      if (pending.kind === PendingKind.Parse && code !== DUPLICATE_STATEMENT) this.ownStatements.clear();
      if (!this.#endsByItself(batch)) batch.onEnd(fields);
      if (this.state === ServerState.Closed) return;
      if (fatal && this.linked !== null) {
        this.#emit(this.linked, buffer, start, end);
        this.#fatalSent = true;
      }
    } else {
      const owner = pending.owner as ServerOwner;
      const kind = pending.kind as PendingKind;
      const data = pending.data;
      const other =
        fatal || data === null || this.#streaming
          ? null
          : owner.onError(this, kind, data, fields, buffer.subarray(start, end));
      if (other === null) {
        this.#emit(owner, buffer, start, end);
      } else {
        this.#bodyOwner = null;
        if (other.length > 0) this.#emit(owner, other, 0, other.length);
      }
      if (fatal) this.#fatalSent = true;
      if (data !== null) owner.onNotCompleted(kind, data, true, code);
    }
    if (fatal) {
      this.retired = true;
      return;
    }
    if (this.copyIn) this.#onCopyInFailed();
    switch (pending.kind) {
      case PendingKind.Query:
      case PendingKind.FunctionCall:
      case PendingKind.Sync:
        return;
      default:
        this.#skipToSync(code);
    }
  }

  /** False for a batch inside a request of the client, whose Sync says nothing of it. */
  #endsByItself(batch: OwnBatch): boolean {
    const pending = this.pending;
    for (let index = 0; index < pending.length; index++) {
      const kind = pending.kindAt(index);
      if (kind === PendingKind.Sync || kind === PendingKind.MaybeSync || kind === PendingKind.Query) {
        return pending.dataAt(index) === batch;
      }
    }
    return false;
  }

  /** An extended-protocol message failed: PostgreSQL reads and drops everything up to the next Sync. */
  #skipToSync(code: string): void {
    const pending = this.pending;
    let first = true;
    let querySkipped = false;
    let syncFound = false;
    while (pending.length > 0) {
      const kind = pending.kind as PendingKind;
      syncFound = kind === PendingKind.Sync || kind === PendingKind.MaybeSync;
      if (syncFound) break;
      const owner = pending.owner;
      const data = pending.data;
      const action = pending.action;
      pending.pop();
      if (action === PendingAction.Own) {
        if (kind === PendingKind.Parse) this.ownStatements.delete((data as OwnBatch).parses);
      } else if (!first && owner !== null && data !== null) {
        owner.onNotCompleted(kind, data, false, code);
      }
      if (!first && kind === PendingKind.Query) querySkipped = true;
      if (!first && kind === PendingKind.Parse && action === PendingAction.Own) this.ownStatements.clear();
      first = false;
    }
    // A Query that was skipped did not drop the unnamed statement, whoever left it.
    if (querySkipped) this.unnamedId = UNNAMED_FOREIGN;
    this.skippingToSync = !syncFound;
  }

  // ---- COPY from the client --------------------------------------------------------------------------------

  /**
   * While PostgreSQL reads COPY data it ignores Sync (copyfromparse.c, CopyGetData): libpq sends one right after
   * Execute and a second after CopyDone. What stands between the request and the end of the data in the queue was
   * read as part of the COPY, so no answer to it comes.
   */
  #onCopyInCompleted(): void {
    this.copyIn = false;
    const pending = this.pending;
    const end = this.#copyEndIndex();
    if (end === 0) return;
    const kind = pending.kind as PendingKind;
    const { owner, action, data } = pending;
    for (let count = 0; count <= end; count++) pending.pop();
    // The Sync that closes the request is still to come.
    if (pending.length === 0 && kind === PendingKind.Execute) this.unsynced = true;
    pending.unshift(kind, action, owner, data);
  }

  /** The COPY failed: nobody can know how many of the Syncs behind it were read as part of it before. */
  #onCopyInFailed(): void {
    this.copyIn = false;
    const pending = this.pending;
    const end = this.#copyEndIndex();
    for (let index = 1; index < (end === 0 ? pending.length : end); index++) {
      if (pending.kindAt(index) !== PendingKind.Sync) continue;
      pending.setKindAt(index, PendingKind.MaybeSync);
      this.copyInDoubt = true;
    }
  }

  /** Where the data of the COPY at the head end in the queue; 0 when the client has not ended them. */
  #copyEndIndex(): number {
    const pending = this.pending;
    for (let index = 1; index < pending.length; index++) {
      if (pending.kindAt(index) === PendingKind.CopyEnd) return index;
    }
    return 0;
  }

  /** An answer came that no Sync has: the ones in front of it were read as part of a COPY. */
  #dropMaybeSyncs(): void {
    const pending = this.pending;
    while (pending.kind === PendingKind.MaybeSync) {
      const batch = pending.action === PendingAction.Own ? (pending.data as OwnBatch) : null;
      pending.pop();
      if (pending.kind >= PendingKind.Fake) this.#drainFakes();
      // Its ReadyForQuery was taken for that of an earlier one, so it is over too.
      batch?.onEnd(batch.error);
    }
  }

  /**
   * After a COPY that failed with Syncs behind it, some of the Syncs in the queue may never be answered. A Close of
   * our own marks the place: a ReadyForQuery that did not come before its answer never will. Waits for the end of a
   * message that the owner has sent in part.
   */
  settleCopy(): void {
    this.settleLate = this.linked?.sendingPart ?? false;
    if (this.settleLate) return;
    this.copyInDoubt = false;
    const pending = this.pending;
    for (let index = 0; index < pending.length; index++) {
      if (pending.kindAt(index) !== PendingKind.Sync) continue;
      pending.setKindAt(index, PendingKind.MaybeSync);
    }
    if (pending.length === 0) return;
    const batch: OwnBatch = { onRow: () => {}, onEnd: () => {}, error: null, parses: '', statusTo: null };
    this.send(CLOSE_PROBE);
    this.expect(PendingKind.Close, PendingAction.Own, null, batch);
    this.expect(PendingKind.Sync, PendingAction.Own, null, batch);
    this.flush();
  }

  #onParameterStatus(buffer: Buffer, start: number, end: number): void {
    const { name, value } = decodeParameterStatus(buffer, start + 5, end);
    this.reported.set(name, value);
    if (!isSessionSetting(name)) {
      // Nobody but a superuser gets here; the role of this connection is no longer what the pool promises.
      if (name === 'session_authorization') this.retired = true;
    }
    if (this.pending.length > 0 && this.pending.action === PendingAction.Own) {
      const batch = this.pending.data as OwnBatch;
      if (batch.statusTo !== null) {
        this.#emit(batch.statusTo, buffer, start, end);
        if (isSessionSetting(name)) batch.statusTo.onParameterStatus(name.toLowerCase(), value);
      } else if (this.pending.kind === PendingKind.Query && isSessionSetting(name)) {
        // ROLLBACK between two owners: what the transaction had set is in force no more.
        this.parameters = new ParameterSet(new Map(this.parameters.values).set(name.toLowerCase(), value));
      }
      return;
    }
    const owner = this.pending.owner ?? this.linked;
    if (owner === null) return;
    this.#emit(owner, buffer, start, end);
    if (isSessionSetting(name)) owner.onParameterStatus(name.toLowerCase(), value);
  }

  #outOfStep(type: number): void {
    this.#fail(`message type 0x${type.toString(16)} from server is out of step`);
  }

  // ---- bytes that come in parts ----------------------------------------------------------------------------

  #hold(buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    this.#held = Buffer.allocUnsafe(Math.max(HELD_BYTES, length));
    buffer.copy(this.#held, 0, start, end);
    this.#heldLength = length;
  }

  /** Adds to the held part until its message is whole, or until its header shows that it can stream. */
  #continueHeld(buffer: Buffer, start: number, end: number): number {
    let at = start;
    let held = this.#held as Buffer;
    if (this.#heldLength < 5) {
      const take = Math.min(5 - this.#heldLength, end - at);
      buffer.copy(held, this.#heldLength, at, at + take);
      this.#heldLength += take;
      at += take;
      if (this.#heldLength < 5) return end;
    }
    const type = held[0] as number;
    const length = readInt32(held, 1);
    if (length < 4 || length > MESSAGE_BYTES_MAX) {
      this.#fail('invalid message length from server');
      return end;
    }
    const total = length + 1;
    if (this.#heldLength + (end - at) < total && this.#heldLength === 5 && this.#streams(type, total)) {
      this.#held = null;
      this.#startStream(type, held, 0, 5, total);
      return at;
    }
    if (total > HELD_BYTES_MAX) {
      this.#fail('message from server is too large');
      return end;
    }
    const take = Math.min(total - this.#heldLength, end - at);
    if (held.length < total) {
      const larger = Buffer.allocUnsafe(total);
      held.copy(larger, 0, 0, this.#heldLength);
      held = larger;
      this.#held = held;
    }
    buffer.copy(held, this.#heldLength, at, at + take);
    this.#heldLength += take;
    at += take;
    if (this.#heldLength < total) return end;
    this.#held = null;
    this.#onMessage(type, held, 0, total);
    return at;
  }

  // ---- bytes for owners ------------------------------------------------------------------------------------

  #headOwner(): ServerOwner | null {
    if (this.pending.length === 0) return this.linked;
    return this.pending.action === PendingAction.Own ? null : this.pending.owner;
  }

  #emitUnlessOwn(buffer: Buffer, start: number, end: number): void {
    if (this.pending.length === 0) this.#emit(this.linked, buffer, start, end);
    else if (this.pending.action !== PendingAction.Own) this.#emit(this.pending.owner, buffer, start, end);
  }

  /** Adds a span to what the owner gets; spans that touch become one. */
  #emit(owner: ServerOwner | null, buffer: Buffer, start: number, end: number): void {
    if (owner === null) return;
    if (this.#view === buffer && this.#viewEnd === start && this.#viewOwner === owner) {
      this.#viewEnd = end;
      return;
    }
    if (this.#view !== null) this.#closeView();
    this.#view = buffer;
    this.#viewStart = start;
    this.#viewEnd = end;
    this.#viewOwner = owner;
  }

  /** The view is broken by another span: it becomes a part of its own, in order. */
  #closeView(): void {
    const owner = this.#viewOwner;
    if (this.#parts.length > 0 && this.#partsOwner !== owner) this.#deliverParts();
    this.#partsOwner = owner;
    this.#parts.push((this.#view as Buffer).subarray(this.#viewStart, this.#viewEnd));
    this.#view = null;
  }

  /** Hands everything to its owners. */
  #deliver(): void {
    if (this.#view === null) return;
    const owner = this.#viewOwner as ServerOwner;
    if (this.#parts.length === 0) {
      const whole = this.#view;
      this.#view = null;
      const taken = owner.onServerBytes(whole.subarray(this.#viewStart, this.#viewEnd));
      if (!taken && whole === this.#readBuffer) this.wire.keepReadBuffer();
      return;
    }
    this.#closeView();
    this.#deliverParts();
  }

  #deliverParts(): void {
    const parts = this.#parts;
    if (parts.length === 0) return;
    this.#parts = [];
    const owner = this.#partsOwner as ServerOwner;
    // Parts refer to the read buffer, so they are joined into a copy; they are few and mostly short.
    owner.onServerBytes(parts.length === 1 ? Buffer.from(parts[0] as Buffer) : Buffer.concat(parts));
  }

  assertIdle(): void {
    assert(this.quiet && this.linked === null, 'server connection is not idle');
  }
}

function readInt32(buffer: Buffer, at: number): number {
  return (
    ((buffer[at] as number) << 24) |
    ((buffer[at + 1] as number) << 16) |
    ((buffer[at + 2] as number) << 8) |
    (buffer[at + 3] as number)
  );
}

function tryDecodeErrorFields(buffer: Buffer, start: number, end: number): ErrorFields | null {
  try {
    return decodeErrorFields(buffer, start, end);
  } catch {
    return null;
  }
}

/** The system's code of a socket error; never its message, which may hold addresses of the network behind us. */
export function errorCode(error: Error): string {
  return (error as NodeJS.ErrnoException).code ?? error.name;
}

/** duplicate_prepared_statement: the statement is there. */
const DUPLICATE_STATEMENT = '42P05';
const EMPTY_FIELDS: ErrorFields = new Map();
const LOST: ErrorFields = new Map([
  ['S', 'FATAL'],
  ['V', 'FATAL'],
  ['C', '08006'],
  ['M', 'connection to PostgreSQL was lost'],
]);
const OUT_BYTES = 16 * 1024;
const HELD_BYTES = 256;
/** Messages that must be whole are short; 1 GiB (MaxAllocSize) is the most PostgreSQL sends in one. */
const HELD_BYTES_MAX = 16 * 1024 * 1024;
const MESSAGE_BYTES_MAX = 0x40000000;
const ERROR_BYTES_HELD_MAX = 256 * 1024;
const TERMINATE = Buffer.from([0x58, 0, 0, 0, 4]);
/** Close of a statement that never exists: no error, just CloseComplete. */
const CLOSE_PROBE = Buffer.concat([
  Buffer.from([0x43, 0, 0, 0, 6 + 'turnstile_probe'.length]),
  Buffer.from('Sturnstile_probe\0', 'latin1'),
  Buffer.from([0x53, 0, 0, 0, 4]),
]);
