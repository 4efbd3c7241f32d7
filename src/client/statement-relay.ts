/**
 * The extended query protocol on its way to the server: Parse, Bind, Describe, Execute, Close and Sync, with the
 * client's names of prepared statements replaced by ours. What becomes of names when an answer is an error is the
 * business of statement-answers.
 *
 * Hot: a Bind costs a look-up and the bytes of its head; values pass as spans.
 */
import { DescribeTarget, FrontendMessage, TxStatus } from '../protocol/codes.ts';
import { CLOSE_COMPLETE, PARSE_COMPLETE } from '../protocol/message-writer.ts';
import type { PgError } from '../protocol/pg-error.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import {
  type PreparedStatement,
  SERVER_NAME_PREFIX,
  type StatementRegistry,
} from '../session/prepared-statements.ts';
import type { StatementNames } from '../session/statement-names.ts';
import { NO_EFFECTS, type StatementAnalyzer, type StatementEffects } from '../sql/statement.ts';
import { EffectsByName } from './effects-by-name.ts';
import { assertRoleAfterDiscard, restoreStartupSettings } from './reassert.ts';
import {
  escapeError,
  isReservedName,
  missingStatement,
  reservedName,
  sendFailing,
  tooManyStatements,
} from './refusals.ts';
import type { FrameLoop, RelayOptions, RelayParts } from './relay-parts.ts';
import type { RequestRecord } from './request-record.ts';
import type { SessionEffects } from './session-effects.ts';
import { DEALLOCATE_GONE_PARSE, DEALLOCATE_GONE_TAIL, dropsStatements, type StandIns } from './stand-ins.ts';
import type { StatementSender } from './statement-sender.ts';
import type { UnnamedStatement } from './unnamed-statement.ts';

/** Invariant: every message is sent with its entry in the queue, or answered in its turn without being sent. */
export class StatementRelay {
  readonly #loop: FrameLoop;
  readonly #options: RelayOptions;
  readonly #analyzer: StatementAnalyzer;
  readonly #registry: StatementRegistry;
  readonly #mapNamed: boolean;
  readonly #mapUnnamed: boolean;
  readonly #guarded: boolean;
  readonly #effects: SessionEffects;
  readonly #names: StatementNames;
  readonly #unnamed: UnnamedStatement;
  readonly #unmapped: EffectsByName;
  readonly #sender: StatementSender;
  readonly #standIns: StandIns;
  readonly #record: RequestRecord;
  /** Of the portal without a name, and of the others. */
  #portalEffects: StatementEffects;
  readonly #portals: EffectsByName;
  /** A statement that drops prepared ones is in the request: the next waits until this one is answered. */
  #holdBackAtSync: boolean;

  constructor(parts: RelayParts) {
    this.#loop = parts.loop;
    this.#options = parts.options;
    this.#analyzer = parts.options.analyzer;
    this.#registry = parts.options.registry;
    this.#mapNamed = parts.options.mapNamed;
    this.#mapUnnamed = parts.options.mapUnnamed;
    this.#guarded = parts.options.guardedRole !== null;
    this.#effects = parts.effects;
    this.#names = parts.names;
    this.#unnamed = parts.unnamed;
    this.#unmapped = parts.unmapped;
    this.#sender = parts.sender;
    this.#standIns = parts.standIns;
    this.#record = parts.record;
    this.#portalEffects = NO_EFFECTS;
    this.#portals = new EffectsByName();
    this.#holdBackAtSync = false;
  }

  /** No transaction is open: PostgreSQL has dropped every portal. */
  forgetPortals(): void {
    this.#portals.clear();
  }

  // ---- Parse -----------------------------------------------------------------------------------------------

