/**
 * What happens to a server connection between two owners: roll back, discard, become the role again. Everything
 * goes out in one write; the connection is clean only when PostgreSQL agreed to every step.
 */
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { TxStatus } from '../protocol/codes.ts';
import type { ParameterSet } from '../session/parameters.ts';
import { ownBatch, sendDiscardAll, sendRole, sendRoleUnnamed, sendRollback, sendSync } from './own-batch.ts';
import { type ServerConnection, ServerState } from './server-connection.ts';

export interface CleaningPlan {
  /** The role to become again; null where the login is the role. */
  readonly role: string | null;
  /** The session left state behind that only DISCARD ALL removes. */
  readonly discard: boolean;
  /** The settings in force after DISCARD ALL. Required with `discard`. */
  readonly emptyParameters?: ParameterSet;
}

/**
 * Cleans and calls `done` once: true when PostgreSQL agreed to every step and the connection is quiet. A cancel
 * request still on its way is waited for, or it would hit the next owner. The pool's tick enforces the deadline.
 */
export function cleanServer(
  server: ServerConnection,
  plan: CleaningPlan,
  timeoutMs: number,
  nowMs: number,
  done: (clean: boolean) => void,
): void {
  server.cleanDeadlineMs = nowMs + timeoutMs;
  let failed = false;
  const step = (error: ErrorFields | null): void => {
    if (error !== null) failed = true;
  };
  const last = (error: ErrorFields | null): void => {
    step(error);
    if (failed || server.state === ServerState.Closed) return done(false);
    if (!server.quiet) return done(false);
    if (plan.discard && plan.emptyParameters !== undefined) server.parameters = plan.emptyParameters;
    if (plan.discard) server.claims.onReset();
    if (plan.role !== null) server.roleInDoubt = false;
    if (server.cancelsInFlight === 0) return done(true);
    server.onCancelsDone = (): void => {
      // The signal was sent before the cancel connection closed; one more round trip outlives it.
      sendSync(
        server,
        ownBatch((late) => done(late === null && server.quiet)),
      );
      server.flush();
    };
  };
  // A simple Query ends an implicit transaction too, and ROLLBACK undoes it (xact.c, UserAbortTransactionBlock).
  if (server.txStatus !== TxStatus.Idle || server.unsynced) {
    sendRollback(server, ownBatch(step));
    if (server.claims.inTransaction) server.claims.stale = true;
  }
  if (plan.discard) {
    sendDiscardAll(server, ownBatch(step));
    server.statements.clear();
    server.ownStatements.clear();
    server.unnamedId = 0;
  }
  if (plan.role === null) sendSync(server, ownBatch(last));
  // Where the login is the role, a session finds no prepared statement but its own (pg_prepared_statements).
  else if (plan.role === NO_ROLE) sendRoleUnnamed(server, plan.role, ownBatch(last), true);
  else sendRole(server, plan.role, ownBatch(last), true);
  server.flush();
}

/** What SET ROLE takes for the session user (variable.c, check_role). */
const NO_ROLE = 'none';
