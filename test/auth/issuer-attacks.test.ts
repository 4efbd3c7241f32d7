/** What somebody without a good key may try against the keys, the ids and the clock. */
import { describe, expect, test } from 'vitest';
import { JWKS_UNKNOWN_KID_WAITING_MAX, JwksSource } from '../../src/auth/jwks-source.ts';
import { TokenRejected } from '../../src/auth/token-rejected.ts';
import { KEYS_WAITING_MAX } from '../../src/auth/token-verifier.ts';
import { UsedTokenIds } from '../../src/auth/used-token-ids.ts';
import { compileAddresses } from '../../src/client/login-address.ts';
import { compileNames } from '../../src/config/name-pattern.ts';
import { makeToken, makeVerifier, NOW_MS, NOW_SECONDS, otherRsa, rsa, toJwk } from './support.ts';

const reasonOf = (error: unknown): string => (error instanceof TokenRejected ? error.reason : String(error));

describe('tokens with made-up key ids while the issuer hangs', () => {
  test('do not take the places of those whose key is known', async () => {
    let isHanging = false;
    let release: () => void = () => undefined;
    const text = JSON.stringify({ keys: [toJwk(rsa.publicKey, { kid: 'k1' })] });
    const keys = new JwksSource({
      fetch: async () => {
        if (isHanging)
          await new Promise<void>((resolve) => {
            release = resolve;
          });
        return { text, maxAgeMs: null };
      },
      cacheTtlMs: 300_000,
      clock: () => 1_000_000,
      timeoutMs: 60_000,
    });
    await keys.warm();
    isHanging = true;
    const verifier = makeVerifier({}, keys);
    const outcomes: Promise<string>[] = [];
    for (let index = 0; index < KEYS_WAITING_MAX + 100; index++) {
      const token = makeToken({ sub: 'mallory' }, { kid: `x${index}` }, otherRsa.privateKey);
      outcomes.push(verifier.verify(token, NOW_MS).then(() => 'let in', reasonOf));
    }
    await new Promise((resolve) => setImmediate(resolve));
    expect(await verifier.verify(makeToken(), NOW_MS).then(({ role }) => role, reasonOf)).toBe('alice');
    expect(verifier.load).toBeLessThanOrEqual(JWKS_UNKNOWN_KID_WAITING_MAX);
    isHanging = false;
    release();
    const reasons = await Promise.all(outcomes);
    expect(new Set(reasons)).toEqual(new Set(['unknown_kid', 'overloaded']));
    expect(verifier.load).toBe(0);
    keys.stop();
  }, 20_000);
});

describe('the end of a token', () => {
  test('is the same instant for the clock and for its id, so that a fraction gives no second use', async () => {
    const ids = new UsedTokenIds();
    const verifier = makeVerifier();
    const token = makeToken({ exp: NOW_SECONDS + 1.0009, jti: 'one' });
    const { facts } = await verifier.verify(token, NOW_MS);
    expect(ids.use(null, 'one', facts.expiresAtMs, NOW_MS)).toBe('first');
    for (const nowMs of [facts.expiresAtMs - 1, facts.expiresAtMs, facts.expiresAtMs + 1]) {
      const isGood = await verifier.verify(token, nowMs).then(
        () => true,
        () => false,
      );
      const use = ids.use(null, 'one', facts.expiresAtMs, nowMs);
      expect([isGood, use]).not.toEqual([true, 'first']);
    }
  });
});

describe('lists of names', () => {
  test.each([
    '/a)|(b/',
    '/)x(/',
    '/admin)|(?:x/',
  ])('%s, which closes the brackets put around it, is a fault', (entry) => {
    expect(() => compileNames([entry])).toThrow(RangeError);
  });

  test.each([
    ['/a|b/', 'xb', false],
    ['/a|b/', 'b', true],
    ['/a$/', 'a\n', false],
    ['/a./', 'a\n', true],
    ['/a/', 'A', false],
    ['/K/', '\u212a', false],
  ])('%s and %j', (entry, name, fits) => {
    expect(compileNames([entry])(name)).toBe(fits);
  });
});

describe('a range of IPv4 in IPv6', () => {
  test.each([
    ['::ffff:0:0/96', '::ffff:10.1.2.3', true],
    ['::ffff:0:0/96', '10.1.2.3', true],
    ['::ffff:a00:0/104', '10.1.2.3', true],
    ['::ffff:a00:0/104', '11.1.2.3', false],
    ['0:0:0:0:0:FFFF:10.1.2.3', '10.1.2.3', true],
    ['::ffff:0:0/95', '10.1.2.3', false],
    ['::/0', '10.1.2.3', false],
    ['::ffff:0:0/96', '::1', false],
  ])('%s and %s', (entry, address, holds) => {
    expect(compileAddresses([entry])(address)).toBe(holds);
  });
});

describe('a database claim that cannot be reached', () => {
  test.each([
    ['a string on the way', { app: 'x' }],
    ['a list on the way', { app: [{ db: 'x' }] }],
    ['null on the way', { app: null }],
  ])('refuses the token: %s', async (_what, claims) => {
    const verifier = makeVerifier({ databaseClaims: ['app.db'] });
    await expect(verifier.verify(makeToken(claims), NOW_MS)).rejects.toMatchObject({
      reason: 'bad_database_claim',
    });
  });

  test.each([
    [{}],
    [{ app: {} }],
    [{ app: { other: 1 } }],
  ])('that is not there is absent: %j', async (claims) => {
    const verifier = makeVerifier({ databaseClaims: ['app.db'] });
    expect((await verifier.verify(makeToken(claims), NOW_MS)).databases).toEqual([]);
  });

  test.each([
    ['access', { accessClaim: 'app.a' }, 'bad_access_claim'],
    ['permissions', { permissionsClaim: 'app.p' }, 'bad_permissions_claim'],
  ])('the same for %s', async (_what, rules, reason) => {
    const verifier = makeVerifier(rules);
    await expect(verifier.verify(makeToken({ app: ['ro'] }), NOW_MS)).rejects.toMatchObject({ reason });
  });

  test('a name of the prototype is no claim, and one that is spelled so is', async () => {
    const verifier = makeVerifier({ databaseClaims: ['constructor.name', '__proto__'] });
    expect((await verifier.verify(makeToken(), NOW_MS)).databases).toEqual([]);
    const claims = `{"sub":"alice","exp":${NOW_SECONDS + 9},"__proto__":"shop"}`;
    const { signParts } = await import('./support.ts');
    const verified = await verifier.verify(signParts({ alg: 'RS256', kid: 'k1' }, claims), NOW_MS);
    expect(verified.databases).toEqual([['shop']]);
  });
});
