/**
 * What answers mean for a client's statements: names that were noted too early are taken back, what a statement did
 * to the session is noted, a stale plan makes its request go out again, and errors speak of statements by the
 * client's names. It sees only answers to entries that carry something, so plain statements pass it by.
 */
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { SqlState } from '../protocol/pg-error.ts';
import { PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import { type FakeAnswer, type PendingData, UNNAMED_FOREIGN } from '../server/server-owner.ts';
import { PreparedStatement } from '../session/prepared-statements.ts';
import type { NameChange, StatementNames } from '../session/statement-names.ts';
import type { StatementEffects } from '../sql/statement.ts';
import type { EffectsByName } from './effects-by-name.ts';
import type { Reassertion } from './reassert.ts';
import { isReplacedError } from './refusals.ts';
import type { FrameLoop, RelayParts } from './relay-parts.ts';
import type { RequestRecord } from './request-record.ts';
import type { SessionEffects } from './session-effects.ts';
import type { StatementSender } from './statement-sender.ts';
import type { TokenStatements } from './token-statements.ts';
import { isUnnamedMark, type UnnamedStatement } from './unnamed-statement.ts';

/** `server` is the linked connection; null where the session has left it, and then only names are looked after. */
export class StatementAnswers {
  readonly #loop: FrameLoop;
  readonly #provenStatements: WeakSet<object>;
  readonly #effects: SessionEffects;
  readonly #names: StatementNames;
  readonly #unnamed: UnnamedStatement;
  readonly #unmapped: EffectsByName;
  readonly #sender: StatementSender;
  readonly #record: RequestRecord;
  readonly #reassertion: Reassertion;
  readonly #tokens: TokenStatements;
  /** Statements that the current string has deallocated; Infinity is all of them. */
  #deallocated: number;

  constructor(parts: RelayParts) {
    this.#loop = parts.loop;
    this.#provenStatements = parts.options.provenStatements;
    this.#effects = parts.effects;
    this.#names = parts.names;
    this.#unnamed = parts.unnamed;
    this.#unmapped = parts.unmapped;
    this.#sender = parts.sender;
    this.#record = parts.record;
    this.#reassertion = parts.reassertion;
    this.#tokens = parts.tokens;
    this.#deallocated = 0;
  }

  // ---- completed -------------------------------------------------------------------------------------------

  /** What of a string was done although it failed: statements that are gone do not come back by a rollback. */
  onCommand(tag: string): void {
    if (tag === 'DEALLOCATE') this.#deallocated++;
    else if (tag === 'DEALLOCATE ALL') this.#deallocated = Number.POSITIVE_INFINITY;
  }

  onCompleted(server: ServerConnection | null, kind: PendingKind, data: PendingData): void {
    switch (kind) {
      case PendingKind.Query: {
        const failed = this.#effects.takeQueryFailed();
        if (isReplacedError(data)) return;
        this.#reassertion.onAnswered(
          data,
          failed && !this.#effects.mayHaveCommitted(data as StatementEffects),
        );
        this.#apply(server, data as StatementEffects, failed);
        this.#deallocated = 0;
        return;
      }
      case PendingKind.Execute:
        return this.#apply(server, data as StatementEffects, false);
      case PendingKind.Bind:
      case PendingKind.Describe:
        return this.#record.drop();
      case PendingKind.Fake: {
        const { change } = data as FakeAnswer;
        if (isUnnamedMark(change as object)) this.#unnamed.onDone(change as object);
        else this.#names.complete(change as NameChange);
        return;
      }
      case PendingKind.Parse:
        return this.#onParsed(server, data);
      case PendingKind.Close:
        if (data instanceof PreparedStatement) server?.statements.complete(data, false);
        else this.#unnamed.onDone(data);
        return;
      default:
    }
  }

  #onParsed(server: ServerConnection | null, data: PendingData): void {
    if (isUnnamedMark(data)) return this.#unnamed.onDone(data);
    if (isReplacedError(data)) return;
    const statement = data instanceof PreparedStatement ? data : (data as NameChange).statement;
    if (!(data instanceof PreparedStatement)) this.#names.complete(data as NameChange);
    if (statement === null) return;
    this.#provenStatements.add(statement);
    server?.statements.complete(statement, true);
  }

  #apply(server: ServerConnection | null, effects: StatementEffects, failed: boolean): void {
    if (server !== null) this.#effects.onAnswered(server, this.#loop.parameters, effects, failed);
    if (!failed) this.#tokens.onCompleted(effects);
    if (failed) {
      if (this.#deallocated === Number.POSITIVE_INFINITY) this.#forgetStatements(server);
      else for (const name of effects.deallocates.slice(0, this.#deallocated)) this.#names.delete(name);
    } else if (server !== null) {
      for (const name of effects.deallocates) this.#names.delete(name);
      if (effects.deallocatesAll || effects.discardsAll) this.#forgetStatements(server);
    }
  }

  #forgetStatements(server: ServerConnection | null): void {
    this.#names.clear();
    this.#unmapped.clear();
    server?.statements.clear();
    server?.ownStatements.clear();
  }

  // ---- not completed ---------------------------------------------------------------------------------------

  onNotCompleted(
    server: ServerConnection | null,
    kind: PendingKind,
    data: PendingData,
    failed: boolean,
    code: string,
  ): void {
    switch (kind) {
      case PendingKind.Query:
        if (failed) this.#effects.onQueryFailed(code);
        else this.#reassertion.onSkipped(data);
        return;
      case PendingKind.Fake: {
        const { change } = data as FakeAnswer;
        if (change === null) return;
        if (isUnnamedMark(change)) this.#unnamed.onNotDropped(server, change);
        else this.#names.reject(change as NameChange, false);
        return;
      }
      case PendingKind.Parse:
        return this.#onNotParsed(server, data, failed);
      case PendingKind.Close:
        if (data instanceof PreparedStatement) server?.statements.reject(data);
        else this.#unnamed.onNotDropped(server, data);
        return;
      case PendingKind.Bind:
      case PendingKind.Describe:
        if (!failed || code !== SqlState.InvalidSqlStatementName || server === null) return;
        if (!(data instanceof PreparedStatement) || !server.statements.use(data)) return;
        // Someone took the statement away behind our back, e.g. DEALLOCATE ALL in a DO block. Which others are gone
        // nobody knows: each is found out by itself, on this connection by nobody but this client.
        server.statements.delete(data);
        server.retired = true;
        return;
      default:
    }
  }

  #onNotParsed(server: ServerConnection | null, data: PendingData, failed: boolean): void {
    if (isUnnamedMark(data)) {
      this.#unnamed.onNotParsed(server, data, failed);
    } else if (data instanceof PreparedStatement) {
      server?.statements.reject(data);
    } else if (!isReplacedError(data)) {
      const change = data as NameChange;
      if (change.statement !== null) server?.statements.reject(change.statement);
      // A Parse of the unnamed statement drops the old one before it looks at the new (exec_parse_message).
      this.#names.reject(change, failed && change.name === '');
    } else if (!failed && server !== null) {
      server.unnamedId = UNNAMED_FOREIGN;
    }
  }

  // ---- errors ----------------------------------------------------------------------------------------------

  /** What the client gets in the place of an error: null lets it pass, no bytes keep it back. */
  onError(
    server: ServerConnection,
    kind: PendingKind,
    data: PendingData,
    fields: ErrorFields,
    frame: Buffer,
  ): Buffer | null {
    if (isReplacedError(data)) return data.replacedError;
    if (!(data instanceof PreparedStatement)) return null;
    if (kind !== PendingKind.Bind && kind !== PendingKind.Describe) return null;
    if (fields.get('C') !== SqlState.FeatureNotSupported || fields.get('R') !== 'RevalidateCachedQuery') {
      return fields.get('M')?.includes(data.serverName) === true ? this.#withClientName(frame, data) : null;
    }
    // "cached plan must not change result type": the statement goes, and comes back with the new type.
    this.#sender.onStale(server, data);
    if (!this.#record.whole || this.#loop.closed) return null;
    this.#record.again = true;
    // What the client sends from here on comes behind the request that goes out again.
    this.#loop.holdBack();
    return NOTHING;
  }

  /** PostgreSQL speaks of a statement by our name for it; the client hears his own. */
  #withClientName(frame: Buffer, statement: PreparedStatement): Buffer {
    const name = this.#names.nameOf(statement);
    const text = frame.toString('latin1').replace(`"${statement.serverName}"`, () => `"${name}"`);
    const renamed = Buffer.from(text, 'latin1');
    renamed.writeInt32BE(renamed.length - 1, 1);
    return renamed;
  }
}

const NOTHING: Buffer = Buffer.alloc(0);
