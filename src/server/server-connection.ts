/**
 * One connection to PostgreSQL: sends what it is given, cuts what comes back into messages, and gives each answer
 * to the owner that the queue of pending responses names. It does not know pools, routing or client protocol
 * state; it tells its owner when it is idle and its pool when it is gone.
 *
 * Hot: no await, no promise, no closure per message. Rows of any size pass as spans of the read buffer.
 */
import { assert } from '../base/assert.ts';
import type { Wire, WireHandler } from '../net/wire.ts';
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { TxStatus } from '../protocol/codes.ts';
import { encodeClose, SYNC, TERMINATE } from '../protocol/message-writer.ts';
import { PgError } from '../protocol/pg-error.ts';
import type { ParameterSet } from '../session/parameters.ts';
import { ServerStatements } from '../session/prepared-statements.ts';
import { CarriedClaims } from './carried-claims.ts';
import { doubtSyncs } from './copy-syncs.ts';
import { FrameScanner } from './frame-scanner.ts';
import { OutBuffer } from './out-buffer.ts';
import { PendingAction, PendingKind, PendingResponses } from './pending-responses.ts';
import { ServerAnswers } from './server-answers.ts';
import { type OwnBatch, type PendingData, type ServerOwner, UNNAMED_FOREIGN } from './server-owner.ts';
import { SpanDelivery } from './span-delivery.ts';

