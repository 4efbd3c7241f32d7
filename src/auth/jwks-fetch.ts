/**
 * One bounded question over HTTP(S): a deadline, 64 KiB after decompression, no redirects, a private CA if there is
 * one; and the way from an issuer to its key set by discovery. Knows what a key set's address may be, not what is in it.
 */
import { type IncomingMessage, request as requestHttp } from 'node:http';
import { request as requestHttps } from 'node:https';
import { createBrotliDecompress, createUnzip } from 'node:zlib';
import { JwksFault } from './jwks-document.ts';
import { isRecord } from './token-form.ts';

/** Body of an answer, after decompression. */
export const JWKS_BYTES_MAX = 65_536;
/** From the first byte of the first request to the last of the last answer. */
export const JWKS_TIMEOUT_MS = 5_000;

export type AllowHttp = 'loopback' | 'never' | 'always';

/** A text, and for how long the sender calls it fresh; null when it does not say. */
export interface FetchedText {
  readonly text: string;
  readonly maxAgeMs: number | null;
}

/** Fetches a key set before `signal` aborts, or throws. */
export type FetchJwks = (signal: AbortSignal) => Promise<FetchedText>;

export interface FetchOptions {
  allowHttp: AllowHttp;
  /** Certificates (PEM) to trust instead of the system's. */
  ca: string | null;
}

/** Fetches from one address. Throws `RangeError` for one that `findJwksUrlFault` refuses. */
export function fetchFromUrl(url: string, options: FetchOptions): FetchJwks {
  const fault = findJwksUrlFault(url, options.allowHttp);
  if (fault !== null) throw new RangeError(fault);
  return (signal) => fetchText(new URL(url), options.ca, signal);
}

export interface DiscoveryOptions extends FetchOptions {
  issuer: string;
  /** Origins besides the issuer's own at which the key set may be. */
  origins: readonly string[];
}

/**
 * Fetches the issuer's document (OpenID Connect Discovery 1.0 section 4), then the key set that it names. The document
 * must name the very issuer, and a key set on an origin that was agreed on: it may not send us anywhere else.
 */
