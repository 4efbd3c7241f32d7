/**
 * What PostgreSQL's messages mean: each belongs to the entry at the head of the queue, completes it or fails it, and
 * goes to that entry's owner or to nobody. It changes the state of its connection, and knows neither sockets nor
 * pools.
 *
 * Hot: a row is looked at and handed on, without an object or a copy.
 */
import {
  decodeDataRow,
  decodeErrorFields,
  decodeParameterStatus,
  type ErrorFields,
} from '../protocol/backend-messages.ts';
import { BackendMessage, TxStatus } from '../protocol/codes.ts';
import { isSessionSetting, ParameterSet } from '../session/parameters.ts';
import { doubtSyncsOfCopy, dropSwallowed } from './copy-syncs.ts';
import type { FrameHandler } from './frame-scanner.ts';
import { PendingAction, PendingKind, type PendingResponses } from './pending-responses.ts';
import type { ServerConnection } from './server-connection.ts';
import {
  type FakeAnswer,
  type OwnBatch,
  type PendingData,
  type ServerOwner,
  UNNAMED_FOREIGN,
} from './server-owner.ts';
import type { SpanDelivery } from './span-delivery.ts';

/** Invariant: an entry is taken from the queue before its owner hears that it is complete. */
export class ServerAnswers implements FrameHandler {
  /** PostgreSQL's own FATAL went to the owner: an error of ours would be a second one. */
  fatalSent: boolean;
  /** Who gets the rest of a streamed message (null: nobody). */
  restOwner: ServerOwner | null;
  readonly #server: ServerConnection;
  readonly #pending: PendingResponses<ServerOwner, PendingData>;
  readonly #delivery: SpanDelivery;
  /** The message at hand is only the first part of a streamed one. */
  #streaming: boolean;

  constructor(server: ServerConnection, delivery: SpanDelivery) {
    this.fatalSent = false;
    this.restOwner = null;
    this.#server = server;
    this.#pending = server.pending;
    this.#delivery = delivery;
    this.#streaming = false;
  }

  // ---- FrameHandler ----------------------------------------------------------------------------------------

  /** Types whose body nobody here reads, so that it need not be whole; large errors pass unread too. */
  streams(type: number, total: number): boolean {
    switch (type) {
      case BackendMessage.DataRow:
        return this.#pending.length === 0 || this.#pending.action !== PendingAction.Own;
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
  onMessageStart(type: number, buffer: Buffer, start: number, end: number): void {
    this.restOwner = this.#headOwner();
    this.#streaming = true;
    this.onMessage(type, buffer, start, end);
    this.#streaming = false;
  }

  onMessageRest(buffer: Buffer, start: number, end: number): void {
    this.#delivery.emit(this.restOwner, buffer, start, end);
  }

  onBadFrame(reason: string): void {
    this.#server.fail(reason);
  }

  /** One message, `buffer[start, end)`; only its first part when it streams. */
  onMessage(type: number, buffer: Buffer, start: number, end: number): void {
    const pending = this.#pending;
    switch (type) {
      case BackendMessage.DataRow:
        if (pending.length > 0 && pending.action === PendingAction.Own) {
          (pending.data as OwnBatch).onRow(decodeDataRow(buffer, start + 5, end));
          return;
        }
        if (pending.kind !== PendingKind.Execute && pending.kind !== PendingKind.Query) this.#outOfStep(type);
        else this.#delivery.emit(pending.owner, buffer, start, end);
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
        if (this.#server.copyIn) {
          this.#server.copyIn = false;
          if (dropSwallowed(pending)) this.#server.unsynced = true;
        }
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
        this.#server.copyIn = true;
        this.#emitUnlessOwn(buffer, start, end);
        return;
      case BackendMessage.ParameterStatus:
        return this.#onParameterStatus(buffer, start, end);
      case BackendMessage.NoticeResponse:
        if (pending.length === 0) this.#delivery.emit(this.#server.linked, buffer, start, end);
        else this.#emitUnlessOwn(buffer, start, end);
        return;
      case BackendMessage.NotificationResponse:
        this.#delivery.emit(this.#server.linked, buffer, start, end);
        return;
      default:
        this.#server.fail(`unexpected message type 0x${type.toString(16)} from server`);
    }
  }

  #onComplete(kind: PendingKind, buffer: Buffer, start: number, end: number): void {
    const pending = this.#pending;
    if (pending.kind === PendingKind.MaybeSync) this.#dropMaybeSyncs();
    const head: number = pending.kind;
    if (head !== kind) return this.#outOfStep(buffer[start] as number);
    if (pending.action === PendingAction.Forward) this.#delivery.emit(pending.owner, buffer, start, end);
    this.#complete();
  }

  /** The head entry is answered: its owner hears of it when it carries something, then fakes behind it go out. */
  #complete(): void {
    const pending = this.#pending;
    const owner = pending.owner;
    const data = pending.data;
    const kind = pending.kind as PendingKind;
    pending.pop();
    if (owner !== null && data !== null) owner.onCompleted(kind, data);
    if (pending.kind >= PendingKind.Fake) this.#drainFakes();
  }

