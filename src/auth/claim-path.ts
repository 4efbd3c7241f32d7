/** Finds a claim by its path, and reads claims of a known kind. Judges nothing. */
import { isRecord } from './token-form.ts';

export type Claims = Readonly<Record<string, unknown>>;

/**
 * The claim at a dotted path such as `realm_access.role`, through own members of objects only. A name with `://`
 * is a collision-resistant one (RFC 7519 section 4.2) and its dots are part of it.
 */
export function claimAt(claims: Claims, path: string): unknown {
  let value: unknown = claims;
  for (const name of path.includes('://') ? [path] : path.split('.')) {
    if (!isRecord(value)) return undefined;
    value = ownClaim(value, name);
  }
  return value;
}

/** True when something on the way to the claim is there and is no object, so that the claim cannot be. */
export function isBlocked(claims: Claims, path: string): boolean {
  if (path.includes('://')) return false;
  const names = path.split('.');
  return names.some((_name, count) => {
    const value = count === 0 ? claims : claimAt(claims, names.slice(0, count).join('.'));
    return value !== undefined && !isRecord(value);
  });
}

/** The claim of this name, never one of the prototype. */
export function ownClaim(claims: Claims, name: string): unknown {
  return Object.hasOwn(claims, name) ? claims[name] : undefined;
}

/** The claim when it is a non-empty string, else null. */
export function textClaim(claims: Claims, name: string): string | null {
  const value = ownClaim(claims, name);
  return typeof value === 'string' && value !== '' ? value : null;
}
