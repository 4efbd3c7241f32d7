/**
 * Issuers that are away, slow, hostile or careless with their keys, and what a login is told meanwhile. The clocks
 * of refresh, back-off and staleness are tried in the tests of the key source; here it is whole logins.
 */
import { generateKeyPairSync } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { otherRsa, rsa, toPem } from '../test/auth/support.ts';
import {
  type AttackWorld,
  badToken,
  entersAs,
  expectOutcome,
  json,
  jwk,
  makeAttackWorld,
  type Outcome,
  refusedWith,
} from './support/attacks.ts';
import { cleanUp, expectNoSecrets, type LoginPooler, type Table } from './support/login-support.ts';

let world: AttackWorld;
let pooler: LoginPooler | null = null;
beforeAll(async () => {
  world = await makeAttackWorld();
});
afterEach(() => {
  pooler?.stop();
  pooler = null;
  world.keys.publish('/a/jwks', [jwk(rsa, 'a1')]);
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
});

const unavailable: Outcome = refusedWith('57P03', 'authentication is temporarily unavailable');
const isIn = (): Outcome => entersAs(world.alice);
const bad = (): Outcome => badToken(world.alice);
const attempt = (secret: string): { user: string; database: string; secret: string } => ({
  user: world.alice,
  database: world.database,
  secret,
});
const tryToken = (secret: string, outcome: Outcome): Promise<void> =>
  expectOutcome(pooler!, world, attempt(secret), outcome);
const fromB = (): string => world.token({ iss: world.issuerB }, { kid: 'b1' }, otherRsa);

describe('an issuer that does not answer', () => {
  test.each([
    ['says 503', json({}, 503)],
    ['answers with a page', (response: import('node:http').ServerResponse) => response.end('<html>')],
    ['answers with an empty object', json({})],
    ['answers with no keys', json({ keys: [] })],
    ['answers with a list', json([1])],
    ['answers with 10 MiB', json({ keys: [], pad: 'x'.repeat(10 * 1_048_576) })],
  ])('%s: the login is told to come back, and the other issuer is not touched by it', async (_name, answer) => {
    world.keys.on('/a/jwks', answer);
    pooler = await world.start();
    await tryToken(world.token(), unavailable);
    await tryToken(fromB(), isIn());
  });

  test('a redirect is not followed, wherever it leads', async () => {
    for (const location of [world.keys.url('/b/jwks'), 'http://169.254.169.254/latest/meta-data']) {
      const before = world.keys.hits('/b/jwks');
      world.keys.on('/a/jwks', json({}, 302, { location }));
      pooler = await world.start({ issuerB: { jwks_url: world.keys.url('/c/jwks') } });
      await tryToken(world.token(), unavailable);
      expect(world.keys.hits('/b/jwks')).toBe(before);
      pooler.stop();
    }
  });

  test('hangs: its logins end in bounded time, the other issuer is as quick as ever', async () => {
    world.keys.on('/a/jwks', () => {});
    pooler = await world.start();
    const slow = tryToken(world.token(), unavailable);
    const startedMs = performance.now();
    await tryToken(fromB(), isIn());
    expect(performance.now() - startedMs).toBeLessThan(4_000);
    await slow.catch(() => {});
  }, 20_000);

  test('comes back: the next login after the pause enters, without a restart', async () => {
    world.keys.on('/a/jwks', json({}, 503));
    pooler = await world.start();
    await tryToken(world.token(), unavailable);
    world.keys.publish('/a/jwks', [jwk(rsa, 'a1')]);
    await expect
      .poll(
        async () => {
          try {
            await tryToken(world.token(), isIn());
            return true;
          } catch {
            return false;
          }
        },
        { timeout: 8_000, interval: 200 },
      )
      .toBe(true);
  }, 15_000);
});

