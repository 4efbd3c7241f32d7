/**
 * The extended query protocol on its way to the server: Parse, Bind, Describe, Execute, Close and Sync, with the
 * client's names of prepared statements replaced by ours. What becomes of names when an answer is an error is the
 * business of statement-answers.
 *
 * Hot: a Bind costs a look-up and the bytes of its head; values pass as spans.
 */
import { DescribeTarget, FrontendMessage, TxStatus } from '../protocol/codes.ts';
import { CLOSE_COMPLETE, PARSE_COMPLETE } from '../protocol/message-writer.ts';
import { PgError } from '../protocol/pg-error.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import {
  type PreparedStatement,
  SERVER_NAME_PREFIX,
  type StatementRegistry,
} from '../session/prepared-statements.ts';
import type { StatementNames } from '../session/statement-names.ts';
import { READ_ONLY_MESSAGE } from '../sql/settings.ts';
import { NO_EFFECTS, type StatementAnalyzer, type StatementEffects } from '../sql/statement.ts';
import { restoreClaims } from './claim-upkeep.ts';
import { EffectsByName } from './effects-by-name.ts';
import { assertRoleAfterDiscard, restoreStartupSettings } from './reassert.ts';
import {
  badTokenBind,
  escapeError,
  isReservedName,
  missingStatement,
  refusalOf,
  reservedName,
  sendFailing,
  takenName,
  tooManyStatements,
} from './refusals.ts';
import type { FrameLoop, RelayOptions, RelayParts } from './relay-parts.ts';
import type { RequestRecord } from './request-record.ts';
import { type SessionEffects, TransactionHint } from './session-effects.ts';
import {
  DEALLOCATE_GONE_PARSE,
  DEALLOCATE_GONE_TAIL,
  dropsStatements,
  isDoomed,
  type StandIns,
} from './stand-ins.ts';
import type { StatementSender } from './statement-sender.ts';
import {
  offerOf,
  REPLACED_TAIL,
  readTokenBind,
  type TokenInText,
  TokenStatements,
} from './token-statements.ts';
import { sendRefusedBind, type UnnamedStatement } from './unnamed-statement.ts';

/** Invariant: every message is sent with its entry in the queue, or answered in its turn without being sent. */
export class StatementRelay {
  readonly #loop: FrameLoop;
  readonly #options: RelayOptions;
  readonly #analyzer: StatementAnalyzer;
  readonly #registry: StatementRegistry;
  readonly #mapNamed: boolean;
  readonly #mapUnnamed: boolean;
  readonly #effects: SessionEffects;
  readonly #names: StatementNames;
  readonly #unnamed: UnnamedStatement;
  readonly #unmapped: EffectsByName;
  readonly #sender: StatementSender;
  readonly #standIns: StandIns;
  readonly #record: RequestRecord;
  readonly #tokens: TokenStatements;
  /** Of the portal without a name, and of the others. */
  #portalEffects: StatementEffects;
  readonly #portals: EffectsByName;
  /** A statement that drops prepared ones is in the request: the next waits until this one is answered. */
  #holdBackAtSync: boolean;
  /** In a read-only session: unseen code is in the request, which may have changed what its next transaction is. */
  #unseen: boolean;

  constructor(parts: RelayParts) {
    this.#loop = parts.loop;
    this.#options = parts.options;
    this.#analyzer = parts.options.analyzer;
    this.#registry = parts.options.registry;
    this.#mapNamed = parts.options.mapNamed;
    this.#mapUnnamed = parts.options.mapUnnamed;
    this.#effects = parts.effects;
    this.#names = parts.names;
    this.#unnamed = parts.unnamed;
    this.#unmapped = parts.unmapped;
    this.#sender = parts.sender;
    this.#standIns = parts.standIns;
    this.#record = parts.record;
    this.#tokens = parts.tokens;
    this.#portalEffects = NO_EFFECTS;
    this.#portals = new EffectsByName();
    this.#holdBackAtSync = false;
    this.#unseen = false;
  }

  /** No transaction is open: PostgreSQL has dropped every portal. */
  forgetPortals(): void {
    this.#portals.clear();
  }

  // ---- Parse -----------------------------------------------------------------------------------------------

