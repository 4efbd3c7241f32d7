/**
 * From a token to the role it names: form first (no key, no network), then the entry of its issuer, the key, the
 * signature by jose, the claims. Owns the bound on verifications at one time and the memory of good signatures. It does
 * not know whether the role exists or may log in. No error leaves here but `TokenRejected`: jose's carry the claims.
 */
import { hash } from 'node:crypto';
import { compactVerify, errors } from 'jose';
import { Fifo } from '../base/fifo.ts';
import { Lru } from '../base/lru.ts';
import { ownClaim } from './claim-path.ts';
import type { TokenFacts } from './identity.ts';
import { algorithmsOfKey, type KeySource, TOKEN_ALGORITHMS, type VerificationKey } from './key-source.ts';
import { type Access, judgeClock, readClaims } from './token-claims.ts';
import { decodeTokenForm, TOKEN_BYTES_MAX, type TokenForm, type TokenHeader } from './token-form.ts';
import { TokenRejected } from './token-rejected.ts';
import { pickEntry, type TokenRules } from './token-rules.ts';

/** Signatures checked at one time: more would only queue inside the thread pool, in front of DNS and files. */
export const VERIFICATIONS_MAX = 64;
/** Tokens that wait for one of them, first come first served. */
export const VERIFICATIONS_WAITING_MAX = 1_024;
/** Tokens that wait for a key of one issuer. Counted apart, so that one that hangs holds up nobody else's. */
export const KEYS_WAITING_MAX = 1_024;

/** Signatures that need not be checked again, and for how long: a reconnect storm costs no arithmetic. */
export const VERIFIED_MAX = 10_000;
/** All of those tokens together; what is kept of each is a few times its size. */
export const VERIFIED_BYTES_MAX: number = 32 * 1_024 * 1_024;
export const VERIFIED_MS = 60_000;

/** Longer `iss`, `sub`, `jti` and `sid` are not kept for the log. */
const FACT_CHARS_MAX = 1_024;

export interface VerifiedToken {
  /** The role that the rules make of its claims; for a delegated token the actor's. */
  readonly role: string;
  readonly facts: TokenFacts;
  readonly claims: Readonly<Record<string, unknown>>;
  /** The key that verified it, in words. */
  readonly keyDescription: string;
  /** What the access claim says; it narrows and never widens. */
  readonly access: Access | null;
  /** One list for each database claim that is there: a database must be in all of them. */
  readonly databases: readonly (readonly string[])[];
  /** Of the permissions claim, by database; null when there is none. */
  readonly permissions: ReadonlyMap<string, Access> | null;
  /** `cnf` `x5t#S256` (RFC 8705 section 3.1): the client must hold the key of this certificate. Null: of any. */
  readonly certificateThumbprint: string | null;
}

/** One issuer: what its tokens must be, and where its keys are. */
export interface TokenEntry {
  readonly rules: TokenRules;
  readonly keys: KeySource;
}

export interface TokenVerifierOptions {
  entries: readonly TokenEntry[];
  /** Audiences of single databases: tokens for them pass here, and are judged when the database is known. */
  databaseAudiences?: readonly string[];
  /** Asked at every use of a token, also of one whose signature is remembered. Throws `TokenRejected`. */
  judge?: (verified: VerifiedToken, rules: TokenRules, nowMs: number) => void;
}

/** An entry with those who wait for its keys. */
interface OpenEntry extends TokenEntry {
  waiting: number;
}

/** A signature that was good, with the key it was good for. The clock is asked anew at every use. */
interface KnownToken {
  readonly header: TokenHeader;
  readonly entry: OpenEntry;
  readonly verified: VerifiedToken;
  readonly fingerprint: string;
  readonly bytes: number;
  readonly untilMs: number;
}

/** One token on its way to its signature. */
interface Check {
  readonly token: string;
  readonly digest: string;
  readonly form: TokenForm;
  readonly entry: OpenEntry;
  readonly nowMs: number;
  readonly mayCheck: () => boolean;
}

export class TokenVerifier {
  readonly #known = new Lru<string, KnownToken>(VERIFIED_MAX);
  readonly #entries: readonly OpenEntry[];
  readonly #algorithms: readonly string[];
  readonly #databaseAudiences: readonly string[];
  readonly #judge: ((verified: VerifiedToken, rules: TokenRules, nowMs: number) => void) | null;
  readonly #waiting = new Fifo<() => void>();
  #knownBytes = 0;
  #verifying = 0;

