import { describe, expect, test } from 'vitest';
import { type CapacityUser, ServerCapacity } from '../../src/server/server-capacity.ts';

/** A pool of which only the places count. */
class FakePool implements CapacityUser {
  readonly databaseKey: string;
  readonly #capacity: ServerCapacity;
  idleSinceMs = Number.POSITIVE_INFINITY;
  idleCount = 0;
  busy = 0;
  wanted = 0;

  constructor(capacity: ServerCapacity, databaseKey: string) {
    this.#capacity = capacity;
    this.databaseKey = databaseKey;
    capacity.register(this);
  }

  open(): boolean {
    if (!this.#capacity.tryReserve(this)) return false;
    this.busy++;
    return true;
  }

  rest(sinceMs: number): void {
    this.busy--;
    this.idleCount++;
    this.idleSinceMs = Math.min(this.idleSinceMs, sinceMs);
  }

  close(): void {
    this.busy--;
    this.#capacity.release(this);
  }

  giveUpIdle(): void {
    this.idleCount--;
    if (this.idleCount === 0) this.idleSinceMs = Number.POSITIVE_INFINITY;
    this.#capacity.release(this);
  }

  onCapacity(): void {
    if (this.wanted > 0 && this.open()) this.wanted--;
  }
}

describe('ServerCapacity', () => {
  test('takes the idle connection that was not used for longest', () => {
    const capacity = new ServerCapacity(2, Number.POSITIVE_INFINITY);
    const [old, young, needy] = [1, 2, 3].map(() => new FakePool(capacity, 'db')) as [
      FakePool,
      FakePool,
      FakePool,
    ];
    old.open();
    young.open();
    old.rest(10);
    young.rest(20);
    expect(needy.open()).toBe(true);
    expect([old.idleCount, young.idleCount, capacity.total]).toEqual([0, 1, 2]);
  });

  test('queues a pool once and wakes the one that waited longest', () => {
    const capacity = new ServerCapacity(1, 1);
    const [holder, first, second] = [1, 2, 3].map(() => new FakePool(capacity, 'db')) as [
      FakePool,
      FakePool,
      FakePool,
    ];
    holder.open();
    first.wanted = 1;
    second.wanted = 1;
    for (const pool of [first, second, first, second]) expect(pool.open()).toBe(false);
    expect(capacity.starvingCount).toBe(2);
    expect(capacity.wantedByOthers(holder)).toBe(true);
    holder.close();
    expect([first.busy + second.busy, capacity.total]).toEqual([1, 1]);
  });

  test('a pool that no longer wants its place does not keep it from the next', () => {
    const capacity = new ServerCapacity(1, 1);
    const [holder, gone, second] = [1, 2, 3].map(() => new FakePool(capacity, 'db')) as [
      FakePool,
      FakePool,
      FakePool,
    ];
    holder.open();
    expect(gone.open()).toBe(false);
    expect(second.open()).toBe(false);
    second.wanted = 1;
    holder.close();
    expect([gone.busy, second.busy]).toEqual([0, 1]);
  });

  test('the cap of one database is no matter of another', () => {
    const capacity = new ServerCapacity(10, 1);
    const one = new FakePool(capacity, 'one');
    const two = new FakePool(capacity, 'two');
    one.open();
    expect(one.open()).toBe(false);
    two.open();
    two.rest(1);
    expect(one.open()).toBe(false);
    expect([two.idleCount, capacity.total]).toEqual([1, 2]);
    // What waits for its own database is no reason for another to give up.
    expect(capacity.wantedByOthers(two)).toBe(false);
    capacity.unregister(one);
    expect(capacity.starvingCount).toBe(0);
  });
});
