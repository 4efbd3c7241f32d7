/**
 * Bytes → meaning for what a client sends. Every decoder takes (buffer, start, end): start is the first byte
 * after the message's length, end one past its last byte. A malformed body throws PgError 08P01. Offsets are given
 * where the relay replaces a name and passes the other bytes on untouched, whatever their encoding.
 */
import { DescribeTarget } from './codes.ts';
import { MessageReader } from './message-reader.ts';

/** The SQL text of Query. Bytes that are not UTF-8 (another client_encoding) become U+FFFD: never send it on. */
export function decodeQuery(buffer: Buffer, start: number, end: number): string {
  const reader = new MessageReader('Query', buffer, start, end);
  const sql = reader.cstring();
  reader.finish();
  return sql;
}

export interface ParseMessage {
  /** '' is the unnamed statement. */
  readonly name: string;
  readonly sql: string;
  /** Type OIDs as given; 0 leaves a type to the server. */
  readonly parameterTypes: number[];
  /** First byte after the name's NUL: the SQL text, its NUL and the types, to be passed on as they are. */
  readonly tailStart: number;
}

export function decodeParse(buffer: Buffer, start: number, end: number): ParseMessage {
  const reader = new MessageReader('Parse', buffer, start, end);
  const name = reader.cstring();
  const tailStart = reader.at;
  const sql = reader.cstring();
  const count = reader.uint16();
  const parameterTypes: number[] = [];
  for (let index = 0; index < count; index++) parameterTypes.push(reader.uint32());
  reader.finish();
  return { name, sql, parameterTypes, tailStart };
}

export interface BindNames {
  /** '' is the unnamed portal. */
  readonly portal: string;
  readonly statement: string;
  /** First byte of the statement's name. */
  readonly statementStart: number;
  /** First byte after the statement name's NUL: formats and values, never looked at here. */
  readonly tailStart: number;
}

/** The two names in front of a Bind. The rest is not checked: the server does that, and it may not be here yet. */
export function decodeBindNames(buffer: Buffer, start: number, end: number): BindNames {
  const reader = new MessageReader('Bind', buffer, start, end);
  const portal = reader.cstring();
  const statementStart = reader.at;
  const statement = reader.cstring();
  return { portal, statement, statementStart, tailStart: reader.at };
}

/** The parameter values of a Bind, as views; null is SQL's NULL. */
export function decodeBindValues(buffer: Buffer, start: number, end: number): (Buffer | null)[] {
  const reader = new MessageReader('Bind', buffer, start, end);
  reader.skipCString();
  reader.skipCString();
  for (let formats = reader.uint16(); formats > 0; formats--) reader.int16();
  const values: (Buffer | null)[] = [];
  for (let count = reader.uint16(); count > 0; count--) {
    const byteCount = reader.int32();
    values.push(byteCount === -1 ? null : reader.bytes(byteCount));
  }
  for (let formats = reader.uint16(); formats > 0; formats--) reader.int16();
  reader.finish();
  return values;
}

export interface StatementOrPortal {
  readonly target: 'S' | 'P';
  readonly name: string;
}

/** Describe and Close, which look the same. */
export function decodeStatementOrPortal(buffer: Buffer, start: number, end: number): StatementOrPortal {
  const reader = new MessageReader('Describe or Close', buffer, start, end);
  const target = reader.uint8();
  if (target !== DescribeTarget.Statement && target !== DescribeTarget.Portal) {
    throw reader.error('neither a statement nor a portal');
  }
  const name = reader.cstring();
  reader.finish();
  return { target: target === DescribeTarget.Statement ? 'S' : 'P', name };
}

/** Execute; `maxRows` 0 or less means all. */
export function decodeExecute(
  buffer: Buffer,
  start: number,
  end: number,
): { portal: string; maxRows: number } {
  const reader = new MessageReader('Execute', buffer, start, end);
  const portal = reader.cstring();
  const maxRows = reader.int32();
  reader.finish();
  return { portal, maxRows };
}

/** The text of a PasswordMessage, exactly one NUL-terminated string. Secret: wrap it at once. */
export function decodePassword(buffer: Buffer, start: number, end: number): string {
  const reader = new MessageReader('Password', buffer, start, end);
  const password = reader.cstring();
  reader.finish();
  return password;
}

/** The mechanism that a SASLInitialResponse begins with; what follows it is not looked at. */
export function decodeSASLMechanism(buffer: Buffer, start: number, end: number): string {
  return new MessageReader('SASLInitialResponse', buffer, start, end).cstring();
}

/** The chosen mechanism and its first data (a copy); null when the client sent none. */
export function decodeSASLInitialResponse(
  buffer: Buffer,
  start: number,
  end: number,
): { mechanism: string; data: Buffer | null } {
  const reader = new MessageReader('SASLInitialResponse', buffer, start, end);
  const mechanism = reader.cstring();
  const byteCount = reader.int32();
  const data = byteCount === -1 ? null : Buffer.from(reader.bytes(byteCount));
  reader.finish();
  return { mechanism, data };
}

/** The reason a client gives in CopyFail. */
export function decodeCopyFail(buffer: Buffer, start: number, end: number): string {
  const reader = new MessageReader('CopyFail', buffer, start, end);
  const reason = reader.cstring();
  reader.finish();
  return reason;
}
