/**
 * The form of a token, before any key or network is touched: size, three canonical base64url parts, JSON objects
 * without duplicate members, and a header that asks for nothing odd (RFC 7515 sections 3 and 4, RFC 8725). Pure
 * and synchronous; whether the token is true is not known here.
 */
import { isUtf8 } from 'node:buffer';
import { TokenRejected } from './token-rejected.ts';

/** A token of this many bytes is read, one byte more is not. */
export const TOKEN_BYTES_MAX = 16_384;
/** The decoded header; room for an `x5c` chain that is ignored anyway. */
export const HEADER_BYTES_MAX = 8_192;
/** Characters of a `kid`; longer ones match no key. */
export const KEY_ID_CHARS_MAX = 256;

const HEADER_DEPTH_MAX = 4;
const PAYLOAD_DEPTH_MAX = 32;

/**
 * Members that change how the token is to be read, and which we do not read. `enc` marks an encrypted token.
 * `jku`, `x5u`, `x5c`, `jwk` and `x5t` are ignored: keys come from the configuration alone.
 */
const REFUSED_HEADER_MEMBERS: readonly string[] = ['zip', 'cty', 'b64', 'crit', 'enc'];

export interface TokenHeader {
  readonly alg: string;
  readonly kid: string | null;
  /** As it stands there; `isTokenType` compares it. */
  readonly typ?: string | null;
}

/** A token of the right form. Nothing in it is verified. */
export interface TokenForm {
  readonly header: TokenHeader;
  readonly claims: Readonly<Record<string, unknown>>;
  /** The claims as they were written: JSON. */
  readonly payload: string;
}

/**
 * Whether a secret looks like a token: base64url that decodes to a JSON object, and a dot behind it. That takes in
 * tokens that were damaged, padded or sent with `Bearer` in front: they too must never be compared with a password.
 * Cheap; throws nothing.
 */
export function isTokenShaped(secret: string): boolean {
  const header = /^\s*(?:bearer\s+)?([\w-]+)={0,2}\./i.exec(secret.slice(0, TOKEN_BYTES_MAX))?.[1];
  if (header === undefined) return false;
  try {
    return isRecord(JSON.parse(Buffer.from(header, 'base64url').toString()));
  } catch {
    return false;
  }
}

/**
 * Compares `typ` as RFC 7515 section 4.1.9 and RFC 9068 section 4 want it: without regard to case, and with
 * `application/` in front or not.
 */
export function isTokenType(typ: string | null | undefined, wanted: string): boolean {
  return typ !== null && typ !== undefined && bareType(typ) === bareType(wanted);
}

