/**
 * Sees to it that every statement of a client runs with the claims of its own token: sends them where the connection
 * does not carry them, or may not carry them any more, in the same write as the request and outside its transaction.
 * Who gets which connection is the session's business.
 *
 * Hot: looked at for every message; nothing happens while the connection carries the right object.
 */
import { TxStatus } from '../protocol/codes.ts';
import { onClaimsRefused, sendClaims, sendNoClaims } from '../server/carried-claims.ts';
import { ownBatch } from '../server/own-batch.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { ServerOwner } from '../server/server-owner.ts';
import type { ClaimSettings } from '../session/claim-settings.ts';
import type { StatementEffects } from '../sql/statement.ts';

/** A message of the client comes next. In the middle of its request nothing can be put in front any more. */
export function upholdClaims(
  server: ServerConnection,
  claims: ClaimSettings | null,
  owner: ServerOwner,
): void {
  const carried = server.claims;
  if (!carried.stale && carried.settings === claims) return;
  const form = (claims ?? carried.settings)?.form;
  if (form === undefined || server.unsynced || server.skippingToSync || server.copyIn) return;
  // PostgreSQL refuses everything but the end of the transaction, and what was in force before is the client's own.
  if (server.txStatus === TxStatus.Failed) return;
  const batch = ownBatch((error) => {
    if (error !== null && !server.closed) onClaimsRefused(server, form, error);
  });
  carried.inTransaction = server.txStatus !== TxStatus.Idle || server.pending.hasOwner(owner);
  carried.settings = claims;
  carried.stale = false;
  if (claims === null) sendNoClaims(server, form, batch, true);
  else sendClaims(server, claims, batch, true);
}

/** A statement with effects is about to be sent. */
export function noteClaimEffects(server: ServerConnection, effects: StatementEffects): void {
  const carried = server.claims;
  const unseen = effects.opaque || effects.unknownSettings;
  if (unseen) {
    carried.tainted = true;
    server.roleInDoubt = true;
  }
  if (carried.settings === null) return;
  if (unseen || effects.resetsAll || effects.discardsAll) carried.stale = true;
  else if (effects.hasTransactionControl && carried.inTransaction) carried.stale = true;
}

/** The same for a function that is called by its number, and that may do anything. */
export function noteFunctionCall(server: ServerConnection): void {
  server.claims.tainted = true;
  server.roleInDoubt = true;
  if (server.claims.settings !== null) server.claims.stale = true;
}

/** RESET ALL and DISCARD ALL take the claims away: inside a request they are there again for what follows in it. */
export function restoreClaims(
  server: ServerConnection,
  claims: ClaimSettings | null,
  effects: StatementEffects,
): void {
  if (claims === null || !(effects.resetsAll || effects.discardsAll)) return;
  const batch = ownBatch((error) => {
    if (error !== null && !server.closed) onClaimsRefused(server, claims.form, error);
  });
  // `stale` stays: whether the request commits is not known.
  sendClaims(server, claims, batch, false);
}
