/**
 * Bytes → meaning for what a server sends. Every decoder takes (buffer, start, end): start is the first byte
 * after the message's length, end one past its last byte. Texts are copied out; what stays a view says so.
 * A malformed body throws PgError 08P01. Nothing here knows which message may come when.
 */
import {
  AuthenticationRequest,
  SECRET_KEY_BYTES_MAX,
  SECRET_KEY_BYTES_MIN,
  TxStatus,
  type TxStatus as TxStatusType,
} from './codes.ts';
import { MessageReader } from './message-reader.ts';
import { PgError, SqlState } from './pg-error.ts';

/** PostgreSQL knows 18 field letters; more than this is no ErrorResponse. */
const ERROR_FIELD_COUNT_MAX = 64;
/** A SASL mechanism list or a list of unknown options longer than this is no honest one. */
const MECHANISM_COUNT_MAX = 32;

/** The fields of an ErrorResponse or NoticeResponse by their letter (manual, "Error and Notice Message Fields"). */
export type ErrorFields = Map<string, string>;

/** ErrorResponse and NoticeResponse; of a letter that comes twice the first counts. */
export function decodeErrorFields(buffer: Buffer, start: number, end: number): ErrorFields {
  const reader = new MessageReader('ErrorResponse', buffer, start, end);
  const fields: ErrorFields = new Map();
  for (let letter = reader.uint8(); letter !== 0; letter = reader.uint8()) {
    if (fields.size >= ERROR_FIELD_COUNT_MAX) throw reader.error('too many fields');
    const name = String.fromCharCode(letter);
    const value = reader.cstring();
    if (!fields.has(name)) fields.set(name, value);
  }
  reader.finish();
  return fields;
}

/**
 * The server's own error as ours, so that it can be told to a client: code, message, detail, hint. Everything
 * from FATAL upwards is FATAL. A missing code is XX000.
 */
export function pgErrorFromFields(fields: ReadonlyMap<string, string>): PgError {
  const severity = fields.get('V') ?? fields.get('S');
  const detail = fields.get('D');
  const hint = fields.get('H');
  const code = fields.get('C') ?? '';
  return new PgError({
    code: /^[0-9A-Z]{5}$/.test(code) ? code : SqlState.InternalError,
    message: fields.get('M') ?? 'unknown error',
    severity: severity === 'FATAL' || severity === 'PANIC' ? 'FATAL' : 'ERROR',
    ...(detail === undefined ? {} : { detail }),
    ...(hint === undefined ? {} : { hint }),
  });
}

export function decodeParameterStatus(
  buffer: Buffer,
  start: number,
  end: number,
): { name: string; value: string } {
  const reader = new MessageReader('ParameterStatus', buffer, start, end);
  const name = reader.cstring();
  const value = reader.cstring();
  reader.finish();
  return { name, value };
}

/** Process id and secret (a copy); the secret has 4 to 256 bytes. */
export function decodeBackendKeyData(
  buffer: Buffer,
  start: number,
  end: number,
): { processId: number; secretKey: Buffer } {
  const reader = new MessageReader('BackendKeyData', buffer, start, end);
  const processId = reader.int32();
  if (reader.remaining < SECRET_KEY_BYTES_MIN || reader.remaining > SECRET_KEY_BYTES_MAX) {
    throw reader.error('secret key of a wrong length');
  }
  return { processId, secretKey: Buffer.from(reader.rest()) };
}

export function decodeReadyForQuery(buffer: Buffer, start: number, end: number): TxStatusType {
  const reader = new MessageReader('ReadyForQuery', buffer, start, end);
  const status = reader.uint8();
  reader.finish();
  if (status === TxStatus.Idle || status === TxStatus.InTransaction || status === TxStatus.Failed)
    return status;
  throw reader.error('unknown transaction status');
}

/** What the server asks for. `data` and `salt` are copies. */
export type Authentication =
  | { readonly kind: 'ok' }
  | { readonly kind: 'cleartext' }
  | { readonly kind: 'md5'; readonly salt: Buffer }
  | { readonly kind: 'sasl'; readonly mechanisms: string[] }
  | { readonly kind: 'sasl-continue'; readonly data: Buffer }
  | { readonly kind: 'sasl-final'; readonly data: Buffer }
  /** Kerberos, GSSAPI, SSPI, crypt and whatever comes: nothing pgturnstile can answer. */
  | { readonly kind: 'unsupported'; readonly request: number };

export function decodeAuthentication(buffer: Buffer, start: number, end: number): Authentication {
  const reader = new MessageReader('Authentication', buffer, start, end);
  const request = reader.int32();
  switch (request) {
    case AuthenticationRequest.Ok:
      reader.finish();
      return { kind: 'ok' };
    case AuthenticationRequest.CleartextPassword:
      reader.finish();
      return { kind: 'cleartext' };
    case AuthenticationRequest.MD5Password: {
      const salt = Buffer.from(reader.bytes(4));
      reader.finish();
      return { kind: 'md5', salt };
    }
    case AuthenticationRequest.SASL:
      return { kind: 'sasl', mechanisms: decodeMechanisms(reader) };
    case AuthenticationRequest.SASLContinue:
      return { kind: 'sasl-continue', data: Buffer.from(reader.rest()) };
    case AuthenticationRequest.SASLFinal:
      return { kind: 'sasl-final', data: Buffer.from(reader.rest()) };
    default:
      return { kind: 'unsupported', request };
  }
}

function decodeMechanisms(reader: MessageReader): string[] {
  const mechanisms: string[] = [];
  for (let name = reader.cstring(); name !== ''; name = reader.cstring()) {
    if (mechanisms.length >= MECHANISM_COUNT_MAX) throw reader.error('too many mechanisms');
    mechanisms.push(name);
  }
  reader.finish();
  return mechanisms;
}

/** The command tag, e.g. `SELECT 3`. */
export function decodeCommandComplete(buffer: Buffer, start: number, end: number): string {
  const reader = new MessageReader('CommandComplete', buffer, start, end);
  const tag = reader.cstring();
  reader.finish();
  return tag;
}

/** The values of a row whose columns are all in text format. */
export function decodeDataRow(buffer: Buffer, start: number, end: number): (string | null)[] {
  const reader = new MessageReader('DataRow', buffer, start, end);
  const count = reader.uint16();
  const values: (string | null)[] = [];
  for (let column = 0; column < count; column++) {
    const byteCount = reader.int32();
    values.push(byteCount === -1 ? null : reader.bytes(byteCount).toString('utf8'));
  }
  reader.finish();
  return values;
}

/** The column names of a result. */
export function decodeRowDescription(buffer: Buffer, start: number, end: number): string[] {
  const reader = new MessageReader('RowDescription', buffer, start, end);
  const count = reader.uint16();
  const names: string[] = [];
  for (let column = 0; column < count; column++) {
    names.push(reader.cstring());
    // Table OID, column number, type OID, type size, type modifier, format.
    reader.bytes(18);
  }
  reader.finish();
  return names;
}