  #drainFakes(): void {
    const pending = this.#pending;
    while (pending.kind >= PendingKind.Fake) {
      const fake = pending.kind === PendingKind.Fake ? (pending.data as FakeAnswer) : null;
      const owner = pending.owner;
      pending.pop();
      if (fake === null) continue;
      if (fake.bytes.length > 0) this.#delivery.emit(owner, fake.bytes, 0, fake.bytes.length);
      if (fake.change !== null) owner?.onCompleted(PendingKind.Fake, fake);
    }
  }

  #onReadyForQuery(buffer: Buffer, start: number, end: number): void {
    const pending = this.#pending;
    if (end - start !== 6) return this.#server.fail('invalid ReadyForQuery from server');
    const status = buffer[start + 5] as number;
    if (status !== TxStatus.Idle && status !== TxStatus.InTransaction && status !== TxStatus.Failed) {
      return this.#server.fail('invalid transaction status from server');
    }
    const kind = pending.kind;
    if (kind !== PendingKind.Query && kind !== PendingKind.Sync) {
      if (kind !== PendingKind.MaybeSync && kind !== PendingKind.FunctionCall) {
        return this.#outOfStep(BackendMessage.ReadyForQuery);
      }
    }
    this.#server.txStatus = status;
    this.#server.skippingToSync = false;
    this.#server.copyIn = false;
    const owner = pending.owner;
    const action = pending.action;
    const data = pending.data;
    pending.pop();
    if (action === PendingAction.Own) {
      const batch = data as OwnBatch;
      batch.onEnd(batch.error);
      if (batch.readyTo !== null) this.#delivery.emit(batch.readyTo, buffer, start, end);
    } else if (owner !== null) {
      if (data !== null) owner.onCompleted(kind, data);
      if (owner.onReadyForQuery(this.#server, status)) this.#delivery.emit(owner, buffer, start, end);
    }
    if (pending.kind >= PendingKind.Fake) this.#drainFakes();
    if (this.#server.copyInDoubt) this.#server.settleCopy();
  }

  #onErrorResponse(buffer: Buffer, start: number, end: number): void {
    const pending = this.#pending;
    const fields = this.#streaming ? EMPTY_FIELDS : tryDecodeErrorFields(buffer, start + 5, end);
    if (fields === null) return this.#server.fail('malformed ErrorResponse from server');
    if (pending.kind === PendingKind.MaybeSync) this.#dropMaybeSyncs();
    const severity = fields.get('V') ?? fields.get('S');
    const fatal = severity === 'FATAL' || severity === 'PANIC';
    const code = fields.get('C') ?? '';
    if (pending.length === 0) {
      // Unsolicited: the server is about to close, by its own timeout or an administrator's wish.
      this.#server.retired = true;
      if (this.#server.linked === null) return this.#server.fail('the server is ending the connection');
      if (fatal) {
        this.#delivery.emit(this.#server.linked, buffer, start, end);
        this.fatalSent = true;
      }
      return;
    }
    if (pending.action === PendingAction.Own) {
      const batch = pending.data as OwnBatch;
      batch.error = fields;
      if (!this.#endsByItself(batch)) batch.onEnd(fields);
      if (this.#server.closed) return;
      if (fatal && this.#server.linked !== null) {
        this.#delivery.emit(this.#server.linked, buffer, start, end);
        this.fatalSent = true;
      }
    } else {
      const owner = pending.owner as ServerOwner;
      const kind = pending.kind as PendingKind;
      const data = pending.data;
      const other =
        fatal || data === null || this.#streaming
          ? null
          : owner.onError(this.#server, kind, data, fields, buffer.subarray(start, end));
      if (other === null) {
        this.#delivery.emit(owner, buffer, start, end);
      } else {
        this.restOwner = null;
        if (other.length > 0) this.#delivery.emit(owner, other, 0, other.length);
      }
      if (fatal) this.fatalSent = true;
      if (data !== null) owner.onNotCompleted(kind, data, true, code);
    }
    if (fatal) {
      this.#server.retired = true;
      return;
    }
    if (this.#server.copyIn) {
      this.#server.copyIn = false;
      if (doubtSyncsOfCopy(pending)) this.#server.copyInDoubt = true;
    }
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
    const pending = this.#pending;
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
    const pending = this.#pending;
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
        const isThere = first && code === DUPLICATE_STATEMENT;
        if (kind === PendingKind.Parse && !isThere)
          this.#server.ownStatements.delete((data as OwnBatch).parses);
      } else if (!first && owner !== null && data !== null) {
        owner.onNotCompleted(kind, data, false, code);
      }
      if (!first && kind === PendingKind.Query) querySkipped = true;
      first = false;
    }
    // A Query that was skipped did not drop the unnamed statement, whoever left it.
    if (querySkipped) this.#server.unnamedId = UNNAMED_FOREIGN;
    this.#server.skippingToSync = !syncFound;
    if (!syncFound) this.#server.linked?.onSkipping(this.#server);
  }

  /** An answer came that no Sync has: the ones in front of it were read as part of a COPY. */
  #dropMaybeSyncs(): void {
    const pending = this.#pending;
    while (pending.kind === PendingKind.MaybeSync) {
      const batch = pending.action === PendingAction.Own ? (pending.data as OwnBatch) : null;
      pending.pop();
      if (pending.kind >= PendingKind.Fake) this.#drainFakes();
      // Its ReadyForQuery was taken for that of an earlier one, so it is over too.
      batch?.onEnd(batch.error);
    }
  }

  #onParameterStatus(buffer: Buffer, start: number, end: number): void {
    const { name, value } = decodeParameterStatus(buffer, start + 5, end);
    this.#server.reported.set(name, value);
    if (!isSessionSetting(name)) {
      // The role of this connection is no longer what the pool promises.
      if (name === 'session_authorization') this.#server.noteSessionUser(value);
    }
    if (this.#pending.length > 0 && this.#pending.action === PendingAction.Own) {
      const batch = this.#pending.data as OwnBatch;
      if (batch.statusTo !== null) {
        this.#tell(batch.statusTo, name, value, buffer, start, end);
      } else if (this.#pending.kind === PendingKind.Query && isSessionSetting(name)) {
        // ROLLBACK between two owners: what the transaction had set is in force no more.
        this.#server.parameters = new ParameterSet(
          new Map(this.#server.parameters.values).set(name.toLowerCase(), value),
        );
      }
      return;
    }
    const owner = this.#pending.owner ?? this.#server.linked;
    if (owner !== null) this.#tell(owner, name, value, buffer, start, end);
  }

  #tell(owner: ServerOwner, name: string, value: string, buffer: Buffer, start: number, end: number): void {
    if (isSessionSetting(name) && !owner.onParameterStatus(name.toLowerCase(), value)) return;
    this.#delivery.emit(owner, buffer, start, end);
  }

  #outOfStep(type: number): void {
    this.#server.fail(`message type 0x${type.toString(16)} from server is out of step`);
  }

  // ---- bytes for owners ------------------------------------------------------------------------------------

  #headOwner(): ServerOwner | null {
    if (this.#pending.length === 0) return this.#server.linked;
    return this.#pending.action === PendingAction.Own ? null : this.#pending.owner;
  }

  #emitUnlessOwn(buffer: Buffer, start: number, end: number): void {
    if (this.#pending.length === 0) this.#delivery.emit(this.#server.linked, buffer, start, end);
    else if (this.#pending.action !== PendingAction.Own)
      this.#delivery.emit(this.#pending.owner, buffer, start, end);
  }
}

function tryDecodeErrorFields(buffer: Buffer, start: number, end: number): ErrorFields | null {
  try {
    return decodeErrorFields(buffer, start, end);
  } catch {
    return null;
  }
}

/** duplicate_prepared_statement: the statement is there. */
const DUPLICATE_STATEMENT = '42P05';
const EMPTY_FIELDS: ErrorFields = new Map();
/** Longer errors and notices pass in parts, unread. */
const ERROR_BYTES_HELD_MAX = 256 * 1024;
