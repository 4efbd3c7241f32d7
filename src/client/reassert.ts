/**
 * What is said again behind a client's statements because they took it away, or might have: the guarded role, and
 * the settings of the startup packet. Everything goes out in the same write as the request, so that neither the
 * client's next byte nor the next owner of the connection finds it missing.
 */
import { TxStatus } from '../protocol/codes.ts';
import { SqlState } from '../protocol/pg-error.ts';
import { sendNoClaims } from '../server/carried-claims.ts';
import { ownBatch, sendParameters, sendRole, sendRoleUnnamed } from '../server/own-batch.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { PendingData, ServerOwner } from '../server/server-owner.ts';
import type { ParameterSet } from '../session/parameters.ts';
import type { StatementEffects } from '../sql/statement.ts';
import { TransactionHint } from './session-effects.ts';

/**
 * Where a request ends the transaction as far as its text tells, the role is asserted in the same write, so that
 * the connection comes back ready for the next owner. Where it does not, the release does it. With `clears` a next
 * owner is waiting already, and the claims go too: he need not wait until they are gone. `role` null: no role is.
 */
export function assertAhead(
  server: ServerConnection,
  role: string | null,
  clears: boolean,
  transaction: TransactionHint,
  sendingPart: boolean,
): void {
  const last = server.pending.length - 1;
  if (last < 0 || server.skippingToSync || server.copyIn || sendingPart) return;
  // A Sync of ours would end the skipping behind an error that is on its way.
  if (server.skippable) return;
  const carried = server.claims;
  const form = clears && !carried.tainted && !carried.stale ? (carried.settings?.form ?? null) : null;
  const asserted = role !== null && !server.roleSafe ? role : null;
  if (form === null && asserted === null) return;
  if (transaction === TransactionHint.Open) return;
  if (server.txStatus !== TxStatus.Idle && transaction !== TransactionHint.Ends) return;
  const kind = server.pending.kindAt(last);
  if (kind !== PendingKind.Sync && kind !== PendingKind.Query) return;
  if (server.pending.actionAt(last) !== PendingAction.Forward) return;
  const batch = ownBatch((error) => {
    const safe = error === null && server.pending.length === 0;
    if (asserted !== null) server.roleSafe = safe;
    if (form !== null && safe && server.txStatus === TxStatus.Idle && carried.stale) carried.onReset();
  });
  if (form !== null) {
    // Whoever sends before the answer is there must send his claims first.
    carried.stale = true;
    // A batch knows of one statement that it prepares; what is behind a failure is skipped, so both have failed.
    const clearing = ownBatch((error) => {
      batch.error = error;
    });
    sendNoClaims(server, form, asserted === null ? batch : clearing, asserted === null);
  }
  if (asserted !== null) sendRole(server, asserted, batch, true);
}

/** DISCARD ALL takes the role away: it is there again before the next byte of the client. */
export function assertRoleAfterDiscard(
  server: ServerConnection,
  role: string | null,
  effects: StatementEffects,
  sync: boolean,
): void {
  if (!effects.discardsAll || role === null) return;
  const batch = ownBatch((error) => {
    // Inside a transaction DISCARD ALL is refused, so the role is still there; outside there is no such error.
    if (error === null || error.get('C') === SqlState.InFailedSqlTransaction) return;
    server.close('the role could not be assumed again');
  });
  sendRoleUnnamed(server, role, batch, sync);
}

/**
 * RESET goes back to what the startup packet said; on a shared connection PostgreSQL does not know that, so it
 * is said again behind the RESET, in the same transaction.
 */
export function restoreStartupSettings(
  server: ServerConnection,
  owner: ServerOwner,
  startup: ParameterSet,
  effects: StatementEffects,
  readyTo: ServerOwner | null = null,
  onEnd: () => void = () => {},
): void {
  const names = namesToRestore(startup, effects);
  if (names.length === 0) return;
  const batch = ownBatch(
    (error) => {
      onEnd();
      if (error === null || error.get('C') === SqlState.InFailedSqlTransaction) return;
      server.close('settings were refused');
    },
    undefined,
    owner,
    readyTo,
  );
  const values = names.map((name) => startup.values.get(name) ?? null);
  sendParameters(server, names, values, batch, readyTo !== null);
}

function namesToRestore({ values }: ParameterSet, effects: StatementEffects): string[] {
  if (values.size === 0) return [];
  const all = effects.resetsAll || effects.discardsAll;
  return (all ? [...values.keys()] : effects.resets).filter((name) => values.has(name));
}

/**
 * The same behind a simple Query, once it is known that it was neither skipped nor in vain: until then nothing of
 * the client is sent, and its ReadyForQuery comes behind what is said again, as if it were part of the Query.
 */
export class Reassertion {
  readonly #owner: ServerOwner;
  readonly #role: string | null;
  readonly #startup: ParameterSet;
  /** Of the Query under way; null when nothing has to be said behind it. */
  #effects: StatementEffects | null;
  /** It is answered. */
  #due: boolean;
  /** Settings that are being taken back, or null: the client hears of them once they are what they will be. */
  #restoring: ReadonlySet<string> | null;

  constructor(owner: ServerOwner, role: string | null, startup: ParameterSet) {
    this.#owner = owner;
    this.#role = role;
    this.#startup = startup;
    this.#effects = null;
    this.#due = false;
    this.#restoring = null;
  }

  /** A Query is sent; true when nothing may be sent behind it until it is answered. */
  begin(effects: StatementEffects): boolean {
    const names = namesToRestore(this.#startup, effects);
    if (names.length === 0 && !(effects.discardsAll && this.#role !== null)) return false;
    this.#effects = effects;
    this.#due = false;
    this.#restoring = names.length === 0 ? null : new Set(names);
    return true;
  }

  /** A Query is answered; `inVain`: it failed and took everything back. */
  onAnswered(query: PendingData, inVain: boolean): void {
    if (query !== this.#effects) return;
    this.#due = true;
    if (inVain) this.drop();
  }

  /** A Query was skipped. */
  onSkipped(query: PendingData): void {
    if (query === this.#effects) this.drop();
  }

  /** Nothing has to be said. */
  drop(): void {
    this.#effects = null;
    this.#due = false;
    this.#restoring = null;
  }

  /**
   * A setting is reported with the answer to `head`; `told` is what the client heard last. False keeps it from the
   * client.
   */
  mayTell(name: string, value: string, told: string | undefined, head: PendingData | null): boolean {
    if (this.#restoring?.has(name) !== true) return true;
    if (this.#effects !== null && head !== this.#effects) return true;
    return value === this.#startup.values.get(name) && value !== told;
  }

  /** The Query's ReadyForQuery is there; true when another one comes for the client. */
  onReady(server: ServerConnection, status: number): boolean {
    const effects = this.#effects;
    if (effects === null || !this.#due) return false;
    this.#effects = null;
    this.#due = false;
    const restores = this.#restoring !== null && status !== TxStatus.Failed;
    if (status !== TxStatus.Failed) assertRoleAfterDiscard(server, this.#role, effects, true);
    if (restores)
      restoreStartupSettings(server, this.#owner, this.#startup, effects, this.#owner, this.#onRestored);
    else this.#restoring = null;
    server.flush();
    return restores;
  }

  readonly #onRestored = (): void => {
    this.#restoring = null;
  };
}
