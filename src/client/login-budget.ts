/**
 * How much the clients that have not proved themselves may cost: logins under way and failed ones by address, and
 * signatures checked over all addresses. Counts only; what a refusal says is here, what a failure is, is the login's
 * to know. Memory is bounded by the logins under way and by `ADDRESSES_MAX`.
 */
import { Lru } from '../base/lru.ts';
import type { TurnstileConfig } from '../config/config.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { addressGroup } from './login-address.ts';

/** Addresses whose failed logins are remembered; the one that failed longest ago is forgotten for another. */
export const ADDRESSES_MAX = 10_000;
const MINUTE_MS = 60_000;
const SECOND_MS = 1_000;

export type BudgetLimits = Pick<
  TurnstileConfig,
  'maxLoginsPerAddress' | 'failedLoginsPerAddress' | 'tokenChecksPerSecond'
>;

/** A token bucket: full at first, and full again after its period. */
interface Bucket {
  level: number;
  updatedMs: number;
}

interface FailureBucket extends Bucket {
  /** Proofs that were let through and have no verdict yet. */
  underWay: number;
}

/** Invariant: `#pending` holds an address as long as it has a login under way, and no longer. */
export class LoginBudget {
  #limits: BudgetLimits;
  readonly #clock: () => number;
  readonly #pending = new Map<string, number>();
  readonly #failures = new Lru<string, FailureBucket>(ADDRESSES_MAX);
  readonly #checks: Bucket;

  /** `clock` gives milliseconds that only go forward. */
  constructor(limits: BudgetLimits, clock: () => number) {
    this.#limits = limits;
    this.#clock = clock;
    this.#checks = { level: limits.tokenChecksPerSecond, updatedMs: clock() };
  }

  /** Addresses that cost memory at the moment. */
  get addressCount(): number {
    return this.#pending.size + this.#failures.size;
  }

  /** New limits from here on; what was spent stays spent. */
  setLimits(limits: BudgetLimits): void {
    this.#limits = limits;
  }

  /** A connection was accepted. `end` must follow, once. */
  begin(remoteAddress: string): void {
    const group = addressGroup(remoteAddress);
    this.#pending.set(group, (this.#pending.get(group) ?? 0) + 1);
  }

  /** Its login is over. */
  end(remoteAddress: string): void {
    const group = addressGroup(remoteAddress);
    const count = (this.#pending.get(group) ?? 0) - 1;
    if (count > 0) this.#pending.set(group, count);
    else this.#pending.delete(group);
  }

  /** Why one of the logins under way from this address may not go on, or null. `spare` are allowed beyond the limit. */
  tooMany(remoteAddress: string, spare = 0): PgError | null {
    const count = this.#pending.get(addressGroup(remoteAddress)) ?? 0;
    if (count <= this.#limits.maxLoginsPerAddress + spare) return null;
    return refusal('too many logins under way from this address', 'logins_per_address');
  }

  /** A proof from this address was wrong. */
  onFailure(remoteAddress: string): void {
    const limit = this.#limits.failedLoginsPerAddress;
    if (limit === Number.POSITIVE_INFINITY) return;
    const group = addressGroup(remoteAddress);
    const bucket = this.#failures.get(group) ?? { level: limit, updatedMs: this.#clock(), underWay: 0 };
    this.#refill(bucket, limit, MINUTE_MS);
    bucket.level = Math.max(0, bucket.level - 1);
    this.#failures.set(group, bucket);
  }

  /** Why no proof from this address is looked at now, or null. */
  mayProve(remoteAddress: string): PgError | null {
    const limit = this.#limits.failedLoginsPerAddress;
    const bucket = this.#failures.peek(addressGroup(remoteAddress));
    if (bucket === undefined || limit === Number.POSITIVE_INFINITY) return null;
    this.#refill(bucket, limit, MINUTE_MS);
    // Of an address with many failures so many proofs at a time as it may still fail: else each drop that comes back
    // would let through all that wait for it. Below that a storm of good logins behind one address is no guessing.
    const underWay = bucket.level < limit / 2 ? bucket.underWay : 0;
    if (bucket.level - underWay >= 1) return null;
    return refusal('too many failed logins from this address', 'failed_logins_per_address');
  }

  /** Like `mayProve`, for a proof whose verdict takes a while: gives what has to be called at its end. */
  startProof(remoteAddress: string): PgError | (() => void) {
    const spent = this.mayProve(remoteAddress);
    if (spent !== null) return spent;
    const bucket = this.#failures.peek(addressGroup(remoteAddress));
    if (bucket === undefined) return () => {};
    bucket.underWay++;
    return () => {
      bucket.underWay--;
    };
  }

  /** Takes one signature check out of this second's; false when there is none left. */
  takeCheck(): boolean {
    const limit = this.#limits.tokenChecksPerSecond;
    if (limit === Number.POSITIVE_INFINITY) return true;
    this.#refill(this.#checks, limit, SECOND_MS);
    if (this.#checks.level < 1) return false;
    this.#checks.level -= 1;
    return true;
  }

  /** The signature that a check was taken for was good. */
  giveCheckBack(): void {
    this.#checks.level = Math.min(this.#limits.tokenChecksPerSecond, this.#checks.level + 1);
  }

  #refill(bucket: Bucket, limit: number, periodMs: number): void {
    const nowMs = this.#clock();
    bucket.level = Math.min(limit, bucket.level + ((nowMs - bucket.updatedMs) * limit) / periodMs);
    bucket.updatedMs = nowMs;
  }
}

function refusal(message: string, reason: string): PgError {
  return new PgError({ code: SqlState.TooManyConnections, severity: 'FATAL', message, reason });
}
