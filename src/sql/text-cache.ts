/**
 * A bounded map from statement text to its effects. Two generations instead of an exact order: a hit in the young
 * one is a single map look-up. It knows nothing of either side.
 */

/** Keeps between half and all of `entriesMax` entries and `charsMax` characters of keys, the recently used ones first. */
export class TextCache<V> {
  readonly #entriesMax: number;
  readonly #charsMax: number;
  #young = new Map<string, V>();
  #old = new Map<string, V>();
  #youngChars = 0;

  constructor(entriesMax: number, charsMax: number) {
    this.#entriesMax = Math.max(1, Math.floor(entriesMax / 2));
    this.#charsMax = Math.max(1, Math.floor(charsMax / 2));
  }

  get size(): number {
    return this.#young.size + this.#old.size;
  }

  get(text: string): V | undefined {
    const value = this.#young.get(text);
    if (value !== undefined) return value;
    const old = this.#old.get(text);
    if (old === undefined) return undefined;
    this.#old.delete(text);
    this.set(text, old);
    return old;
  }

  /** The text must not be in the cache yet. */
  set(text: string, value: V): void {
    if (this.#young.size >= this.#entriesMax || this.#youngChars + text.length > this.#charsMax) {
      this.#old = this.#young;
      this.#young = new Map();
      this.#youngChars = 0;
    }
    this.#young.set(text, value);
    this.#youngChars += text.length;
  }
}
