/**
 * The server's side of OAUTHBEARER (RFC 7628; PostgreSQL's src/backend/libpq/auth-oauth.c): the client's one message
 * in, a bearer token or a request for discovery out, and the words that a refusal begins with. It has no socket and
 * does not know what a token is worth.
 */
import { PgError, SqlState } from '../protocol/pg-error.ts';

/** The one mechanism that clients are offered where tokens come by SASL. */
export const OAUTHBEARER = 'OAUTHBEARER';
/** Declared length of a message of the exchange, itself included (PG_MAX_AUTH_TOKEN_LENGTH). */
export const OAUTH_MESSAGE_BYTES_MAX = 65_535;

const KVSEP = '\u0001';
const VALUE = /^[\x21-\x7e \t\r\n]*$/;
/** RFC 6750 section 2.1: the scheme in any case (RFC 7628 section 4), spaces, then the token. */
const CREDENTIALS = /^bearer +([A-Za-z0-9\-._~+/]+=*)$/i;

/**
 * Reads the client's initial response and returns its `auth` value; '' asks for discovery. Throws FATAL PgError 08P01
 * for a message that breaks the grammar, 0A000 for an authorization identity. No error quotes more than one byte,
 * and none of a value.
 */
export function decodeOauthResponse(message: Buffer): string {
  if (message.length === 0) throw malformed('The message is empty.');
  if (message.includes(0)) throw malformed('Message length does not match input length.');
  const text = message.toString('latin1');
  let at = 0;
  const flag = text[at++];
  if (flag === 'p') {
    throw malformed(
      'The server does not support channel binding for OAuth, but the client message includes channel binding data.',
    );
  }
  if (flag !== 'n' && flag !== 'y') {
    throw malformed(`Unexpected channel-binding flag "${printable(flag)}".`);
  }
  if (text[at] !== ',') throw malformed(`Comma expected, but found character "${printable(text[at])}".`);
  at++;
  if (text[at] === 'a') throw unsupportedIdentity();
  if (text[at] !== ',') {
    throw malformed(`Unexpected attribute "${printable(text[at])}" in client-first-message.`);
  }
  at++;
  if (text[at] !== KVSEP) {
    throw malformed(`Key-value separator expected, but found character "${printable(text[at])}".`);
  }
  return readAuth(text, at + 1);
}

/** The token of an `auth` value that is not empty; null for another scheme or a token of other characters. */
export function bearerToken(auth: string): string | null {
  return CREDENTIALS.exec(auth)?.[1] ?? null;
}

/** Whether the client's answer to a refusal is the one that is allowed, a lone separator. */
export function isRefusalAcknowledged(message: Buffer): boolean {
  return message.length === 1 && message[0] === KVSEP.charCodeAt(0);
}

/** For a client that answers a refusal by anything else. */
export function notAcknowledged(): PgError {
  return malformed('Client did not send a kvsep response.');
}

/**
 * What a refused client is told (RFC 7628 section 3.2.2), in the very bytes of PostgreSQL: libpq takes the address
 * and the scope from it. An issuer that names a well-known document already is sent as it is.
 */
export function encodeOauthRefusal(issuer: string, scope: string): string {
  const document = issuer.includes('/.well-known/') ? issuer : `${issuer}/.well-known/openid-configuration`;
  const [address, wanted] = [JSON.stringify(document), JSON.stringify(scope)];
  return `{ "status": "invalid_token", "openid-configuration": ${address}, "scope": ${wanted} }`;
}

/** The pairs behind the GS2 header; `auth` must be among them, and the list must be ended. */
function readAuth(text: string, start: number): string {
  let auth: string | null = null;
  let at = start;
  while (at < text.length) {
    const end = text.indexOf(KVSEP, at);
    if (end === -1) throw malformed('Message contains an unterminated key/value pair.');
    if (end === at) {
      if (auth === null) throw malformed('Message does not contain an auth value.');
      if (end + 1 < text.length) {
        throw malformed('Message contains additional data after the final terminator.');
      }
      return auth;
    }
    const pair = text.slice(at, end);
    const equals = pair.indexOf('=');
    if (equals === -1) throw malformed('Message contains a key without a value.');
    const [key, value] = [pair.slice(0, equals), pair.slice(equals + 1)];
    if (key === '') throw malformed('Message contains an empty key name.');
    if (!/^[A-Za-z]+$/.test(key)) throw malformed('Message contains an invalid key name.');
    if (!VALUE.test(value)) throw malformed('Message contains an invalid value.');
    if (key === 'auth') {
      if (auth !== null) throw malformed('Message contains multiple auth values.');
      auth = value;
    }
    at = end + 1;
  }
  throw malformed('Message did not contain a final terminator.');
}

/** One byte for a message: itself where it is visible ASCII, else in hex; past the end PostgreSQL sees a NUL. */
function printable(character: string | undefined): string {
  const code = character?.charCodeAt(0) ?? 0;
  return code >= 0x21 && code <= 0x7e ? `'${character}'` : `0x${code.toString(16).padStart(2, '0')}`;
}

function malformed(detail: string): PgError {
  return new PgError({
    code: SqlState.ProtocolViolation,
    severity: 'FATAL',
    message: 'malformed OAUTHBEARER message',
    detail,
    reason: 'oauth_malformed',
  });
}

function unsupportedIdentity(): PgError {
  return new PgError({
    code: SqlState.FeatureNotSupported,
    severity: 'FATAL',
    message: 'client uses authorization identity, but it is not supported',
    reason: 'oauth_unsupported',
  });
}
