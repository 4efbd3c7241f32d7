/**
 * The keys of an issuer in a file: a JWKS that somebody else keeps up to date. A file that is gone, half-written or
 * without a usable key leaves the old set in use.
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
import { JWKS_BYTES_MAX } from './jwks-fetch.ts';
import type { KeySource, VerificationKey } from './key-source.ts';
import type { TokenHeader } from './token-form.ts';
import { KeyFileFault, WatchedFile } from './watched-file.ts';

export interface JwksFileSourceOptions {
  path: string;
  allowMissingKid?: boolean;
  /** Called once per fault, not once per look, while the old set stays in use. */
  onFault?: (message: string) => void;
  /** Called for the first set and for each changed one. */
  onLoad?: (keys: number, skipped: readonly SkippedJwk[]) => void;
  /** Milliseconds that only go forward; default `performance.now`. */
  clock?: () => number;
}

export class JwksFileSource implements KeySource {
  readonly #options: JwksFileSourceOptions;
  readonly #allowMissingKid: boolean;
  readonly #file: WatchedFile;
  #set: JwksDocument | null = null;

  /** Reads the file; throws `KeyFileFault` when there is no usable key in it. */
  static async open(options: JwksFileSourceOptions): Promise<JwksFileSource> {
    const source = new JwksFileSource(options);
    await source.#file.load();
    return source;
  }

  private constructor(options: JwksFileSourceOptions) {
    this.#options = options;
    this.#allowMissingKid = options.allowMissingKid ?? false;
    this.#file = new WatchedFile({
      path: options.path,
      what: 'the JWKS file',
      bytesMax: JWKS_BYTES_MAX,
      take: (text) => this.#take(text),
      onFault: options.onFault,
      clock: options.clock,
    });
  }

  async keyFor(header: TokenHeader): Promise<VerificationKey> {
    await this.#file.look();
    return pickKey(this.#set!, header, this.#allowMissingKid);
  }

  keyAtHand(header: TokenHeader): VerificationKey | null {
    return this.#set !== null && this.#file.isYoung
      ? pickKey(this.#set, header, this.#allowMissingKid)
      : null;
  }

  holds(keyId: string | null, fingerprint: string | null): boolean {
    return this.#set === null || holdsKey(this.#set, keyId, fingerprint);
  }

  poll(): Promise<void> {
    return this.#file.look();
  }

  #take(text: string): void {
    let set: JwksDocument;
    try {
      set = decodeJwks(text, this.#allowMissingKid);
    } catch (error) {
      if (!(error instanceof JwksFault)) throw error;
      throw new KeyFileFault(error.message.replace('the answer', 'the JWKS file'));
    }
    if (this.#set !== null && isSameJwks(this.#set, set)) return;
    this.#set = set;
    this.#options.onLoad?.(set.usable, set.skipped);
  }
}