  /** Throws `RangeError` when an entry's algorithms name one that is not in `TOKEN_ALGORITHMS`. */
  constructor(options: TokenVerifierOptions) {
    this.#entries = options.entries.map((entry) => ({ ...entry, waiting: 0 }));
    this.#algorithms = [...new Set(options.entries.flatMap(({ rules }) => rules.algorithms))];
    const unfit = this.#algorithms.find((name) => !TOKEN_ALGORITHMS.includes(name));
    if (unfit !== undefined) throw new RangeError(`jwt_algorithms names "${unfit}", which is not supported`);
    this.#databaseAudiences = options.databaseAudiences ?? [];
    this.#judge = options.judge ?? null;
  }

  /** Tokens under verification or waiting for it. */
  get load(): number {
    const forKeys = this.#entries.reduce((sum, entry) => sum + entry.waiting, 0);
    return this.#verifying + this.#waiting.length + forKeys;
  }

  /** Tokens whose signature is remembered. */
  get knownCount(): number {
    return this.#known.size;
  }

  /** True when the token's signature is remembered and its key still serves: `verify` will do no arithmetic. */
  isVerified(token: string, nowMs: number): boolean {
    const known = this.#known.peek(digestOf(token));
    if (known === undefined || !isFresh(known, nowMs)) return false;
    return known.entry.keys.holds(known.verified.facts.keyId, known.fingerprint);
  }

  /**
   * The token of a remembered signature whose key is at hand, judged as by `verify`; null when that has to wait for
   * something. Throws `TokenRejected`.
   */
  recall(token: string, nowMs: number): VerifiedToken | null {
    const known = this.#known.get(digestOf(token));
    if (known === undefined || !isFresh(known, nowMs)) return null;
    const { entry, header, verified, fingerprint } = known;
    try {
      if (entry.keys.keyAtHand(header)?.fingerprint !== fingerprint) return null;
      judgeClock(verified.claims, entry.rules, nowMs);
      this.#judge?.(verified, entry.rules, nowMs);
      return verified;
    } catch (error) {
      throw describe(error, header, entry, verified.claims);
    }
  }

  /**
   * Verifies a token as of `nowMs` (milliseconds since the epoch). `mayCheck` is asked just before a signature is
   * checked, never for one that is remembered; false refuses the token as `overloaded`. Rejects with `TokenRejected`
   * and nothing else.
   */
  async verify(token: string, nowMs: number, mayCheck: () => boolean = ALWAYS): Promise<VerifiedToken> {
    const digest = digestOf(token);
    const known = this.#known.get(digest);
    if (known !== undefined && isFresh(known, nowMs)) {
      return this.#describing(known.header, known.entry, known.verified.claims, async () => {
        const key = await keyFor(known.entry, known.header);
        // A key that was replaced is another key, so its signatures are checked again.
        if (key.fingerprint !== known.fingerprint) {
          const form = decodeTokenForm(token, this.#algorithms);
          return this.#verifyForm({ token, digest, form, entry: known.entry, nowMs, mayCheck });
        }
        judgeClock(known.verified.claims, known.entry.rules, nowMs);
        this.#judge?.(known.verified, known.entry.rules, nowMs);
        return known.verified;
      });
    }
    const form = decodeTokenForm(token, this.#algorithms);
    // Nobody has verified this iss. It picks an entry and nothing more.
    const entry = pickEntry(this.#entries, ownClaim(form.claims, 'iss'));
    return this.#describing(form.header, entry, form.claims, async () => {
      if (entry === null) throw new TokenRejected('unknown_issuer');
      return this.#verifyForm({ token, digest, form, entry, nowMs, mayCheck });
    });
  }

  /** Runs `step`; what it throws becomes a `TokenRejected` that says which token it was about. */
  async #describing(
    header: TokenHeader,
    entry: OpenEntry | null,
    claims: Readonly<Record<string, unknown>>,
    step: () => Promise<VerifiedToken>,
  ): Promise<VerifiedToken> {
    try {
      return await step();
    } catch (error) {
      throw describe(error, header, entry, claims);
    }
  }

  async #verifyForm(check: Check): Promise<VerifiedToken> {
    const { token, digest, form, entry, nowMs } = check;
    const { header } = form;
    if (!entry.rules.algorithms.includes(header.alg)) throw new TokenRejected('alg_not_allowed');
    const key = await keyFor(entry, header);
    if (!algorithmsOfKey(key.key).includes(header.alg)) throw new TokenRejected('key_alg_mismatch');
    if (!check.mayCheck()) throw new TokenRejected('overloaded', 'overloaded');
    await this.#enter();
    try {
      await verifySignature(token, key, header.alg);
    } finally {
      this.#leave();
    }
    const read = this.#read(form, key, entry, nowMs);
    const old = this.#known.peek(digest);
    // The same token keeps its facts, by which its sessions know that they share them.
    const verified = old?.fingerprint === key.fingerprint ? old.verified : read;
    this.#remember(digest, {
      header,
      entry,
      verified,
      fingerprint: key.fingerprint,
      bytes: token.length,
      untilMs: Math.min(nowMs + VERIFIED_MS, Math.max(verified.facts.expiresAtMs, nowMs)),
    });
    this.#judge?.(verified, entry.rules, nowMs);
    return verified;
  }

  /** Judges the claims of a token whose signature is good. */
  #read(form: TokenForm, key: VerificationKey, entry: OpenEntry, nowMs: number): VerifiedToken {
    const { claims, header, payload } = form;
    const clock = judgeClock(claims, entry.rules, nowMs);
    const reading = readClaims(claims, header, entry.rules, this.#databaseAudiences);
    const { role, delegation, ...grants } = reading;
    const facts: TokenFacts = {
      source: entry.rules.source,
      issuer: shortString(ownClaim(claims, 'iss')),
      subject: shortString(ownClaim(claims, 'sub')),
      tokenId: shortString(ownClaim(claims, 'jti')),
      sessionId: shortString(ownClaim(claims, 'sid')),
      keyId: key.keyId ?? header.kid,
      keyFingerprint: key.fingerprint,
      algorithm: header.alg,
      ...clock,
      actor: delegation?.actor ?? null,
      subjectRole: delegation?.subjectRole ?? null,
      claims,
      payload,
    };
    return { role, facts, claims, keyDescription: key.description, ...grants };
  }

  #remember(digest: string, known: KnownToken): void {
    const old = this.#known.peek(digest);
    const evicted = this.#known.set(digest, known);
    this.#knownBytes += known.bytes - (old?.bytes ?? 0) - (evicted?.[1].bytes ?? 0);
    for (const oldest of this.#known.keys()) {
      if (this.#knownBytes <= VERIFIED_BYTES_MAX) return;
      this.#knownBytes -= this.#known.peek(oldest)?.bytes ?? 0;
      this.#known.delete(oldest);
    }
  }

  async #enter(): Promise<void> {
    if (this.#verifying < VERIFICATIONS_MAX) {
      this.#verifying++;
      return;
    }
    if (this.#waiting.length >= VERIFICATIONS_WAITING_MAX)
      throw new TokenRejected('overloaded', 'overloaded');
    // The one who leaves hands its place over, so the count stays as it is.
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#verifying--;
    else next();
  }
}

