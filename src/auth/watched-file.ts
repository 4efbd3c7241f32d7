/**
 * A file that is read again when it changes, by asking for its state: no watcher of the system's, which loses sight
 * of files that are replaced by renaming. Owns the bound on its size and the words for what is wrong with it. What is
 * in it is the owner's: text that the owner refuses leaves everything as it was.
 */
import { open, stat } from 'node:fs/promises';

/** How long a look at the file lasts. */
export const FILE_POLL_INTERVAL_MS = 1_000;

/** A file of keys or of revocations cannot be used; the message says why and never quotes the file. */
export class KeyFileFault extends Error {
  override name = 'KeyFileFault';
}

export interface WatchedFileOptions {
  path: string;
  /** For people: `the public key file`. */
  what: string;
  bytesMax: number;
  /** Takes the text over; throws `KeyFileFault` for one that is unfit. */
  take: (text: string) => void;
  /** Called once per fault, not once per look. */
  onFault?: ((message: string) => void) | undefined;
  /** Milliseconds that only go forward; default `performance.now`. */
  clock?: (() => number) | undefined;
}

export class WatchedFile {
  readonly #options: WatchedFileOptions;
  readonly #clock: () => number;
  /** What the file's state was when it was taken; empty after a fault, so that the next look reads. */
  #state = '';
  #fault: string | null = null;
  #lookedAtMs: number;
  #looking: Promise<void> | null = null;

  constructor(options: WatchedFileOptions) {
    this.#options = options;
    this.#clock = options.clock ?? (() => performance.now());
    this.#lookedAtMs = this.#clock();
  }

  /** Reads the file for the first time; throws `KeyFileFault` when it is unfit. */
  async load(): Promise<void> {
    const { state, text } = await this.#read();
    this.#options.take(text);
    this.#state = state;
    this.#lookedAtMs = this.#clock();
  }

  /** True when `look` would do nothing. */
  get isYoung(): boolean {
    return this.#looking === null && this.#clock() - this.#lookedAtMs < FILE_POLL_INTERVAL_MS;
  }

  /** Looks again if the last look is `FILE_POLL_INTERVAL_MS` old. Never rejects. */
  look(): Promise<void> {
    if (this.#looking !== null) return this.#looking;
    if (this.#clock() - this.#lookedAtMs < FILE_POLL_INTERVAL_MS) return Promise.resolve();
    this.#lookedAtMs = this.#clock();
    this.#looking = this.#look().finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  async #look(): Promise<void> {
    try {
      if (this.#state === (await this.#fileState())) return;
      // A fault empties the state, so that a file mended within one tick of its clock is seen as well.
      const { state, text } = await this.#read();
      this.#options.take(text);
      this.#state = state;
      this.#fault = null;
    } catch (error) {
      const { message } = this.#toFault(error);
      this.#state = '';
      if (message === this.#fault) return;
      this.#fault = message;
      this.#options.onFault?.(message);
    }
  }

  async #fileState(): Promise<string> {
    const status = await stat(this.#options.path, { bigint: true });
    // Opening a pipe would wait for a writer.
    if (!status.isFile()) throw new KeyFileFault(`${this.#options.what} is not a file`);
    return `${status.mtimeNs}/${status.size}/${status.ino}`;
  }

  async #read(): Promise<{ state: string; text: string }> {
    const { path, bytesMax, what } = this.#options;
    try {
      // The state is taken first: a write in between makes the next look read again.
      const state = await this.#fileState();
      const file = await open(path, 'r');
      try {
        const chunks: Buffer[] = [];
        let length = 0;
        for (;;) {
          const { bytesRead, buffer } = await file.read(Buffer.alloc(READ_BYTES), 0, READ_BYTES, null);
          if (bytesRead === 0) break;
          length += bytesRead;
          if (length > bytesMax) {
            throw new KeyFileFault(`${what} is longer than ${bytesMax / 1_024} KiB`);
          }
          chunks.push(buffer.subarray(0, bytesRead));
        }
        return { state, text: Buffer.concat(chunks).toString('utf8') };
      } finally {
        await file.close();
      }
    } catch (error) {
      throw this.#toFault(error);
    }
  }

  /** The system's error as a sentence; its own message would do no harm, but it names the file twice. */
  #toFault(error: unknown): KeyFileFault {
    if (error instanceof KeyFileFault) return error;
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown';
    return new KeyFileFault(`${this.#options.what} cannot be read (${code})`);
  }
}

const READ_BYTES = 65_536;
