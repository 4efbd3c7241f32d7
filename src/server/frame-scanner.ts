/**
 * Cuts the bytes that PostgreSQL sends into messages, whatever pieces they come in: whole ones are shown where they
 * lie in the read buffer, long ones that nobody reads pass in parts, the rest is kept until it is whole. What a
 * message means is its handler's business.
 *
 * Hot: no copy of a message that came whole, and no object for any.
 */
import { readInt32 } from '../protocol/frames.ts';

/** Declared here, implemented by the server connection. Views live until the call returns. */
export interface FrameHandler {
  /** Nobody reads the body of this message, so it need not be whole. */
  streams(type: number, total: number): boolean;
  /** One message, `buffer[start, end)`. */
  onMessage(type: number, buffer: Buffer, start: number, end: number): void;
  /** The first part of a message that streams, at least its header; the rest comes by `onMessageRest`. */
  onMessageStart(type: number, buffer: Buffer, start: number, end: number): void;
  onMessageRest(buffer: Buffer, start: number, end: number): void;
  /** What came is no message of PostgreSQL's. */
  onBadFrame(reason: string): void;
}

/** Invariant: `#held` and `#restLeft` are never both in use: a message is kept, or it streams. */
export class FrameScanner {
  readonly #handler: FrameHandler;
  /** A message or header that came in parts. */
  #held: Buffer | null;
  #heldLength: number;
  /** Bytes of a streamed message that are still to come. */
  #restLeft: number;
  #stopped: boolean;

  constructor(handler: FrameHandler) {
    this.#handler = handler;
    this.#held = null;
    this.#heldLength = 0;
    this.#restLeft = 0;
    this.#stopped = false;
  }

  /** A message was handed on in part only. */
  get inMessage(): boolean {
    return this.#restLeft > 0;
  }

  /** No further message is shown, not even of the bytes at hand. */
  stop(): void {
    this.#stopped = true;
  }

  scan(buffer: Buffer, start: number, end: number): void {
    let at = start;
    if (this.#held !== null) {
      at = this.#continueHeld(buffer, at, end);
      if (this.#stopped) return;
    }
    if (this.#restLeft > 0 && at < end) {
      const take = this.#restLeft < end - at ? this.#restLeft : end - at;
      this.#handler.onMessageRest(buffer, at, at + take);
      this.#restLeft -= take;
      at += take;
    }
    while (at < end) {
      const available = end - at;
      if (available < 5) return this.#hold(buffer, at, end);
      const type = buffer[at] as number;
      const length = readInt32(buffer, at + 1);
      if (length < 4 || length > MESSAGE_BYTES_MAX) return this.#handler.onBadFrame(INVALID_LENGTH);
      const total = length + 1;
      if (total <= available) {
        this.#handler.onMessage(type, buffer, at, at + total);
        at += total;
      } else if (this.#handler.streams(type, total)) {
        this.#startStream(type, buffer, at, end, total);
        return;
      } else {
        if (total > HELD_BYTES_MAX) return this.#handler.onBadFrame(TOO_LARGE);
        return this.#hold(buffer, at, end);
      }
      if (this.#stopped) return;
    }
  }

  #startStream(type: number, buffer: Buffer, start: number, end: number, total: number): void {
    this.#restLeft = total - (end - start);
    this.#handler.onMessageStart(type, buffer, start, end);
  }

  #hold(buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    this.#held = Buffer.allocUnsafe(Math.max(HELD_BYTES, length));
    buffer.copy(this.#held, 0, start, end);
    this.#heldLength = length;
  }

  /** Adds to the held part until its message is whole, or until its header shows that it can stream. */
  #continueHeld(buffer: Buffer, start: number, end: number): number {
    let at = start;
    let held = this.#held as Buffer;
    if (this.#heldLength < 5) {
      const take = Math.min(5 - this.#heldLength, end - at);
      buffer.copy(held, this.#heldLength, at, at + take);
      this.#heldLength += take;
      at += take;
      if (this.#heldLength < 5) return end;
    }
    const type = held[0] as number;
    const length = readInt32(held, 1);
    if (length < 4 || length > MESSAGE_BYTES_MAX) {
      this.#handler.onBadFrame(INVALID_LENGTH);
      return end;
    }
    const total = length + 1;
    const whole = this.#heldLength + (end - at) >= total;
    if (!whole && this.#heldLength === 5 && this.#handler.streams(type, total)) {
      this.#held = null;
      this.#startStream(type, held, 0, 5, total);
      return at;
    }
    if (total > HELD_BYTES_MAX) {
      this.#handler.onBadFrame(TOO_LARGE);
      return end;
    }
    const take = Math.min(total - this.#heldLength, end - at);
    if (held.length < total) {
      const larger = Buffer.allocUnsafe(total);
      held.copy(larger, 0, 0, this.#heldLength);
      held = larger;
      this.#held = held;
    }
    buffer.copy(held, this.#heldLength, at, at + take);
    this.#heldLength += take;
    at += take;
    if (this.#heldLength < total) return end;
    this.#held = null;
    this.#handler.onMessage(type, held, 0, total);
    return at;
  }
}

const INVALID_LENGTH = 'invalid message length from server';
const TOO_LARGE = 'message from server is too large';
const HELD_BYTES = 256;
/** Messages that must be whole are short; 1 GiB (MaxAllocSize) is the most PostgreSQL sends in one. */
const HELD_BYTES_MAX = 16 * 1024 * 1024;
const MESSAGE_BYTES_MAX = 0x40000000;
