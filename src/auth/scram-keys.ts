/**
 * The keys of SCRAM-SHA-256 (RFC 5802 section 3, RFC 7677), derived off the event loop and remembered, since each
 * derivation is thousands of hash rounds. Serves both sides: clients that log in to us, and us to PostgreSQL.
 * No password is kept, in no form that could be turned back.
 */
import { createHash, createHmac, pbkdf2, randomBytes } from 'node:crypto';
import { promisify } from 'node:util';
import { Lru } from '../base/lru.ts';
import type { Secret } from '../base/secret.ts';
import { saslPrep } from './sasl-prep.ts';

/** PostgreSQL's own default (scram_iterations). */
export const SCRAM_ITERATIONS = 4_096;
const SALT_BYTES = 16;
const KEYS_REMEMBERED_MAX = 4_096;

export interface ScramKeySet {
  readonly clientKey: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

export class ScramKeys {
  readonly #processKey: Buffer;
  readonly #remembered = new Lru<string, Promise<ScramKeySet>>(KEYS_REMEMBERED_MAX);
  readonly #nobody: ScramKeySet;

  /** `processKey` is random unless a test gives one; salts follow from it. */
  constructor(processKey: Buffer = randomBytes(32)) {
    this.#processKey = processKey;
    this.#nobody = keySet(randomBytes(32));
  }

  /**
   * The salt for a user, known or not: the same each time for one name, and no telling which kind it is.
   * (PostgreSQL does so for unknown users, mock_scram_secret; here nothing is stored, so known ones go the same way.)
   */
  saltFor(user: string): Buffer {
    return createHmac('sha256', this.#processKey)
      .update('salt:')
      .update(user)
      .digest()
      .subarray(0, SALT_BYTES);
  }

  /** Keys that no password leads to, for users that do not exist; they cost what remembered keys cost. */
  nobody(): Promise<ScramKeySet> {
    return Promise.resolve(this.#nobody);
  }

  /**
   * Derives a user's keys ahead of the first login. Call it for every user of the configuration: a first login that
   * had to derive would be slower than that of an unknown user, and so tell who exists.
   */
  async prepare(user: string, passwords: readonly Secret[]): Promise<void> {
    for (const password of passwords) {
      await this.derive(password.reveal(), this.saltFor(user), SCRAM_ITERATIONS);
    }
  }

  /** The keys of a password, from memory or by PBKDF2 in the thread pool. */
  derive(password: string, salt: Buffer, iterations: number): Promise<ScramKeySet> {
    const name = createHmac('sha256', this.#processKey)
      .update(`${iterations}:${salt.toString('base64')}:`)
      .update(password)
      .digest('base64');
    let keys = this.#remembered.get(name);
    if (keys === undefined) {
      keys = deriveKeySet(password, salt, iterations);
      this.#remembered.set(name, keys);
      keys.catch(() => this.#remembered.delete(name));
    }
    return keys;
  }
}

const pbkdf2Async: (
  password: string,
  salt: Buffer,
  iterations: number,
  keyBytes: number,
  digest: string,
) => Promise<Buffer> = promisify(pbkdf2);

async function deriveKeySet(password: string, salt: Buffer, iterations: number): Promise<ScramKeySet> {
  return keySet(await pbkdf2Async(saslPrep(password), salt, iterations, 32, 'sha256'));
}

function keySet(saltedPassword: Buffer): ScramKeySet {
  const clientKey = hmac(saltedPassword, 'Client Key');
  return { clientKey, storedKey: sha256(clientKey), serverKey: hmac(saltedPassword, 'Server Key') };
}

/** HMAC-SHA-256. */
export function hmac(key: Buffer, data: string): Buffer {
  return createHmac('sha256', key).update(data).digest();
}

/** SHA-256. */
export function sha256(data: Buffer): Buffer {
  return createHash('sha256').update(data).digest();
}

/** Both buffers have one length; SCRAM's proof is the key and the signature, bit by bit. */
export function xor(left: Buffer, right: Buffer): Buffer {
  return Buffer.from(left.map((byte, index) => byte ^ right[index]!));
}
