/**
 * What a JWKS document (RFC 7517) says: each key vetted on its own, so that one odd key does not lock everybody
 * out. Pure; fetching and ageing belong to jwks-source.ts.
 */
import { createPublicKey, type JsonWebKey } from 'node:crypto';
import { harmlessText } from './harmless-text.ts';
import {
  algorithmsOfKey,
  describeKey,
  findKeyFault,
  fingerprintOf,
  type VerificationKey,
} from './key-source.ts';
import { isRecord, KEY_ID_CHARS_MAX, type TokenHeader } from './token-form.ts';
import { TokenRejected } from './token-rejected.ts';

/** A key of the set, with the one algorithm that the set binds it to, if any. */
export interface JwksKey extends VerificationKey {
  readonly algorithm: string | null;
}

export interface SkippedJwk {
  /** Escaped and cut; null when the key names none. */
  readonly keyId: string | null;
  readonly reason: string;
  /** True when the issuer published a private key: everyone may sign with it. */
  readonly leaked: boolean;
}

export interface JwksDocument {
  /** By kid; null marks a kid that several usable keys share, which serves nobody. */
  readonly keys: ReadonlyMap<string, JwksKey | null>;
  /** The only usable key of the set, with a kid or without; null when there are several. */
  readonly sole: JwksKey | null;
  readonly usable: number;
  readonly skipped: readonly SkippedJwk[];
}

/** The document is not a JWKS. */
export class JwksFault extends Error {
  override name = 'JwksFault';
}

/** The members that make a public key; whatever else a JWK carries (`x5c`, `x5u`, …) is not looked at. */
const PUBLIC_MEMBERS: Readonly<Record<string, readonly string[]>> = {
  RSA: ['n', 'e'],
  EC: ['crv', 'x', 'y'],
  OKP: ['crv', 'x'],
};
const PRIVATE_MEMBERS: readonly string[] = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k'];
/** As many keys as are looked at; the rest of a longer list is a fault of the whole. */
export const JWKS_KEYS_MAX = 256;

/**
 * Vets a document; throws `JwksFault` when it is no JWKS or none of its keys can be used. A key without kid is used
 * only if `allowMissingKid`, and then only as the sole one.
 */
export function decodeJwks(text: string, allowMissingKid = false): JwksDocument {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new JwksFault('the answer is not JSON');
  }
  const list = isRecord(value) ? value['keys'] : undefined;
  if (!Array.isArray(list)) throw new JwksFault('the answer is not a JWKS: it has no list of keys');
  if (list.length > JWKS_KEYS_MAX) throw new JwksFault(`the JWKS has more than ${JWKS_KEYS_MAX} keys`);
  const keys = new Map<string, JwksKey | null>();
  const skipped: SkippedJwk[] = [];
  const nameless: JwksKey[] = [];
  for (const jwk of list as unknown[]) {
    const vetted = vetJwk(jwk, allowMissingKid);
    if ('reason' in vetted) {
      skipped.push(vetted);
    } else if (vetted.keyId === null) {
      nameless.push(vetted);
    } else if (keys.has(vetted.keyId)) {
      keys.set(vetted.keyId, null);
      skipped.push({
        keyId: harmlessText(vetted.keyId),
        reason: 'several keys share this kid',
        leaked: false,
      });
    } else {
      keys.set(vetted.keyId, vetted);
    }
  }
  const named = [...keys.values()].filter((key) => key !== null);
  // Two keys behind one kid are usable to nobody, but they are there: the set has no sole key.
  const sole = keys.size + nameless.length === 1 ? (named[0] ?? nameless[0] ?? null) : null;
  for (const key of nameless) {
    if (key !== sole) skipped.push({ keyId: null, reason: 'no kid, beside other keys', leaked: false });
  }
  const usable = named.length + (sole !== null && sole.keyId === null ? 1 : 0);
  // A kid that several good keys share is an answer as well: its tokens are bad, not too early.
  if (usable === 0 && keys.size === 0) throw new JwksFault('the JWKS has no usable key');
  return { keys, sole, usable, skipped };
}