  onParse(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    const nameEnd = buffer.indexOf(0, start + 5);
    const textEnd = nameEnd < 0 || nameEnd >= end ? -1 : buffer.indexOf(0, nameEnd + 1);
    if (textEnd < 0 || textEnd + 3 > end || end - textEnd - 3 !== 4 * buffer.readUInt16BE(textEnd + 1)) {
      return this.#loop.violate('malformed Parse message');
    }
    if (this.#record.replaying) return;
    const isUnnamed = nameEnd === start + 5;
    if (isUnnamed ? !this.#mapUnnamed : !this.#mapNamed) {
      return this.#parseUnmapped(server, buffer, start, end, nameEnd, textEnd);
    }
    const statement = this.#statementOf(buffer, nameEnd + 1, textEnd, end);
    if (this.#guarded && statement.effects.escape !== null) {
      return this.#fail(server, escapeError(statement.effects));
    }
    const name = isUnnamed ? '' : buffer.toString('latin1', start + 5, nameEnd);
    const restore = isUnnamed ? this.#names.find('') : null;
    if (!isUnnamed) {
      if (name.startsWith(SERVER_NAME_PREFIX)) return this.#fail(server, reservedName());
      if (this.#names.has(name)) return this.#standIns.sendDuplicate(server, buffer, start, end, name);
      if (this.#names.full) return this.#fail(server, tooManyStatements());
    }
    this.#names.set(name, statement);
    if (!server.statements.use(statement)) {
      return this.#sender.parse(server, statement, PendingAction.Forward, { name, statement, restore });
    }
    if (isDoomed(server, statement)) {
      this.#names.delete(name);
      return this.#sender.parseDoomed(server, statement);
    }
    server.fake(
      this.#loop,
      PARSE_COMPLETE,
      server.pending.length === 0 ? null : { name, statement, restore },
    );
  }

  /** The statement with the text in `buffer[start, textEnd)` and the parameter types behind it. */
  #statementOf(buffer: Buffer, start: number, textEnd: number, end: number): PreparedStatement {
    // Inside a transaction with local settings a text may mean something else: then it is nobody else's.
    const key = this.#effects.localSettings
      ? null
      : this.#loop.parameters.parseKey + buffer.toString('latin1', start, end);
    const known = key === null ? undefined : this.#registry.find(key);
    if (known !== undefined) return known;
    const effects = this.#analyzer.analyze(buffer.toString('latin1', start, textEnd));
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
  ): void {
    const effects = this.#analyzer.analyze(buffer.toString('latin1', nameEnd + 1, textEnd));
    if (this.#guarded && effects.escape !== null) return this.#fail(server, escapeError(effects));
    if (nameEnd !== start + 5) {
      if (isReservedName(buffer, start + 5)) return this.#fail(server, reservedName());
      this.#unmapped.note(buffer, start + 5, nameEnd, effects);
      server.send(buffer, start, end);
      server.expect(PendingKind.Parse, PendingAction.Forward, this.#loop, null);
      return;
    }
    const id = this.#registry.takeUnnamedId();
    if (this.#standIns.isGone(effects)) {
      const gone = DEALLOCATE_GONE_PARSE;
      this.#unnamed.parse(server, this.#loop, id, effects, gone, 0, gone.length);
    } else {
      this.#unnamed.parse(server, this.#loop, id, effects, buffer, start, end);
    }
  }

  #fail(server: ServerConnection, error: PgError): void {
    sendFailing(server, this.#loop, FrontendMessage.Parse, error);
  }

  // ---- Bind, Describe, Close -------------------------------------------------------------------------------

  /** Answers where to go on, or -1 when its names are not there yet. `buffer[start, end)` may hold its head only. */
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
    if (isUnnamed ? this.#mapUnnamed : this.#mapNamed) {
      statement = this.#find(isUnnamed ? '' : buffer.toString('latin1', portalEnd + 1, nameEnd));
      effects = statement === null ? NO_EFFECTS : statement.effects;
      if (statement !== null) this.#sender.ensure(server, statement);
    } else {
      effects = isUnnamed ? this.#unnamed.effects : this.#unmapped.find(buffer, portalEnd + 1, nameEnd);
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

  onDescribe(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    if (end - start < 7 || buffer[end - 1] !== 0) return this.#loop.violate('malformed Describe message');
    if (buffer[start + 5] === DescribeTarget.Statement) {
      const isUnnamed = end === start + 7;
      if (isUnnamed ? this.#mapUnnamed : this.#mapNamed) {
        const name = buffer.toString('latin1', start + 6, end - 1);
        const statement = this.#find(name);
        if (statement !== null) return this.#sendDescribe(server, statement);
        if (isReservedName(buffer, start + 6)) return this.#fail(server, missingStatement(name));
      }
      if (isUnnamed) this.#unnamed.ensure(server, this.#loop);
    }
    server.send(buffer, start, end);
    server.expect(PendingKind.Describe, PendingAction.Forward, this.#loop, null);
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
        if (statement !== null || isUnnamed || isReservedName(buffer, start + 6)) {
          this.#names.delete(name);
          const undo = statement !== null && server.pending.length > 0;
          server.fake(this.#loop, CLOSE_COMPLETE, undo ? { name, statement, restore: statement } : null);
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
    this.#effects.onSend(effects);
    if (this.#standIns.isGone(effects)) this.#standIns.sendGone(server, false);
    server.send(buffer, start, end);
    server.expect(PendingKind.Execute, PendingAction.Forward, loop, effects);
    assertRoleAfterDiscard(server, this.#options.guardedRole, effects, false);
    restoreStartupSettings(server, loop, this.#options.parameters, effects, false);
    if (dropsStatements(effects)) this.#holdBackAtSync = true;
  }

  onSync(server: ServerConnection, buffer: Buffer, start: number, end: number): void {
    const loop = this.#loop;
    if (end - start !== 5) return loop.violate('malformed Sync message');
    loop.requestCount++;
    server.send(buffer, start, end);
    server.expect(PendingKind.Sync, PendingAction.Forward, loop, null);
    this.#unnamed.onSync(server);
    this.#standIns.closeStrays(server);
    if (!this.#holdBackAtSync) return;
    this.#holdBackAtSync = false;
    loop.holdBack();
  }
}

/** In a failed transaction PostgreSQL refuses a Parse of most statements: it shall do so here too. */
function isDoomed(server: ServerConnection, statement: PreparedStatement): boolean {
  return (
    server.txStatus === TxStatus.Failed && !statement.effects.hasTransactionControl && staysFailed(server)
  );
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

/** How much of a Bind may come without its names being whole. */
const NAME_BYTES_MAX = 64 * 1024;
