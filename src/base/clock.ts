/**
 * Time for the hot path: a number that the worker's tick refreshes. Monotonic milliseconds, so that a change of
 * the wall clock moves no deadline; only token expiry looks at the wall.
 */
export class Clock {
  /** Milliseconds at the last refresh: at most one tick old. */
  nowMs: number = performance.now();

  /** The exact time, which also refreshes the coarse one. */
  precise(): number {
    this.nowMs = performance.now();
    return this.nowMs;
  }
}
