/**
 * A client's unnamed statement where it is not mapped: its Parse is kept, so that it can be sent again when another
 * server connection, or another client's Parse on the same one, stands between it and its Bind. Which unnamed
 * statement a connection holds is told by a number.
 *
 * Hot: looked at for every Bind without a name. The kept bytes are one buffer that is used again.
 */
import { encodeClose } from '../protocol/message-writer.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import { type PendingData, type ServerOwner, UNNAMED_FOREIGN } from '../server/server-owner.ts';
import { NO_EFFECTS, type StatementEffects } from '../sql/statement.ts';

/** What a Parse or Close replaced, where PostgreSQL may still skip it. */
interface UnnamedChange {
  readonly parse: Buffer | null;
  readonly length: number;
  readonly effects: StatementEffects;
  readonly id: number;
  /** What the server held before. */
  readonly serverId: number;
}

/** Invariant: `#length` is 0 exactly while the client has no unnamed statement. */
export class UnnamedStatement {
  /** The Parse message. */
  #parse: Buffer | null;
  #length: number;
  #effects: StatementEffects;
  /** Its number; another text has another. */
  #id: number;
  /** Its Parse may be skipped, which would leave the server with somebody else's. */
  #inDoubt: boolean;
  /** An error gave back the old statement, until its request is over. */
  #takenBack: boolean;

  constructor() {
    this.#parse = null;
    this.#length = 0;
    this.#effects = NO_EFFECTS;
    this.#id = 0;
    this.#inDoubt = false;
    this.#takenBack = false;
  }

  get effects(): StatementEffects {
    return this.#effects;
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
    // What PostgreSQL reads first it cannot skip; in a pipeline the old statement may turn out to be still there.
    const change = server.pending.length === 0 ? UNNAMED : this.#giveAway(server);
    this.#keep(buffer, start, end);
    this.#effects = effects;
    this.#id = id;
    this.#inDoubt = change !== UNNAMED;
    server.unnamedId = id;
    server.send(buffer, start, end);
    server.expect(PendingKind.Parse, PendingAction.Forward, owner, change);
  }

  /** Sends its Close, `buffer[start, end)`. */
  close(server: ServerConnection, owner: ServerOwner, buffer: Buffer, start: number, end: number): void {
    const change = server.pending.length === 0 ? null : this.#giveAway(server);
    this.forget(server);
    server.send(buffer, start, end);
    server.expect(PendingKind.Close, PendingAction.Forward, owner, change);
  }

  /** It is gone, here and there. */
  forget(server: ServerConnection): void {
    this.#length = 0;
    server.unnamedId = 0;
  }

  /** The server's unnamed statement must be this client's last one, or none at all. */
  ensure(server: ServerConnection, owner: ServerOwner): void {
    if (this.#length > 0 && this.#parse !== null) {
      if (server.unnamedId === this.#id) return;
      server.send(this.#parse, 0, this.#length);
      server.expect(PendingKind.Parse, PendingAction.Quiet, owner, UNNAMED_AGAIN);
      server.unnamedId = this.#id;
      return;
    }
    if (server.unnamedId === 0) return;
    server.send(CLOSE_UNNAMED);
    server.expect(PendingKind.Close, PendingAction.Quiet, owner, UNNAMED_AGAIN);
    server.unnamedId = 0;
  }

  /** Behind this Sync PostgreSQL listens again, whatever became of the Parse: it is sent anew if it is needed. */
  onSync(server: ServerConnection): void {
    if (!this.#inDoubt) return;
    this.#inDoubt = false;
    server.unnamedId = UNNAMED_FOREIGN;
  }

  /** A Parse failed: PostgreSQL has none now. One was skipped: it still has the one that was there before. */
  onNotParsed(server: ServerConnection | null, data: PendingData, failed: boolean): void {
    if (data === UNNAMED_AGAIN) {
      if (server !== null) server.unnamedId = failed ? 0 : UNNAMED_FOREIGN;
      return;
    }
    if (this.#takenBack) return;
    this.#takenBack = true;
    if (failed || !isChange(data)) {
      this.#length = 0;
      if (server !== null) server.unnamedId = 0;
      return;
    }
    this.#restore(server, data);
  }

  /** A Close was skipped. */
  onNotClosed(server: ServerConnection | null, data: PendingData): void {
    if (isChange(data)) {
      if (this.#takenBack) return;
      this.#takenBack = true;
      this.#restore(server, data);
    } else if (server !== null) {
      server.unnamedId = UNNAMED_FOREIGN;
    }
  }

  /** The request is over: what is changed from here on is another story. */
  settle(): void {
    this.#takenBack = false;
  }

  #restore(server: ServerConnection | null, change: UnnamedChange): void {
    this.#parse = change.parse;
    this.#length = change.length;
    this.#effects = change.effects;
    this.#id = change.id;
    if (server !== null) server.unnamedId = change.serverId;
  }

  /** Gives the kept Parse away, so that the next one cannot overwrite it. */
  #giveAway(server: ServerConnection): UnnamedChange {
    const change: UnnamedChange = {
      parse: this.#parse,
      length: this.#length,
      effects: this.#effects,
      id: this.#id,
      serverId: server.unnamedId,
    };
    this.#parse = null;
    this.#length = 0;
    return change;
  }

  #keep(buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    let parse = this.#parse;
    if (parse === null || parse.length < length || parse.length > KEPT_BYTES_MAX) {
      parse = Buffer.allocUnsafeSlow(Math.max(BYTES_MIN, length));
      this.#parse = parse;
    }
    buffer.copy(parse, 0, start, end);
    this.#length = length;
  }
}

/** True for what the entries of an unnamed statement that is not mapped carry. */
export function isUnnamedMark(data: PendingData): boolean {
  return data === UNNAMED || data === UNNAMED_AGAIN || isChange(data);
}

function isChange(data: PendingData): data is UnnamedChange {
  return (data as Partial<UnnamedChange>).parse !== undefined;
}

/** Marks the Parse of the unnamed statement. */
const UNNAMED: object = Object.freeze({ unnamed: 'parsed' });
/** Marks what is put in front of a Bind so that the server's unnamed statement is the client's. */
const UNNAMED_AGAIN: object = Object.freeze({ unnamed: 'again' });
const CLOSE_UNNAMED: Buffer = encodeClose('S', '');
const BYTES_MIN = 256;
const KEPT_BYTES_MAX = 64 * 1024;
