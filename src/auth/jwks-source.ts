/**
 * The keys of an issuer that publishes them: by an address, or by discovery. Owns the one request at a time, the age
 * of the set, the back-off, and the rule for unknown key ids; decides nothing about tokens. There is no timer: a step
 * is taken when a token asks, or when `poll` is called.
 *
 * Invariants: at most one request is under way; a set is swapped as a whole or not at all; a set older than its
 * time to live is used only while refreshing fails, and then for `JWKS_STALE_MAX_MS` at most.
 */
import {
  decodeJwks,
  holdsKey,
  isSameJwks,
  type JwksDocument,
  JwksFault,
  pickKey,
  type SkippedJwk,
} from './jwks-document.ts';
import { describeFetchError, type FetchedText, type FetchJwks, JWKS_TIMEOUT_MS } from './jwks-fetch.ts';
import type { KeySource, VerificationKey } from './key-source.ts';
import type { TokenHeader } from './token-form.ts';
import { TokenRejected } from './token-rejected.ts';

/** How long past its time to live an old set still serves while the endpoint is away. */
export const JWKS_STALE_MAX_MS = 3_600_000;
/** Requests for the sake of a kid that the set lacks are at least this far apart. */
export const JWKS_UNKNOWN_KID_INTERVAL_MS = 30_000;
/**
 * Tokens of unknown kids that wait for a request. Anybody can make them, and a slow issuer lets them pile up: they must
 * not take the places of those whose key is at hand.
 */
export const JWKS_UNKNOWN_KID_WAITING_MAX = 256;
export const JWKS_BACKOFF_MIN_MS = 1_000;
export const JWKS_BACKOFF_MAX_MS = 60_000;
/** The share of its time to live, give or take, after which a set is refreshed behind the logins' back. */
const REFRESH_AT = 0.8;
/** Poolers that started together shall not ask together for ever. */
const REFRESH_SPREAD = 0.1;
/** A time to live of 0 would make each login a request. */
const TTL_MIN_MS = 1_000;
const TTL_MAX_MS = 86_400_000;
/** The least that an issuer's own max-age counts for; what the configuration says may be less. */
const MAX_AGE_MIN_MS = 60_000;

/**
 * What happened to the set, for the log and the metrics. No text of the answer is in it but escaped key ids. `changed`:
 * the usable keys are others than before; `skippedAnew`: those that are not usable are.
 */
export type JwksEvent =
  | {
      type: 'loaded';
      generation: number;
      keys: number;
      skipped: readonly SkippedJwk[];
      changed: boolean;
      skippedAnew: boolean;
    }
  | { type: 'fetch_failed'; message: string; retryInMs: number; serving: 'fresh' | 'stale' | 'nothing' };

export interface JwksSourceOptions {
  fetch: FetchJwks;
  /** Fresh for this long, 24 hours at most; an issuer's `max-age` can only shorten it. */
  cacheTtlMs: number;
  /** Accept a header without kid while the set has one key. */
  allowMissingKid?: boolean;
  onEvent?: ((event: JwksEvent) => void) | undefined;
  /** Milliseconds that only go forward; default `performance.now`. */
  clock?: () => number;
  /** Default `JWKS_TIMEOUT_MS`. */
  timeoutMs?: number;
  /** From 0 to 1; default `Math.random`. */
  random?: () => number;
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
  readonly #allowMissingKid: boolean;
  readonly #clock: () => number;
  readonly #random: () => number;
  #set: JwksDocument | null = null;
  #generation = 0;
  #ttlMs: number;
  #refreshAfterMs = 0;
  #loadedAtMs = 0;
  #failures = 0;
  #retryAtMs = 0;
  #lastFault: string | null = null;
  #skipped = '[]';
  #unknownKidAtMs = Number.NEGATIVE_INFINITY;
  #unknownKidsWaiting = 0;
  #request: Promise<void> | null = null;
  #aborter: AbortController | null = null;
  #stopped = false;

