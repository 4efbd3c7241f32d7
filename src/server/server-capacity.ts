/**
 * The caps that all pools share: server connections in all and per database. When they are reached, an idle
 * connection of another pool is given up, else the pool queues for the next one that becomes free.
 */
import { Fifo } from '../base/fifo.ts';

/** A pool, as far as sharing goes. */
export interface CapacityUser {
  readonly databaseKey: string;
  readonly idleCount: number;
  /** When the pool's oldest idle connection was last used; Infinity without one. */
  readonly idleSinceMs: number;
  /** Milliseconds that its oldest waiter has waited while it had no connection at all; absent like 0. */
  starvedMs?(nowMs: number): number;
  /** Closes its oldest idle connection. */
  giveUpIdle(): void;
  /** A place may be free: try to connect again. */
  onCapacity(): void;
}

/** Invariant: `total` is the sum of `perDatabase`, and neither is above its cap. */
export class ServerCapacity {
  readonly #max: number;
  readonly #maxPerDatabase: number;
  readonly #perDatabase = new Map<string, number>();
  readonly #users = new Set<CapacityUser>();
  readonly #starving = new Fifo<CapacityUser>();
  #total = 0;

  /** Infinity means no cap. */
  constructor(max: number, maxPerDatabase: number) {
    this.#max = max;
    this.#maxPerDatabase = maxPerDatabase;
  }

  get total(): number {
    return this.#total;
  }

  get starvingCount(): number {
    return this.#starving.length;
  }

  register(user: CapacityUser): void {
    this.#users.add(user);
  }

  unregister(user: CapacityUser): void {
    this.#users.delete(user);
    while (this.#starving.remove(user)) {}
  }

  /** Takes a place, making room where that is possible; false queues the user once. */
  tryReserve(user: CapacityUser): boolean {
    if (!this.#fits(user) && !this.#makeRoom(user)) {
      this.#starving.remove(user);
      this.#starving.push(user);
      return false;
    }
    this.#starving.remove(user);
    this.#total++;
    this.#perDatabase.set(user.databaseKey, this.#count(user.databaseKey) + 1);
    return true;
  }

  /** Gives a place back and lets the pool that waited longest try. */
  release(user: CapacityUser): void {
    this.#total--;
    const left = this.#count(user.databaseKey) - 1;
    if (left === 0) this.#perDatabase.delete(user.databaseKey);
    else this.#perDatabase.set(user.databaseKey, left);
    this.#wakeOne();
  }

  /** True when `user` should give up a connection that just became idle, because another pool has none. */
  wantedByOthers(user: CapacityUser): boolean {
    return this.#isWanted(user, null);
  }

  /**
   * True when `user` should give one up although clients of its own wait: another pool has none, and its clients have
   * waited so long that they would else wait in vain.
   */
  owedToOthers(user: CapacityUser, nowMs: number): boolean {
    return this.#isWanted(user, nowMs);
  }

  /** `nowMs` null: it does not matter how long the other has waited. */
  #isWanted(user: CapacityUser, nowMs: number | null): boolean {
    for (let index = 0; index < this.#starving.length; index++) {
      const other = this.#starving.at(index) as CapacityUser;
      if (other === user) continue;
      if (nowMs !== null && (other.starvedMs?.(nowMs) ?? 0) < STARVING_MS) continue;
      if (this.#count(other.databaseKey) < this.#maxPerDatabase || other.databaseKey === user.databaseKey) {
        return true;
      }
    }
    return false;
  }

  /** Until one takes the place: a pool whose waiters have left meanwhile does not want it any more. */
  #wakeOne(): void {
    for (let index = 0; index < this.#starving.length; ) {
      const user = this.#starving.at(index) as CapacityUser;
      if (!this.#fits(user)) {
        index++;
        continue;
      }
      this.#starving.remove(user);
      const before = this.#total;
      user.onCapacity();
      if (this.#total > before) return;
    }
  }

  #fits(user: CapacityUser): boolean {
    return this.#total < this.#max && this.#count(user.databaseKey) < this.#maxPerDatabase;
  }

  #makeRoom(user: CapacityUser): boolean {
    const sameDatabase = this.#count(user.databaseKey) >= this.#maxPerDatabase;
    let victim: CapacityUser | null = null;
    for (const other of this.#users) {
      if (other === user || other.idleCount === 0) continue;
      if (sameDatabase && other.databaseKey !== user.databaseKey) continue;
      if (victim === null || other.idleSinceMs < victim.idleSinceMs) victim = other;
    }
    if (victim === null) return false;
    victim.giveUpIdle();
    return this.#fits(user);
  }

  #count(databaseKey: string): number {
    return this.#perDatabase.get(databaseKey) ?? 0;
  }
}

/** So long a pool may keep a shared place busy for its own clients while those of another have none. */
const STARVING_MS = 1_000;
