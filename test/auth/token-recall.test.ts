/** The short way of a token whose signature is remembered: it must refuse all that the long way refuses. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { JwksFileSource } from '../../src/auth/jwks-file-source.ts';
import { JwksSource } from '../../src/auth/jwks-source.ts';
import type { VerificationKey } from '../../src/auth/key-source.ts';
import { PemKeySource } from '../../src/auth/pem-key-source.ts';
import { TokenRejected } from '../../src/auth/token-rejected.ts';
import { TokenVerifier, VERIFIED_MS } from '../../src/auth/token-verifier.ts';
import {
  countingSource,
  goodClaims,
  makeToken,
  makeVerifier,
  NOW_MS,
  NOW_SECONDS,
  otherRsa,
  rsa,
  rules,
  signParts,
  toJwk,
  toPem,
} from './support.ts';

const good = makeToken();
const header = { alg: 'RS256', kid: 'k1' };

function rejectionBy(step: () => unknown): TokenRejected {
  try {
    step();
  } catch (error) {
    expect(error).toBeInstanceOf(TokenRejected);
    return error as TokenRejected;
  }
  throw new Error('nothing was refused');
}

test('nothing is recalled before its signature was good, nor a minute later, nor at a clock set back', async () => {
  const verifier = makeVerifier();
  const [head, payload] = good.split('.') as [string, string];
  expect(verifier.recall(good, NOW_MS)).toBeNull();
  const verified = await verifier.verify(good, NOW_MS);
  expect(verifier.recall(good, NOW_MS)).toBe(verified);
  expect(verifier.recall(good, NOW_MS + VERIFIED_MS - 1)).toBe(verified);
  expect(verifier.recall(good, NOW_MS + VERIFIED_MS)).toBeNull();
  expect(verifier.recall(good, NOW_MS - 1)).toBeNull();
  for (const other of [
    '',
    'x',
    `${good} `,
    ` ${good}`,
    `${good}=`,
    `${head}.${payload}.`,
    good.slice(0, -1),
  ]) {
    expect(verifier.recall(other, NOW_MS)).toBeNull();
  }
});

test('an expired token is not recalled although its minute is not over', async () => {
  const verifier = makeVerifier();
  const short = signParts(header, { ...goodClaims, exp: NOW_SECONDS + 5 }, rsa.privateKey);
  await verifier.verify(short, NOW_MS);
  expect(verifier.recall(short, NOW_MS + 4_999)).not.toBeNull();
  expect(verifier.recall(short, NOW_MS + 5_000)).toBeNull();
  await expect(verifier.verify(short, NOW_MS + 5_000)).rejects.toMatchObject({ reason: 'expired' });
});

test('a token that was revoked since is refused, and the log hears which it was', async () => {
  let isRevoked = false;
  const verifier = new TokenVerifier({
    entries: [{ rules, keys: countingSource() }],
    judge: () => {
      if (isRevoked) throw new TokenRejected('revoked');
    },
  });
  await verifier.verify(good, NOW_MS);
  isRevoked = true;
  const rejection = rejectionBy(() => verifier.recall(good, NOW_MS));
  expect(rejection).toMatchObject({ reason: 'revoked', kind: 'invalid', algorithm: 'RS256' });
});

test('a fault of the check is a refusal and no way in', async () => {
  let isBroken = false;
  const verifier = new TokenVerifier({
    entries: [{ rules, keys: countingSource() }],
    judge: () => {
      if (isBroken) throw new TypeError('alice');
    },
  });
  await verifier.verify(good, NOW_MS);
  isBroken = true;
  const rejection = rejectionBy(() => verifier.recall(good, NOW_MS));
  expect(rejection.reason).toBe('verifier_failed');
  expect(String(rejection.stack)).not.toContain('alice');
});

test.each<[string, (good: VerificationKey) => VerificationKey | null]>([
  ['another key under the same kid', (key) => ({ ...key, fingerprint: 'another' })],
  ['a key that has to be waited for', () => null],
])('%s leaves it to the long way', async (_what, change) => {
  const keys = countingSource();
  const verifier = makeVerifier({}, keys);
  await verifier.verify(good, NOW_MS);
  const key = keys.keyAtHand(header) as VerificationKey;
  keys.keyAtHand = () => change(key);
  expect(verifier.recall(good, NOW_MS)).toBeNull();
});

test('a key file is at hand until it is time to look again', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'turnstile-recall-'));
  try {
    let nowMs = 0;
    const clock = (): number => nowMs;
    const pemPath = join(directory, 'key.pem');
    const jwksPath = join(directory, 'jwks.json');
    await writeFile(pemPath, toPem(rsa.publicKey));
    await writeFile(jwksPath, JSON.stringify({ keys: [toJwk(rsa.publicKey, { kid: 'k1' })] }));
    const pem = await PemKeySource.open({ path: pemPath, clock });
    const jwks = await JwksFileSource.open({ path: jwksPath, clock });
    await writeFile(pemPath, toPem(otherRsa.publicKey));
    nowMs = 999;
    const old = pem.keyAtHand();
    expect(old).toEqual(await pem.keyFor());
    expect(jwks.keyAtHand(header)).toEqual(await jwks.keyFor(header));
    expect(() => jwks.keyAtHand({ ...header, kid: 'k2' })).toThrow(TokenRejected);
    nowMs = 1_000;
    expect(pem.keyAtHand()).toBeNull();
    expect(jwks.keyAtHand(header)).toBeNull();
    const look = pem.keyFor();
    // Nothing is at hand while somebody is looking, or a withdrawn key would serve on meanwhile.
    expect(pem.keyAtHand()).toBeNull();
    expect((await look).fingerprint).not.toBe(old?.fingerprint);
    expect(pem.keyAtHand()).toEqual(await look);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test('a fetched set is at hand until it is due, so that a stale one is always asked about', async () => {
  let nowMs = 1_000_000;
  const text = JSON.stringify({ keys: [toJwk(rsa.publicKey, { kid: 'k1' })] });
  let requests = 0;
  const source = new JwksSource({
    fetch: async () => {
      requests++;
      if (requests > 1) throw new Error('down');
      return { text, maxAgeMs: null };
    },
    cacheTtlMs: 300_000,
    random: () => 0.5,
    clock: () => nowMs,
  });
  expect(source.keyAtHand(header)).toBeNull();
  await source.keyFor(header);
  expect(source.keyAtHand(header)).toEqual(await source.keyFor(header));
  expect(source.keyAtHand({ ...header, kid: 'k2' })).toBeNull();
  expect(source.keyAtHand({ ...header, kid: null })).toBeNull();
  expect(requests).toBe(1);
  for (const ageMs of [299_999, 300_000, 3_600_000, 36_000_000]) {
    nowMs = 1_000_000 + ageMs;
    expect(source.keyAtHand(header), `${ageMs}`).toBeNull();
  }
  expect(requests).toBe(1);
});
