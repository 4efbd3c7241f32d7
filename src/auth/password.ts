/**
 * The two old password methods: md5 and cleartext. Every comparison is of keyed digests, so neither the content
 * nor the length of a password shows in the time it takes, and an unknown user costs what a known one does.
 */
import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Secret } from '../base/secret.ts';

/** Bytes of the salt in AuthenticationMD5Password. */
export const MD5_SALT_BYTES = 4;

/**
 * What a client answers to AuthenticationMD5Password: `md5` and the hex of md5(md5(password ‖ user) ‖ salt)
 * (PostgreSQL manual, "Message Flow", AuthenticationMD5Password).
 */
export function md5Response(user: string, password: string, salt: Buffer): string {
  const inner = createHash('md5').update(password).update(user).digest('hex');
  return `md5${createHash('md5').update(inner).update(salt).digest('hex')}`;
}

/** Whether `response` answers the salt for one of the user's passwords. Give no passwords for an unknown user. */
export function verifyMd5(
  response: string,
  user: string,
  passwords: readonly Secret[],
  salt: Buffer,
): boolean {
  return matchesAny(response, passwords, (password) => md5Response(user, password, salt));
}

/** Whether `presented` is one of the passwords; an empty one never is. Give no passwords for an unknown user. */
export function verifyPlain(presented: string, passwords: readonly Secret[]): boolean {
  return matchesAny(presented, passwords, (password) => password);
}

function matchesAny(
  presented: string,
  passwords: readonly Secret[],
  expected: (password: string) => string,
): boolean {
  const key = randomBytes(32);
  const digest = (text: string): Buffer => createHmac('sha256', key).update(text).digest();
  const ours = digest(presented);
  let matches = 0;
  // No early end: which of several passwords it was is nobody's business.
  for (const password of passwords.length === 0 ? [null] : passwords) {
    const value = password?.reveal() ?? '';
    const equal = timingSafeEqual(ours, digest(expected(value)));
    matches |= Number(equal && value !== '');
  }
  return matches === 1;
}
