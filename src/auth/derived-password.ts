/**
 * The password of a role for `login_password`: derived, so that none is stored. Pure, beside the salt of a verifier.
 * Who holds the key can be every role; it belongs where the pooler's other secrets are.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { Secret } from '../base/secret.ts';
import { SCRAM_ITERATIONS, type ScramKeys } from './scram-keys.ts';

export interface PasswordOptions {
  /** `backend_password_key`. */
  readonly key: Secret;
  /** `backend_cluster`. */
  readonly cluster: string;
  readonly role: string;
  /** `backend_password_generation`. */
  readonly generation: number;
}

/** base64url(HMAC-SHA-256(key, "pgturnstile" NUL cluster NUL role NUL generation)), 43 characters. */
export function derivePassword(options: PasswordOptions): Secret {
  const { key, cluster, role, generation } = options;
  // No NUL can be in a name, so two different triples never give one text.
  const text = ['pgturnstile', cluster, role, String(generation)].join('\0');
  return new Secret(createHmac('sha256', key.reveal()).update(text).digest('base64url'));
}

const SALT_BYTES = 16;

/**
 * What PostgreSQL stores of a password, `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (manual, 52.8
 * pg_authid): nobody can log in by it. `salt` is random unless given.
 */
export async function scramVerifier(
  password: Secret,
  keys: ScramKeys,
  salt: Buffer = randomBytes(SALT_BYTES),
): Promise<string> {
  const { storedKey, serverKey } = await keys.derive(password.reveal(), salt, SCRAM_ITERATIONS);
  const [saltText, storedText, serverText] = [salt, storedKey, serverKey].map((bytes) =>
    bytes.toString('base64'),
  );
  return `SCRAM-SHA-256$${SCRAM_ITERATIONS}:${saltText}$${storedText}:${serverText}`;
}
