/**
 * What a client is refused, in words: the errors of the relay, and the requests that take the place of a refused
 * one. PostgreSQL is made to fail, so that the transaction is in the state that the error claims; its words are
 * replaced by ours.
 */
import { FrontendMessage } from '../protocol/codes.ts';
import { encodeErrorResponse, encodeParse, encodeQuery } from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { PendingAction, PendingKind } from '../server/pending-responses.ts';
import type { ServerConnection } from '../server/server-connection.ts';
import type { PendingData, ServerOwner } from '../server/server-owner.ts';
import { SERVER_NAME_PREFIX } from '../session/prepared-statements.ts';
import { READ_ONLY_MESSAGE } from '../sql/settings.ts';
import type { StatementEffects } from '../sql/statement.ts';

/** What the entry of a replaced request carries. */
interface ReplacedError {
  readonly replacedError: Buffer;
}

/** Sends a request that fails in the place of a refused one: `type` is Query, or any other for one of a pipeline. */
export function sendFailing(
  server: ServerConnection,
  owner: ServerOwner,
  type: number,
  error: PgError,
): void {
  const data: ReplacedError = { replacedError: encodeErrorResponse(error) };
  if (type === FrontendMessage.Query) {
    server.send(REFUSED_QUERY);
    server.expect(PendingKind.Query, PendingAction.Forward, owner, data);
  } else {
    server.send(REFUSED_PARSE);
    server.unnamedId = 0;
    server.expect(PendingKind.Parse, PendingAction.Forward, owner, data);
  }
}

export function isReplacedError(data: PendingData): data is ReplacedError {
  return (data as Partial<ReplacedError>).replacedError !== undefined;
}

/** What of a session its statements must not change. */
export interface SessionGuards {
  /** The role that is taken with SET ROLE; null where the login is the role. */
  readonly guardedRole: string | null;
  /** It has a token, whose claims are not its own. */
  readonly guardsClaims: boolean;
  readonly readOnly: boolean;
}

/** Why a session must not run a statement, or null: role, claims and read-only access are kept. */
export function refusalOf(
  effects: StatementEffects,
  guards: SessionGuards,
): { readonly message: string } | null {
  if (guards.guardedRole !== null && effects.escape !== null) return effects.escape;
  if (guards.guardsClaims && effects.claimEscape !== null) return effects.claimEscape;
  return guards.readOnly ? effects.widens : null;
}

/** Code of a database has made a read-only session read-write: it ends here. */
export function widened(): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: READ_ONLY_MESSAGE,
    severity: 'FATAL',
    reason: 'read_only_escape',
  });
}

/** The statement would let a guarded role go, or change what was verified of a token. */
export function escapeError({ message }: { readonly message: string }): PgError {
  return new PgError({ code: SqlState.InsufficientPrivilege, message, reason: 'escape' });
}

export function forbiddenFunction(): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: 'this function cannot be called by function call protocol through this pooler',
    reason: 'escape',
  });
}

/** `name` as it came, one character a byte. */
export function missingStatement(name: string): PgError {
  return new PgError({
    code: SqlState.InvalidSqlStatementName,
    message: `prepared statement "${Buffer.from(name, 'latin1').toString('utf8')}" does not exist`,
  });
}

export function reservedName(): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: `names of prepared statements must not begin with "${SERVER_NAME_PREFIX}"`,
  });
}

/** True when the name that begins at `buffer[at]` is one of ours. */
export function isReservedName(buffer: Buffer, at: number): boolean {
  const end = Math.min(at + SERVER_NAME_PREFIX.length, buffer.length);
  return buffer.toString('latin1', at, end) === SERVER_NAME_PREFIX;
}

/** `name` as it came, one character a byte. */
export function takenName(name: string): PgError {
  return new PgError({
    code: SqlState.DuplicatePreparedStatement,
    message: `prepared statement "${Buffer.from(name, 'latin1').toString('utf8')}" already exists`,
  });
}

/** Anything but one parameter for the statement that takes an access token. */
export function badTokenBind(): PgError {
  const message = 'the access token must be the one parameter, of at most 64 kB';
  return new PgError({ code: SqlState.InvalidParameterValue, message, reason: 'token_bind' });
}

export function tooManyStatements(): PgError {
  const message = 'too many prepared statements in one session';
  return new PgError({ code: SqlState.OutOfMemory, message });
}

export function tooLongStatement(bytesMax: number): PgError {
  return new PgError({
    code: SqlState.ProgramLimitExceeded,
    message: `statement is longer than ${bytesMax} bytes`,
  });
}

/** A fault of ours in the handling of what the client sent: for the log, the client's socket is closed already. */
export function internalFault(cause: Error): PgError {
  return new PgError({
    code: SqlState.InternalError,
    message: 'internal error',
    severity: 'FATAL',
    reason: 'internal_error',
    cause,
  });
}

/** The client broke the protocol: ends the session. */
export function protocolViolation(message: string): PgError {
  return new PgError({
    code: SqlState.ProtocolViolation,
    message,
    severity: 'FATAL',
    reason: 'protocol_violation',
  });
}

/** The setting would make texts mean something else to PostgreSQL than to the guard: ends the session. */
export function unreadableSql(name: string): PgError {
  return new PgError({
    code: SqlState.InsufficientPrivilege,
    message: `parameter "${name}" cannot be changed through this pooler`,
    severity: 'FATAL',
    reason: 'unreadable_sql',
  });
}

/** No SQL at all: PostgreSQL answers a syntax error, whose words are then replaced. */
const REFUSED_QUERY: Buffer = encodeQuery('refused by pgturnstile');
const REFUSED_PARSE: Buffer = encodeParse('', 'refused by pgturnstile');
