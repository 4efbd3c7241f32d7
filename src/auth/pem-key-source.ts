/**
 * The one public key of `jwt_public_key_file` (PEM, SubjectPublicKeyInfo or PKCS #1), read again when the file
 * changes. It asks the file's state at most once a second, and only when a token needs the key: no watcher, no
 * timer. A file that is gone, half-written or unfit leaves the old key in use.
 */
import { createPublicKey, type KeyObject } from 'node:crypto';
import { open, stat } from 'node:fs/promises';
import { describeKey, findKeyFault, type KeySource, type VerificationKey } from './key-source.ts';

/** How long a look at the file lasts. */
export const PEM_POLL_INTERVAL_MS = 1_000;
/** A public key of 8192 bits takes about 1.5 KiB. */
const PEM_BYTES_MAX = 65_536;

/** The key file cannot be used; the message says why and never quotes the file. */
export class KeyFileFault extends Error {
  override name = 'KeyFileFault';
}

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
  readonly #options: PemKeySourceOptions;
  readonly #clock: () => number;
  #key: VerificationKey;
  /** What the file's state was when the key in use was read; empty after a fault, so that the next look reads. */
  #state: string;
  #fault: string | null = null;
  #lookedAtMs: number;
  #looking: Promise<void> | null = null;

  /** Reads the file; throws `KeyFileFault` when there is no fit key in it. */
  static async open(options: PemKeySourceOptions): Promise<PemKeySource> {
    const { state, text } = await readKeyFile(options.path);
    return new PemKeySource(options, toVerificationKey(text), state);
  }

  private constructor(options: PemKeySourceOptions, key: VerificationKey, state: string) {
    this.#options = options;
    this.#clock = options.clock ?? (() => performance.now());
    this.#key = key;
    this.#state = state;
    this.#lookedAtMs = this.#clock();
  }

  /** The key, whatever the header's kid says. */
  async keyFor(): Promise<VerificationKey> {
    if (this.#looking === null && this.#clock() - this.#lookedAtMs >= PEM_POLL_INTERVAL_MS) {
      this.#lookedAtMs = this.#clock();
      this.#looking = this.#look().finally(() => {
        this.#looking = null;
      });
    }
    if (this.#looking !== null) await this.#looking;
    return this.#key;
  }

  async #look(): Promise<void> {
    try {
      if (this.#state === (await fileState(this.#options.path))) return;
      // A fault empties the state, so that a file mended within one tick of its clock is seen as well.
      const { state, text } = await readKeyFile(this.#options.path);
      const key = toVerificationKey(text);
      const isNew = !key.key.equals(this.#key.key);
      this.#key = key;
      this.#state = state;
      this.#fault = null;
      if (isNew) this.#options.onReload?.(key.description);
    } catch (error) {
      const { message } = toFault(error);
      this.#state = '';
      if (message === this.#fault) return;
      this.#fault = message;
      this.#options.onFault?.(message);
    }
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
  return { key, keyId: null, description: `${describeKey(key)} from the public key file` };
}

async function fileState(path: string): Promise<string> {
  const status = await stat(path, { bigint: true });
  // Opening a pipe would wait for a writer.
  if (!status.isFile()) throw new KeyFileFault('the public key file is not a file');
  return `${status.mtimeNs}/${status.size}/${status.ino}`;
}

async function readKeyFile(path: string): Promise<{ state: string; text: string }> {
  try {
    // The state is taken first: a write in between makes the next look read again.
    const state = await fileState(path);
    const file = await open(path, 'r');
    try {
      const buffer = Buffer.alloc(PEM_BYTES_MAX + 1);
      let length = 0;
      while (length < buffer.length) {
        const { bytesRead } = await file.read(buffer, length, buffer.length - length, null);
        if (bytesRead === 0) break;
        length += bytesRead;
      }
      if (length > PEM_BYTES_MAX) throw new KeyFileFault('the public key file is longer than 64 KiB');
      return { state, text: buffer.toString('latin1', 0, length) };
    } finally {
      await file.close();
    }
  } catch (error) {
    throw toFault(error);
  }
}

/** The system's error as a sentence; its own message would do no harm, but it names the file twice. */
function toFault(error: unknown): KeyFileFault {
  if (error instanceof KeyFileFault) return error;
  const code = (error as NodeJS.ErrnoException).code ?? 'unknown';
  return new KeyFileFault(`the public key file cannot be read (${code})`);
}