export function fetchByDiscovery(options: DiscoveryOptions): FetchJwks {
  const { issuer, allowHttp, ca } = options;
  const fault = findJwksUrlFault(issuer, allowHttp);
  if (fault !== null) throw new RangeError(fault.replace('the JWKS address', 'an issuer with discovery'));
  if (/[?#]/.test(issuer))
    throw new RangeError('an issuer with discovery must not have a query or a fragment');
  const allowed = new Set([new URL(issuer).origin, ...options.origins.map(toOrigin)]);
  const address = new URL(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`);
  return async (signal) => {
    const { text } = await fetchText(address, ca, signal);
    return fetchText(decodeDiscovery(text, issuer, allowed, allowHttp), ca, signal);
  };
}

/** The address of the key set in a discovery document, or `JwksFault`. No text of the document is in the message. */
function decodeDiscovery(
  text: string,
  issuer: string,
  allowed: ReadonlySet<string>,
  allowHttp: AllowHttp,
): URL {
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    throw new JwksFault('the discovery document is not JSON');
  }
  if (!isRecord(document) || document['issuer'] !== issuer) {
    throw new JwksFault('the discovery document is not that of the issuer: its issuer differs');
  }
  const address = document['jwks_uri'];
  if (typeof address !== 'string' || findJwksUrlFault(address, allowHttp) !== null) {
    throw new JwksFault('the jwks_uri of the discovery document is missing or not allowed');
  }
  const url = new URL(address);
  if (!allowed.has(url.origin)) {
    throw new JwksFault('the jwks_uri of the discovery document is on another origin (jwks_origins)');
  }
  return url;
}

function toOrigin(origin: string): string {
  try {
    return new URL(origin).origin;
  } catch {
    throw new RangeError('jwks_origins names something that is no origin');
  }
}

/** GET with no redirects; anything but 200 and a UTF-8 body within bounds is a `JwksFault`. */
function fetchText(url: URL, ca: string | null, signal: AbortSignal): Promise<FetchedText> {
  return new Promise((resolve, reject) => {
    const options = {
      // A connection of its own: nothing is reused, so nothing lingers.
      agent: false as const,
      signal,
      headers: { accept: 'application/json, application/jwk-set+json', 'accept-encoding': 'identity' },
    };
    const request =
      url.protocol === 'https:'
        ? requestHttps(url, { ...options, ...(ca !== null && { ca }) })
        : requestHttp(url, options);
    request.on('error', reject);
    request.on('response', (response) => {
      // An answer that is given up for its status ends with an error that is nobody's.
      response.on('error', () => undefined);
      readBoundedText(response)
        .then(resolve, reject)
        .finally(() => request.destroy());
    });
    request.end();
  });
}

/** Counts what comes out of decompression, so neither a long body nor a small bomb is held. */
async function readBoundedText(response: IncomingMessage): Promise<FetchedText> {
  if (response.statusCode !== 200) {
    throw new JwksFault(`the endpoint answered with status ${response.statusCode}`);
  }
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of decompressed(response)) {
    length += (chunk as Buffer).length;
    if (length > JWKS_BYTES_MAX) throw new JwksFault('the answer is longer than 64 KiB');
    chunks.push(chunk as Buffer);
  }
  // A connection that breaks off would otherwise pass for an end where no length was announced.
  if (!response.complete) throw new JwksFault('the answer broke off');
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks));
    return { text, maxAgeMs: maxAgeOf(response.headers['cache-control']) };
  } catch {
    throw new JwksFault('the answer is not UTF-8');
  }
}

/** Plain was asked for; some servers compress all the same. */
function decompressed(response: IncomingMessage): AsyncIterable<unknown> {
  const encoding = (response.headers['content-encoding'] ?? 'identity').trim().toLowerCase();
  if (encoding === 'identity' || encoding === '') return response;
  const isZlib = encoding === 'gzip' || encoding === 'x-gzip' || encoding === 'deflate';
  if (!isZlib && encoding !== 'br') throw new JwksFault('the answer is compressed in an unknown way');
  const unpacked = isZlib ? createUnzip() : createBrotliDecompress();
  response.on('error', (error) => unpacked.destroy(error));
  unpacked.on('close', () => response.destroy());
  return response.pipe(unpacked);
}

/** `max-age` (RFC 9111 section 5.2.2.1). */
function maxAgeOf(cacheControl: string | undefined): number | null {
  const seconds = /(?:^|[\s,])max-age="?(\d{1,9})"?(?:$|[\s,])/i.exec(cacheControl ?? '')?.[1];
  return seconds === undefined ? null : Number(seconds) * 1_000;
}

/** What went wrong, in words of our own: those of the HTTP client can quote what the peer sent. */
export function describeFetchError(error: unknown): string {
  if (error instanceof JwksFault) return error.message;
  const codes = [error, (error as { cause?: unknown })?.cause].map((one) =>
    one instanceof Error ? (one as NodeJS.ErrnoException).code : undefined,
  );
  const code = codes.find((one) => typeof one === 'string' && /^[A-Z0-9_]{1,64}$/.test(one));
  return code === undefined ? 'the endpoint cannot be reached' : `the endpoint cannot be reached (${code})`;
}

/**
 * What is wrong with a JWKS address, or null. `http:` is refused unless `allowHttp` is `always`, or `loopback` and
 * the host is 127.0.0.0/8, ::1 or localhost.
 */
export function findJwksUrlFault(url: string, allowHttp: AllowHttp): string | null {
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    return 'the JWKS address is not a URL';
  }
  if (parsed.username !== '' || parsed.password !== '') return 'the JWKS address must not hold a password';
  if (parsed.protocol === 'https:') return null;
  if (parsed.protocol !== 'http:') return 'the JWKS address must begin with https://';
  if (allowHttp === 'always') return null;
  if (allowHttp === 'loopback' && isLoopbackHost(parsed.hostname)) return null;
  return 'the JWKS address must begin with https:// (allow_http_issuers)';
}

/** For a host name as `URL` writes it: every spelling of an IPv4 address has become four decimal numbers. */
function isLoopbackHost(hostname: string): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}
