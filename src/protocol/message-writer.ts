/**
 * Meaning → bytes, in both directions: a small append-only encoder and one function per message that pgturnstile
 * sends itself; what a client would send to PostgreSQL is written by pg-protocol. Nothing here knows a socket; messages that are only relayed never pass through.
 */
import { serialize } from 'pg-protocol';
import { assert } from '../base/assert.ts';
import {
  AuthenticationRequest,
  BackendMessage,
  FrontendMessage,
  ProtocolVersion,
  RequestCode,
  SECRET_KEY_BYTES_MAX,
  SECRET_KEY_BYTES_MIN,
  type TxStatus,
} from './codes.ts';
import { PgError, SqlState } from './pg-error.ts';

const CAPACITY_BYTES = 512;
/** A buffer that grew beyond this is given back by `reset()`, so that one long message is not paid for twice. */
const KEPT_BYTES_MAX = 64 * 1024;
/** A message's length is a signed 32-bit number that counts itself. */
const MESSAGE_LENGTH_MAX = 0x7fff_ffff;

/**
 * Appends messages to a growing buffer. Between `begin` and `end` stands one message; `take` copies all finished
 * ones out and starts anew. Invariant: every message before `#length` has its length patched, or is the open one.
 */
export class MessageWriter {
  #buffer: Buffer;
  #length = 0;
  /** Offset of the open message's length field, -1 between messages. */
  #lengthAt = -1;

  constructor(capacityBytes: number = CAPACITY_BYTES) {
    this.#buffer = Buffer.allocUnsafeSlow(Math.max(16, capacityBytes));
  }

  /** Bytes written since the last `take` or `reset`. */
  get length(): number {
    return this.#length;
  }

