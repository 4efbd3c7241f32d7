/**
 * What a client sent and nobody could handle yet, because a request is incomplete or a connection is awaited. It
 * knows no messages.
 *
 * Hot: a short buffer is kept from one time to the next, so that a split request costs a copy and no allocation.
 */

/** Invariant: `#bytes` is null exactly while nothing is held. */
export class HeldBytes {
  #bytes: Buffer | null;
  #length: number;

  constructor() {
    this.#bytes = null;
    this.#length = 0;
  }

  get length(): number {
    return this.#bytes === null ? 0 : this.#length;
  }

  add(buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    const used = this.length;
    let bytes = this.#bytes;
    if (bytes === null || bytes.length < used + length) {
      const larger = Buffer.allocUnsafeSlow(roundUp(used + length));
      if (bytes !== null) bytes.copy(larger, 0, 0, used);
      bytes = larger;
      this.#bytes = bytes;
    }
    buffer.copy(bytes, used, start, end);
    this.#length = used + length;
  }

  /** Gives everything away, `length` bytes as it was before: while it is processed nothing may be added to it. */
  take(): Buffer | null {
    const bytes = this.#bytes;
    this.#bytes = null;
    return bytes;
  }

  /** What is left of the bytes that were taken. */
  putBack(bytes: Buffer, start: number, end: number): void {
    if (this.#bytes !== null || bytes.length > KEPT_BYTES_MAX) return this.add(bytes, start, end);
    bytes.copyWithin(0, start, end);
    this.#bytes = bytes;
    this.#length = end - start;
  }
}

/** The size of a buffer that grows by doubling. */
export function roundUp(length: number): number {
  let size = BYTES_MIN;
  while (size < length) size *= 2;
  return size;
}

const BYTES_MIN = 256;
const KEPT_BYTES_MAX = 64 * 1024;
