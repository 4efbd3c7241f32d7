/**
 * Reads one message body inside its bounds: the shared floor of all decoders. A body that ends too early, runs on
 * or holds nonsense is a peer's fault and ends in PgError 08P01, never in a RangeError or a read past the frame.
 */
import { PgError, SqlState } from './pg-error.ts';

/** A cursor over `buffer[start, end)`, the body of one message. Views it gives out live as long as the buffer. */
export class MessageReader {
  readonly #buffer: Buffer;
  readonly #end: number;
  readonly #name: string;
  #at: number;

  /** `name` is the message's name for errors. `start` is the first byte after the length, `end` one past the last. */
  constructor(name: string, buffer: Buffer, start: number, end: number) {
    this.#buffer = buffer;
    this.#at = start;
    this.#end = end;
    this.#name = name;
    if (start < 0 || start > end || end > buffer.length) throw this.error('truncated');
  }

  /** Offset of the next byte in the buffer. */
  get at(): number {
    return this.#at;
  }

  get remaining(): number {
    return this.#end - this.#at;
  }

  uint8(): number {
    return this.#buffer[this.#take(1)]!;
  }

  int16(): number {
    return this.#buffer.readInt16BE(this.#take(2));
  }

  uint16(): number {
    return this.#buffer.readUInt16BE(this.#take(2));
  }

  int32(): number {
    return this.#buffer.readInt32BE(this.#take(4));
  }

  uint32(): number {
    return this.#buffer.readUInt32BE(this.#take(4));
  }

  /** Text up to its NUL, which must lie inside the body. Bytes that are not UTF-8 become U+FFFD. */
  cstring(): string {
    const start = this.#at;
    this.skipCString();
    return this.#buffer.toString('utf8', start, this.#at - 1);
  }

  /** Moves past a NUL-terminated string without making one. */
  skipCString(): void {
    const nul = this.#buffer.indexOf(0, this.#at);
    if (nul === -1 || nul >= this.#end) throw this.error('string without a terminator');
    this.#at = nul + 1;
  }

  /** A view of the next `byteCount` bytes. */
  bytes(byteCount: number): Buffer {
    const start = this.#take(byteCount);
    return this.#buffer.subarray(start, start + byteCount);
  }

  /** A view of all bytes that are left. */
  rest(): Buffer {
    return this.bytes(this.remaining);
  }

  /** Throws when bytes are left over. */
  finish(): void {
    if (this.#at !== this.#end) throw this.error('bytes left over');
  }

  /** The error for a body that makes no sense. */
  error(fault: string): PgError {
    return new PgError({
      code: SqlState.ProtocolViolation,
      message: `invalid ${this.#name} message: ${fault}`,
      severity: 'FATAL',
      reason: 'malformed_message',
    });
  }

  #take(byteCount: number): number {
    const start = this.#at;
    if (byteCount < 0 || byteCount > this.#end - start) throw this.error('truncated');
    this.#at = start + byteCount;
    return start;
  }
}
