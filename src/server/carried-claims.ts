/**
 * Which token's claims a server connection carries as settings, and whether that can still be believed. It owns the
 * requests that set and clear them; when to send one is the client's side to decide.
 */
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { encodeQuery, SYNC } from '../protocol/message-writer.ts';
import { SqlState } from '../protocol/pg-error.ts';
import type { ClaimForm, ClaimSettings } from '../session/claim-settings.ts';
import { PendingAction, PendingKind } from './pending-responses.ts';
import type { ServerConnection } from './server-connection.ts';
import { type OwnBatch, UNNAMED_FOREIGN } from './server-owner.ts';

/**
 * Invariant: a connection whose `settings` are null and that is not `tainted` holds nothing of any token, confirmed
 * by PostgreSQL. Only on such a one may the claims of another session go out in one write with its request: should
 * they fail, that request runs without claims, and never with somebody else's.
 */
export class CarriedClaims {
  settings: ClaimSettings | null = null;
  /** They may have been changed: sent anew before the next request. */
  stale = false;
  /** Code ran that the text does not show: settings may be left of which nobody knows. */
  tainted = false;
  /** They were sent inside what may be a client's transaction, whose end may take them back. */
  inTransaction = false;

  /** PostgreSQL has put every setting back. */
  onReset(): void {
    this.settings = null;
    this.stale = false;
    this.tainted = false;
    this.inTransaction = false;
  }
}

/** Puts the claims in force; `sync` false inside a request of the client. */
export function sendClaims(
  server: ServerConnection,
  claims: ClaimSettings,
  batch: OwnBatch,
  sync: boolean,
): void {
  sendPrepared(server, claims.form, sync, claims.request(server, sync), batch);
}

/** Puts an empty string in every setting of the form. */
export function sendNoClaims(
  server: ServerConnection,
  form: ClaimForm,
  batch: OwnBatch,
  sync: boolean,
): void {
  sendPrepared(server, form, true, form.clear, batch, sync);
}

/** Every setting goes back to its default, those included whose names nobody knows. The role stays. */
export function sendResetAll(server: ServerConnection, batch: OwnBatch): void {
  server.send(RESET_ALL);
  server.expect(PendingKind.Query, PendingAction.Own, null, batch);
}

/** What a refusal of `sendClaims` means: the connection goes, unless it is known what to do next. */
export function onClaimsRefused(server: ServerConnection, form: ClaimForm, error: ErrorFields): void {
  switch (error.get('C')) {
    case SqlState.InFailedSqlTransaction:
      break;
    case SqlState.InvalidSqlStatementName:
      // Code of the client took our statement away (DEALLOCATE ALL in a function).
      server.ownStatements.delete(form.statementName);
      break;
    default:
      return server.close(`claims were refused (${error.get('C') ?? ''})`);
  }
  server.claims.stale = true;
}

/** Inside a request of the client the statement has no name: DISCARD ALL in front of it took the named ones. */
function sendPrepared(
  server: ServerConnection,
  form: ClaimForm,
  named: boolean,
  request: Buffer,
  batch: OwnBatch,
  sync: boolean = named,
): void {
  const name = named ? form.statementName : '';
  if (!named || !server.ownStatements.has(name)) {
    if (named) {
      // Whether it is still there is not always known, and no request may find its claims missing for that.
      server.send(form.close);
      server.expect(PendingKind.Close, PendingAction.Own, null, batch);
      server.ownStatements.add(name);
    } else server.unnamedId = UNNAMED_FOREIGN;
    batch.parses = name;
    server.send(named ? form.parse : form.parseUnnamed);
    server.expect(PendingKind.Parse, PendingAction.Own, null, batch);
  }
  server.send(request);
  server.expect(PendingKind.Bind, PendingAction.Own, null, batch);
  server.expect(PendingKind.Execute, PendingAction.Own, null, batch);
  if (!sync) return;
  server.send(SYNC);
  server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
}

const RESET_ALL = encodeQuery('RESET ALL');
