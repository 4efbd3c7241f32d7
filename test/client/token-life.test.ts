/** The deadline of a session that a token opened, and the words of what ends it. */
import { describe, expect, test } from 'vitest';
import type { TokenFacts } from '../../src/auth/identity.ts';
import { TokenLife, type TokenLifePolicy, withdrawnError } from '../../src/client/token-life.ts';

const WALL_MS = 1_800_000_000_000;
const facts = (expiresAtMs: number): TokenFacts => ({ expiresAtMs }) as TokenFacts;
const policy = (more: Partial<TokenLifePolicy> = {}): TokenLifePolicy => ({
  onTokenExpiry: 'drain',
  expiryGraceMs: 30_000,
  maxSessionMs: Number.POSITIVE_INFINITY,
  jwtLeewaySeconds: 0,
  ...more,
});

describe('the deadline', () => {
  test.each([
    ['is exp, counted on the monotonic clock', {}, 60_000, 61_000],
    ['has the verifier’s leeway behind it', { jwtLeewaySeconds: 5 }, 60_000, 66_000],
    ['lies in the past for a token that only the leeway let in', { jwtLeewaySeconds: 0 }, -1, 999],
    ['is max_session where that is earlier', { maxSessionMs: 10_000 }, 60_000, 11_000],
    ['is exp where max_session is later', { maxSessionMs: 90_000 }, 60_000, 61_000],
    [
      'is never where expiry is ignored',
      { onTokenExpiry: 'ignore' as const },
      60_000,
      Number.POSITIVE_INFINITY,
    ],
    [
      'is max_session although expiry is ignored',
      { onTokenExpiry: 'ignore' as const, maxSessionMs: 10_000 },
      60_000,
      11_000,
    ],
  ])('%s', (_name, changes, lifeMs, deadlineMs) => {
    const life = new TokenLife(policy(changes), facts(WALL_MS + lifeMs), 1_000, WALL_MS);
    expect(life.deadlineMs).toBe(deadlineMs);
  });

  test('moves with a new token, but max_session counts from the beginning', () => {
    const life = new TokenLife(policy({ maxSessionMs: 100_000 }), facts(WALL_MS + 10_000), 1_000, WALL_MS);
    life.renew(facts(WALL_MS + 60_000), 6_000, WALL_MS + 5_000);
    expect(life.deadlineMs).toBe(61_000);
    life.renew(facts(WALL_MS + 900_000), 7_000, WALL_MS + 6_000);
    expect(life.deadlineMs).toBe(101_000);
    expect(life.eviction().error).toMatchObject({ code: '57P01', reason: 'max_session', severity: 'FATAL' });
  });

  test('may come nearer with a new token that lives shorter', () => {
    const life = new TokenLife(policy(), facts(WALL_MS + 60_000), 1_000, WALL_MS);
    life.renew(facts(WALL_MS + 2_000), 1_000, WALL_MS);
    expect(life.deadlineMs).toBe(3_000);
  });
});

describe('what happens then', () => {
  test.each([
    ['drain', 30_000],
    ['immediate', 0],
  ] as const)('%s leaves an open transaction %i ms', (onTokenExpiry, graceMs) => {
    const life = new TokenLife(policy({ onTokenExpiry }), facts(WALL_MS), 1_000, WALL_MS);
    expect(life.eviction()).toMatchObject({
      graceMs,
      error: { code: '57P01', message: 'terminating connection because the access token expired' },
    });
  });

  test.each([
    [-1, true],
    [0, true],
    [1, false],
  ])('a token that expires %i ms from now would be over: %s', (ms, over) => {
    const life = new TokenLife(policy(), facts(WALL_MS + 60_000), 1_000, WALL_MS);
    expect(life.wouldBeOver(facts(WALL_MS + ms), WALL_MS)).toBe(over);
  });
});

test.each([
  ['good', 'drain', undefined],
  ['revoked', 'drain', 'terminating connection because the access token was revoked'],
  ['revoked', 'ignore', 'terminating connection because the access token was revoked'],
  ['key_removed', 'drain', "terminating connection because the access token's key was withdrawn"],
  ['key_removed', 'ignore', undefined],
  [
    'issuer_removed',
    'ignore',
    "terminating connection because the access token's issuer is no longer accepted",
  ],
] as const)('a token that is %s, with on_key_removed = %s', (standing, onKeyRemoved, message) => {
  expect(withdrawnError(standing, onKeyRemoved)?.message).toBe(message);
});
