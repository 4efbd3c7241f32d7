/**
 * From a token to the role it names: form first (no key, no network), then the key, then the signature by jose,
 * then the claims. Owns the bound on verifications at one time. It does not know whether the role exists or may
 * log in. No error leaves here but `TokenRejected`, since jose's errors carry the claims.
 */
import { createHash } from 'node:crypto';
import { errors, type JWTPayload, jwtVerify } from 'jose';
import { Fifo } from '../base/fifo.ts';
import { Lru } from '../base/lru.ts';
import type { JwtConfig, TurnstileConfig } from '../config/config.ts';
import { hasLoneSurrogate } from './harmless-text.ts';
import type { TokenFacts } from './identity.ts';
import { algorithmsOfKey, type KeySource, TOKEN_ALGORITHMS, type VerificationKey } from './key-source.ts';
import { decodeTokenForm, isRecord, TOKEN_BYTES_MAX, type TokenHeader } from './token-form.ts';
import { TokenRejected, type TokenRejection } from './token-rejected.ts';

/** Signatures checked at one time: more would only queue inside the thread pool, in front of DNS and files. */
export const VERIFICATIONS_MAX = 64;
/** Tokens that wait for one of them, first come first served. */
export const VERIFICATIONS_WAITING_MAX = 1_024;
/** Tokens that wait for a key. They are counted apart, so that unknown kids do not hold up good tokens. */
export const KEYS_WAITING_MAX = 1_024;

/** Signatures that need not be checked again, and for how long: a reconnect storm costs no arithmetic. */
export const VERIFIED_MAX = 10_000;
export const VERIFIED_MS = 60_000;

/** Times beyond this have no date (ECMAScript's time range, in seconds). */
const DATE_SECONDS_MAX = 8_640_000_000_000;
/** Longer `iss`, `sub` and `jti` are not kept for the log. */
const FACT_CHARS_MAX = 1_024;

/** The keys of the configuration that say what a good token is. */
export type TokenRules = Pick<JwtConfig, 'audience' | 'usernameClaim'> &
  Pick<TurnstileConfig, 'jwtLeewaySeconds' | 'jwtAlgorithms'>;

export interface VerifiedToken {
  /** The string of the username claim, as it stands in the token. */
  readonly role: string;
  readonly facts: TokenFacts;
  readonly claims: Readonly<Record<string, unknown>>;
  /** The key that verified it, in words. */
  readonly keyDescription: string;
}

export interface TokenVerifierOptions {
  config: TokenRules;
  keys: KeySource;
}

/** A signature that was good, with the key it was good for. Claims are judged anew at every use. */
interface VerifiedSignature {
  readonly header: TokenHeader;
  readonly claims: JWTPayload;
  readonly key: VerificationKey['key'];
  readonly untilMs: number;
}

export class TokenVerifier {
  readonly #verified = new Lru<string, VerifiedSignature>(VERIFIED_MAX);
  readonly #rules: TokenRules;
  readonly #keys: KeySource;
  readonly #waiting = new Fifo<() => void>();
  #verifying = 0;
  #waitingForKey = 0;

  /** Throws `RangeError` when `jwtAlgorithms` names one that is not in `TOKEN_ALGORITHMS`. */
  constructor(options: TokenVerifierOptions) {
    const unfit = options.config.jwtAlgorithms.find((name) => !TOKEN_ALGORITHMS.includes(name));
    if (unfit !== undefined) throw new RangeError(`jwt_algorithms names "${unfit}", which is not supported`);
    this.#rules = options.config;
    this.#keys = options.keys;
  }

  /** Tokens under verification or waiting for it. */
  get load(): number {
    return this.#verifying + this.#waiting.length + this.#waitingForKey;
  }

