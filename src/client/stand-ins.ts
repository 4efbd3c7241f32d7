/**
 * Statements that stand on the server under the client's own name while a request lasts, so that PostgreSQL itself
 * can say what it says of such a name: that it is taken, or that it was deallocated. In truth the client's names
 * stand for statements with names of ours, which PostgreSQL knows nothing of.
 */
import { FrontendMessage, TxStatus } from '../protocol/codes.ts';
import { encodeParse, encodeQuery, SYNC } from '../protocol/message-writer.ts';
import { ownBatch } from '../server/own-batch.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { OwnBatch, ServerOwner } from '../server/server-owner.ts';
import { SERVER_NAME_PREFIX } from '../session/prepared-statements.ts';
import type { StatementNames } from '../session/statement-names.ts';
import type { StatementEffects } from '../sql/statement.ts';

/** Invariant: whatever was sent under a client's own name is closed behind the request (`#strays`). */
export class StandIns {
  readonly #owner: ServerOwner;
  readonly #names: StatementNames;
  /** Named statements are mapped. */
  readonly #mapped: boolean;
  /** Client names whose Parse was sent under the client's own name. */
  #strays: string[] | null;
  /** The batch of what is sent at the moment. */
  #open: OwnBatch | null;

  constructor(owner: ServerOwner, names: StatementNames, mapped: boolean) {
    this.#owner = owner;
    this.#names = names;
    this.#mapped = mapped;
    this.#strays = null;
    this.#open = null;
  }

  /**
   * The client prepares a name twice. PostgreSQL says so itself when it sees the same: both under the client's
   * own name, so that a fault in the text comes first, as it does there. The stray is closed after the request.
   */
  sendDuplicate(server: ServerConnection, buffer: Buffer, start: number, end: number, name: string): void {
    server.send(buffer, start, end);
    server.expect(PendingKind.Parse, PendingAction.Quiet, this.#owner, null);
    server.send(buffer, start, end);
    server.expect(PendingKind.Parse, PendingAction.Forward, this.#owner, null);
    this.#addStray(name);
  }

  /** A text that is one DEALLOCATE of a name that only we know: PostgreSQL gets another to deallocate. */
  isGone(effects: StatementEffects): boolean {
    if (!this.#mapped || effects.deallocates.length !== 1 || effects.statementCount !== 1) return false;
    return this.#names.has(effects.deallocates[0] as string);
  }

  /** Whether the client has a name that is deallocated depends on an earlier request that is not answered. */
  mustWait(server: ServerConnection, effects: StatementEffects): boolean {
    for (const name of effects.deallocates) {
      if (this.#names.mayBeTaken(name)) return server.pending.owesReady(this.#owner);
    }
    return false;
  }

  /** Sends the statement that DEALLOCATE_GONE takes away again; with `sync` in front of a Query, else in a request. */
  sendGone(server: ServerConnection, sync: boolean): void {
    this.#sendParse(server, GONE_PARSE, sync ? this.#batch() : null);
    this.#sendSync(server);
  }

  /**
   * The same for a string of several statements: under the client's own names, what is left is closed after it.
   * `sync` as above: inside a request it would end the client's implicit transaction, or his skipping.
   */
  sendDeallocated(server: ServerConnection, names: readonly string[], sync: boolean): void {
    if (!this.#mapped || names.length === 0) return;
    for (const name of names) {
      if (!this.#names.has(name)) continue;
      this.#sendParse(server, encodeNamedParse(name), sync ? this.#batch() : null);
      this.#addStray(name);
    }
    this.#sendSync(server);
  }

  /** The request is sent: what stands on the server under a name of the client is closed behind it. */
  closeStrays(server: ServerConnection): void {
    if (this.#strays === null) return;
    const batch = this.#batch();
    for (const name of this.#strays) {
      const bytes = Buffer.from(`S${name}\0`, 'latin1');
      server.sendByte(FrontendMessage.Close);
      server.sendInt32(4 + bytes.length);
      server.send(bytes);
      server.expect(PendingKind.Close, PendingAction.Own, null, batch);
    }
    this.#strays = null;
    this.#sendSync(server);
  }

  /** A Query inside a request is answered, so it was not skipped; unless something of the client is behind it. */
  closeStraysLate(server: ServerConnection): void {
    if (this.#strays === null || server.unsynced || server.pending.owesReady(this.#owner)) return;
    this.closeStrays(server);
    server.flush();
  }

  #sendParse(server: ServerConnection, parse: Buffer, batch: OwnBatch | null): void {
    server.send(parse);
    if (batch === null) server.expect(PendingKind.Parse, PendingAction.Quiet, this.#owner, null);
    else server.expect(PendingKind.Parse, PendingAction.Own, null, batch);
  }

  /** One batch for everything up to its Sync; without need there is neither. */
  #batch(): OwnBatch {
    this.#open ??= ownBatch(() => {});
    return this.#open;
  }

  #sendSync(server: ServerConnection): void {
    if (this.#open === null) return;
    server.send(SYNC);
    server.expect(PendingKind.Sync, PendingAction.Own, null, this.#open);
    this.#open = null;
  }

  #addStray(name: string): void {
    this.#strays ??= [];
    this.#strays.push(name);
  }
}

/** The statement drops prepared ones, so that nothing may be sent behind it until it is answered. */
export function dropsStatements(effects: StatementEffects): boolean {
  return effects.discardsAll || effects.deallocatesAll || effects.deallocates.length > 0;
}

/** In a failed transaction PostgreSQL refuses most statements: it shall do so here too. */
export function isDoomed(server: ServerConnection, effects: StatementEffects): boolean {
  return server.txStatus === TxStatus.Failed && !effects.hasTransactionControl && staysFailed(server);
}

/** True when nothing that is under way could end the failed transaction. */
function staysFailed(server: ServerConnection): boolean {
  const { pending } = server;
  for (let index = 0; index < pending.length; index++) {
    const kind = pending.kindAt(index);
    if (kind === PendingKind.Query || kind === PendingKind.Execute) return false;
  }
  return true;
}

/** A statement under a name that came with one character a byte. */
function encodeNamedParse(name: string): Buffer {
  const bytes = Buffer.from(`P....${name}\0SELECT\0\0\0`, 'latin1');
  bytes.writeInt32BE(bytes.length - 1, 1);
  return bytes;
}

const GONE_NAME = `${SERVER_NAME_PREFIX}gone`;
const GONE_PARSE: Buffer = encodeParse(GONE_NAME, 'SELECT');
export const DEALLOCATE_GONE_QUERY: Buffer = encodeQuery(`DEALLOCATE ${GONE_NAME}`);
export const DEALLOCATE_GONE_PARSE: Buffer = encodeParse('', `DEALLOCATE ${GONE_NAME}`);
/** The same behind the name. */
export const DEALLOCATE_GONE_TAIL: Buffer = DEALLOCATE_GONE_PARSE.subarray(6);