  /** Opens a message of this type; null for a startup packet, which has no type byte. */
  begin(type: number | null): this {
    assert(this.#lengthAt === -1, 'a message is open already');
    this.#reserve(5);
    if (type !== null) this.#buffer[this.#length++] = type;
    this.#lengthAt = this.#length;
    this.#length += 4;
    return this;
  }

  /** Closes the open message: its length goes in front of it. */
  end(): this {
    assert(this.#lengthAt !== -1, 'no message is open');
    this.#buffer.writeInt32BE(this.#length - this.#lengthAt, this.#lengthAt);
    this.#lengthAt = -1;
    return this;
  }

  int8(value: number): this {
    this.#reserve(1);
    this.#buffer[this.#length++] = value;
    return this;
  }

  /** Signed or unsigned: counts of columns and parameters go up to 65535. */
  int16(value: number): this {
    assert(value >= -0x8000 && value <= 0xffff, 'a 16-bit number out of range');
    this.#reserve(2);
    this.#length = this.#buffer.writeUInt16BE(value & 0xffff, this.#length);
    return this;
  }

  /** Signed or unsigned: type OIDs go up to 4294967295. */
  int32(value: number): this {
    this.#reserve(4);
    this.#length = this.#buffer.writeUInt32BE(value >>> 0, this.#length);
    return this;
  }

  /** UTF-8 text and its NUL. Throws PgError 22023 when the text itself has a NUL, which would end it early. */
  cstring(value: string): this {
    return this.utf8(withoutNul(value)).int8(0);
  }

  /** UTF-8 text without a terminator. */
  utf8(value: string): this {
    this.#reserve(Buffer.byteLength(value));
    this.#length += this.#buffer.write(value, this.#length);
    return this;
  }

  bytes(value: Uint8Array): this {
    this.#reserve(value.length);
    this.#buffer.set(value, this.#length);
    this.#length += value.length;
    return this;
  }

  /** A copy of everything written; the writer is empty afterwards. */
  take(): Buffer {
    assert(this.#lengthAt === -1, 'a message is still open');
    const taken = Buffer.allocUnsafeSlow(this.#length);
    this.#buffer.copy(taken, 0, 0, this.#length);
    this.reset();
    return taken;
  }

  /** Forgets everything written, an open message too. */
  reset(): void {
    this.#length = 0;
    this.#lengthAt = -1;
    if (this.#buffer.length > KEPT_BYTES_MAX) this.#buffer = Buffer.allocUnsafeSlow(CAPACITY_BYTES);
  }

  #reserve(byteCount: number): void {
    const needed = this.#length + byteCount;
    if (needed <= this.#buffer.length) return;
    if (needed > MESSAGE_LENGTH_MAX) {
      throw new PgError({ code: SqlState.ProgramLimitExceeded, message: 'a message is too long' });
    }
    const grown = Buffer.allocUnsafeSlow(Math.max(needed, this.#buffer.length * 2));
    this.#buffer.copy(grown, 0, 0, this.#length);
    this.#buffer = grown;
  }
}

function message(type: number, write?: (writer: MessageWriter) => void): Buffer {
  const writer = new MessageWriter(64).begin(type);
  write?.(writer);
  return writer.end().take();
}

// ---- backend messages ----

/** What an ErrorResponse or a NoticeResponse says; a PgError is one. */
export interface PgErrorLike {
  readonly code: string;
  readonly message: string;
  readonly severity?: string | undefined;
  readonly detail?: string | undefined;
  readonly hint?: string | undefined;
}

export interface SeverityOption {
  /** Wins over the error's own severity. */
  severity?: string;
}

/** ErrorResponse with the fields S, V, C, M and, when given, D and H. Severity: option, error's own, 'ERROR'. */
export function encodeErrorResponse(error: PgErrorLike, options?: SeverityOption): Buffer {
  return fields(BackendMessage.ErrorResponse, error, options?.severity ?? error.severity ?? 'ERROR');
}

/** NoticeResponse, same fields. Severity: option, notice's own, 'NOTICE'. */
export function encodeNotice(notice: PgErrorLike, options?: SeverityOption): Buffer {
  return fields(BackendMessage.NoticeResponse, notice, options?.severity ?? notice.severity ?? 'NOTICE');
}

function fields(type: number, error: PgErrorLike, severity: string): Buffer {
  return message(type, (writer) => {
    const field = (letter: string, text: string | undefined): void => {
      if (text === undefined) return;
      // An error must come out whatever its text is: a NUL becomes visible instead of throwing.
      writer.utf8(letter).cstring(text.replaceAll('\0', '\ufffd'));
    };
    field('S', severity);
    field('V', severity);
    field('C', error.code);
    field('M', error.message);
    field('D', error.detail);
    field('H', error.hint);
    writer.int8(0);
  });
}

export function encodeParameterStatus(name: string, value: string): Buffer {
  return message(BackendMessage.ParameterStatus, (writer) => writer.cstring(name).cstring(value));
}

/** The key of later CancelRequests; `secret` has 4 bytes in protocol 3.0, 4 to 256 since 3.2. */
export function encodeBackendKeyData(processId: number, secret: Uint8Array): Buffer {
  assertSecret(secret);
  return message(BackendMessage.BackendKeyData, (writer) => writer.int32(processId).bytes(secret));
}

export function encodeReadyForQuery(status: TxStatus): Buffer {
  return message(BackendMessage.ReadyForQuery, (writer) => writer.int8(status));
}

export function encodeAuthenticationOk(): Buffer {
  return authentication(AuthenticationRequest.Ok);
}

export function encodeAuthenticationCleartextPassword(): Buffer {
  return authentication(AuthenticationRequest.CleartextPassword);
}

/** `salt` has four bytes. */
export function encodeAuthenticationMD5Password(salt: Uint8Array): Buffer {
  assert(salt.length === 4, 'an MD5 salt has four bytes');
  return authentication(AuthenticationRequest.MD5Password, (writer) => writer.bytes(salt));
}

/** Offers these SASL mechanisms, the preferred one first. */
export function encodeAuthenticationSASL(mechanisms: readonly string[]): Buffer {
  return authentication(AuthenticationRequest.SASL, (writer) => {
    for (const mechanism of mechanisms) writer.cstring(mechanism);
    writer.int8(0);
  });
}

export function encodeAuthenticationSASLContinue(data: string | Uint8Array): Buffer {
  return authentication(AuthenticationRequest.SASLContinue, (writer) => text(writer, data));
}

export function encodeAuthenticationSASLFinal(data: string | Uint8Array): Buffer {
  return authentication(AuthenticationRequest.SASLFinal, (writer) => text(writer, data));
}

function authentication(request: AuthenticationRequest, write?: (writer: MessageWriter) => void): Buffer {
  return message(BackendMessage.AuthenticationRequest, (writer) => {
    writer.int32(request);
    write?.(writer);
  });
}

function text(writer: MessageWriter, value: string | Uint8Array): void {
  if (typeof value === 'string') writer.utf8(value);
  else writer.bytes(value);
}

/** A column of our own results. Without the optional parts: no table, no modifier, text format. */
export interface ColumnDescription {
  readonly name: string;
  readonly typeOid: number;
  /** Bytes of the type, negative for a variable width (default -1). */
  readonly typeSize?: number;
  readonly typeModifier?: number;
  readonly tableOid?: number;
  readonly columnNumber?: number;
  /** 0 text (default), 1 binary. */
  readonly format?: 0 | 1;
}

export function encodeRowDescription(columns: readonly ColumnDescription[]): Buffer {
  return message(BackendMessage.RowDescription, (writer) => {
    writer.int16(columns.length);
    for (const column of columns) {
      writer.cstring(column.name);
      writer.int32(column.tableOid ?? 0).int16(column.columnNumber ?? 0);
      writer.int32(column.typeOid).int16(column.typeSize ?? -1);
      writer.int32(column.typeModifier ?? -1).int16(column.format ?? 0);
    }
  });
}

export function encodeDataRow(values: readonly (string | Uint8Array | null)[]): Buffer {
  return message(BackendMessage.DataRow, (writer) => {
    writer.int16(values.length);
    for (const value of values) sized(writer, value);
  });
}

function sized(writer: MessageWriter, value: string | Uint8Array | null): void {
  if (value === null) {
    writer.int32(-1);
    return;
  }
  writer.int32(typeof value === 'string' ? Buffer.byteLength(value) : value.length);
  text(writer, value);
}

/** `tag` as PostgreSQL writes it: `SELECT 3`, `INSERT 0 1`, `BEGIN`. */
export function encodeCommandComplete(tag: string): Buffer {
  return message(BackendMessage.CommandComplete, (writer) => writer.cstring(tag));
}

/**
 * Tells a client which protocol it gets and which of its `_pq_.` options are unknown. `newestProtocol` is the
 * whole version number (`ProtocolVersion.V3_2`), as PostgreSQL sends it, although the manual says "minor".
 */
export function encodeNegotiateProtocolVersion(
  newestProtocol: number,
  unknownOptions: readonly string[],
): Buffer {
  assert(newestProtocol >>> 16 === 3, 'the whole version number is sent, not the minor one alone');
  return message(BackendMessage.NegotiateProtocolVersion, (writer) => {
    writer.int32(newestProtocol).int32(unknownOptions.length);
    for (const option of unknownOptions) writer.cstring(option);
  });
}

/** Constant frames; never written to. */
export const PARSE_COMPLETE: Buffer = message(BackendMessage.ParseComplete);
export const BIND_COMPLETE: Buffer = message(BackendMessage.BindComplete);
export const CLOSE_COMPLETE: Buffer = message(BackendMessage.CloseComplete);
export const NO_DATA: Buffer = message(BackendMessage.NoData);
export const EMPTY_QUERY_RESPONSE: Buffer = message(BackendMessage.EmptyQueryResponse);

// ---- frontend messages ----

/** A startup packet: parameter names and values, in order. */
export function encodeStartup(
  parameters: Readonly<Record<string, string>>,
  protocol: number = ProtocolVersion.V3_0,
): Buffer {
  const writer = new MessageWriter(256).begin(null).int32(protocol);
  for (const [name, value] of Object.entries(parameters)) {
    // An empty name is the packet's own terminator: what follows it would be lost.
    assert(name !== '', 'a startup parameter needs a name');
    writer.cstring(name).cstring(value);
  }
  return writer.int8(0).end().take();
}

/** Query, as pg-protocol writes it. A NUL in any of these texts is PgError 22023, never a message cut short. */
export function encodeQuery(sql: string): Buffer {
  return serialize.query(withoutNul(sql));
}

/** Parse; `name` '' is the unnamed statement, a missing or zero type OID is left to the server. */
export function encodeParse(name: string, sql: string, parameterTypes: readonly number[] = []): Buffer {
  return serialize.parse({ name: withoutNul(name), text: withoutNul(sql), types: [...parameterTypes] });
}

/** Bind with every value and every result column in text format. */
export function encodeBind(portal: string, statement: string, values: readonly (string | null)[]): Buffer {
  return serialize.bind({
    portal: withoutNul(portal),
    statement: withoutNul(statement),
    values: [...values],
  });
}

export function encodeDescribe(target: 'S' | 'P', name: string): Buffer {
  return serialize.describe({ type: target, name: withoutNul(name) });
}

/** Execute; `maxRows` 0 means all rows. The bytes may be shared: never write to them. */
export function encodeExecute(portal: string, maxRows = 0): Buffer {
  return serialize.execute({ portal: withoutNul(portal), rows: maxRows });
}

export function encodeClose(target: 'S' | 'P', name: string): Buffer {
  return serialize.close({ type: target, name: withoutNul(name) });
}

export function encodePassword(password: string): Buffer {
  return message(FrontendMessage.PasswordMessage, (writer) => writer.cstring(password));
}

/** `data` null means "no initial response" (length -1), which is not the same as an empty one. */
export function encodeSASLInitialResponse(mechanism: string, data: string | Uint8Array | null): Buffer {
  return message(FrontendMessage.SASLInitialResponse, (writer) => sized(writer.cstring(mechanism), data));
}

export function encodeSASLResponse(data: string | Uint8Array): Buffer {
  return message(FrontendMessage.SASLResponse, (writer) => text(writer, data));
}

export function encodeCopyFail(reason: string): Buffer {
  return message(FrontendMessage.CopyFail, (writer) => writer.cstring(reason));
}

/** The whole of a cancel connection. `secret` as BackendKeyData gave it, 4 to 256 bytes. */
export function encodeCancelRequest(processId: number, secret: Uint8Array): Buffer {
  assertSecret(secret);
  const writer = new MessageWriter(16).begin(null).int32(RequestCode.CancelRequest);
  return writer.int32(processId).bytes(secret).end().take();
}

/** PostgreSQL ends a string at its first NUL: one inside would silently cut it. */
function withoutNul(value: string): string {
  if (!value.includes('\0')) return value;
  throw new PgError({ code: SqlState.InvalidParameterValue, message: 'a string must not hold a NUL byte' });
}

function assertSecret(secret: Uint8Array): void {
  const { length } = secret;
  assert(length >= SECRET_KEY_BYTES_MIN && length <= SECRET_KEY_BYTES_MAX, 'a secret key has 4 to 256 bytes');
}

export const SYNC: Buffer = message(FrontendMessage.Sync);
export const FLUSH: Buffer = message(FrontendMessage.Flush);
export const TERMINATE: Buffer = message(FrontendMessage.Terminate);
export const COPY_DONE: Buffer = message(FrontendMessage.CopyDone);
export const SSL_REQUEST: Buffer = new MessageWriter(16)
  .begin(null)
  .int32(RequestCode.SSLRequest)
  .end()
  .take();
