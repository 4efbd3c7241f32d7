/**
 * Where verification keys come from, and which keys are good enough. The sources are pem-key-source.ts,
 * jwks-file-source.ts and jwks-source.ts; none of them knows of claims or roles.
 */
import { createHash, type KeyObject } from 'node:crypto';
import type { TokenHeader } from './token-form.ts';

export interface VerificationKey {
  readonly key: KeyObject;
  /** Null for the key of a PEM file. */
  readonly keyId: string | null;
  /** Of the key itself (`fingerprintOf`): two keys of one kid are two keys. */
  readonly fingerprint: string;
  /** For people: kind and size, and where it came from. */
  readonly description: string;
}

export interface KeySource {
  /** The key for a token with this header. Rejects with `TokenRejected`, which tells a bad token from absent keys. */
  keyFor(header: TokenHeader): Promise<VerificationKey>;
  /**
   * The same at once, or null when something has to be waited for: a look at a file, a request. Throws what `keyFor`
   * rejects with.
   */
  keyAtHand(header: TokenHeader): VerificationKey | null;
  /**
   * False when the source knows that it has no such key any more. A fingerprint of null asks for the kid alone. A
   * source that has not been able to look says true: an outage withdraws nothing.
   */
  holds(keyId: string | null, fingerprint: string | null): boolean;
  /** Does what is due: looks at its file, or refreshes its set. Called about once a second; never rejects. */
  poll(): Promise<void>;
}

/** SHA-256 of the public key in DER, base64. */
export function fingerprintOf(key: KeyObject): string {
  return createHash('sha256')
    .update(key.export({ type: 'spki', format: 'der' }))
    .digest('base64');
}

export const RSA_BITS_MIN = 2048;
/** Verification time grows with the square of the size; nobody signs with more. */
export const RSA_BITS_MAX = 8192;

const CURVE_ALGORITHM: Readonly<Record<string, string>> = {
  prime256v1: 'ES256',
  secp384r1: 'ES384',
  secp521r1: 'ES512',
};
const RSA_ALGORITHMS: readonly string[] = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'];
const ED25519_ALGORITHMS: readonly string[] = ['EdDSA', 'Ed25519'];

/**
 * Every algorithm that `jwt_algorithms` may name: signatures by a private key. The HMAC ones are left out for good,
 * since a public key would serve as their secret (RFC 8725 section 2.1).
 */
export const TOKEN_ALGORITHMS: readonly string[] = [
  ...RSA_ALGORITHMS,
  ...Object.values(CURVE_ALGORITHM),
  ...ED25519_ALGORITHMS,
];

/** What is wrong with a public key, in a few words, or null (RFC 7518 sections 3.3 to 3.5). */
export function findKeyFault(key: KeyObject): string | null {
  const details = key.asymmetricKeyDetails;
  switch (key.asymmetricKeyType) {
    case 'rsa': {
      const bits = details?.modulusLength ?? 0;
      const exponent = details?.publicExponent ?? 0n;
      if (bits < RSA_BITS_MIN) return `an RSA key of ${bits} bits, ${RSA_BITS_MIN} are the least`;
      if (bits > RSA_BITS_MAX) return `an RSA key of ${bits} bits, ${RSA_BITS_MAX} are the most`;
      // With 1 everyone can sign; an even one is no exponent; a huge one makes each verification slow.
      if (exponent < 3n || exponent % 2n === 0n || exponent > 0xffff_ffffn) return 'an unfit RSA exponent';
      return null;
    }
    case 'ec':
      return CURVE_ALGORITHM[details?.namedCurve ?? ''] === undefined ? 'an unsupported curve' : null;
    case 'ed25519':
      return null;
    default:
      return 'an unsupported kind of key';
  }
}

/** The algorithms a key can verify; the first is the one to sign with. Empty for an unfit kind. */
export function algorithmsOfKey(key: KeyObject): readonly string[] {
  if (key.asymmetricKeyType === 'rsa') return RSA_ALGORITHMS;
  if (key.asymmetricKeyType === 'ed25519') return ED25519_ALGORITHMS;
  const algorithm = CURVE_ALGORITHM[key.asymmetricKeyDetails?.namedCurve ?? ''];
  return key.asymmetricKeyType === 'ec' && algorithm !== undefined ? [algorithm] : [];
}

/** `RSA 2048`, `EC prime256v1`, `Ed25519`: the key in words. */
export function describeKey(key: KeyObject): string {
  if (key.asymmetricKeyType === 'rsa') return `RSA ${key.asymmetricKeyDetails?.modulusLength}`;
  if (key.asymmetricKeyType === 'ec') return `EC ${key.asymmetricKeyDetails?.namedCurve}`;
  return key.asymmetricKeyType === 'ed25519' ? 'Ed25519' : String(key.asymmetricKeyType);
}
