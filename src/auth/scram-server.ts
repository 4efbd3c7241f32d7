/**
 * The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677; PostgreSQL's src/backend/libpq/auth-scram.c): bytes of
 * SASL messages in, bytes out. It has no socket and does not choose the user. Channel binding is not offered to
 * clients, so "y" (the client could, and believes that we cannot) is in order.
 *
 * Invariant: first, then finish, each once; after an error the exchange is over.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { assert } from '../base/assert.ts';
import type { Secret } from '../base/secret.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { hmac, SCRAM_ITERATIONS, type ScramKeys, sha256, xor } from './scram-keys.ts';
import {
  attributeAt,
  decodeScramText,
  isNonce,
  malformedScram,
  splitAttributes,
  tryDecodeBase64,
} from './scram-message.ts';

/** The one mechanism that clients are offered. */
export const SCRAM_SHA_256 = 'SCRAM-SHA-256';
const NONCE_BYTES = 18;

export interface ScramServerOptions {
  keys: ScramKeys;
  /** The startup packet's user; the name inside SCRAM is ignored, as PostgreSQL does. */
  user: string;
  /** Each accepted password; none for an unknown user, who goes all the way and then fails. */
  passwords: readonly Secret[];
  /** Tests only: the server's part of the nonce. Default 18 random bytes in base64. */
  nonce?: string;
  /** Tests only. Default the salt that `keys` gives to the user. */
  salt?: Buffer;
}

export class ScramServer {
  readonly #options: ScramServerOptions;
  readonly #salt: Buffer;
  /** Without the empty ones, which would let anybody in. */
  readonly #passwords: readonly Secret[];
  #state: 'new' | 'first-sent' | 'done' = 'new';
  #gs2Header = '';
  #clientFirstBare = '';
  #serverFirst = '';
  #nonce = '';

  constructor(options: ScramServerOptions) {
    this.#options = options;
    this.#passwords = options.passwords.filter((password) => password.reveal() !== '');
    this.#salt = options.salt ?? options.keys.saltFor(options.user);
  }

  /** Reads client-first-message, gives server-first-message. Throws `PgError` 08P01 or 0A000. */
  first(message: Buffer): Buffer {
    assert(this.#state === 'new', 'scram: first was called twice');
    this.#state = 'done';
    const text = decodeScramText(message);
    const gs2 = /^(p=[^,]*|[ny]),(a=[^,]*)?,/.exec(text);
    if (gs2 === null) throw malformedScram('The GS2 header is malformed.');
    if (gs2[1]!.startsWith('p')) throw malformedScram('Channel binding was not offered.');
    if (gs2[2] !== undefined)
      throw unsupported('client uses authorization identity, but it is not supported');
    this.#gs2Header = gs2[0];
    this.#clientFirstBare = text.slice(gs2[0].length);
    if (this.#clientFirstBare.startsWith('m=')) {
      throw unsupported('client requires an unsupported SCRAM extension');
    }
    const attributes = splitAttributes(this.#clientFirstBare);
    attributeAt(attributes, 0, 'n');
    const clientNonce = attributeAt(attributes, 1, 'r');
    if (!isNonce(clientNonce)) throw malformedScram('The nonce has characters that are not printable.');
    this.#nonce = clientNonce + (this.#options.nonce ?? randomBytes(NONCE_BYTES).toString('base64'));
    this.#serverFirst = `r=${this.#nonce},s=${this.#salt.toString('base64')},i=${SCRAM_ITERATIONS}`;
    this.#state = 'first-sent';
    return Buffer.from(this.#serverFirst);
  }

  /**
   * Reads client-final-message. Resolves with server-final-message when the proof is right, and with null when it is
   * not or there is no such user. Throws `PgError` 08P01 for a message that breaks the rules.
   */
  async finish(message: Buffer): Promise<Buffer | null> {
    assert(this.#state === 'first-sent', 'scram: finish before first, or twice');
    this.#state = 'done';
    const text = decodeScramText(message);
    const attributes = splitAttributes(text);
    const binding = attributeAt(attributes, 0, 'c');
    if (binding !== Buffer.from(this.#gs2Header).toString('base64')) {
      throw malformedScram('The channel binding does not match the first message.');
    }
    const nonce = Buffer.from(attributeAt(attributes, 1, 'r'));
    const expected = Buffer.from(this.#nonce);
    if (nonce.length !== expected.length || !timingSafeEqual(nonce, expected)) {
      throw malformedScram('The nonce does not match.');
    }
    const proof = tryDecodeBase64(attributeAt(attributes, attributes.length - 1, 'p'));
    if (proof?.length !== 32) throw malformedScram('The proof is malformed.');
    const withoutProof = text.slice(0, text.lastIndexOf(',p='));
    return this.#judge(proof, `${this.#clientFirstBare},${this.#serverFirst},${withoutProof}`);
  }

  async #judge(proof: Buffer, authMessage: string): Promise<Buffer | null> {
    const { keys } = this.#options;
    const passwords = this.#passwords;
    let signature: Buffer | null = null;
    for (const password of passwords.length === 0 ? [null] : passwords) {
      const { storedKey, serverKey } = await (password === null
        ? keys.nobody()
        : keys.derive(password.reveal(), this.#salt, SCRAM_ITERATIONS));
      const clientKey = xor(proof, hmac(storedKey, authMessage));
      const equal = timingSafeEqual(sha256(clientKey), storedKey);
      const candidate = hmac(serverKey, authMessage);
      if (equal && password !== null) signature = candidate;
    }
    return signature === null ? null : Buffer.from(`v=${signature.toString('base64')}`);
  }
}

function unsupported(message: string): PgError {
  return new PgError({
    code: SqlState.FeatureNotSupported,
    severity: 'FATAL',
    message,
    reason: 'scram_unsupported',
  });
}