  /** False when it has to wait for the answer to an earlier request; it then comes again. */
  onParse(server: ServerConnection, buffer: Buffer, start: number, end: number): boolean {
    const nameEnd = buffer.indexOf(0, start + 5);
    const textEnd = nameEnd < 0 || nameEnd >= end ? -1 : buffer.indexOf(0, nameEnd + 1);
    if (textEnd < 0 || textEnd + 3 > end || end - textEnd - 3 !== 4 * buffer.readUInt16BE(textEnd + 1)) {
      this.#loop.violate('malformed Parse message');
      return true;
    }
    if (this.#record.replaying) return true;
    const isUnnamed = nameEnd === start + 5;
    if (isUnnamed ? !this.#mapUnnamed : !this.#mapNamed) {
      return this.#parseUnmapped(server, buffer, start, end, nameEnd, textEnd);
    }
    const name = isUnnamed ? '' : buffer.toString('latin1', start + 5, nameEnd);
    if (!isUnnamed && this.#names.mayBeTaken(name) && this.#waits(server)) return false;
    const statement = this.#statementOf(buffer, nameEnd + 1, textEnd, end);
    if (statement === null) return false;
    if (statement instanceof PgError) return this.#fail(server, statement);
    const refusal = this.#refusal(statement.effects);
    if (refusal !== null) return this.#fail(server, refusal);
    if (isUnnamed) {
      this.#parseMapped(server, name, statement);
    } else if (name.startsWith(SERVER_NAME_PREFIX)) {
      this.#fail(server, reservedName());
    } else if (this.#names.has(name) && offerOf(statement.effects) !== null) {
      this.#fail(server, takenName(name));
    } else if (this.#names.has(name)) {
      this.#standIns.sendDuplicate(server, buffer, start, end, name);
    } else if (this.#names.full) {
      this.#fail(server, tooManyStatements());
    } else {
      this.#parseMapped(server, name, statement);
    }
    return true;
  }

  /** The name is free, or the unnamed one. */
  #parseMapped(server: ServerConnection, name: string, statement: PreparedStatement): void {
    const mayFail = this.#mayFail(server);
    const skippable = server.skippable || mayFail;
    if (!this.#sender.holdsParsed(server, statement)) {
      const change = this.#names.change(name, statement, skippable);
      this.#sender.parse(server, statement, PendingAction.Forward, change);
    } else if (isDoomed(server, statement.effects)) {
      // The old unnamed statement goes before PostgreSQL looks at the new one (postgres.c, exec_parse_message).
      if (name === '') server.fake(this.#loop, NOTHING, this.#names.change('', null, skippable));
      this.#sender.parseDoomed(server, statement);
    } else if (mayFail) {
      this.#sender.parseAnew(server, statement, this.#names.change(name, statement, skippable));
    } else if (server.pending.length === 0) {
      this.#names.set(name, statement);
      server.fake(this.#loop, PARSE_COMPLETE, null);
    } else {
      server.fake(this.#loop, PARSE_COMPLETE, this.#names.change(name, statement, skippable));
    }
  }

  /** The transaction has failed, or what is on its way may let it fail: PostgreSQL then refuses most texts. */
  #mayFail(server: ServerConnection): boolean {
    if (server.txStatus === TxStatus.Failed) return true;
    if (server.txStatus === TxStatus.Idle && this.#effects.transaction === TransactionHint.None) return false;
    return server.pending.owesReady(this.#loop);
  }

  /** What the message means depends on an earlier request that is not answered: nothing is sent until it is. */
  #waits(server: ServerConnection): boolean {
    if (!server.pending.owesReady(this.#loop)) return false;
    this.#loop.holdBack();
    return true;
  }

  /**
   * The statement with the text in `buffer[start, textEnd)` and the parameter types behind it. For a text that holds
   * an access token another one stands, or an error; null: the message has to come again.
   */
  #statementOf(
    buffer: Buffer,
    start: number,
    textEnd: number,
    end: number,
  ): PreparedStatement | PgError | null {
    // With local settings, or some that are not read back yet, a text may mean something else: then it is nobody else's.
    const key =
      this.#effects.localSettings || this.#effects.dirtySettings !== null
        ? null
        : this.#loop.parameters.parseKey + buffer.toString('latin1', start, end);
    const known = key === null ? undefined : this.#registry.find(key);
    if (known !== undefined) return known;
    const effects = this.#analyzer.analyze(buffer.toString('latin1', start, textEnd));
    if (effects.token !== null && effects.token.kind !== 'parameter')
      return this.#tokenStatement(effects.token);
    return this.#standIns.isGone(effects)
      ? this.#registry.make(null, DEALLOCATE_GONE_TAIL, effects)
      : this.#registry.make(key, buffer.subarray(start, end), effects);
  }

  #parseUnmapped(
    server: ServerConnection,
    buffer: Buffer,
    start: number,
    end: number,
    nameEnd: number,
    textEnd: number,
  ): boolean {
    const effects = this.#analyzer.analyze(buffer.toString('latin1', nameEnd + 1, textEnd));
    if (effects.token !== null && effects.token.kind !== 'parameter') {
      return this.#parseToken(server, effects.token, buffer, start, nameEnd);
    }
    const refusal = this.#refusal(effects);
    if (refusal !== null) return this.#fail(server, refusal);
    if (nameEnd !== start + 5) {
      if (isReservedName(buffer, start + 5)) return this.#fail(server, reservedName());
      this.#unmapped.note(buffer, start + 5, nameEnd, effects);
      server.send(buffer, start, end);
      server.expect(PendingKind.Parse, PendingAction.Forward, this.#loop, null);
      return true;
    }
    const id = this.#registry.takeUnnamedId();
    if (this.#standIns.isGone(effects)) {
      const gone = DEALLOCATE_GONE_PARSE;
      this.#unnamed.parse(server, this.#loop, id, effects, gone, 0, gone.length);
    } else {
      this.#unnamed.parse(server, this.#loop, id, effects, buffer, start, end);
    }
    return true;
  }

  /** A text with an access token: what is prepared is another, private to this client. */
  #tokenStatement(token: TokenInText): PreparedStatement | PgError | null {
    const effects = this.#tokens.resolve(token);
    if (effects === null || effects instanceof PgError) return effects;
    return this.#registry.make(null, REPLACED_TAIL, effects);
  }

  /** The same where statements are not mapped. */
  #parseToken(
    server: ServerConnection,
    token: TokenInText,
    buffer: Buffer,
    start: number,
    nameEnd: number,
  ): boolean {
    const effects = this.#tokens.resolve(token);
    if (effects === null) return false;
    if (effects instanceof PgError) return this.#fail(server, effects);
    const parse = TokenStatements.parseOf(buffer.toString('latin1', start + 5, nameEnd));
    if (nameEnd === start + 5) {
      const id = this.#registry.takeUnnamedId();
      this.#unnamed.parse(server, this.#loop, id, effects, parse, 0, parse.length);
      return true;
    }
    if (isReservedName(buffer, start + 5)) return this.#fail(server, reservedName());
    this.#unmapped.note(buffer, start + 5, nameEnd, effects);
    server.send(parse);
    server.expect(PendingKind.Parse, PendingAction.Forward, this.#loop, null);
    return true;
  }

  /** Always true: the message is dealt with. */
  #refusal(effects: StatementEffects): PgError | null {
    const refusal = refusalOf(effects, this.#options);
    return refusal === null ? null : escapeError(refusal);
  }

  #fail(server: ServerConnection, error: PgError): boolean {
    sendFailing(server, this.#loop, FrontendMessage.Parse, error);
    return true;
  }

  // ---- Bind, Describe, Close -------------------------------------------------------------------------------

  /**
   * Answers where to go on: `start` when it has to wait for the answer to an earlier request, -1 when its names are
   * not there yet. `buffer[start, end)` may hold its head only.
   */
  onBind(server: ServerConnection, buffer: Buffer, start: number, end: number, total: number): number {
    const limit = Math.min(start + total, end);
    const portalEnd = buffer.indexOf(0, start + 5);
    const nameEnd = portalEnd < 0 || portalEnd >= limit ? -1 : buffer.indexOf(0, portalEnd + 1);
    if (nameEnd < 0 || nameEnd >= limit) {
      if (start + total <= end || end - start > NAME_BYTES_MAX) this.#loop.violate('malformed Bind message');
      return -1;
    }
    const isUnnamed = nameEnd === portalEnd + 1;
    let statement: PreparedStatement | null = null;
    let effects: StatementEffects;
    let doomed = false;
    if (isUnnamed ? this.#mapUnnamed : this.#mapNamed) {
      const name = isUnnamed ? '' : buffer.toString('latin1', portalEnd + 1, nameEnd);
      if (this.#names.isInDoubt(name, this.#options.provenStatements) && this.#waits(server)) return start;
      statement = this.#find(name);
      effects = statement === null ? NO_EFFECTS : statement.effects;
      if (statement !== null && !this.#sender.holds(server, statement)) {
        doomed = isDoomed(server, effects);
        if (!doomed) this.#sender.ensure(server, statement);
      }
    } else if (isUnnamed && this.#unnamed.mayBeSkipped && this.#waits(server)) {
      return start;
    } else {
      effects = isUnnamed ? this.#unnamed.effects : this.#unmapped.find(buffer, portalEnd + 1, nameEnd);
    }
    if (isUnnamed && !this.#mapUnnamed) doomed = this.#unnamed.isMissing(server) && isDoomed(server, effects);
    if (doomed) {
      sendRefusedBind(server, this.#loop);
      this.#loop.drop(total);
      return start;
    }
    if (effects.token !== null) {
      return this.#bindToken(server, statement, buffer, start, end, total, portalEnd, nameEnd);
    }
    if (portalEnd === start + 5) this.#portalEffects = effects;
    else this.#portals.note(buffer, start + 5, portalEnd, effects);
    if (statement !== null) {
      this.#sendBindHead(server, statement, buffer, start, portalEnd, total - 1 - (nameEnd - portalEnd));
      this.#loop.passOn(start + total - (nameEnd + 1));
      return nameEnd + 1;
    }
    if (isUnnamed) this.#unnamed.ensure(server, this.#loop);
    else if (isReservedName(buffer, portalEnd + 1)) {
      this.#fail(server, missingStatement(buffer.toString('latin1', portalEnd + 1, nameEnd)));
      this.#loop.drop(total);
      return start;
    }
    server.expect(PendingKind.Bind, PendingAction.Forward, this.#loop, null);
    this.#loop.passOn(total);
    return start;
  }

  /** The parameter is an access token, and PostgreSQL gets an empty one. Answers like `onBind`. */
  #bindToken(
    server: ServerConnection,
    statement: PreparedStatement | null,
    buffer: Buffer,
    start: number,
    end: number,
    total: number,
    portalEnd: number,
    nameEnd: number,
  ): number {
    const next = start + total;
    if (next > end && total <= NAME_BYTES_MAX) return -1;
    const bind = next > end ? null : readTokenBind(buffer, nameEnd + 1, next);
    if (bind === null) {
      this.#fail(server, badTokenBind());
      this.#loop.drop(total);
      return start;
    }
    const effects = this.#tokens.resolveToken(bind.token);
    if (effects === null) return start;
    if (portalEnd === start + 5) this.#portalEffects = effects;
    else this.#portals.note(buffer, start + 5, portalEnd, effects);
    const name = statement?.serverNameBytes ?? buffer.subarray(portalEnd + 1, nameEnd + 1);
    if (statement === null && name.length === 1) this.#unnamed.ensure(server, this.#loop);
    server.sendByte(FrontendMessage.Bind);
    server.sendInt32(portalEnd - start + name.length + bind.tail.length);
    server.send(buffer, start + 5, portalEnd + 1);
    server.send(name);
    server.send(bind.tail);
    server.expect(PendingKind.Bind, PendingAction.Forward, this.#loop, statement);
    return next;
  }

  /** `length` is what the message says of itself, but for the statement's name. */
  #sendBindHead(
    server: ServerConnection,
    statement: PreparedStatement,
    buffer: Buffer,
    start: number,
    portalEnd: number,
    length: number,
  ): void {
    const name = statement.serverNameBytes;
    server.sendByte(FrontendMessage.Bind);
    server.sendInt32(length + name.length);
    server.send(buffer, start + 5, portalEnd + 1);
    server.send(name);
    server.expect(PendingKind.Bind, PendingAction.Forward, this.#loop, statement);
  }

  /** False when it has to wait for the answer to an earlier request; it then comes again. */
  onDescribe(server: ServerConnection, buffer: Buffer, start: number, end: number): boolean {
    if (end - start < 7 || buffer[end - 1] !== 0) {
      this.#loop.violate('malformed Describe message');
      return true;
    }
    if (buffer[start + 5] === DescribeTarget.Statement) {
      const isUnnamed = end === start + 7;
      if (isUnnamed ? this.#mapUnnamed : this.#mapNamed) {
        const name = buffer.toString('latin1', start + 6, end - 1);
        if (this.#names.isInDoubt(name, this.#options.provenStatements) && this.#waits(server)) return false;
        const statement = this.#find(name);
        if (statement !== null) {
          this.#sendDescribe(server, statement);
          return true;
        }
        if (isReservedName(buffer, start + 6)) {
          this.#fail(server, missingStatement(name));
          return true;
        }
      } else if (isUnnamed && this.#unnamed.mayBeSkipped && this.#waits(server)) {
        return false;
      }
      if (isUnnamed) this.#unnamed.ensure(server, this.#loop);
    }
    server.send(buffer, start, end);
    server.expect(PendingKind.Describe, PendingAction.Forward, this.#loop, null);
    return true;
  }

  #sendDescribe(server: ServerConnection, statement: PreparedStatement): void {
    this.#sender.ensure(server, statement);
    server.sendByte(FrontendMessage.Describe);
    server.sendInt32(5 + statement.serverNameBytes.length);
    server.sendByte(DescribeTarget.Statement);
    server.send(statement.serverNameBytes);
    server.expect(PendingKind.Describe, PendingAction.Forward, this.#loop, statement);
  }

  /** The statement that the client uses now, which an error may have to speak of. */
  #find(name: string): PreparedStatement | null {
    this.#names.lastName = name;
    return this.#names.find(name);
  }

  onClose(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    if (end - start < 7 || buffer[end - 1] !== 0) return this.#loop.violate('malformed Close message');
    const isUnnamed = end === start + 7;
    if (buffer[start + 5] === DescribeTarget.Statement) {
      if (isUnnamed ? this.#mapUnnamed : this.#mapNamed) {
        const name = buffer.toString('latin1', start + 6, end - 1);
        const statement = this.#names.find(name);
        const open = this.#names.isOpen(name);
        if (statement !== null || open || isUnnamed || isReservedName(buffer, start + 6)) {
          const noted = server.pending.length > 0 && (statement !== null || open);
          if (!noted) this.#names.delete(name);
          const change = noted ? this.#names.change(name, null, server.skippable) : null;
          server.fake(this.#loop, CLOSE_COMPLETE, change);
          return;
        }
      } else if (isUnnamed) {
        return this.#unnamed.close(server, this.#loop, buffer, start, end);
      }
    }
    server.send(buffer, start, end);
    server.expect(PendingKind.Close, PendingAction.Forward, this.#loop, null);
  }

  // ---- Execute, Sync ---------------------------------------------------------------------------------------

  onExecute(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    const loop = this.#loop;
    if (end - start < 10) return loop.violate('malformed Execute message');
    const isUnnamed = end === start + 10;
    const effects = isUnnamed ? this.#portalEffects : this.#portals.find(buffer, start + 5, end - 5);
    if (effects.plain) {
      server.send(buffer, start, end);
      server.expect(PendingKind.Execute, PendingAction.Forward, loop, null);
      return;
    }
    const refusal = this.#tokens.refusalOf(effects);
    if (refusal !== null) {
      this.#fail(server, refusal);
      return;
    }
    if (this.#options.readOnly && effects.hasTransactionControl && this.#unseen) {
      this.#fail(server, escapeError({ message: READ_ONLY_MESSAGE }));
      return;
    }
    this.#effects.onSend(server, effects);
    if (this.#standIns.isGone(effects)) this.#standIns.sendGone(server, false);
    server.send(buffer, start, end);
    server.expect(PendingKind.Execute, PendingAction.Forward, loop, effects);
    assertRoleAfterDiscard(server, this.#options.guardedRole, effects, false);
    restoreStartupSettings(server, loop, this.#options.parameters, effects);
    restoreClaims(server, loop.claims, effects);
    if (dropsStatements(effects)) this.#holdBackAtSync = true;
    if (effects.opaque && this.#options.readOnly) {
      this.#unseen = true;
      this.#holdBackAtSync = true;
    }
  }

  onSync(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    const loop = this.#loop;
    if (end - start !== 5) return loop.violate('malformed Sync message');
    loop.requestCount++;
    server.send(buffer, start, end);
    server.expect(PendingKind.Sync, PendingAction.Forward, loop, null);
    this.#names.request++;
    this.#standIns.closeStrays(server);
    this.#unseen = false;
    if (!this.#holdBackAtSync) return;
    this.#holdBackAtSync = false;
    loop.holdBack();
  }
}

/** How much of a Bind may come without its names being whole. */
const NAME_BYTES_MAX = 64 * 1024;
const NOTHING: Buffer = Buffer.alloc(0);