const ALWAYS = (): boolean => true;

/** The digest stands for the token, which is a secret and is not kept. The same bytes have the same form. */
function digestOf(token: string): string {
  return token.length <= TOKEN_BYTES_MAX ? hash('sha256', token, 'base64') : '';
}

/** Says which token it was about; anything but a rejection is a fault of the check. */
function describe(
  error: unknown,
  header: TokenHeader,
  entry: TokenEntry | null,
  claims: Readonly<Record<string, unknown>>,
): TokenRejected {
  const rejection = error instanceof TokenRejected ? error : new TokenRejected('verifier_failed');
  const iss = ownClaim(claims, 'iss');
  return rejection.describe(header).describeIssuer(iss, entry !== null && entry.rules.issuer === iss);
}

function isFresh(known: KnownToken, nowMs: number): boolean {
  return nowMs < known.untilMs && nowMs >= known.untilMs - VERIFIED_MS;
}

async function keyFor(entry: OpenEntry, header: TokenHeader): Promise<VerificationKey> {
  if (entry.waiting >= KEYS_WAITING_MAX) throw new TokenRejected('overloaded', 'overloaded');
  entry.waiting++;
  try {
    return await entry.keys.keyFor(header);
  } catch (error) {
    if (error instanceof TokenRejected) throw error;
    throw new TokenRejected('keys_unavailable', 'keys_unavailable');
  } finally {
    entry.waiting--;
  }
}

/** jose's errors in our words; everything else it throws (TypeError for a key it dislikes) is a failed verification. */
async function verifySignature(token: string, key: VerificationKey, algorithm: string): Promise<void> {
  try {
    await compactVerify(token, key.key, { algorithms: [algorithm] });
  } catch (error) {
    if (error instanceof errors.JWSSignatureVerificationFailed) throw new TokenRejected('bad_signature');
    if (error instanceof errors.JOSEAlgNotAllowed) throw new TokenRejected('alg_not_allowed');
    if (error instanceof errors.JWSInvalid) throw new TokenRejected('malformed');
    throw new TokenRejected('verifier_failed');
  }
}

function shortString(value: unknown): string | null {
  return typeof value === 'string' && value.length <= FACT_CHARS_MAX ? value : null;
}
