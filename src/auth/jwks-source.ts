/**
 * The keys of `jwt_jwks_url`. Owns the one request at a time, the age of the set, the back-off, and the rule for
 * unknown key ids; decides nothing about tokens. There is no timer: every step is taken when a token asks.
 *
 * Invariants: at most one request is under way; a set is swapped as a whole or not at all; a set older than its
 * time to live is used only while refreshing fails, and then for `JWKS_STALE_MAX_MS` at most.
 */
import { decodeJwks, type JwksDocument, JwksFault, type JwksKey, type SkippedJwk } from './jwks-document.ts';
import type { KeySource, VerificationKey } from './key-source.ts';
import type { TokenHeader } from './token-form.ts';
import { TokenRejected } from './token-rejected.ts';

/** Body of the answer, after decompression. */
export const JWKS_BYTES_MAX = 65_536;
/** From the first byte of the request to the last of the answer. */
export const JWKS_TIMEOUT_MS = 5_000;
/** How long past its time to live an old set still serves while the endpoint is away. */
export const JWKS_STALE_MAX_MS = 3_600_000;
/** Requests for the sake of a kid that the set lacks are at least this far apart. */
export const JWKS_UNKNOWN_KID_INTERVAL_MS = 30_000;
export const JWKS_BACKOFF_MIN_MS = 1_000;
export const JWKS_BACKOFF_MAX_MS = 60_000;
/** The share of its time to live after which a set is refreshed behind the logins' back. */
const REFRESH_AT = 0.8;
/** A time to live of 0 would make each login a request. */
const TTL_MIN_MS = 1_000;

export type AllowHttp = 'loopback' | 'never' | 'always';

/** What happened to the set, for the log and the metrics. No text of the answer is in it but escaped key ids. */
export type JwksEvent =
  | { type: 'loaded'; generation: number; keys: number; skipped: readonly SkippedJwk[] }
  | { type: 'fetch_failed'; message: string; retryInMs: number; serving: 'fresh' | 'stale' | 'nothing' };

export interface JwksSourceOptions {
  url: string;
  /** Whether an `http:` address is accepted. */
  allowHttp: AllowHttp;
  cacheTtlMs: number;
  onEvent?: (event: JwksEvent) => void;
  fetch?: typeof fetch;
  /** Milliseconds that only go forward; default `performance.now`. */
  clock?: () => number;
  /** Default `JWKS_TIMEOUT_MS`. */
  timeoutMs?: number;
}

export interface JwksStatus {
  /** 0 before the first set. */
  readonly generation: number;
  readonly usableKeys: number;
  /** Null before the first set. */
  readonly ageMs: number | null;
  /** Why the last request failed; null after a success. */
  readonly lastFault: string | null;
}

export class JwksSource implements KeySource {
  readonly #options: JwksSourceOptions;
  readonly #ttlMs: number;
  readonly #clock: () => number;
  #set: JwksDocument | null = null;
  #generation = 0;
  #loadedAtMs = 0;
  #failures = 0;
  #retryAtMs = 0;
  #lastFault: string | null = null;
  #unknownKidAtMs = Number.NEGATIVE_INFINITY;
  #request: Promise<void> | null = null;

  /** Throws `RangeError` for an address that `findJwksUrlFault` refuses. Sends nothing yet. */
  constructor(options: JwksSourceOptions) {
    const fault = findJwksUrlFault(options.url, options.allowHttp);
    if (fault !== null) throw new RangeError(fault);
    this.#options = options;
    this.#ttlMs = Math.max(TTL_MIN_MS, options.cacheTtlMs);
    this.#clock = options.clock ?? (() => performance.now());
  }

