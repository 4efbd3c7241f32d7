/**
 * Bytes → meaning for the first packet of a connection, the only one without a type byte: SSLRequest,
 * GSSENCRequest, CancelRequest or StartupMessage (PostgreSQL manual, "Start-up", "Message Formats"). What a client
 * may not set before it is known is refused here. It knows no socket and no configuration.
 */
import {
  ProtocolVersion,
  RequestCode,
  SECRET_KEY_BYTES_MAX,
  SECRET_KEY_BYTES_MIN,
  STARTUP_PACKET_BYTES_MAX,
} from './codes.ts';
import { MessageReader } from './message-reader.ts';
import { PgError, SqlState } from './pg-error.ts';
import { parseStartupOptions } from './startup-options.ts';

/** Length and code: the shortest first packet there is. */
export const STARTUP_PACKET_BYTES_MIN = 8;
/** Bytes of a name that PostgreSQL keeps (NAMEDATALEN - 1). Longer ones are refused: a cut name is another's name. */
export const NAME_BYTES_MAX = 63;
/** The newest minor version of protocol 3 that is spoken here. */
export const PROTOCOL_MINOR_MAX: number = ProtocolVersion.V3_2 & 0xffff;

const PARAMETER_NAME = /^[A-Za-z_][\w.$]*$/;
/** Parameters that would change who the session is, or whose claims it carries. */
const PROTECTED_NAME =
  /^(?:role|session_authorization|is_superuser|request\.jwt(?:\..*)?|turnstile(?:\..*)?)$/;
/** The words for "an ordinary session" that `replication` may hold. */
const REPLICATION_OFF = new Set(['false', 'off', '0', 'no']);
/** Names that mean something to the startup packet itself and so are never settings. */
const OWN_NAMES = new Set(['user', 'database', 'options', 'replication']);

/** A StartupMessage whose parameters all passed. */
export interface StartupPacket {
  /** The minor version of protocol 3 to go on with: what was asked for, at most `PROTOCOL_MINOR_MAX`. */
  readonly protocolMinor: number;
  /** True when the client asked for a newer minor version, and so waits for NegotiateProtocolVersion. */
  readonly newerProtocolAsked: boolean;
  readonly user: string;
  /** The user's name when the client named none. */
  readonly database: string;
  /**
   * Settings by lower-cased name, those of `options` included; a parameter of its own beats one in `options`, as
   * in PostgreSQL.
   */
  readonly settings: Map<string, string>;
  /** `_pq_.` parameters as they were spelled; none of them is known here. */
  readonly unknownExtensions: string[];
}

export type FirstPacket =
  | { readonly kind: 'ssl' }
  | { readonly kind: 'gssenc' }
  /** `secret` is a copy. */
  | { readonly kind: 'cancel'; readonly processId: number; readonly secret: Buffer }
  | { readonly kind: 'startup'; readonly startup: StartupPacket };

/** Checks the declared length of a first packet, itself included: 8 to 10,000 bytes, else FATAL 08P01. */
export function checkStartupPacketLength(byteCount: number): void {
  if (byteCount < STARTUP_PACKET_BYTES_MIN || byteCount > STARTUP_PACKET_BYTES_MAX) {
    throw fatal(SqlState.ProtocolViolation, 'invalid length of startup packet', 'startup_length');
  }
}

/**
 * Decodes the whole first packet `buffer[start, end)`, its length included. Throws a FATAL PgError: 08P01 for
 * bytes that make no sense, 0A000 for another protocol, 28000 without a user or for replication, 42501 for a
 * protected parameter, 42704 for a parameter name that is none, 42601 for `options` that are none.
 */
export function decodeFirstPacket(buffer: Buffer, start: number, end: number): FirstPacket {
  const reader = new MessageReader('startup', buffer, start, end);
  const byteCount = reader.int32();
  checkStartupPacketLength(byteCount);
  if (byteCount !== end - start) throw reader.error('truncated');
  const code = reader.int32();
  switch (code) {
    case RequestCode.SSLRequest:
      reader.finish();
      return { kind: 'ssl' };
    case RequestCode.GSSENCRequest:
      reader.finish();
      return { kind: 'gssenc' };
    case RequestCode.CancelRequest:
      return decodeCancel(reader);
    default:
      return { kind: 'startup', startup: decodeStartup(reader, code >>> 0) };
  }
}

