/**
 * Looks into the JSON files that a configuration names: key sets and lists of revoked tokens. A loose look: what a
 * start would refuse for good, not every rule. Findings go to the caller's functions and quote no file.
 */
import { createPublicKey, type JsonWebKey } from 'node:crypto';
import { readingProblem, readText } from './config-file.ts';
import { isFitKey } from './pem-checks.ts';

type Report = (message: string) => void;
type JsonObject = Readonly<Record<string, unknown>>;

const JWKS_BYTES_MAX = 64 * 1024;
const REVOCATION_BYTES_MAX = 1024 * 1024;
/** RFC 7518 sections 6.2.2, 6.3.2 and 6.4: what only the issuer may know. */
const PRIVATE_MEMBERS: readonly string[] = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k'];

/**
 * A key set (RFC 7517) with at least one key that one of the algorithms can use, and none that is private. Without a
 * kid a key serves nobody unless `isKidOptional`.
 */
export function checkJwksFile(
  file: string,
  algorithms: readonly string[],
  isKidOptional: boolean,
  report: Report,
): void {
  const value = readJson(file, JWKS_BYTES_MAX, report);
  if (value === undefined) return;
  const keys = isObject(value) ? value['keys'] : undefined;
  if (!Array.isArray(keys)) return report(`the file ${file} is no key set: it has no list of keys`);
  const jwks = (keys as unknown[]).filter(isObject);
  if (jwks.some((jwk) => PRIVATE_MEMBERS.some((name) => Object.hasOwn(jwk, name)))) {
    return report(`the file ${file} holds a private or symmetric key; give the public ones only`);
  }
  const hasKid = (jwk: JsonObject): boolean => typeof jwk['kid'] === 'string' && jwk['kid'] !== '';
  if (!jwks.some((jwk) => (isKidOptional || hasKid(jwk)) && isUsable(jwk, algorithms))) {
    const what = isKidOptional ? 'key' : 'key with a kid';
    report(`the file ${file} has no ${what} that one of ${algorithms.join(', ')} can use`);
  }
}

/** A list of objects, each of which says what it revokes. */
export function checkRevocationFile(file: string, report: Report): void {
  const value = readJson(file, REVOCATION_BYTES_MAX, report);
  if (value === undefined) return;
  if (!Array.isArray(value)) return report(`the file ${file} must hold a list: [{"jti": "..."}]`);
  const odd = (value as unknown[]).findIndex((entry) => !isObject(entry) || !isRevocation(entry));
  if (odd !== -1) {
    const what = 'must have exactly one of jti, sid, kid, or sub with before';
    report(`the file ${file}: entry ${odd} ${what}`);
  }
}

function isRevocation(entry: JsonObject): boolean {
  const kinds = ['jti', 'sub', 'sid', 'kid'].filter((name) => Object.hasOwn(entry, name));
  const [kind] = kinds;
  if (kind === undefined || kinds.length > 1 || typeof entry[kind] !== 'string') return false;
  return (kind === 'sub') === Object.hasOwn(entry, 'before');
}

function isUsable(jwk: JsonObject, algorithms: readonly string[]): boolean {
  if (jwk['use'] !== undefined && jwk['use'] !== 'sig') return false;
  try {
    return isFitKey(createPublicKey({ key: jwk as JsonWebKey, format: 'jwk' }), algorithms);
  } catch {
    return false;
  }
}

function readJson(file: string, bytesMax: number, report: Report): unknown {
  let text: string;
  try {
    text = readText(file, bytesMax);
  } catch (error) {
    report(`the file ${file}: ${readingProblem(error)}`);
    return undefined;
  }
  try {
    return JSON.parse(text) as unknown;
  } catch {
    report(`the file ${file} is not JSON`);
    return undefined;
  }
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
