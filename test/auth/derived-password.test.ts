/** The derived password and its verifier: that both are what PostgreSQL and a later run will make of them. */
import { createHmac } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { derivePassword, scramVerifier } from '../../src/auth/derived-password.ts';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { Secret } from '../../src/base/secret.ts';

const base = { key: new Secret('k'.repeat(32)), cluster: 'main', role: 'alice', generation: 1 };

describe('the password', () => {
  test('is the HMAC over cluster, role and generation, and the same each time', () => {
    const expected = createHmac('sha256', 'k'.repeat(32))
      .update('pgturnstile\0main\0alice\x001')
      .digest('base64url');
    expect(derivePassword(base).reveal()).toBe(expected);
    expect(derivePassword({ ...base }).reveal()).toBe(expected);
  });

  test.each([
    ['the key', { key: new Secret('other'.repeat(8)) }],
    ['the cluster', { cluster: 'second' }],
    ['the role', { role: 'Alice' }],
    ['the generation', { generation: 2 }],
    ['where the cluster ends and the role begins', { cluster: 'mainalice', role: '' }],
  ])('is another one with %s', (_what, change) => {
    expect(derivePassword({ ...base, ...change }).reveal()).not.toBe(derivePassword(base).reveal());
  });

  test('shows in no string', () => {
    expect(`${derivePassword(base)} ${JSON.stringify({ p: derivePassword(base) })}`).toBe(
      '**** {"p":"****"}',
    );
  });
});

test('a verifier is the one of RFC 7677, section 3', async () => {
  const salt = Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64');
  const verifier = await scramVerifier(new Secret('pencil'), new ScramKeys(), salt);
  expect(verifier).toBe(
    'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=',
  );
});

test('two verifiers of one password have nothing in common but its form', async () => {
  const password = derivePassword(base);
  const [one, two] = [
    await scramVerifier(password, new ScramKeys()),
    await scramVerifier(password, new ScramKeys()),
  ];
  expect(one).not.toBe(two);
  expect(one).not.toContain(password.reveal());
});