function vetJwk(jwk: unknown, allowMissingKid: boolean): JwksKey | SkippedJwk {
  if (!isRecord(jwk)) return { keyId: null, reason: 'not a JSON object', leaked: false };
  const keyId = jwk['kid'];
  const shown = typeof keyId === 'string' ? harmlessText(keyId) : null;
  const skip = (reason: string, leaked = false): SkippedJwk => ({ keyId: shown, reason, leaked });

  const members = typeof jwk['kty'] === 'string' ? ownMember(PUBLIC_MEMBERS, jwk['kty']) : undefined;
  if (jwk['kty'] === 'oct') return skip('a symmetric key has no place in a JWKS', true);
  if (members === undefined) return skip('an unknown kty');
  if (PRIVATE_MEMBERS.some((name) => Object.hasOwn(jwk, name)))
    return skip('a private key was published', true);
  const isNameless = keyId === undefined && allowMissingKid;
  if (!isNameless && (typeof keyId !== 'string' || keyId === '' || keyId.length > KEY_ID_CHARS_MAX)) {
    return skip('no kid, or one that is too long');
  }
  if (jwk['use'] !== undefined && jwk['use'] !== 'sig') return skip('its use is not sig');
  const operations = jwk['key_ops'];
  if (operations !== undefined && !(Array.isArray(operations) && operations.includes('verify'))) {
    return skip('its key_ops do not include verify');
  }
  const material: Record<string, unknown> = { kty: jwk['kty'] };
  for (const name of members) {
    if (typeof jwk[name] !== 'string') return skip(`its ${name} is missing`);
    material[name] = jwk[name];
  }
  return importJwk(material as JsonWebKey, isNameless ? null : (keyId as string), jwk['alg'], skip);
}

function importJwk(
  material: JsonWebKey,
  keyId: string | null,
  algorithm: unknown,
  skip: (reason: string) => SkippedJwk,
): JwksKey | SkippedJwk {
  try {
    const key = createPublicKey({ key: material, format: 'jwk' });
    const fault = findKeyFault(key);
    if (fault !== null) return skip(fault);
    if (algorithm !== undefined) {
      if (typeof algorithm !== 'string' || !algorithmsOfKey(key).includes(algorithm)) {
        return skip('its alg does not fit the key');
      }
    }
    const name = keyId === null ? 'no kid' : `kid ${harmlessText(keyId)}`;
    const description = `${describeKey(key)}, ${name}`;
    return { key, keyId, fingerprint: fingerprintOf(key), algorithm: algorithm ?? null, description };
  } catch {
    return skip('the key cannot be decoded');
  }
}

/** The key for a header, or `TokenRejected`. `EdDSA` and `Ed25519` are two names of one algorithm (RFC 9864). */
export function pickKey(set: JwksDocument, header: TokenHeader, allowMissingKid: boolean): JwksKey {
  const key = header.kid === null ? set.sole : set.keys.get(header.kid);
  if (header.kid === null && !allowMissingKid) throw new TokenRejected('unknown_kid');
  if (key === undefined) throw new TokenRejected('unknown_kid');
  if (key === null) throw new TokenRejected('ambiguous_key');
  const isFree = key.algorithm === null || key.algorithm === header.alg;
  if (!isFree && key.key.asymmetricKeyType !== 'ed25519') throw new TokenRejected('key_alg_mismatch');
  return key;
}

/** Whether the set still has the key; a fingerprint of null asks for the kid alone. */
export function holdsKey(set: JwksDocument, keyId: string | null, fingerprint: string | null): boolean {
  const key = keyId === null ? set.sole : set.keys.get(keyId);
  return key !== undefined && key !== null && (fingerprint === null || key.fingerprint === fingerprint);
}

/** Whether two sets have the same keys under the same names, for the same algorithms. */
export function isSameJwks(a: JwksDocument, b: JwksDocument): boolean {
  const isSame = (one: JwksKey | null | undefined, other: JwksKey | null | undefined): boolean =>
    one?.fingerprint === other?.fingerprint &&
    one?.algorithm === other?.algorithm &&
    one?.keyId === other?.keyId;
  if (a.keys.size !== b.keys.size || !isSame(a.sole, b.sole)) return false;
  return [...a.keys].every(([name, key]) => b.keys.has(name) && isSame(key, b.keys.get(name)));
}

function ownMember<T>(record: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}