  /** Verifies a token as of `nowMs` (milliseconds since the epoch). Rejects with `TokenRejected` and nothing else. */
  async verify(token: string, nowMs: number): Promise<VerifiedToken> {
    // The digest stands for the token, which is a secret and is not kept. The same bytes have the same form.
    const digest = token.length <= TOKEN_BYTES_MAX ? createHash('sha256').update(token).digest('base64') : '';
    const known = this.#verified.get(digest);
    const fresh = known !== undefined && nowMs < known.untilMs && nowMs >= known.untilMs - VERIFIED_MS;
    const header = fresh ? known.header : decodeTokenForm(token, this.#rules.jwtAlgorithms).header;
    try {
      const key = await this.#keyFor(header);
      // A key that was replaced is another object, so its signatures are checked again.
      if (fresh && known.key === key.key) return judgeClaims(known.claims, header, key, this.#rules, nowMs);
      if (!algorithmsOfKey(key.key).includes(header.alg)) throw new TokenRejected('key_alg_mismatch');
      await this.#enter();
      try {
        const claims = await verifySignature(token, key, this.#rules, nowMs);
        this.#verified.set(digest, { header, claims, key: key.key, untilMs: nowMs + VERIFIED_MS });
        return judgeClaims(claims, header, key, this.#rules, nowMs);
      } finally {
        this.#leave();
      }
    } catch (error) {
      const rejection = error instanceof TokenRejected ? error : new TokenRejected('verifier_failed');
      throw rejection.describe(header);
    }
  }

  async #keyFor(header: TokenHeader): Promise<VerificationKey> {
    if (this.#waitingForKey >= KEYS_WAITING_MAX) throw new TokenRejected('overloaded', 'overloaded');
    this.#waitingForKey++;
    try {
      return await this.#keys.keyFor(header);
    } catch (error) {
      if (error instanceof TokenRejected) throw error;
      throw new TokenRejected('keys_unavailable', 'keys_unavailable');
    } finally {
      this.#waitingForKey--;
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

async function verifySignature(
  token: string,
  key: VerificationKey,
  rules: TokenRules,
  nowMs: number,
): Promise<JWTPayload> {
  try {
    const { payload } = await jwtVerify(token, key.key, {
      algorithms: [...rules.jwtAlgorithms],
      ...(rules.audience !== null && { audience: rules.audience }),
      requiredClaims: ['exp'],
      // jose counts in whole seconds, which would refuse a token with a fractional nbf for the rest of its second.
      // One second more here; judgeClaims draws the line to the millisecond.
      clockTolerance: rules.jwtLeewaySeconds + 1,
      currentDate: new Date(nowMs),
    });
    return payload;
  } catch (error) {
    throw new TokenRejected(toReason(error));
  }
}

/** jose's codes in our words; everything else it throws (TypeError for a key it dislikes) is a failed verification. */
function toReason(error: unknown): TokenRejection {
  if (error instanceof errors.JWSSignatureVerificationFailed) return 'bad_signature';
  if (error instanceof errors.JWTExpired) return 'expired';
  if (error instanceof errors.JWTClaimValidationFailed) {
    switch (error.claim) {
      case 'aud':
        return 'bad_audience';
      case 'exp':
        return error.reason === 'missing' ? 'exp_missing' : 'bad_exp';
      case 'nbf':
        return error.reason === 'check_failed' ? 'not_yet_valid' : 'bad_nbf';
      case 'iat':
        return 'bad_iat';
      default:
        return 'malformed';
    }
  }
  if (error instanceof errors.JOSEAlgNotAllowed) return 'alg_not_allowed';
  if (error instanceof errors.JWSInvalid || error instanceof errors.JWTInvalid) return 'malformed';
  return 'verifier_failed';
}

/** The claims that jose does not judge, or judges too kindly. */
function judgeClaims(
  claims: JWTPayload,
  header: TokenHeader,
  key: VerificationKey,
  rules: TokenRules,
  nowMs: number,
): VerifiedToken {
  const leewayMs = rules.jwtLeewaySeconds * 1_000;
  const exp = own(claims, 'exp');
  if (exp === undefined) throw new TokenRejected('exp_missing');
  if (typeof exp !== 'number') throw new TokenRejected('bad_exp');
  // `1e999` is valid JSON and reads as Infinity: a token for ever.
  if (!(Math.abs(exp) <= DATE_SECONDS_MAX)) throw new TokenRejected('exp_out_of_range');
  if (exp * 1_000 <= nowMs - leewayMs) throw new TokenRejected('expired');
  judgeStart(own(claims, 'nbf'), nowMs + leewayMs, 'bad_nbf', 'not_yet_valid');
  judgeStart(own(claims, 'iat'), nowMs + leewayMs, 'bad_iat', 'iat_in_future');
  if (rules.audience !== null && !namesAudience(own(claims, 'aud'), rules.audience)) {
    throw new TokenRejected('bad_audience');
  }
  const role = claimAt(claims, rules.usernameClaim);
  if (typeof role !== 'string' || role === '' || role.includes('\0') || hasLoneSurrogate(role)) {
    throw new TokenRejected('bad_role_claim');
  }
  const facts: TokenFacts = {
    issuer: shortString(own(claims, 'iss')),
    subject: shortString(own(claims, 'sub')),
    tokenId: shortString(own(claims, 'jti')),
    keyId: key.keyId ?? header.kid,
    algorithm: header.alg,
    expiresAtMs: Math.floor(exp * 1_000),
  };
  return { role, facts, claims, keyDescription: key.description };
}

function judgeStart(value: unknown, latestMs: number, unfit: TokenRejection, early: TokenRejection): void {
  if (value === undefined) return;
  if (typeof value !== 'number' || !Number.isFinite(value)) throw new TokenRejected(unfit);
  if (value * 1_000 > latestMs) throw new TokenRejected(early);
}

/** A string, or a list of nothing but strings, in which ours is (RFC 7519 section 4.1.3). */
function namesAudience(value: unknown, audience: string): boolean {
  const list: unknown[] = Array.isArray(value) ? value : [value];
  return list.every((item) => typeof item === 'string') && list.includes(audience);
}

/**
 * The claim at a dotted path such as `realm_access.role`, through own members of objects only. A name with `://`
 * is a collision-resistant one (RFC 7519 section 4.2) and its dots are part of it.
 */
export function claimAt(claims: Readonly<Record<string, unknown>>, path: string): unknown {
  let value: unknown = claims;
  for (const name of path.includes('://') ? [path] : path.split('.')) {
    if (!isRecord(value)) return undefined;
    value = own(value, name);
  }
  return value;
}

function own(record: Readonly<Record<string, unknown>>, name: string): unknown {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}

function shortString(value: unknown): string | null {
  return typeof value === 'string' && value.length <= FACT_CHARS_MAX ? value : null;
}
