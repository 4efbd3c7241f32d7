/**
 * The messages of a client that are a request by themselves: Query and FunctionCall, and texts too long to be held.
 * They are judged, guarded and sent on; their answers come back through the server connection's queue.
 *
 * Hot: a plain Query is sent as it came.
 */
import { FrontendMessage } from '../protocol/codes.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { ParameterSet } from '../session/parameters.ts';
import type { StatementNames } from '../session/statement-names.ts';
import type { StatementAnalyzer } from '../sql/statement.ts';
import { isHarmlessFunction } from './function-call.ts';
import { assertRoleAfterDiscard, restoreStartupSettings } from './reassert.ts';
import { escapeError, forbiddenFunction, sendFailing, tooLongStatement } from './refusals.ts';
import type { FrameLoop, RelayParts } from './relay-parts.ts';
import { type SessionEffects, UNKNOWN_EFFECTS } from './session-effects.ts';
import { DEALLOCATE_GONE_QUERY, dropsStatements, type StandIns } from './stand-ins.ts';
import type { UnnamedStatement } from './unnamed-statement.ts';

/** Invariant: nothing reaches PostgreSQL for a guarded role that was not judged whole. */
export class QueryRelay {
  readonly #loop: FrameLoop;
  readonly #analyzer: StatementAnalyzer;
  readonly #guardedRole: string | null;
  readonly #startup: ParameterSet;
  readonly #effects: SessionEffects;
  readonly #names: StatementNames;
  readonly #unnamed: UnnamedStatement;
  readonly #standIns: StandIns;

  constructor(parts: RelayParts) {
    this.#loop = parts.loop;
    this.#analyzer = parts.options.analyzer;
    this.#guardedRole = parts.options.guardedRole;
    this.#startup = parts.options.parameters;
    this.#effects = parts.effects;
    this.#names = parts.names;
    this.#unnamed = parts.unnamed;
    this.#standIns = parts.standIns;
  }

  onQuery(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    const loop = this.#loop;
    if (end - start < 6 || buffer[end - 1] !== 0) return loop.violate('malformed Query message');
    loop.requestCount++;
    this.#forgetUnnamed(server);
    const effects = this.#analyzer.analyze(buffer.toString('latin1', start + 5, end - 1));
    if (effects.plain) {
      server.send(buffer, start, end);
      server.expect(PendingKind.Query, PendingAction.Forward, loop, null);
      return;
    }
    if (this.#guardedRole !== null && effects.escape !== null) {
      return sendFailing(server, loop, FrontendMessage.Query, escapeError(effects));
    }
    this.#effects.onSend(effects);
    if (this.#standIns.isGone(effects)) {
      this.#standIns.sendGone(server, true);
      server.send(DEALLOCATE_GONE_QUERY);
    } else {
      this.#standIns.sendDeallocated(server, effects.deallocates);
      server.send(buffer, start, end);
    }
    server.expect(PendingKind.Query, PendingAction.Forward, loop, effects);
    this.#standIns.closeStrays(server);
    assertRoleAfterDiscard(server, this.#guardedRole, effects, true);
    restoreStartupSettings(server, loop, this.#startup, effects, true);
    if (dropsStatements(effects)) loop.holdBack();
  }

  /** A text that nobody holds whole: without an analysis it can neither be guarded nor mapped. */
  onTooLong(server: ServerConnection, type: number, total: number, bytesMax: number): void {
    const loop = this.#loop;
    if (type === FrontendMessage.Query && this.#guardedRole === null) {
      this.#effects.onSend(UNKNOWN_EFFECTS);
      server.expect(PendingKind.Query, PendingAction.Forward, loop, UNKNOWN_EFFECTS);
      this.#forgetUnnamed(server);
      loop.passOn(total);
    } else if (type === FrontendMessage.Query || type === FrontendMessage.Parse) {
      sendFailing(server, loop, type, tooLongStatement(bytesMax));
      loop.drop(total);
    } else {
      loop.violate('message is too large');
    }
  }

  /** Answers false when more of the message is needed to judge it. */
  onFunctionCall(server: ServerConnection, buffer: Buffer, at: number, end: number, total: number): boolean {
    const loop = this.#loop;
    if (this.#guardedRole !== null) {
      if (total < 9) {
        loop.violate('malformed FunctionCall message');
        return true;
      }
      // Behind `end` stands what the buffer was used for before.
      if (end - at < 9) return false;
      if (!isHarmlessFunction(buffer.readUInt32BE(at + 5))) {
        sendFailing(server, loop, FrontendMessage.Query, forbiddenFunction());
        loop.drop(total);
        return true;
      }
    }
    loop.requestCount++;
    server.expect(PendingKind.FunctionCall, PendingAction.Forward, loop, null);
    loop.passOn(total);
    return true;
  }

  /** The unnamed statement does not outlive a simple Query (postgres.c, exec_simple_query). */
  #forgetUnnamed(server: ServerConnection): void {
    this.#names.delete('');
    this.#unnamed.forget(server);
  }
}