  /** Sends nothing yet. */
  constructor(options: JwksSourceOptions) {
    this.#options = options;
    this.#allowMissingKid = options.allowMissingKid ?? false;
    this.#clock = options.clock ?? (() => performance.now());
    this.#random = options.random ?? Math.random;
    this.#ttlMs = this.#timeToLive(null);
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
    if (header.kid === null && !this.#allowMissingKid) throw new TokenRejected('unknown_kid');
    let set = await this.#usableSet();
    if (header.kid !== null && !set.keys.has(header.kid)) {
      set = await this.#waitForKid(set, header.kid);
    }
    return pickKey(set, header, this.#allowMissingKid);
  }

  keyAtHand(header: TokenHeader): VerificationKey | null {
    const set = this.#set;
    if (set === null || header.kid === null || !set.keys.has(header.kid)) return null;
    const age = this.#clock() - this.#loadedAtMs;
    return age < Math.min(this.#refreshAfterMs, this.#ttlMs)
      ? pickKey(set, header, this.#allowMissingKid)
      : null;
  }

  holds(keyId: string | null, fingerprint: string | null): boolean {
    return this.#set === null || holdsKey(this.#set, keyId, fingerprint);
  }

  /** Refreshes the set when it is due, as if a token had asked. */
  async poll(): Promise<void> {
    if (this.#stopped) return;
    if (this.#set === null || this.#clock() - this.#loadedAtMs >= this.#refreshAfterMs) {
      await this.#tryRefresh();
    }
  }

  /** Ends a request under way; none is sent any more. */
  stop(): void {
    this.#stopped = true;
    this.#aborter?.abort();
  }

  async #usableSet(): Promise<JwksDocument> {
    const age = this.#clock() - this.#loadedAtMs;
    const isTooOld = this.#set === null || age >= this.#ttlMs + JWKS_STALE_MAX_MS;
    // Once refreshing has failed nobody waits for the next attempt, as long as there is a set to go on with.
    if (isTooOld || (age >= this.#ttlMs && this.#failures === 0)) await this.#tryRefresh();
    else if (age >= this.#refreshAfterMs) void this.#tryRefresh();
    const set = this.#set;
    if (set === null || this.#clock() - this.#loadedAtMs >= this.#ttlMs + JWKS_STALE_MAX_MS) {
      throw new TokenRejected('keys_unavailable', 'keys_unavailable');
    }
    return set;
  }

  async #waitForKid(set: JwksDocument, kid: string): Promise<JwksDocument> {
    if (this.#unknownKidsWaiting >= JWKS_UNKNOWN_KID_WAITING_MAX) {
      throw new TokenRejected('overloaded', 'overloaded');
    }
    this.#unknownKidsWaiting++;
    try {
      return await this.#setForUnknownKid(set, kid);
    } finally {
      this.#unknownKidsWaiting--;
    }
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
    if (this.#stopped || this.#clock() < this.#retryAtMs) return Promise.resolve();
    this.#request = this.#refresh().finally(() => {
      this.#request = null;
    });
    return this.#request;
  }

  async #refresh(): Promise<void> {
    // The age counts from the question, not from the answer: that is the latest time the set is known to be true.
    const askedAtMs = this.#clock();
    try {
      const { text, maxAgeMs } = await this.#fetch();
      const set = decodeJwks(text, this.#allowMissingKid);
      const changed = this.#set === null || !isSameJwks(this.#set, set);
      // The same keys stay the same objects, so that nobody imports them again.
      if (changed) this.#set = set;
      this.#generation++;
      this.#loadedAtMs = askedAtMs;
      this.#ttlMs = this.#timeToLive(maxAgeMs);
      this.#refreshAfterMs = this.#ttlMs * (REFRESH_AT + REFRESH_SPREAD * (this.#random() - 0.5));
      this.#failures = 0;
      this.#retryAtMs = 0;
      this.#lastFault = null;
      const { usable, skipped } = set;
      const skippedText = JSON.stringify(skipped);
      const skippedAnew = skippedText !== this.#skipped;
      this.#skipped = skippedText;
      const generation = this.#generation;
      this.#emit({ type: 'loaded', generation, keys: usable, skipped, changed, skippedAnew });
    } catch (error) {
      if (this.#stopped) return;
      const message = describeFetchError(error);
      const backoff = Math.min(JWKS_BACKOFF_MAX_MS, JWKS_BACKOFF_MIN_MS * 2 ** Math.min(this.#failures, 10));
      this.#failures++;
      this.#retryAtMs = this.#clock() + backoff;
      this.#lastFault = message;
      this.#emit({ type: 'fetch_failed', message, retryInMs: backoff, serving: this.#serving() });
    }
  }

  #timeToLive(maxAgeMs: number | null): number {
    const configured = Math.min(TTL_MAX_MS, Math.max(TTL_MIN_MS, this.#options.cacheTtlMs));
    return maxAgeMs === null ? configured : Math.min(configured, Math.max(MAX_AGE_MIN_MS, maxAgeMs));
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

  async #fetch(): Promise<FetchedText> {
    const timeoutMs = this.#options.timeoutMs ?? JWKS_TIMEOUT_MS;
    const aborter = new AbortController();
    this.#aborter = aborter;
    const timer = setTimeout(() => aborter.abort(), timeoutMs);
    try {
      return await this.#options.fetch(aborter.signal);
    } catch (error) {
      if (aborter.signal.aborted) throw new JwksFault(`no whole answer within ${timeoutMs} ms`);
      throw error;
    } finally {
      clearTimeout(timer);
      this.#aborter = null;
    }
  }
}
