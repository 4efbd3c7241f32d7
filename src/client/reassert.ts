/**
 * What is said again behind a client's statements because they took it away, or might have: the guarded role, and
 * the settings of the startup packet. Everything goes out in the same write as the request, so that neither the
 * client's next byte nor the next owner of the connection finds it missing.
 */
import { TxStatus } from '../protocol/codes.ts';
import { SqlState } from '../protocol/pg-error.ts';
import { ownBatch, sendParameters, sendRole, sendRoleUnnamed } from '../server/own-batch.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { ServerOwner } from '../server/server-owner.ts';
import type { ParameterSet } from '../session/parameters.ts';
import type { StatementEffects } from '../sql/statement.ts';
import { TransactionHint } from './session-effects.ts';

/**
 * Where a request ends the transaction as far as its text tells, the role is asserted in the same write, so that
 * the connection comes back ready for the next owner. Where it does not, the release does it.
 */
export function assertRoleAhead(
  server: ServerConnection,
  role: string,
  transaction: TransactionHint,
  sendingPart: boolean,
): void {
  const last = server.pending.length - 1;
  if (last < 0 || server.roleSafe || server.skippingToSync || server.copyIn || sendingPart) return;
  if (transaction === TransactionHint.Open) return;
  if (server.txStatus !== TxStatus.Idle && transaction !== TransactionHint.Ends) return;
  const kind = server.pending.kindAt(last);
  if (kind !== PendingKind.Sync && kind !== PendingKind.Query) return;
  if (server.pending.actionAt(last) !== PendingAction.Forward) return;
  const batch = ownBatch((error) => {
    server.roleSafe = error === null && server.pending.length === 0;
  });
  sendRole(server, role, batch, true);
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
  sync: boolean,
): void {
  const { values } = startup;
  if (values.size === 0) return;
  const all = effects.resetsAll || effects.discardsAll;
  const names = (all ? [...values.keys()] : effects.resets).filter((name) => values.has(name));
  if (names.length === 0) return;
  const batch = ownBatch(() => {}, undefined, owner);
  sendParameters(
    server,
    names,
    names.map((name) => values.get(name) ?? null),
    batch,
    sync,
  );
}
