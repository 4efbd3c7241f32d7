/**
 * What is on its way to PostgreSQL in this tick: small pieces are gathered into one buffer and leave in one write.
 * It knows no messages; order is all it keeps.
 *
 * Hot: every byte of every request is copied here once.
 */
import type { Wire } from '../net/wire.ts';

/** Invariant: bytes leave in the order of the calls; `#bytes` is never referred to by the wire and by us at once. */
export class OutBuffer {
  readonly #wire: Wire;
  #bytes: Buffer;
  #length: number;
  /** For pieces of a COPY or a long value: made when the first one comes, null while the wire refers to it. */
  #large: Buffer | null;
  /** The large buffer that the wire still refers to. */
  #largeOut: Buffer | null;

  constructor(wire: Wire) {
    this.#wire = wire;
    this.#bytes = Buffer.allocUnsafeSlow(OUT_BYTES);
    this.#length = 0;
    this.#large = null;
    this.#largeOut = null;
  }

  /** The wire has nothing left to write: what it referred to is ours again. */
  onDrain(): void {
    this.#large ??= this.#largeOut;
    this.#largeOut = null;
  }

  /** Copies `buffer[start, end)`; it leaves with `flush()`, or before it when there is no room. */
  add(buffer: Uint8Array, start: number, end: number): void {
    const length = end - start;
    if (length > OUT_BYTES - this.#length) {
      this.flush();
      if (length > OUT_BYTES) {
        this.#addLarge(buffer.subarray(start, end));
        return;
      }
    }
    // A short copy is cheaper by hand than by a call into the runtime.
    if (length < 48) {
      let at = this.#length;
      for (let from = start; from < end; from++) this.#bytes[at++] = buffer[from] as number;
    } else {
      this.#bytes.set(
        start === 0 && end === buffer.length ? buffer : buffer.subarray(start, end),
        this.#length,
      );
    }
    this.#length += length;
  }

  #addLarge(bytes: Uint8Array): void {
    if (bytes.length > LARGE_BYTES) {
      this.#wire.write(Buffer.from(bytes));
      return;
    }
    const large = this.#large ?? Buffer.allocUnsafeSlow(LARGE_BYTES);
    large.set(bytes);
    const taken = this.#wire.writeView(large.subarray(0, bytes.length));
    this.#large = taken ? large : null;
    if (!taken) this.#largeOut = large;
  }

  addByte(byte: number): void {
    if (this.#length === OUT_BYTES) this.flush();
    this.#bytes[this.#length++] = byte;
  }

  addInt32(value: number): void {
    if (OUT_BYTES - this.#length < 4) this.flush();
    this.#length = this.#bytes.writeInt32BE(value, this.#length);
  }

  /** Writes what was added. A write that the kernel did not take whole keeps the buffer, and we get a new one. */
  flush(): void {
    if (this.#length === 0) return;
    const bytes = this.#bytes.subarray(0, this.#length);
    this.#length = 0;
    if (!this.#wire.writeView(bytes)) this.#bytes = Buffer.allocUnsafeSlow(OUT_BYTES);
  }
}

const OUT_BYTES = 16 * 1024;
/** As much as one read of a client's socket gives. */
const LARGE_BYTES = 64 * 1024;
