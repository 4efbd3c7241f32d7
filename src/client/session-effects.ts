/**
 * What a client's statements did to its session: settings that have to be read back, state that pins it to its
 * server connection, and what is known of its transaction. Statements are judged by their text, before they are
 * sent and after they are answered; what follows from it is decided by relay and session.
 *
 * Hot: plain statements do not get here.
 */
import { SqlState } from '../protocol/pg-error.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { ParameterSet } from '../session/parameters.ts';
import { NO_EFFECTS, type StatementEffects } from '../sql/statement.ts';
import { noteClaimEffects } from './claim-upkeep.ts';

/** What the statements of the request say about the transaction: nothing, it is or may be open, it ends. */
export const TransactionHint = { None: 0, Open: 1, Ends: 2 } as const;
export type TransactionHint = (typeof TransactionHint)[keyof typeof TransactionHint];

/** Of a text that was never analysed: all we know is that it may have done anything. */
export const UNKNOWN_EFFECTS: StatementEffects = Object.freeze({
  ...NO_EFFECTS,
  plain: false,
  touchesLocalSettings: true,
  unknownSettings: true,
  opaque: true,
  hasTransactionControl: true,
});

/** Invariant: `dirtySettings` and `pins` are null or not empty. */
export class SessionEffects {
  /** Settings that the client changed and PostgreSQL does not report: to be read back. */
  dirtySettings: Set<string> | null;
  /** Some of them may not have been changed: only what differs from the defaults is the client's own. */
  dirtyInDoubt: boolean;
  /** State that binds the session to its server connection, by reason. */
  pins: Set<string> | null;
  /** Settings may be in force that end with the transaction: a text may mean something else now. */
  localSettings: boolean;
  transaction: TransactionHint;
  #queryFailed: boolean;
  /** SQLSTATE of the last simple query that failed. */
  #errorCode: string;

  constructor() {
    this.dirtySettings = null;
    this.dirtyInDoubt = false;
    this.pins = null;
    this.localSettings = false;
    this.transaction = TransactionHint.None;
    this.#queryFailed = false;
    this.#errorCode = '';
  }

  /** A statement is about to be sent. */
  onSend(server: ServerConnection, effects: StatementEffects): void {
    noteClaimEffects(server, effects);
    if (effects.touchesLocalSettings) this.localSettings = true;
    if (effects.copiesIn) {
      this.transaction = TransactionHint.Open;
    } else if (effects.hasTransactionControl) {
      this.transaction = effects.transaction === 'end' ? TransactionHint.Ends : TransactionHint.Open;
    }
  }

  onQueryFailed(code: string): void {
    this.#queryFailed = true;
    this.#errorCode = code;
  }

  /** Whether the simple query that is complete now had failed. */
  takeQueryFailed(): boolean {
    const failed = this.#queryFailed;
    this.#queryFailed = false;
    return failed;
  }

  /** A string that fails takes its settings back, unless it ended a transaction before. */
  mayHaveCommitted(effects: StatementEffects): boolean {
    return effects.hasTransactionControl && this.#errorCode !== SqlState.SyntaxError;
  }

  /** A statement or string is answered. `parameters` are the client's settings now. */
  onAnswered(
    server: ServerConnection,
    parameters: ParameterSet,
    effects: StatementEffects,
    failed: boolean,
  ): void {
    // PostgreSQL may never let this role set what it just refused to.
    if (failed && !this.mayHaveCommitted(effects)) return;
    if (failed && effects.settings.length > 0) this.dirtyInDoubt = true;
    for (const name of effects.settings) this.#noteDirty(server, name);
    if (effects.unknownSettings) this.#pin('settings that cannot be told');
    if (effects.resetsAll || effects.discardsAll) {
      for (const name of parameters.values.keys()) this.#noteDirty(server, name);
    }
    if (failed) return;
    for (const reason of effects.pins) this.#pin(reason);
    if (effects.discardsAll) this.pins = null;
  }

  /** No transaction is open any more; `last`: nothing is under way behind it. */
  onTransactionEnd(last: boolean): void {
    this.localSettings = false;
    if (last) this.transaction = TransactionHint.None;
  }

  /** The settings are being read back. */
  forgetDirty(): void {
    this.dirtySettings = null;
    this.dirtyInDoubt = false;
  }

  #noteDirty(server: ServerConnection, name: string): void {
    for (const reported of server.reported.keys()) if (reported.toLowerCase() === name) return;
    this.dirtySettings ??= new Set();
    this.dirtySettings.add(name);
  }

  #pin(reason: string): void {
    this.pins ??= new Set();
    this.pins.add(reason);
  }
}