function bareType(typ: string): string {
  return typ.toLowerCase().replace(/^application\//, '');
}

/** Reads the form, or throws `TokenRejected`. `algorithms` is the allow-list; it is checked here, before any I/O. */
export function decodeTokenForm(token: string, algorithms: readonly string[]): TokenForm {
  if (token === '') throw new TokenRejected('empty_token');
  if (token.length > TOKEN_BYTES_MAX || Buffer.byteLength(token) > TOKEN_BYTES_MAX) {
    throw new TokenRejected('too_large');
  }
  if (!token.includes('.')) throw new TokenRejected('not_jwt');
  const parts = token.split('.', 5);
  if (parts.length !== 3) throw new TokenRejected('malformed');
  const [headerBytes, claimsBytes] = parts.map(decodePart) as [Buffer, Buffer, Buffer];
  if (headerBytes.length > HEADER_BYTES_MAX) throw new TokenRejected('header_too_large');
  const header = decodeHeader(decodeJsonObject(headerBytes, HEADER_DEPTH_MAX).value, algorithms);
  try {
    const { value, text } = decodeJsonObject(claimsBytes, PAYLOAD_DEPTH_MAX);
    return { header, claims: value, payload: text };
  } catch (error) {
    throw error instanceof TokenRejected ? error.describe(header) : error;
  }
}

function decodePart(part: string): Buffer {
  if (part === '') throw new TokenRejected('malformed');
  const bytes = Buffer.from(part, 'base64url');
  // Encoding again is the one test that catches padding, white space, `+` and `/`, and a last character whose
  // unused bits are set: the same token must not have a second spelling.
  if (bytes.toString('base64url') !== part) throw new TokenRejected('non_canonical');
  return bytes;
}

function decodeHeader(header: Readonly<Record<string, unknown>>, algorithms: readonly string[]): TokenHeader {
  const alg = Object.hasOwn(header, 'alg') ? header['alg'] : undefined;
  if (typeof alg !== 'string' || !algorithms.includes(alg)) throw new TokenRejected('alg_not_allowed');
  const kid = Object.hasOwn(header, 'kid') ? header['kid'] : null;
  if (REFUSED_HEADER_MEMBERS.some((name) => Object.hasOwn(header, name))) {
    throw new TokenRejected('unexpected_header').describe({ alg, kid: null });
  }
  if (Object.hasOwn(header, 'typ') && typeof header['typ'] !== 'string') {
    throw new TokenRejected('unexpected_header').describe({ alg, kid: null });
  }
  if (kid !== null && typeof kid !== 'string') {
    throw new TokenRejected('unexpected_header').describe({ alg, kid: null });
  }
  if (kid !== null && kid.length > KEY_ID_CHARS_MAX) {
    throw new TokenRejected('unknown_kid').describe({ alg, kid });
  }
  return { alg, kid, typ: typeof header['typ'] === 'string' ? header['typ'] : null };
}

function decodeJsonObject(
  bytes: Buffer,
  depthMax: number,
): { value: Readonly<Record<string, unknown>>; text: string } {
  if (!isUtf8(bytes)) throw new TokenRejected('malformed');
  const text = bytes.toString('utf8');
  // The scan goes first: it does not recurse, and it bounds what the parser and everyone after it will meet.
  const duplicate = scanMembers(text, depthMax);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new TokenRejected('malformed');
  }
  if (!isRecord(value)) throw new TokenRejected('malformed');
  if (duplicate) throw new TokenRejected('duplicate_member');
  return { value, text };
}

/** True for a JSON object; arrays and null are none. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Walks JSON text without building it. Returns true when an object names a member twice: JSON.parse keeps the
 * last one, other readers the first, and a token must mean the same to all (RFC 7519 section 4). Throws `too_deep`
 * past `depthMax` levels. Text that is not JSON gives any answer; the parser judges it afterwards.
 */
function scanMembers(text: string, depthMax: number): boolean {
  const open: Set<string>[] = [];
  let duplicate = false;
  for (let index = 0; index < text.length; index++) {
    const character = text[index];
    if (character === '{' || character === '[') {
      if (open.length === depthMax) throw new TokenRejected('too_deep');
      open.push(new Set());
    } else if (character === '}' || character === ']') {
      open.pop();
    } else if (character === '"') {
      const end = endOfString(text, index);
      const members = open.at(-1);
      // In JSON only a member name is followed by a colon.
      if (members !== undefined && isBeforeColon(text, end)) {
        const name = decodeName(text.slice(index, end));
        if (members.has(name)) duplicate = true;
        members.add(name);
      }
      index = end - 1;
    }
  }
  return duplicate;
}

/** The index behind the closing quote of the string that opens at `start`, or the end of the text. */
function endOfString(text: string, start: number): number {
  for (let index = start + 1; index < text.length; index++) {
    if (text[index] === '\\') index++;
    else if (text[index] === '"') return index + 1;
  }
  return text.length;
}

function isBeforeColon(text: string, from: number): boolean {
  let index = from;
  while (text[index] === ' ' || text[index] === '\t' || text[index] === '\n' || text[index] === '\r') index++;
  return text[index] === ':';
}

/** The name itself: an escape in the second spelling must not hide the repetition. */
function decodeName(quoted: string): string {
  try {
    return String(JSON.parse(quoted));
  } catch {
    return quoted;
  }
}
