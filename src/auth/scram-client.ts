/**
 * The client's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677, RFC 5929), for logging in to
 * PostgreSQL: bytes in, bytes out. The server has to prove that it knows the password as well.
 *
 * Invariant: first, answer, finish, each once; only after finish returned is the server the right one.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { assert } from '../base/assert.ts';
import type { Secret } from '../base/secret.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { hmac, type ScramKeys, xor } from './scram-keys.ts';
import { attributeAt, decodeScramText, isNonce, splitAttributes, tryDecodeBase64 } from './scram-message.ts';

/** PostgreSQL allows scram_iterations from 1 on. */
export const SCRAM_ITERATIONS_MIN = 1;
/** About a second of one thread; a server that wants more is more likely to want our time. */
export const SCRAM_ITERATIONS_MAX = 2_000_000;
const NONCE_BYTES = 18;
const SALT_BYTES_MAX = 1_024;

export interface ScramClientOptions {
  keys: ScramKeys;
  password: Secret;
  /** The mechanisms of AuthenticationSASL, in any order. */
  mechanisms: readonly string[];
  /**
   * The tls-server-end-point hash of the server's certificate, or null without TLS or when
   * the certificate has none.
   */
  certificateHash: Buffer | null;
  /** Tests only. Default empty: PostgreSQL takes the user of the startup packet. */
  user?: string;
  /** Tests only. Default 18 random bytes in base64. */
  nonce?: string;
}

export class ScramClient {
  readonly #options: ScramClientOptions;
  /** For SASLInitialResponse. */
  readonly mechanism: 'SCRAM-SHA-256' | 'SCRAM-SHA-256-PLUS';
  readonly #gs2Header: string;
  readonly #nonce: string;
  readonly #firstBare: string;
  #state: 'new' | 'first-sent' | 'final-sent' | 'done' = 'new';
  #serverSignature: Buffer = Buffer.alloc(0);

  /** Throws `PgError` 0A000 when the server offers no mechanism that can be used. */
  constructor(options: ScramClientOptions) {
    this.#options = options;
    const bound = options.certificateHash !== null;
    if (bound && options.mechanisms.includes('SCRAM-SHA-256-PLUS')) {
      this.mechanism = 'SCRAM-SHA-256-PLUS';
      this.#gs2Header = 'p=tls-server-end-point,,';
    } else if (options.mechanisms.includes('SCRAM-SHA-256')) {
      this.mechanism = 'SCRAM-SHA-256';
      // "y" tells the server that we saw no PLUS; if it did offer it, somebody between us took it away.
      this.#gs2Header = bound ? 'y,,' : 'n,,';
    } else {
      throw new PgError({
        code: SqlState.FeatureNotSupported,
        message: 'the server offers no SASL authentication mechanism that pgturnstile supports',
        reason: 'scram_no_mechanism',
      });
    }
    this.#nonce = options.nonce ?? randomBytes(NONCE_BYTES).toString('base64');
    this.#firstBare = `n=${options.user ?? ''},r=${this.#nonce}`;
  }

  /** client-first-message. */
  first(): Buffer {
    assert(this.#state === 'new', 'scram: first was called twice');
    this.#state = 'first-sent';
    return Buffer.from(this.#gs2Header + this.#firstBare);
  }

  /** Reads server-first-message, resolves with client-final-message. Throws `PgError` when the server breaks the rules. */
  async answer(message: Buffer): Promise<Buffer> {
    assert(this.#state === 'first-sent', 'scram: answer before first, or twice');
    this.#state = 'done';
    const serverFirst = decodeScramText(message);
    const attributes = splitAttributes(serverFirst);
    const nonce = attributeAt(attributes, 0, 'r');
    // Without a part of its own the server could be replaying an old exchange.
    if (!isNonce(nonce) || !nonce.startsWith(this.#nonce) || nonce.length === this.#nonce.length) {
      throw distrust('the nonce does not continue ours');
    }
    const salt = tryDecodeBase64(attributeAt(attributes, 1, 's'));
    if (salt === null || salt.length === 0 || salt.length > SALT_BYTES_MAX)
      throw distrust('the salt is malformed');
    const iterations = attributeAt(attributes, 2, 'i');
    if (!/^[1-9]\d{0,9}$/.test(iterations) || Number(iterations) > SCRAM_ITERATIONS_MAX) {
      throw distrust('the iteration count is out of bounds');
    }
    const keys = await this.#options.keys.derive(this.#options.password.reveal(), salt, Number(iterations));
    const binding = Buffer.concat([
      Buffer.from(this.#gs2Header),
      this.mechanism === 'SCRAM-SHA-256-PLUS' ? this.#options.certificateHash! : Buffer.alloc(0),
    ]);
    const withoutProof = `c=${binding.toString('base64')},r=${nonce}`;
    const authMessage = `${this.#firstBare},${serverFirst},${withoutProof}`;
    const proof = xor(keys.clientKey, hmac(keys.storedKey, authMessage));
    this.#serverSignature = hmac(keys.serverKey, authMessage);
    this.#state = 'final-sent';
    return Buffer.from(`${withoutProof},p=${proof.toString('base64')}`);
  }

  /** Reads server-final-message and throws `PgError` unless the server proved that it knows the password. */
  finish(message: Buffer): void {
    assert(this.#state === 'final-sent', 'scram: finish before answer, or twice');
    this.#state = 'done';
    const attributes = splitAttributes(decodeScramText(message));
    if (attributes[0]?.[0] === 'e') throw distrust('the server reported an error');
    const signature = tryDecodeBase64(attributeAt(attributes, 0, 'v'));
    if (signature?.length !== 32 || !timingSafeEqual(signature, this.#serverSignature)) {
      throw distrust('the signature of the server is wrong');
    }
  }
}

function distrust(what: string): PgError {
  return new PgError({
    code: SqlState.ProtocolViolation,
    message: `SCRAM authentication to the server failed: ${what}`,
    reason: 'scram_server_distrusted',
  });
}
