/**
 * What happens to a server connection that comes to a session with the claims of another token, or with what code of
 * another session may have left behind. Nothing of the new owner is sent before PostgreSQL has confirmed that they
 * are gone: a request in the same write would run with them if the clearing failed, by a cancel or a timeout.
 */
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { SqlState } from '../protocol/pg-error.ts';
import { sendNoClaims, sendResetAll } from '../server/carried-claims.ts';
import { ownBatch } from '../server/own-batch.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { ClaimSettings } from '../session/claim-settings.ts';
import type { ParameterSet } from '../session/parameters.ts';

/**
 * True when the connection holds nothing of anybody but the owner of `claims`, and then nothing is done. Otherwise
 * `done` is called once it does not; a connection that PostgreSQL does not clear is closed instead.
 */
export function clearForeignClaims(
  server: ServerConnection,
  claims: ClaimSettings | null,
  emptyParameters: ParameterSet,
  done: () => void,
): boolean {
  const carried = server.claims;
  if (carried.settings === claims || (carried.settings === null && !carried.tainted)) return true;
  const form = (carried.settings ?? claims)?.form;
  if (form === undefined) return true;
  const { tainted } = carried;
  const refuse = (error: ErrorFields | null): boolean => {
    if (server.closed) return true;
    // Code of a client may have taken our statement away; the claims went with RESET ALL before.
    const isGone = tainted && error?.get('C') === SqlState.InvalidSqlStatementName;
    if (isGone) server.ownStatements.delete(form.statementName);
    if (error === null || isGone) return false;
    server.close('claims could not be cleared');
    return true;
  };
  if (tainted)
    sendResetAll(
      server,
      ownBatch((error) => void refuse(error)),
    );
  const batch = ownBatch((error) => {
    if (refuse(error)) return;
    if (tainted) server.parameters = emptyParameters;
    carried.onReset();
    done();
  });
  sendNoClaims(server, form, batch, true);
  server.flush();
  return false;
}