  /** Fetches the set before the first login needs it. Never throws: without a set logins are told to come back. */
  async warm(): Promise<void> {
    if (this.#set === null) await this.#tryRefresh();
  }

  status(): JwksStatus {
    return {
      generation: this.#generation,
      usableKeys: this.#set?.usable ?? 0,
      ageMs: this.#set === null ? null : this.#clock() - this.#loadedAtMs,
      lastFault: this.#lastFault,
    };
  }

  async keyFor(header: TokenHeader): Promise<VerificationKey> {
    if (header.kid === null) throw new TokenRejected('unknown_kid');
    let set = await this.#usableSet();
    if (!set.keys.has(header.kid)) set = await this.#setForUnknownKid(set, header.kid);
    const key = set.keys.get(header.kid);
    if (key === undefined) throw new TokenRejected('unknown_kid');
    if (key === null) throw new TokenRejected('ambiguous_key');
    if (!isBoundTo(key, header.alg)) throw new TokenRejected('key_alg_mismatch');
    return key;
  }

  async #usableSet(): Promise<JwksDocument> {
    const age = this.#clock() - this.#loadedAtMs;
    if (this.#set === null || age >= this.#ttlMs) await this.#tryRefresh();
    else if (age >= this.#ttlMs * REFRESH_AT) void this.#tryRefresh();
    const set = this.#set;
    if (set === null || this.#clock() - this.#loadedAtMs >= this.#ttlMs + JWKS_STALE_MAX_MS) {
      throw new TokenRejected('keys_unavailable', 'keys_unavailable');
    }
    return set;
  }

  /** The set again, fetched anew if that may be: the issuer can have changed its keys since. */
  async #setForUnknownKid(set: JwksDocument, kid: string): Promise<JwksDocument> {
    if (this.#request !== null) {
      await this.#request;
      if (this.#set?.keys.has(kid)) return this.#set;
    }
    const now = this.#clock();
    if (now - this.#unknownKidAtMs >= JWKS_UNKNOWN_KID_INTERVAL_MS) {
      this.#unknownKidAtMs = now;
      await this.#tryRefresh();
    } else if (this.#request !== null) {
      await this.#request;
    }
    return this.#set ?? set;
  }

  /** One request at a time, none during a back-off. Never rejects. */
  #tryRefresh(): Promise<void> {
    if (this.#request !== null) return this.#request;
    if (this.#clock() < this.#retryAtMs) return Promise.resolve();
    this.#request = this.#refresh().finally(() => {
      this.#request = null;
    });
    return this.#request;
  }

  async #refresh(): Promise<void> {
    // The age counts from the question, not from the answer: that is the latest time the set is known to be true.
    const askedAtMs = this.#clock();
    try {
      const set = decodeJwks(await this.#fetchText());
      this.#set = set;
      this.#generation++;
      this.#loadedAtMs = askedAtMs;
      this.#failures = 0;
      this.#retryAtMs = 0;
      this.#lastFault = null;
      const { usable, skipped } = set;
      this.#emit({ type: 'loaded', generation: this.#generation, keys: usable, skipped });
    } catch (error) {
      const message = error instanceof JwksFault ? error.message : describeFetchError(error);
      const backoff = Math.min(JWKS_BACKOFF_MAX_MS, JWKS_BACKOFF_MIN_MS * 2 ** Math.min(this.#failures, 10));
      this.#failures++;
      this.#retryAtMs = this.#clock() + backoff;
      this.#lastFault = message;
      this.#emit({ type: 'fetch_failed', message, retryInMs: backoff, serving: this.#serving() });
    }
  }

  #serving(): 'fresh' | 'stale' | 'nothing' {
    const age = this.#clock() - this.#loadedAtMs;
    if (this.#set === null || age >= this.#ttlMs + JWKS_STALE_MAX_MS) return 'nothing';
    return age >= this.#ttlMs ? 'stale' : 'fresh';
  }

  /** A listener that throws must not turn a good set into a failed one. */
  #emit(event: JwksEvent): void {
    try {
      this.#options.onEvent?.(event);
    } catch {
      this.#lastFault ??= 'the listener for key events failed';
    }
  }

  async #fetchText(): Promise<string> {
    const timeoutMs = this.#options.timeoutMs ?? JWKS_TIMEOUT_MS;
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), timeoutMs);
    try {
      const response = await (this.#options.fetch ?? fetch)(this.#options.url, {
        redirect: 'manual',
        signal: controller.signal,
        headers: { accept: 'application/json, application/jwk-set+json', 'accept-encoding': 'identity' },
      });
      if (response.status !== 200) {
        await response.body?.cancel();
        throw new JwksFault(`the endpoint answered with status ${response.status}`);
      }
      return await readBoundedText(response);
    } catch (error) {
      if (controller.signal.aborted) throw new JwksFault(`no whole answer within ${timeoutMs} ms`);
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Counts what comes out of decompression, so neither a long body nor a small bomb is held. */
async function readBoundedText(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  if (response.body !== null) {
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      length += value.length;
      if (length > JWKS_BYTES_MAX) {
        await reader.cancel();
        throw new JwksFault('the answer is longer than 64 KiB');
      }
      chunks.push(value);
    }
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks));
  } catch {
    throw new JwksFault('the answer is not UTF-8');
  }
}

/** A system's error code at most: messages of the HTTP client can quote what the peer sent. */
function describeFetchError(error: unknown): string {
  const cause = error instanceof Error ? error.cause : undefined;
  const code = cause instanceof Error ? (cause as NodeJS.ErrnoException).code : undefined;
  return code === undefined ? 'the endpoint cannot be reached' : `the endpoint cannot be reached (${code})`;
}

/** `EdDSA` and `Ed25519` are two names of one algorithm (RFC 9864). */
function isBoundTo(key: JwksKey, algorithm: string): boolean {
  if (key.algorithm === null || key.algorithm === algorithm) return true;
  return key.key.asymmetricKeyType === 'ed25519';
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
