/**
 * Why a pool has no connection to give: which faults another attempt may not meet, and what a waiting client is told
 * of each. PostgreSQL's own words about its server user stay in the log.
 */
import type { BackendIdentity } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { ServerLoginError } from './server-login-error.ts';

/** Nobody gave a connection back in time. */
export function checkoutTimedOut(timeoutMs: number): PgError {
  return new PgError({
    code: SqlState.TooManyConnections,
    message: `no server connection became free within ${timeoutMs} ms`,
    hint: 'All server connections of this role and database are in use; see pool_size and checkout_timeout.',
    reason: 'checkout_timeout',
    safeToRetry: true,
  });
}

/** The pool lends nothing any more. */
export function poolClosed(): PgError {
  return new PgError({
    code: SqlState.CannotConnectNow,
    message: 'the pooler is shutting down',
    severity: 'FATAL',
  });
}

/** Faults that another attempt may not meet: no route, no answer, a server that is starting or full. */
export function isPassing(error: ServerLoginError): boolean {
  if (error.kind === 'unreachable' || error.kind === 'timeout') return true;
  return error.kind === 'refused' && (error.code.startsWith('57') || error.code.startsWith('53'));
}

/** PostgreSQL does not know the role (22023), or the server user may not take it (42501). */
export function isRoleRefusal(error: ServerLoginError): boolean {
  return error.code === SqlState.InvalidParameterValue || error.code === SqlState.InsufficientPrivilege;
}

/** What a client is told whose role cannot be taken; `reason` is for the log. */
export function roleRefused(role: string, reason: string): PgError {
  return new PgError({
    code: SqlState.InvalidAuthorizationSpecification,
    message: `role "${role}" is not permitted to log in through this pooler`,
    severity: 'FATAL',
    reason,
  });
}

/**
 * PostgreSQL would not let the role log in as itself. Not in its words: "password authentication failed" would be
 * taken for the client's proof, which was right.
 */
export function roleLoginRefused(role: string, identity: BackendIdentity, cause: ServerLoginError): PgError {
  return new PgError({
    code: SqlState.InvalidAuthorizationSpecification,
    message: `PostgreSQL does not let role "${role}" log in for this pooler`,
    severity: 'FATAL',
    reason: `${identity}_refused`,
    cause,
  });
}

/** Whatever an attempt to connect failed with, as the client may see it. */
export function toPgError(error: unknown): PgError {
  if (error instanceof PgError) return error;
  if (error instanceof ServerLoginError) return error.toPgError('ERROR');
  return new PgError({
    code: SqlState.InternalError,
    message: 'could not connect to PostgreSQL',
    reason: error instanceof Error ? error.name : 'unknown',
    cause: error,
  });
}
