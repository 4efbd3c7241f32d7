/** Signs tokens, for first steps, the demo's issuer and tests. The pooler itself never signs one. */
import { createPrivateKey, type KeyObject } from 'node:crypto';
import { SignJWT } from 'jose';
import { algorithmsOfKey, findKeyFault } from './key-source.ts';

export interface MintTokenOptions {
  /** PEM, PKCS #8 or the older forms, not encrypted. RSA signs by RS256, P-256 by ES256, Ed25519 by EdDSA. */
  privateKeyPem: string;
  subject: string;
  /** Seconds from now to `exp`; 0 or less makes a token that has expired already. */
  ttlSeconds: number;
  audience?: string;
  issuer?: string;
  keyId?: string;
  /** `typ` of the header; default `JWT`. */
  type?: string;
  /** More claims; they may not name one that another option sets. */
  claims?: Record<string, unknown>;
  nowMs: number;
}

/** The token. Throws `RangeError` with a sentence for the user when the key or an option cannot serve. */
export async function mintToken(options: MintTokenOptions): Promise<string> {
  const key = decodePrivateKeyPem(options.privateKeyPem);
  if (!Number.isFinite(options.ttlSeconds))
    throw new RangeError('the time to live is not a number of seconds');
  if (options.subject === '') throw new RangeError('the subject is empty');
  const issuedAt = Math.floor(options.nowMs / 1_000);
  const set: Record<string, unknown> = {
    sub: options.subject,
    iat: issuedAt,
    exp: Math.floor(issuedAt + options.ttlSeconds),
    ...(options.audience !== undefined && { aud: options.audience }),
    ...(options.issuer !== undefined && { iss: options.issuer }),
  };
  const clash = Object.keys(options.claims ?? {}).find((name) => Object.hasOwn(set, name));
  if (clash !== undefined)
    throw new RangeError(`the claim "${clash}" is already set by an option of its own`);
  return new SignJWT({ ...options.claims, ...set })
    .setProtectedHeader({
      alg: algorithmsOfKey(key)[0]!,
      typ: options.type ?? 'JWT',
      ...(options.keyId !== undefined && { kid: options.keyId }),
    })
    .sign(key);
}

function decodePrivateKeyPem(pem: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch {
    const encrypted = pem.includes('ENCRYPTED');
    throw new RangeError(
      encrypted ? 'the private key is encrypted' : 'the private key cannot be decoded; PEM is expected',
    );
  }
  const fault = findKeyFault(key);
  if (fault !== null) throw new RangeError(`the private key is ${fault}`);
  return key;
}
