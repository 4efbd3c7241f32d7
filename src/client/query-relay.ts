/**
 * The messages of a client that are a request by themselves: Query and FunctionCall, and texts too long to be held.
 * They are judged, guarded and sent on; their answers come back through the server connection's queue.
 *
 * Hot: a plain Query is sent as it came.
 */
import { FrontendMessage } from '../protocol/codes.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { StatementNames } from '../session/statement-names.ts';
import type { StatementAnalyzer, StatementEffects } from '../sql/statement.ts';
import { noteFunctionCall } from './claim-upkeep.ts';
import { isHarmlessFunction } from './function-call.ts';
import type { Reassertion } from './reassert.ts';
import {
  escapeError,
  forbiddenFunction,
  refusalOf,
  type SessionGuards,
  sendFailing,
  tooLongStatement,
} from './refusals.ts';
import type { FrameLoop, RelayParts } from './relay-parts.ts';
import { type SessionEffects, UNKNOWN_EFFECTS } from './session-effects.ts';
import { DEALLOCATE_GONE_QUERY, dropsStatements, isDoomed, type StandIns } from './stand-ins.ts';
import type { TokenInText, TokenStatements } from './token-statements.ts';
import type { UnnamedStatement } from './unnamed-statement.ts';

/** Invariant: nothing reaches PostgreSQL for a guarded role, or with a token's claims, that was not judged whole. */
export class QueryRelay {
  readonly #loop: FrameLoop;
  readonly #analyzer: StatementAnalyzer;
  readonly #guards: SessionGuards;
  readonly #effects: SessionEffects;
  readonly #names: StatementNames;
  readonly #unnamed: UnnamedStatement;
  readonly #standIns: StandIns;
  readonly #reassertion: Reassertion;
  readonly #tokens: TokenStatements;

  constructor(parts: RelayParts) {
    this.#loop = parts.loop;
    this.#analyzer = parts.options.analyzer;
    this.#guards = parts.options;
    this.#effects = parts.effects;
    this.#names = parts.names;
    this.#unnamed = parts.unnamed;
    this.#standIns = parts.standIns;
    this.#reassertion = parts.reassertion;
    this.#tokens = parts.tokens;
  }

  /** False when it has to wait for the answer to an earlier request; it then comes again. */
  onQuery(server: ServerConnection, buffer: Buffer, start: number, end: number): boolean {
    const loop = this.#loop;
    if (end - start < 6 || buffer[end - 1] !== 0) {
      loop.violate('malformed Query message');
      return true;
    }
    const effects = this.#analyzer.analyze(buffer.toString('latin1', start + 5, end - 1));
    if (effects.token !== null && effects.token.kind !== 'parameter') {
      return this.#onToken(server, effects.token);
    }
    if (effects.deallocates.length > 0 && this.#standIns.mustWait(server, effects)) {
      loop.holdBack();
      return false;
    }
    // Inside a request of the extended protocol a Sync of ours would end its transaction, or the skipping.
    const alone = !server.unsynced && !server.skippable;
    loop.requestCount++;
    this.#forgetUnnamed(server);
    if (effects.plain) {
      server.send(buffer, start, end);
      server.expect(PendingKind.Query, PendingAction.Forward, loop, null);
      return true;
    }
    const refusal = refusalOf(effects, this.#guards);
    if (refusal !== null) sendFailing(server, loop, FrontendMessage.Query, escapeError(refusal));
    else this.#sendEffective(server, effects, alone, buffer, start, end);
    return true;
  }

  /** The string does something to the session. */
  #sendEffective(
    server: ServerConnection,
    effects: StatementEffects,
    alone: boolean,
    buffer: Buffer,
    start: number,
    end: number,
  ): void {
    const loop = this.#loop;
    this.#effects.onSend(server, effects);
    if (isDoomed(server, effects)) {
      server.send(buffer, start, end);
    } else if (this.#standIns.isGone(effects)) {
      this.#standIns.sendGone(server, alone);
      server.send(DEALLOCATE_GONE_QUERY);
    } else {
      this.#standIns.sendDeallocated(server, effects.deallocates, alone);
      server.send(buffer, start, end);
    }
    server.expect(PendingKind.Query, PendingAction.Forward, loop, effects);
    if (alone) this.#standIns.closeStrays(server);
    // What unseen code did to a read-only session is known with its answer.
    const unseen = effects.opaque && this.#guards.readOnly;
    if (this.#reassertion.begin(effects) || dropsStatements(effects) || unseen) loop.holdBack();
  }

  /** The access token in a Query, `buffer[start, end)`, that begins with SET; null when it holds none. */
  tokenIn(buffer: Buffer, start: number, end: number): TokenInText | null {
    const { token } = this.#analyzer.analyze(buffer.toString('latin1', start + 5, end - 1));
    return token === null || token.kind === 'parameter' ? null : token;
  }

  /** While the token is being verified the loop is parked, and the message comes again. */
  #onToken(server: ServerConnection, token: TokenInText): boolean {
    const effects = this.#tokens.resolve(token);
    if (effects === null) return false;
    this.#loop.requestCount++;
    this.#forgetUnnamed(server);
    this.#tokens.sendQuery(server, effects);
    return true;
  }

  get #isGuarded(): boolean {
    const { guardedRole, guardsClaims, readOnly } = this.#guards;
    return guardedRole !== null || guardsClaims || readOnly;
  }

  /** A text that nobody holds whole: without an analysis it can neither be guarded nor mapped. */
  onTooLong(server: ServerConnection, type: number, total: number, bytesMax: number): void {
    const loop = this.#loop;
    if (type === FrontendMessage.Query && !this.#isGuarded) {
      this.#effects.onSend(server, UNKNOWN_EFFECTS);
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
    if (this.#isGuarded) {
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
    } else noteFunctionCall(server);
    loop.requestCount++;
    server.expect(PendingKind.FunctionCall, PendingAction.Forward, loop, null);
    loop.passOn(total);
    return true;
  }

  /** The unnamed statement does not outlive a simple Query (postgres.c, exec_simple_query). */
  #forgetUnnamed(server: ServerConnection): void {
    this.#unnamed.forget(server, this.#loop);
    if (this.#names.find('') === null && !this.#names.isOpen('')) return;
    if (server.pending.length === 0) this.#names.delete('');
    else server.fake(this.#loop, NOTHING, this.#names.change('', null, server.skippable));
  }
}

const NOTHING: Buffer = Buffer.alloc(0);
