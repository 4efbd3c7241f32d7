/**
 * Requests that pgturnstile itself sends on a server connection: settings, the role, reading settings back,
 * cleaning. Every statement is `pg_catalog.`-qualified and takes its values as parameters, so that neither a
 * user's search_path nor a quote in a value reaches it.
 */
import type { ErrorFields } from '../protocol/backend-messages.ts';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../protocol/message-writer.ts';
import { textArrayLiteral } from '../session/parameters.ts';
import { SERVER_NAME_PREFIX } from '../session/prepared-statements.ts';
import { PendingAction, PendingKind } from './pending-responses.ts';
import { ROLE_FACTS_SQL } from './role-facts.ts';
import type { ServerConnection } from './server-connection.ts';
import { type OwnBatch, type ServerOwner, UNNAMED_FOREIGN } from './server-owner.ts';

interface OwnStatement {
  /** '' is prepared anew each time and shows in no view. */
  readonly name: string;
  readonly parse: Buffer;
}

function ownStatement(name: string, sql: string): OwnStatement {
  return { name, parse: encodeParse(name, sql) };
}

/** Two text[]: names and values, NULL for "back to the default". */
const SET_PARAMETERS: OwnStatement = ownStatement(
  '',
  'SELECT pg_catalog.set_config(n, v, false) FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) AS t(n, v)',
);
/** One text[] of names; rows of name and value. */
const READ_PARAMETERS: OwnStatement = ownStatement(
  '',
  'SELECT n, pg_catalog.current_setting(n, true) FROM pg_catalog.unnest($1::pg_catalog.text[]) AS t(n)',
);
const READ_OWN_PARAMETERS: OwnStatement = ownStatement(
  '',
  `SELECT n, CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_settings AS s
 WHERE pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) n AND s.setting OPERATOR(pg_catalog.<>) COALESCE(s.reset_val, ''))
 THEN pg_catalog.current_setting(n, true) END FROM pg_catalog.unnest($1::pg_catalog.text[]) AS t(n)`,
);
const READ_ROLES: OwnStatement = ownStatement('', ROLE_FACTS_SQL);
const SET_ROLE_SQL = "SELECT pg_catalog.set_config('role', $1, false)";
const SET_ROLE: OwnStatement = ownStatement(`${SERVER_NAME_PREFIX}role`, SET_ROLE_SQL);
const SET_ROLE_UNNAMED: OwnStatement = ownStatement('', SET_ROLE_SQL);

const EXECUTE = encodeExecute('');
const ROLLBACK = encodeQuery('ROLLBACK');
const DISCARD_ALL = encodeQuery('DISCARD ALL');

/** A batch from two callbacks. `onEnd` is called exactly once, with PostgreSQL's refusal or null. */
export function ownBatch(
  onEnd: (error: ErrorFields | null) => void,
  onRow: (values: (string | null)[]) => void = () => {},
  statusTo: ServerOwner | null = null,
  readyTo: ServerOwner | null = null,
): OwnBatch {
  return { onRow, onEnd, error: null, parses: '', statusTo, readyTo };
}

/** Bind, Execute and, unless it goes into a request of the client, Sync; Parse in front where it is missing. */
function sendOwn(
  server: ServerConnection,
  statement: OwnStatement,
  values: (string | null)[],
  batch: OwnBatch,
  sync: boolean,
): void {
  if (statement.name === '' || !server.ownStatements.has(statement.name)) {
    if (statement.name === '') server.unnamedId = UNNAMED_FOREIGN;
    else server.ownStatements.add(statement.name);
    batch.parses = statement.name;
    server.send(statement.parse);
    server.expect(PendingKind.Parse, PendingAction.Own, null, batch);
  }
  server.send(encodeBind('', statement.name, values));
  server.expect(PendingKind.Bind, PendingAction.Own, null, batch);
  server.send(EXECUTE);
  server.expect(PendingKind.Execute, PendingAction.Own, null, batch);
  if (!sync) return;
  server.send(SYNC);
  server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
}

/** Sets values, or takes them back to their defaults where they are null; `sync` false inside a client's request. */
export function sendParameters(
  server: ServerConnection,
  names: readonly string[],
  values: readonly (string | null)[],
  batch: OwnBatch,
  sync = true,
): void {
  sendOwn(server, SET_PARAMETERS, [textArrayLiteral(names), textArrayLiteral(values)], batch, sync);
}

/**
 * Asks for the values now in force; `batch.onRow` gets [name, value or null]. With `ownOnly` a value that is the
 * connection's default is null too.
 */
export function sendReadParameters(
  server: ServerConnection,
  names: readonly string[],
  ownOnly: boolean,
  batch: OwnBatch,
): void {
  const statement = ownOnly ? READ_OWN_PARAMETERS : READ_PARAMETERS;
  sendOwn(server, statement, [textArrayLiteral(names)], batch, true);
}

/** Asks what PostgreSQL says of roles; `batch.onRow` gets the rows of role-facts.ts. */
export function sendReadRoles(
  server: ServerConnection,
  names: readonly string[],
  loginGroup: string | null,
  batch: OwnBatch,
): void {
  sendOwn(server, READ_ROLES, [textArrayLiteral(names), loginGroup], batch, true);
}

/** Becomes the role again; `sync` false inside a request of the client. */
export function sendRole(server: ServerConnection, role: string, batch: OwnBatch, sync: boolean): void {
  if (!sync || !server.ownStatements.has(SET_ROLE.name))
    return sendOwn(server, SET_ROLE, [role], batch, sync);
  // Once per transaction under a guarded role: the same bytes each time, so they are made once.
  if (server.roleRequest?.role !== role) {
    server.roleRequest = {
      role,
      bytes: Buffer.concat([encodeBind('', SET_ROLE.name, [role]), EXECUTE, SYNC]),
    };
  }
  server.send(server.roleRequest.bytes);
  server.expect(PendingKind.Bind, PendingAction.Own, null, batch);
  server.expect(PendingKind.Execute, PendingAction.Own, null, batch);
  server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
}

/** The same by the unnamed statement, where it is not known whether a named one is still there. */
export function sendRoleUnnamed(
  server: ServerConnection,
  role: string,
  batch: OwnBatch,
  sync: boolean,
): void {
  sendOwn(server, SET_ROLE_UNNAMED, [role], batch, sync);
}

export function sendRollback(server: ServerConnection, batch: OwnBatch): void {
  server.send(ROLLBACK);
  server.expect(PendingKind.Query, PendingAction.Own, null, batch);
}

/** Everything a session can leave behind; our own statements go with it. */
export function sendDiscardAll(server: ServerConnection, batch: OwnBatch): void {
  server.send(DISCARD_ALL);
  server.expect(PendingKind.Query, PendingAction.Own, null, batch);
}

/** A round trip that does nothing but come back. */
export function sendSync(server: ServerConnection, batch: OwnBatch): void {
  server.send(SYNC);
  server.expect(PendingKind.Sync, PendingAction.Own, null, batch);
}
