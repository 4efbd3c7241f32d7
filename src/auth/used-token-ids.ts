/**
 * Token ids that have logged in, so that none does so twice. Holds digests, each until its token has expired anyway,
 * and not more than a fixed number: when that is reached nobody new gets in, rather than somebody twice.
 */
import { createHash } from 'node:crypto';

export const USED_TOKEN_IDS_MAX = 100_000;
/** Looking through all of them is not done more often than this. */
const SWEEP_INTERVAL_MS = 1_000;

export class UsedTokenIds {
  readonly #untilMs = new Map<string, number>();
  readonly #max: number;
  #sweptAtMs = Number.NEGATIVE_INFINITY;

  constructor(max: number = USED_TOKEN_IDS_MAX) {
    this.#max = max;
  }

  get size(): number {
    return this.#untilMs.size;
  }

  /** Takes an id (unique per issuer, RFC 7519 section 4.1.7) until `untilMs`: `first`, or why not. */
  use(issuer: string | null, id: string, untilMs: number, nowMs: number): 'first' | 'used' | 'full' {
    const digest = createHash('sha256')
      .update(JSON.stringify([issuer, id]))
      .digest('base64');
    const known = this.#untilMs.get(digest);
    if (known !== undefined && nowMs < known) return 'used';
    if (known === undefined && this.#untilMs.size >= this.#max) this.#sweep(nowMs);
    if (known === undefined && this.#untilMs.size >= this.#max) return 'full';
    this.#untilMs.set(digest, untilMs);
    return 'first';
  }

  #sweep(nowMs: number): void {
    if (Math.abs(nowMs - this.#sweptAtMs) < SWEEP_INTERVAL_MS) return;
    this.#sweptAtMs = nowMs;
    for (const [digest, untilMs] of this.#untilMs) if (nowMs >= untilMs) this.#untilMs.delete(digest);
  }
}