/** The pool, as the connection sees it. */
export interface ServerListener {
  /** `fault` is set when the connection had to go because of an error in our own code. */
  onServerClosed(server: ServerConnection, reason: string, fault: Error | null): void;
  /** PostgreSQL reports another session user than before; the connection is not lent again. */
  onSessionUser(server: ServerConnection, user: string): void;
}

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
  /** pg_stat_activity.backend_start in microseconds since the epoch; null where it was not asked for. */
  readonly backendStart?: string | null;
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
  readonly backendStart: string | null;
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
  /** Messages of the extended protocol were sent behind the last Sync: if one fails, the rest is skipped up to the next. */
  #inRequest = false;
  /** PostgreSQL waits for COPY data. */
  copyIn = false;
  /** A COPY failed while Syncs stood behind it, and it is not known which of them are answered. */
  copyInDoubt = false;
  /** `settleCopy` waits for the rest of the owner's message. */
  settleLate = false;
  #unnamedId: number = UNNAMED_FOREIGN;
  /** What was sent to change the unnamed statement may be skipped. */
  #unnamedInDoubt = false;
  /** The claims that are in force as settings. */
  readonly claims: CarriedClaims = new CarriedClaims();
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
  /** Code that no text shows ran since the role was asserted last: where the login is the role it may be another now. */
  roleInDoubt = false;
  /** The request that asserts the role, ready to send. */
  roleRequest: { readonly role: string; readonly bytes: Buffer } | null = null;
  /** Not to be lent again. */
  retired = false;
  lastUsedMs: number;
  requestStartedMs = 0;

  readonly #listener: ServerListener;
  #fault: Error | null = null;
  /** Requests wait here until the end of the tick's work on this connection. */
  readonly #out: OutBuffer;
  readonly #delivery: SpanDelivery;
  readonly #answers: ServerAnswers;
  readonly #scanner: FrameScanner;
  #idleAnnounced = true;

  constructor(options: ServerConnectionOptions) {
    this.#listener = options.listener;
    this.processId = options.processId;
    this.secretKey = options.secretKey;
    this.backendStart = options.backendStart ?? null;
    this.reported = options.reported;
    this.parameters = options.emptyParameters;
    this.statements = new ServerStatements(options.preparedStatementsLimit);
    this.connectedAtMs = options.nowMs;
    this.lastUsedMs = options.nowMs;
    this.retireAtMs = options.retireAtMs;
    this.wire = options.openWire(this);
    this.#out = new OutBuffer(this.wire);
    this.#delivery = new SpanDelivery(this.wire);
    this.#answers = new ServerAnswers(this, this.#delivery);
    this.#scanner = new FrameScanner(this.#answers);
  }

  get closed(): boolean {
    return this.state === ServerState.Closed;
  }

  /** True when nothing is under way and no transaction is open. */
  get quiet(): boolean {
    return (
      this.pending.length === 0 && this.txStatus === TxStatus.Idle && !this.unsynced && !this.skippingToSync
    );
  }

  /** Which unnamed statement the server holds, by the number its relay gave it; 0 when it holds none. */
  get unnamedId(): number {
    return this.#unnamedId;
  }

  set unnamedId(id: number) {
    this.#unnamedId = id;
    if (this.skippable) this.#unnamedInDoubt = true;
  }

  /** What is sent now may be skipped: something in front of it in its request is not answered yet, and may fail. */
  get skippable(): boolean {
    return this.#inRequest && this.pending.length > 0;
  }

  /** The owner got the first part of a message and not its rest: nothing else may be written behind it. */
  isPartWayTo(owner: ServerOwner): boolean {
    return this.#scanner.inMessage && this.#answers.restOwner === owner;
  }

  /** PostgreSQL says who the session user is. Nobody but a superuser can change it. */
  noteSessionUser(user: string): void {
    this.retired = true;
    this.#listener.onSessionUser(this, user);
  }

  // ---- sending -------------------------------------------------------------------------------------------

  /** Adds bytes of a request; they are copied, and leave with `flush()`. */
  send(buffer: Uint8Array, start = 0, end: number = buffer.length): void {
    this.#out.add(buffer, start, end);
  }

  sendByte(byte: number): void {
    this.#out.addByte(byte);
  }

  sendInt32(value: number): void {
    this.#out.addInt32(value);
  }

  /** Notes what PostgreSQL will answer. Must be called in the order of the sends. */
  expect(
    kind: PendingKind,
    action: PendingAction,
    owner: ServerOwner | null,
    data: PendingData | null,
  ): void {
    if (this.pending.length === 0) this.#inRequest = false;
    this.pending.push(kind, action, owner, data);
    if (kind !== PendingKind.CopyEnd) this.unsynced = kind >= PendingKind.Parse;
    if (kind === PendingKind.Sync) {
      // Whatever is sent behind it is read again.
      this.skippingToSync = false;
      this.#inRequest = false;
      // Nor may a later request take for granted what this one may never have done.
      if (this.#unnamedInDoubt) this.#unnamedId = UNNAMED_FOREIGN;
      this.#unnamedInDoubt = false;
    } else if (kind >= PendingKind.Parse) {
      this.#inRequest = true;
    }
    this.#idleAnnounced = false;
  }

  /** Gives the owner bytes in his turn without asking PostgreSQL; `change` comes back to him if they are dropped. */
  fake(owner: ServerOwner, bytes: Buffer, change: object | null): void {
    this.unsynced = true;
    this.#idleAnnounced = false;
    if (this.pending.length > 0) {
      this.pending.push(PendingKind.Fake, PendingAction.Forward, owner, { bytes, change });
      return;
    }
    if (bytes.length > 0) this.#delivery.emit(owner, bytes, 0, bytes.length);
    if (change !== null) owner.onCompleted(PendingKind.Fake, { bytes, change });
  }

  /** Writes what was sent. Answers false when PostgreSQL is slow and the sender should pause. */
  flush(): boolean {
    this.#out.flush();
    this.#delivery.deliver();
    return !this.wire.writeBlocked;
  }

  // ---- receiving -----------------------------------------------------------------------------------------

  onBytes(buffer: Buffer, start: number, end: number): void {
    this.#delivery.beginRead(buffer);
    try {
      this.#scanner.scan(buffer, start, end);
    } catch (error) {
      if (!(error instanceof PgError)) throw error;
      this.fail('malformed message from server');
    }
    if (this.closed) return;
    this.#delivery.deliver();
    this.#delivery.endRead();
    if (!this.#idleAnnounced && this.quiet) {
      this.#idleAnnounced = true;
      this.linked?.onServerIdle(this);
    }
  }

  onDrain(): void {
    this.#out.onDrain();
    this.linked?.onServerDrain();
  }

  onClose(error: Error | null): void {
    if (error !== null && !('syscall' in error) && !('code' in error)) this.#fault = error;
    this.close(
      error === null ? 'server closed the connection' : `connection to server failed: ${errorCode(error)}`,
    );
  }

  // ---- end -----------------------------------------------------------------------------------------------

  /** Closes the socket and tells owner and pool. Safe to call at any time, more than once. */
  close(reason: string): void {
    if (this.closed) return;
    this.#delivery.deliver();
    this.state = ServerState.Closed;
    this.#scanner.stop();
    if (this.quiet) this.wire.end(TERMINATE);
    else this.wire.destroy();
    const owner = this.linked;
    this.linked = null;
    this.unnamedId = 0;
    for (let batch = this.#nextOwnBatch(); batch !== null; batch = this.#nextOwnBatch()) {
      batch.onEnd(batch.error ?? LOST);
    }
    this.#listener.onServerClosed(this, reason, this.#fault);
    owner?.onServerLost(this, this.#answers.fatalSent || this.isPartWayTo(owner));
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

  /** PostgreSQL said what cannot be: the connection is of no use to anybody. */
  fail(reason: string): void {
    this.retired = true;
    this.close(reason);
  }

  // ---- COPY from the client --------------------------------------------------------------------------------

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
    doubtSyncs(pending, 0, pending.length);
    if (pending.length === 0) return;
    const batch: OwnBatch = {
      onRow: () => {},
      onEnd: () => {},
      error: null,
      parses: '',
      statusTo: null,
      readyTo: null,
    };
    this.send(CLOSE_PROBE);
    this.expect(PendingKind.Close, PendingAction.Own, null, batch);
    this.expect(PendingKind.Sync, PendingAction.Own, null, batch);
    this.flush();
  }

  assertIdle(): void {
    assert(this.quiet && this.linked === null, 'server connection is not idle');
  }
}

/** The system's code of a socket error; never its message, which may hold addresses of the network behind us. */
export function errorCode(error: Error): string {
  return (error as NodeJS.ErrnoException).code ?? error.name;
}

const LOST: ErrorFields = new Map([
  ['S', 'FATAL'],
  ['V', 'FATAL'],
  ['C', '08006'],
  ['M', 'connection to PostgreSQL was lost'],
]);
/** Close of a statement that never exists: no error, just CloseComplete. */
const CLOSE_PROBE: Buffer = Buffer.concat([encodeClose('S', 'turnstile_probe'), SYNC]);
