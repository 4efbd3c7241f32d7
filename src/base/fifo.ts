/**
 * A first-in first-out ring that grows by doubling. `push`, `shift` and `peek` are O(1) and allocate nothing
 * once the ring has its size; `remove` is O(n) and keeps the order.
 */
export class Fifo<T> {
  #items: (T | undefined)[];
  #head = 0;
  #length = 0;

  /** `capacity` is rounded up to a power of two. */
  constructor(capacity = 8) {
    let size = 2;
    while (size < capacity) size *= 2;
    this.#items = new Array<T | undefined>(size).fill(undefined);
  }

  get length(): number {
    return this.#length;
  }

  push(item: T): void {
    if (this.#length === this.#items.length) this.#grow();
    this.#items[(this.#head + this.#length) & (this.#items.length - 1)] = item;
    this.#length++;
  }

  shift(): T | undefined {
    if (this.#length === 0) return undefined;
    const item = this.#items[this.#head];
    this.#items[this.#head] = undefined;
    this.#head = (this.#head + 1) & (this.#items.length - 1);
    this.#length--;
    return item;
  }

  peek(): T | undefined {
    return this.#length === 0 ? undefined : this.#items[this.#head];
  }

  /** The item at `index`, counted from the oldest; undefined past the end. */
  at(index: number): T | undefined {
    return index < this.#length ? this.#items[(this.#head + index) & (this.#items.length - 1)] : undefined;
  }

  /** Takes the first occurrence of `item` out; returns false when it is not in the ring. */
  remove(item: T): boolean {
    const mask = this.#items.length - 1;
    for (let index = 0; index < this.#length; index++) {
      if (this.#items[(this.#head + index) & mask] !== item) continue;
      for (let next = index; next < this.#length - 1; next++) {
        this.#items[(this.#head + next) & mask] = this.#items[(this.#head + next + 1) & mask];
      }
      this.#length--;
      this.#items[(this.#head + this.#length) & mask] = undefined;
      return true;
    }
    return false;
  }

  clear(): void {
    this.#items.fill(undefined);
    this.#head = 0;
    this.#length = 0;
  }

  #grow(): void {
    const items = new Array<T | undefined>(this.#items.length * 2).fill(undefined);
    for (let index = 0; index < this.#length; index++) items[index] = this.at(index);
    this.#items = items;
    this.#head = 0;
  }
}
