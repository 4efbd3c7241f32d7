/**
 * A client's unnamed statement where it is not mapped: its Parse is kept, so that it can be sent again when another
 * server connection, or another client's Parse on the same one, stands between it and its Bind. Which unnamed
 * statement a connection holds is told by a number. In a pipeline the answers say which of several it was.
 *
 * Hot: looked at for every Bind without a name. The kept bytes are one buffer that is used again.
 */
import { encodeBind, encodeClose, encodeParse } from '../protocol/message-writer.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import { type PendingData, type ServerOwner, UNNAMED_FOREIGN } from '../server/server-owner.ts';
import type { StatementNames } from '../session/statement-names.ts';
import { NO_EFFECTS, type StatementEffects } from '../sql/statement.ts';

/** Invariant: once nothing is under way, `#current` is what PostgreSQL's answers said. */
export class UnnamedStatement {
  readonly #names: StatementNames;
  /** Null: the client has none. */
  #current: KeptParse | null;
  /** As far as PostgreSQL has answered; of no meaning while `#openCount` is 0. */
  #answered: KeptParse | null;
  /** Changes that are not answered; the request of the last, and whether an error in front of it could skip it. */
  #openCount: number;
  #openRequest: number;
  #openSkippable: boolean;
  /** Its buffer is free. */
  #spare: KeptParse | null;

  constructor(names: StatementNames) {
    this.#names = names;
    this.#current = null;
    this.#answered = null;
    this.#openCount = 0;
    this.#openRequest = 0;
    this.#openSkippable = false;
    this.#spare = null;
  }

  get effects(): StatementEffects {
    return this.#current === null ? NO_EFFECTS : this.#current.effects;
  }

  /** An earlier request may or may not have changed it: an error in front of that would have skipped it. */
  get mayBeSkipped(): boolean {
    return this.#openCount > 0 && this.#openSkippable && this.#openRequest !== this.#names.request;
  }

  /** Sends its Parse, `buffer[start, end)`, under a new number. */
  parse(
    server: ServerConnection,
    owner: ServerOwner,
    id: number,
    effects: StatementEffects,
    buffer: Buffer,
    start: number,
    end: number,
  ): void {
    let kept: KeptParse | null = null;
    if (this.#openCount === 0) {
      // Alone it is either parsed or refused, so nobody needs the old one; in a pipeline it may be skipped.
      if (server.pending.length === 0) kept = this.#current ?? this.#spare;
      this.#answered = kept === null ? this.#current : null;
      this.#spare = null;
    }
    kept ??= new KeptParse();
    kept.keep(id, effects, buffer, start, end);
    this.#begin(server, kept);
    server.unnamedId = id;
    server.send(buffer, start, end);
    server.expect(PendingKind.Parse, PendingAction.Forward, owner, kept);
  }

  /** Sends its Close, `buffer[start, end)`. */
  close(server: ServerConnection, owner: ServerOwner, buffer: Buffer, start: number, end: number): void {
    const noted = this.#drop(server);
    server.unnamedId = 0;
    server.send(buffer, start, end);
    server.expect(PendingKind.Close, PendingAction.Forward, owner, noted ? UNNAMED_DROPPED : null);
  }

