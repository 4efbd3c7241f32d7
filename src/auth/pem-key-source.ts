/**
 * The one public key of a file (PEM, SubjectPublicKeyInfo or PKCS #1), read again when the file changes. A file that
 * is gone, half-written or unfit leaves the old key in use. It does not know whose key it is.
 */
import { createPublicKey, type KeyObject } from 'node:crypto';
import {
  describeKey,
  findKeyFault,
  fingerprintOf,
  type KeySource,
  type VerificationKey,
} from './key-source.ts';
import { KeyFileFault, WatchedFile } from './watched-file.ts';

/** A public key of 8192 bits takes about 1.5 KiB. */
const PEM_BYTES_MAX = 65_536;

export interface PemKeySourceOptions {
  path: string;
  /** Called once per fault, not once per look, while the old key stays in use. */
  onFault?: (message: string) => void;
  /** Called when a changed file gave another key. */
  onReload?: (description: string) => void;
  /** Milliseconds that only go forward; default `performance.now`. */
  clock?: () => number;
}

export class PemKeySource implements KeySource {
  readonly #file: WatchedFile;
  readonly #onReload: ((description: string) => void) | undefined;
  #key: VerificationKey | null = null;

  /** Reads the file; throws `KeyFileFault` when there is no fit key in it. */
  static async open(options: PemKeySourceOptions): Promise<PemKeySource> {
    const source = new PemKeySource(options);
    await source.#file.load();
    return source;
  }

  private constructor(options: PemKeySourceOptions) {
    this.#onReload = options.onReload;
    this.#file = new WatchedFile({
      path: options.path,
      what: 'the public key file',
      bytesMax: PEM_BYTES_MAX,
      take: (text) => this.#take(text),
      onFault: options.onFault,
      clock: options.clock,
    });
  }

  /** The key, whatever the header's kid says. */
  async keyFor(): Promise<VerificationKey> {
    await this.#file.look();
    return this.#key!;
  }

  keyAtHand(): VerificationKey | null {
    return this.#file.isYoung ? this.#key : null;
  }

  holds(_keyId: string | null, fingerprint: string | null): boolean {
    return fingerprint === null || this.#key?.fingerprint === fingerprint;
  }

  poll(): Promise<void> {
    return this.#file.look();
  }

  #take(text: string): void {
    const key = toVerificationKey(text);
    const known = this.#key;
    if (known?.fingerprint === key.fingerprint) return;
    this.#key = key;
    if (known !== null) this.#onReload?.(key.description);
  }
}

/** The public key of PEM text; throws `KeyFileFault` for anything but exactly one fit public key. */
export function decodePublicKeyPem(text: string): KeyObject {
  if (/-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----/.test(text)) {
    throw new KeyFileFault('the file holds a private key; give the public one (openssl pkey -pubout)');
  }
  if (/-----BEGIN [A-Z0-9 ]*CERTIFICATE-----/.test(text)) {
    throw new KeyFileFault('the file holds a certificate; give its public key (openssl x509 -pubkey -noout)');
  }
  const blocks = text.match(/-----BEGIN [A-Z0-9 ]+-----/g) ?? [];
  if (blocks.length === 0) throw new KeyFileFault('the file holds no PEM public key');
  if (blocks.length > 1)
    throw new KeyFileFault('the file holds more than one PEM block; one key is expected');
  const block = /-----BEGIN ((?:RSA )?PUBLIC KEY)-----[A-Za-z0-9+/=\s]+-----END \1-----/.exec(text)?.[0];
  if (block === undefined) throw new KeyFileFault('the file holds no whole PEM public key');
  let key: KeyObject;
  try {
    key = createPublicKey(block);
  } catch {
    throw new KeyFileFault('the PEM public key cannot be decoded');
  }
  const fault = findKeyFault(key);
  if (fault !== null) throw new KeyFileFault(`the file holds ${fault}`);
  return key;
}

function toVerificationKey(text: string): VerificationKey {
  const key = decodePublicKeyPem(text);
  const description = `${describeKey(key)} from the public key file`;
  return { key, keyId: null, fingerprint: fingerprintOf(key), description };
}
