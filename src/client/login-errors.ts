/** The errors that a login can end in, each FATAL: what the client is told, and a reason code for the log. Pure. */
import { harmlessText } from '../auth/harmless-text.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';

/** The one answer to every wrong password and every bad token. The reason is for the log. */
export function passwordFailed(user: string, reason: string): PgError {
  return fatal(
    SqlState.InvalidPassword,
    `password authentication failed for user "${harmlessText(user)}"`,
    reason,
  );
}

/** The one answer to every bad token that came by OAUTHBEARER, and to a request for discovery. */
export function oauthFailed(user: string, reason: string): PgError {
  return fatal(
    SqlState.InvalidAuthorizationSpecification,
    `OAuth bearer authentication failed for user "${harmlessText(user)}"`,
    reason,
  );
}

/** A login rule rejects the client; in PostgreSQL's words for such a line of pg_hba.conf. */
export function rejectedByRule(request: {
  readonly user: string;
  readonly database: string;
  readonly remoteAddress: string;
  readonly encrypted: boolean;
}): PgError {
  const who = `host "${request.remoteAddress}", user "${harmlessText(request.user)}"`;
  const where = `database "${harmlessText(request.database)}"`;
  const encryption = request.encrypted ? 'SSL encryption' : 'no encryption';
  return fatal(
    SqlState.InvalidAuthorizationSpecification,
    `pgturnstile rejects connection for ${who}, ${where}, ${encryption}`,
    'login_rule',
  );
}

/** Bytes that came behind a message that had to be answered first. */
export function earlyBytes(): PgError {
  return fatal(
    SqlState.ProtocolViolation,
    'received data before the previous message was answered',
    'early_bytes',
  );
}

/** A request for encryption where none may come. */
export function repeated(request: string): PgError {
  return fatal(SqlState.ProtocolViolation, `${request} is not expected here`, 'repeated_request');
}

/** No word on the proof itself: too many wait for theirs to be checked. */
export function overloaded(reason: string): PgError {
  return fatal(SqlState.TooManyConnections, 'too many logins at this time', reason);
}

/** No word on the proof itself: keys are away. */
export function temporarilyUnavailable(reason: string): PgError {
  return fatal(SqlState.CannotConnectNow, 'authentication is temporarily unavailable', reason);
}

/** A fault of ours; the cause is for the log. */
export function internalError(cause: unknown): PgError {
  return new PgError({
    code: SqlState.InternalError,
    message: 'internal error during login',
    severity: 'FATAL',
    reason: 'internal_error',
    cause,
  });
}

/** A FATAL error; `reason` is the code for the log. */
export function fatal(code: string, message: string, reason: string): PgError {
  return new PgError({ code, message, severity: 'FATAL', reason });
}