function decodeCancel(reader: MessageReader): FirstPacket {
  const processId = reader.int32();
  if (reader.remaining < SECRET_KEY_BYTES_MIN || reader.remaining > SECRET_KEY_BYTES_MAX) {
    throw reader.error('cancel key of a wrong length');
  }
  return { kind: 'cancel', processId, secret: Buffer.from(reader.rest()) };
}

function decodeStartup(reader: MessageReader, version: number): StartupPacket {
  const major = version >>> 16;
  const minor = version & 0xffff;
  if (major !== 3) {
    throw fatal(
      SqlState.FeatureNotSupported,
      `unsupported frontend protocol ${major}.${minor}: server supports 3.0 to 3.${PROTOCOL_MINOR_MAX}`,
      'unsupported_protocol',
    );
  }
  const given = readParameters(reader);
  refuseReplication(given.own.get('replication'));
  const user = given.own.get('user') ?? '';
  if (user === '') {
    throw fatal(
      SqlState.InvalidAuthorizationSpecification,
      'no PostgreSQL user name specified in startup packet',
      'no_user',
    );
  }
  const database = given.own.get('database') || user;
  checkName('user name', user, SqlState.InvalidAuthorizationSpecification);
  checkName('database name', database, SqlState.InvalidCatalogName);
  const settings = new Map<string, string>();
  for (const [name, value] of parseStartupOptions(given.own.get('options') ?? '')) {
    const lower = checkParameterName(name);
    if (OWN_NAMES.has(lower)) throw unrecognized(name);
    settings.set(lower, value);
  }
  for (const [name, value] of given.settings) settings.set(name, value);
  return {
    protocolMinor: Math.min(minor, PROTOCOL_MINOR_MAX),
    newerProtocolAsked: minor > PROTOCOL_MINOR_MAX,
    user,
    database,
    settings,
    unknownExtensions: given.extensions,
  };
}

interface GivenParameters {
  readonly own: Map<string, string>;
  readonly settings: Map<string, string>;
  readonly extensions: string[];
}

function readParameters(reader: MessageReader): GivenParameters {
  const given: GivenParameters = { own: new Map(), settings: new Map(), extensions: [] };
  const seen = new Set<string>();
  for (let name = reader.cstring(); name !== ''; name = reader.cstring()) {
    const value = reader.cstring();
    const lower = checkParameterName(name);
    if (seen.has(lower)) {
      throw fatal(
        SqlState.ProtocolViolation,
        `parameter "${name}" is given more than once in startup packet`,
        'duplicate_parameter',
      );
    }
    seen.add(lower);
    if (OWN_NAMES.has(name)) given.own.set(name, value);
    else if (lower.startsWith('_pq_.')) given.extensions.push(name);
    else given.settings.set(lower, value);
  }
  reader.finish();
  return given;
}

/** The parameter's name in lower case; throws 42704 when it is no name, 42501 when it may not be set. */
function checkParameterName(name: string): string {
  const lower = name.toLowerCase();
  if (!PARAMETER_NAME.test(name) || name.length > NAME_BYTES_MAX) {
    throw fatal(SqlState.UndefinedObject, 'invalid parameter name in startup packet', 'parameter_name');
  }
  if (PROTECTED_NAME.test(lower)) {
    throw fatal(
      SqlState.InsufficientPrivilege,
      `permission denied to set parameter "${lower}"`,
      'protected_parameter',
    );
  }
  // `USER` or `Options` means nothing to PostgreSQL; taking it for a setting would hide a misspelling.
  if (OWN_NAMES.has(lower) && !OWN_NAMES.has(name)) throw unrecognized(name);
  return lower;
}

function unrecognized(name: string): PgError {
  return fatal(SqlState.UndefinedObject, `unrecognized configuration parameter "${name}"`, 'parameter_name');
}

function checkName(what: string, name: string, code: string): void {
  if (Buffer.byteLength(name) > NAME_BYTES_MAX) {
    throw fatal(code, `${what} is longer than ${NAME_BYTES_MAX} bytes`, 'name_too_long');
  }
  // The decoder's mark for bytes that are no UTF-8: two different names would become one.
  if (name.includes('\ufffd')) throw fatal(code, `${what} is not valid UTF-8`, 'name_encoding');
}

function refuseReplication(value: string | undefined): void {
  if (value === undefined || REPLICATION_OFF.has(value.toLowerCase())) return;
  throw fatal(
    SqlState.InvalidAuthorizationSpecification,
    'replication connections are not permitted through this pooler',
    'replication',
  );
}

function fatal(code: string, message: string, reason: string): PgError {
  return new PgError({ code, message, severity: 'FATAL', reason });
}
