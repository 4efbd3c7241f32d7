/**
 * The request under way, kept so that it can be sent a second time when the plan of a statement went stale (0A000,
 * "cached plan must not change result type"): the client never prepared on this connection, so it shall not have to
 * prepare anew. Only what can be repeated is kept: one Sync, outside a transaction, not too long.
 *
 * Hot: every message of a request is copied here. The buffer is used again.
 */
import { FrontendMessage } from '../protocol/codes.ts';
import { roundUp } from './held-bytes.ts';

const State = { None: 0, Recording: 1, Whole: 2 } as const;
type State = (typeof State)[keyof typeof State];

/** Invariant: while `whole`, `bytes[0, length)` is a request of which PostgreSQL has answered nothing but Parses. */
export class RequestRecord {
  /** The request goes out again as soon as PostgreSQL is ready. */
  again: boolean;
  /** It is going out again: what it prepares is there already. */
  replaying: boolean;
  #bytes: Buffer | null;
  #length: number;
  #state: State;

  constructor() {
    this.again = false;
    this.replaying = false;
    this.#bytes = null;
    this.#length = 0;
    this.#state = State.None;
  }

  get whole(): boolean {
    return this.#state === State.Whole;
  }

  /** Undefined before the first request. */
  get bytes(): Buffer {
    return this.#bytes as Buffer;
  }

  get length(): number {
    return this.#length;
  }

  /** The message `buffer[start, end)` goes out; `end` is negative when it is not whole. `first`: nothing is under way. */
  add(first: boolean, type: number, buffer: Buffer, start: number, end: number): void {
    if (first) {
      this.#state = State.Recording;
      this.#length = 0;
    }
    if (this.#state === State.None) return;
    const length = this.#length + end - start;
    if (this.#state !== State.Recording || !isRepeatable(type) || end < 0 || length > BYTES_MAX) {
      this.#state = State.None;
      return;
    }
    if (this.#bytes === null || this.#bytes.length < length) {
      const larger = Buffer.allocUnsafeSlow(roundUp(length));
      this.#bytes?.copy(larger, 0, 0, this.#length);
      this.#bytes = larger;
    }
    buffer.copy(this.#bytes, this.#length, start, end);
    this.#length = length;
    if (type === FrontendMessage.Sync) this.#state = State.Whole;
  }

  /** The request cannot be repeated any more. */
  drop(): void {
    this.#state = State.None;
  }
}

function isRepeatable(type: number): boolean {
  return (
    type === FrontendMessage.Bind ||
    type === FrontendMessage.Execute ||
    type === FrontendMessage.Sync ||
    type === FrontendMessage.Describe ||
    type === FrontendMessage.Parse
  );
}

const BYTES_MAX = 16 * 1024;
