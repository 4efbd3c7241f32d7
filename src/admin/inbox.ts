/** Cuts the console's incoming bytes into messages of bounded length. Knows frames, not what they mean. */
import { HEADER_BYTES } from '../protocol/codes.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';

/** One whole message; `buffer[start, end)` is its body, valid until the next `push`. */
export interface Frame {
  readonly type: number;
  readonly buffer: Buffer;
  readonly start: number;
  readonly end: number;
}

/** Invariant: what is kept is what was pushed and not yet taken; an empty inbox keeps only a small buffer. */
export class Inbox {
  #buffer: Buffer = EMPTY;
  #start = 0;
  #end = 0;

  /** Bytes that wait. */
  get length(): number {
    return this.#end - this.#start;
  }

  /** Adds bytes; they are copied. */
  push(buffer: Buffer, start: number, end: number): void {
    const needed = this.length + end - start;
    if (this.#end + end - start > this.#buffer.length) {
      const target = needed > this.#buffer.length ? Buffer.allocUnsafeSlow(roundUp(needed)) : this.#buffer;
      this.#buffer.copy(target, 0, this.#start, this.#end);
      this.#buffer = target;
      this.#end -= this.#start;
      this.#start = 0;
    }
    this.#end += buffer.copy(this.#buffer, this.#end, start, end);
  }

  /** The next whole message, or null. Throws PgError 08P01, FATAL, for a length that is too short or too long. */
  next(): Frame | null {
    if (this.length < HEADER_BYTES) return this.#release();
    const total = 1 + this.#buffer.readInt32BE(this.#start + 1);
    if (total < HEADER_BYTES || total > MESSAGE_BYTES_MAX) {
      throw new PgError({
        code: SqlState.ProtocolViolation,
        message: 'invalid message length',
        detail: `The console takes messages of at most ${MESSAGE_BYTES_MAX} bytes.`,
        severity: 'FATAL',
      });
    }
    if (this.length < total) return null;
    const at = this.#start;
    this.#start += total;
    return {
      type: this.#buffer[at] as number,
      buffer: this.#buffer,
      start: at + HEADER_BYTES,
      end: at + total,
    };
  }

  #release(): null {
    if (this.length === 0) {
      this.#start = 0;
      this.#end = 0;
      if (this.#buffer.length > BUFFER_BYTES_KEPT) this.#buffer = EMPTY;
    }
    return null;
  }
}

function roundUp(length: number): number {
  let size = 512;
  while (size < length) size *= 2;
  return size;
}

/** The longest message the console takes, its type byte included. */
export const MESSAGE_BYTES_MAX: number = 64 * 1024;
const BUFFER_BYTES_KEPT = 4 * 1024;
const EMPTY: Buffer = Buffer.alloc(0);
