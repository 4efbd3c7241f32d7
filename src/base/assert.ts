/** Asserts for our own mistakes. Bad bytes from a peer are never asserts: they are `PgError` 08P01. */

/** Throws an `AssertionError` when our own invariant does not hold. */
export function assert(condition: unknown, message = 'invariant broken'): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** A bug in pgturnstile, not a fault of a peer or of the configuration. */
export class AssertionError extends Error {
  override name = 'AssertionError';
}