describe('a change of keys', () => {
  test('a new kid is fetched once and enters; a flood of unknown ones is not fetched for', async () => {
    const next = generateKeyPairSync('rsa', { modulusLength: 2048 });
    pooler = await world.start();
    await tryToken(world.token(), isIn());
    world.keys.publish('/a/jwks', [jwk(rsa, 'a1'), jwk(next, 'a9')]);
    const before = world.keys.hits('/a/jwks');
    await tryToken(world.token({}, { kid: 'a9' }, next), isIn());
    expect(world.keys.hits('/a/jwks')).toBe(before + 1);
    for (let index = 0; index < 50; index++) await tryToken(world.token({}, { kid: `u${index}` }), bad());
    expect(world.keys.hits('/a/jwks')).toBe(before + 1);
  });

  test('fifty logins at once with no key at hand ask for it once', async () => {
    pooler = await world.start();
    const tokens = Array.from({ length: 50 }, (_, index) => world.token({ jti: `c${index}` }));
    const before = world.keys.hits('/a/jwks');
    const clients = await Promise.all(
      tokens.map((password) => pooler!.connect({ user: world.alice, password, database: world.database })),
    );
    await Promise.all(clients.map((client) => client.end()));
    expect(world.keys.hits('/a/jwks') - before).toBeLessThanOrEqual(1);
  });
});

describe('keys that do not verify anything', () => {
  const odd = generateKeyPairSync('ec', { namedCurve: 'secp256k1' });
  const small = generateKeyPairSync('rsa', { modulusLength: 1024 });
  const cases: [string, () => Table[], () => string, () => Outcome][] = [
    [
      'two keys under one kid: neither',
      () => [jwk(rsa, 'a1'), jwk(otherRsa, 'a1')],
      () => world.token(),
      bad,
    ],
    [
      'a key for encryption',
      () => [jwk(rsa, 'a1', { use: 'enc' }), jwk(otherRsa, 'x')],
      () => world.token(),
      bad,
    ],
    [
      'a key for signing only',
      () => [jwk(rsa, 'a1', { key_ops: ['sign'] }), jwk(otherRsa, 'x')],
      () => world.token(),
      bad,
    ],
    ['a key for another algorithm', () => [jwk(rsa, 'a1', { alg: 'RS512' })], () => world.token(), bad],
    [
      'an RSA key of 1024 bits',
      () => [jwk(small, 'a1'), jwk(otherRsa, 'x')],
      () => world.token({}, {}, small),
      bad,
    ],
    [
      'a key on a curve that no algorithm has',
      () => [jwk(odd, 'a1'), jwk(otherRsa, 'x')],
      () => world.token({}, { alg: 'ES256' }, odd),
      bad,
    ],
    [
      'a symmetric key whose secret is the public key',
      () => [
        { kty: 'oct', kid: 'a1', k: Buffer.from(toPem(rsa.publicKey)).toString('base64url') },
        jwk(otherRsa, 'x'),
      ],
      () => world.token({}, { alg: 'HS256' }),
      bad,
    ],
    [
      'a published private key',
      () => [{ ...rsa.privateKey.export({ format: 'jwk' }), kid: 'a1', use: 'sig' }, jwk(otherRsa, 'x')],
      () => world.token(),
      bad,
    ],
    [
      'a good key beside a kind that nobody knows',
      () => [{ kty: 'AKP', kid: 'z', pub: 'x' }, jwk(rsa, 'a1')],
      () => world.token(),
      isIn,
    ],
  ];
  test.each(cases)('%s', async (_name, keys, token, outcome) => {
    world.keys.publish('/a/jwks', keys());
    pooler = await world.start();
    await tryToken(token(), outcome());
  });

  test('a published private key is cried out in the log', async () => {
    world.keys.publish('/a/jwks', [
      { ...rsa.privateKey.export({ format: 'jwk' }), kid: 'a1' },
      jwk(otherRsa, 'x'),
    ]);
    pooler = await world.start();
    await tryToken(world.token(), bad());
    expect(pooler.lines.some((line) => line.level === 'error' && /private/.test(line.message))).toBe(true);
  });
});
