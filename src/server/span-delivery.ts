/**
 * Answers on their way to their owners: spans of the read buffer that touch are joined into one view, which is
 * given away once for every read. What does not touch is copied together, in order. It knows no messages.
 *
 * Hot: called for every message that PostgreSQL sends; a row costs no copy and no object here.
 */
import type { Wire } from '../net/wire.ts';
import type { ServerOwner } from './server-owner.ts';

/** Invariant: `#parts` come before the view, and all of them are for one owner. */
export class SpanDelivery {
  readonly #wire: Wire;
  /** The contiguous view that waits to be given to `#viewOwner`. */
  #view: Buffer | null;
  #viewStart: number;
  #viewEnd: number;
  #viewOwner: ServerOwner | null;
  #parts: Buffer[];
  #partsOwner: ServerOwner | null;
  /** What the wire lends us in the current read; null between reads. */
  #readBuffer: Buffer | null;

  constructor(wire: Wire) {
    this.#wire = wire;
    this.#view = null;
    this.#viewStart = 0;
    this.#viewEnd = 0;
    this.#viewOwner = null;
    this.#parts = [];
    this.#partsOwner = null;
    this.#readBuffer = null;
  }

  /** A read begins: `buffer` is the wire's, and is kept where an owner goes on referring to it. */
  beginRead(buffer: Buffer): void {
    this.#readBuffer = buffer;
  }

  endRead(): void {
    this.#readBuffer = null;
  }

  /** Adds a span to what the owner gets; spans that touch become one. */
  emit(owner: ServerOwner | null, buffer: Buffer, start: number, end: number): void {
    if (owner === null) return;
    if (this.#view === buffer && this.#viewEnd === start && this.#viewOwner === owner) {
      this.#viewEnd = end;
      return;
    }
    if (this.#view !== null) this.#closeView();
    this.#view = buffer;
    this.#viewStart = start;
    this.#viewEnd = end;
    this.#viewOwner = owner;
  }

  /** Hands everything to its owners. */
  deliver(): void {
    if (this.#view === null) return;
    const owner = this.#viewOwner as ServerOwner;
    if (this.#parts.length === 0) {
      const whole = this.#view;
      this.#view = null;
      const taken = owner.onServerBytes(whole.subarray(this.#viewStart, this.#viewEnd));
      if (!taken && whole === this.#readBuffer) this.#wire.keepReadBuffer();
      return;
    }
    this.#closeView();
    this.#deliverParts();
  }

  /** The view is broken by another span: it becomes a part of its own, in order. */
  #closeView(): void {
    const owner = this.#viewOwner;
    if (this.#parts.length > 0 && this.#partsOwner !== owner) this.#deliverParts();
    this.#partsOwner = owner;
    this.#parts.push((this.#view as Buffer).subarray(this.#viewStart, this.#viewEnd));
    this.#view = null;
  }

  #deliverParts(): void {
    const parts = this.#parts;
    if (parts.length === 0) return;
    this.#parts = [];
    const owner = this.#partsOwner as ServerOwner;
    // Parts refer to the read buffer, so they are joined into a copy; they are few and mostly short.
    owner.onServerBytes(parts.length === 1 ? Buffer.from(parts[0] as Buffer) : Buffer.concat(parts));
  }
}