  /** A simple Query is about to be sent, which drops it (postgres.c, exec_simple_query), unless it is skipped. */
  forget(server: ServerConnection, owner: ServerOwner): void {
    if ((this.#current !== null || this.#openCount > 0) && this.#drop(server)) {
      server.fake(owner, NOTHING, UNNAMED_DROPPED);
    }
    server.unnamedId = 0;
  }

  /** The server's unnamed statement must be this client's last one, or none at all. */
  ensure(server: ServerConnection, owner: ServerOwner): void {
    const current = this.#current;
    if (current !== null) {
      if (server.unnamedId === current.id) return;
      server.send(current.bytes, 0, current.length);
      server.expect(PendingKind.Parse, PendingAction.Quiet, owner, UNNAMED_AGAIN);
      server.unnamedId = current.id;
      return;
    }
    if (server.unnamedId === 0) return;
    server.send(CLOSE_UNNAMED);
    server.expect(PendingKind.Close, PendingAction.Quiet, owner, UNNAMED_AGAIN);
    server.unnamedId = 0;
  }

  /** The client has one, and the server does not hold it. */
  isMissing(server: ServerConnection): boolean {
    return this.#current !== null && server.unnamedId !== this.#current.id;
  }

  /** Noted changes are answered, one by one and in order: PostgreSQL did it. */
  onDone(data: PendingData): void {
    if (this.#openCount === 0 || data === UNNAMED_AGAIN) return;
    this.#answered = data instanceof KeptParse ? data : null;
    this.#settleOne();
  }

  /** A Parse failed: PostgreSQL has none now. One was skipped: it still has the one that was there before. */
  onNotParsed(server: ServerConnection | null, data: PendingData, failed: boolean): void {
    const own = !(data instanceof KeptParse);
    if (server !== null && (own || server.unnamedId === data.id)) {
      server.unnamedId = failed ? 0 : UNNAMED_FOREIGN;
    }
    if (own || this.#openCount === 0) return;
    if (failed) this.#answered = null;
    this.#settleOne();
  }

  /** A Close, or a Query, was skipped. */
  onNotDropped(server: ServerConnection | null, data: PendingData): void {
    if (server !== null && server.unnamedId === 0) server.unnamedId = UNNAMED_FOREIGN;
    if (data !== UNNAMED_AGAIN && this.#openCount > 0) this.#settleOne();
  }

  /** Nothing is under way any more. */
  settle(): void {
    this.#openCount = 0;
    this.#answered = null;
  }

  /** The client has none any more; true when the answer to what drops it must be awaited. */
  #drop(server: ServerConnection): boolean {
    if (server.pending.length === 0) {
      this.#openCount = 0;
      this.#spare = this.#current ?? this.#spare;
      this.#current = null;
      return false;
    }
    if (this.#openCount === 0) this.#answered = this.#current;
    this.#begin(server, null);
    return true;
  }

  #begin(server: ServerConnection, kept: KeptParse | null): void {
    this.#current = kept;
    this.#openCount++;
    this.#openRequest = this.#names.request;
    this.#openSkippable = server.skippable;
  }

  #settleOne(): void {
    this.#openCount--;
    if (this.#openCount > 0) return;
    this.#current = this.#answered;
    this.#answered = null;
  }
}

/** A Parse message of the unnamed statement. Entries of the queue carry it. */
class KeptParse {
  /** Another text has another. */
  id = 0;
  effects: StatementEffects = NO_EFFECTS;
  bytes: Buffer = NOTHING;
  length = 0;

  keep(id: number, effects: StatementEffects, buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    if (this.bytes.length < length || this.bytes.length > KEPT_BYTES_MAX) {
      this.bytes = Buffer.allocUnsafeSlow(Math.max(BYTES_MIN, length));
    }
    buffer.copy(this.bytes, 0, start, end);
    this.id = id;
    this.effects = effects;
    this.length = length;
  }
}

/**
 * Sends a Bind that a failed transaction refuses, in the place of one whose statement the server lacks: a Parse of
 * that would be refused first, an empty text never is (postgres.c, exec_parse_message), so the refusal is that of
 * Bind, as where the statement is there.
 */
export function sendRefusedBind(server: ServerConnection, owner: ServerOwner): void {
  server.send(PARSE_EMPTY);
  server.expect(PendingKind.Parse, PendingAction.Quiet, owner, UNNAMED_AGAIN);
  server.send(BIND_UNNAMED);
  server.expect(PendingKind.Bind, PendingAction.Forward, owner, null);
  server.unnamedId = UNNAMED_FOREIGN;
}

/** True for what the entries of an unnamed statement that is not mapped carry. */
export function isUnnamedMark(data: PendingData): boolean {
  return data === UNNAMED_AGAIN || data === UNNAMED_DROPPED || data instanceof KeptParse;
}

const NOTHING: Buffer = Buffer.alloc(0);
/** Marks what is put in front of a Bind so that the server's unnamed statement is the client's. */
const UNNAMED_AGAIN: object = Object.freeze({ unnamed: 'again' });
/** Marks what drops the client's unnamed statement. */
const UNNAMED_DROPPED: object = Object.freeze({ unnamed: 'dropped' });
const CLOSE_UNNAMED: Buffer = encodeClose('S', '');
const PARSE_EMPTY: Buffer = encodeParse('', '');
const BIND_UNNAMED: Buffer = encodeBind('', '', []);
const BYTES_MIN = 256;
const KEPT_BYTES_MAX = 64 * 1024;
