/** Minting, explaining, and the step from a verified token to an identity. */
import { generateKeyPairSync } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { explainToken } from '../../src/auth/token-explain.ts';
import { identityFromToken, takesToken } from '../../src/auth/token-identity.ts';
import { mintToken } from '../../src/auth/token-mint.ts';
import { TokenVerifier, type VerifiedToken } from '../../src/auth/token-verifier.ts';
import {
  countingSource,
  ed25519,
  makeConfig,
  makeToken,
  makeUser,
  NOW_MS,
  NOW_SECONDS,
  otherRsa,
  p256,
  rsa,
  rules,
  toPem,
  toPrivatePem,
} from './support.ts';

describe('minting', () => {
  test.each([
    ['RS256', rsa],
    ['ES256', p256],
    ['EdDSA', ed25519],
  ])('a key for %s gives a token that the verifier takes', async (algorithm, pair) => {
    const token = await mintToken({
      privateKeyPem: toPrivatePem(pair.privateKey),
      subject: 'alice',
      ttlSeconds: 300,
      audience: 'db',
      issuer: 'https://idp',
      keyId: 'k1',
      claims: { role: 'reader' },
      nowMs: NOW_MS,
    });
    const keys = countingSource(pair.publicKey);
    const verified = await new TokenVerifier({ config: { ...rules, audience: 'db' }, keys }).verify(
      token,
      NOW_MS,
    );
    expect(verified.facts).toMatchObject({ algorithm, expiresAtMs: NOW_MS + 300_000, issuer: 'https://idp' });
    expect(verified.claims).toMatchObject({ role: 'reader', iat: NOW_SECONDS });
  });

  const base = { privateKeyPem: toPrivatePem(p256.privateKey), subject: 'a', ttlSeconds: 1, nowMs: NOW_MS };
  test('a time to live below zero makes a token that is refused as expired', async () => {
    const token = await mintToken({ ...base, ttlSeconds: -60 });
    const verifier = new TokenVerifier({ config: rules, keys: countingSource(p256.publicKey) });
    await expect(verifier.verify(token, NOW_MS)).rejects.toMatchObject({ reason: 'expired' });
  });

  const small = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey;
  const encrypted = rsa.privateKey
    .export({ type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'x' })
    .toString();
  test.each([
    ['a public key', { privateKeyPem: toPem(rsa.publicKey) }, /cannot be decoded/],
    ['an encrypted key', { privateKeyPem: encrypted }, /encrypted/],
    ['RSA of 1024 bits', { privateKeyPem: toPrivatePem(small) }, /1024 bits/],
    ['no subject', { subject: '' }, /subject/],
    ['a time that is no number', { ttlSeconds: Number.NaN }, /time to live/],
    ['a claim that an option sets', { claims: { exp: 9e9 } }, /"exp" is already set/],
    ['an audience given twice', { audience: 'a', claims: { aud: 'b' } }, /"aud" is already set/],
  ])('%s is a fault in words', async (_what, more, fault) => {
    await expect(mintToken({ ...base, ...more })).rejects.toThrow(fault);
    await expect(mintToken({ ...base, ...more })).rejects.toBeInstanceOf(RangeError);
  });
});

const verifiedAs = (role: string): VerifiedToken => ({
  role,
  claims: {},
  keyDescription: 'key',
  facts: { issuer: null, subject: role, tokenId: null, keyId: null, algorithm: 'RS256', expiresAtMs: NOW_MS },
});

describe('from a token to an identity', () => {
  const enter = (role: string, startupUser: string | null, config = makeConfig({}), database = 'app') =>
    identityFromToken({ verified: verifiedAs(role), config, startupUser, database });
  const reasonOf = (action: () => unknown): string | undefined => {
    try {
      action();
    } catch (error) {
      return `${(error as { code: string }).code} ${(error as { reason: string }).reason}`;
    }
    return undefined;
  };

  test('the startup user must be the role or a placeholder, unless any may be', () => {
    expect(enter('alice', 'alice').role).toBe('alice');
    expect(enter('alice', 'jwt').role).toBe('alice');
    expect(reasonOf(() => enter('alice', 'bob'))).toBe('28000 user_mismatch');
    expect(enter('alice', 'bob', makeConfig({ turnstile: { userMatch: 'any' } })).role).toBe('alice');
  });

  test('jwt_user_suffix binds the claim and not only the name that the client gives itself', () => {
    const config = makeConfig({ jwt: { userSuffix: '@corp' } });
    expect(enter('alice@corp', 'alice@corp', config).role).toBe('alice@corp');
    expect(reasonOf(() => enter('alice@evil', 'jwt', config))).toBe('28000 role_suffix');
    expect(takesToken('alice@corp', config)).toBe(true);
    expect(takesToken('alice', config)).toBe(false);
    expect(takesToken('jwt', config)).toBe(true);
    expect(takesToken('anyone', makeConfig({}))).toBe(true);
  });

  test('without provisioning only users of users.toml enter, and only their databases', () => {
    const users = [makeUser('alice', { databases: ['other'] }), makeUser('bob', { allDatabases: true })];
    const config = makeConfig({ jwt: { userAutoProvision: false }, users });
    expect(reasonOf(() => enter('carol', 'carol', config))).toBe('28000 role_not_a_user');
    expect(reasonOf(() => enter('alice', 'alice', config))).toBe('42501 database_denied');
    expect(reasonOf(() => enter('alice', 'alice', config, 'nothing'))).toBe('42501 database_denied');
    expect(enter('bob', 'bob', config).user).toBe(users[1]);
  });

  test('a row of users.toml still counts when provisioning is on', () => {
    const users = [makeUser('alice', { databases: ['other'] }), makeUser('alice', { databases: ['app'] })];
    expect(enter('alice', 'alice', makeConfig({ users })).user).toBe(users[1]);
    const config = makeConfig({ users: users.slice(0, 1) });
    expect(reasonOf(() => enter('alice', 'alice', config))).toBe('42501 database_denied');
  });

  test('a database that is not there is 3D000 for one who may enter any', () => {
    expect(reasonOf(() => enter('alice', 'alice', makeConfig({}), '../x'))).toBe('3D000 database_unknown');
  });

  test('read-only comes from provisioning, the user, or the database, the user before the database', () => {
    expect(enter('alice', 'alice').readOnly).toBe(false);
    expect(enter('alice', 'alice', makeConfig({ jwt: { userAutoProvisionReadOnly: true } })).readOnly).toBe(
      true,
    );
    expect(enter('alice', 'alice', makeConfig({ databaseReadOnly: true })).readOnly).toBe(true);
    const users = [makeUser('alice', { allDatabases: true, readOnly: false })];
    expect(enter('alice', 'alice', makeConfig({ users, databaseReadOnly: true })).readOnly).toBe(false);
  });

  test('reserved names and the admin stay outside even with a row in users.toml', () => {
    const users = ['postgres', 'admin', 'none'].map((name) => makeUser(name, { allDatabases: true }));
    const config = makeConfig({ users });
    expect(reasonOf(() => enter('postgres', 'postgres', config))).toBe('28000 role_reserved');
    expect(reasonOf(() => enter('admin', 'admin', config))).toBe('28000 role_is_admin');
    expect(reasonOf(() => enter('none', 'none', config))).toBe('28000 role_reserved');
  });
});

describe('explaining', () => {
  let directory: string;
  let publicKeyFile: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'turnstile-explain-'));
    publicKeyFile = join(directory, 'key.pem');
    await writeFile(publicKeyFile, toPem(rsa.publicKey));
  });
  afterAll(() => rm(directory, { recursive: true }));

  const explain = (token: string, jwt: Record<string, unknown> = {}, database: string | null = null) =>
    explainToken({ config: makeConfig({ jwt: { publicKeyFile, ...jwt } }), token, database, nowMs: NOW_MS });

  test('a good token: role, database, access, expiry and key', async () => {
    const { accepted, lines } = await explain(makeToken(), { userAutoProvisionReadOnly: true }, 'app');
    expect(accepted).toBe(true);
    expect(lines).toEqual(
      expect.arrayContaining([
        'accepted',
        'role: alice',
        'database: app',
        'access: read-only',
        'expires: in 300 s',
        'key: RSA 2048 from the public key file, RS256',
        'claim sub: "alice"',
      ]),
    );
  });

  test.each([
    [
      'an expired token',
      makeToken({ exp: NOW_SECONDS - 12 }),
      {},
      'refused: expired',
      'claim exp: 1799999988 (12 s ago)',
    ],
    [
      'a foreign signature',
      makeToken({}, {}, otherRsa.privateKey),
      {},
      'refused: bad_signature',
      'claim sub: "alice"',
    ],
    [
      'a wrong audience',
      makeToken({ aud: 'x' }),
      { audience: 'db' },
      'refused: bad_audience',
      'claim aud: "x"',
    ],
    [
      'a reserved role',
      makeToken({ sub: 'postgres' }),
      {},
      'refused: role_reserved',
      'claim sub: "postgres"',
    ],
    [
      'a role that is no user',
      makeToken(),
      { userAutoProvision: false },
      'refused: role_not_a_user',
      'header: alg RS256, kid k1',
    ],
    [
      'no key at all',
      makeToken(),
      { publicKeyFile: null },
      'refused: keys_unavailable',
      'header: alg RS256, kid k1',
    ],
    [
      'a key file that is not there',
      makeToken(),
      { publicKeyFile: '/nonexistent/k.pem' },
      'refused: keys_unavailable',
      'header: alg RS256, kid k1',
    ],
    [
      'a JWKS address in the clear',
      makeToken(),
      { publicKeyFile: null, jwksUrl: 'http://idp.example' },
      'refused: keys_unavailable',
      'header: alg RS256, kid k1',
    ],
  ])('%s: the exact reason first', async (_what, token, jwt, first, shown) => {
    const { accepted, lines } = await explain(token, jwt);
    expect(accepted).toBe(false);
    expect(lines[0]).toContain(first);
    expect(lines).toContain(shown);
    expect(lines.join('\n')).not.toContain(token.split('.')[2]);
  });

  test('an unreachable JWKS endpoint is named beside the reason', async () => {
    const { accepted, lines } = await explain(makeToken(), {
      publicKeyFile: null,
      jwksUrl: 'http://127.0.0.1:1/keys',
    });
    expect(accepted).toBe(false);
    expect(lines[0]).toContain('refused: keys_unavailable');
    expect(lines.at(-1)).toMatch(/^note: the endpoint cannot be reached/);
  });

  test('an unknown database and junk are answers too', async () => {
    expect((await explain(makeToken(), {}, 'nothing')).lines[0]).toContain('refused: database_unknown');
    expect((await explain('junk')).lines).toEqual(['refused: not_jwt: it is not a JWT']);
  });

  test('claims cannot write to the terminal of the reader', async () => {
    const { lines } = await explain(makeToken({ iss: '\u001b]0;owned\u0007\u202e', sub: 'a\u009b31m' }));
    expect(lines.join('')).not.toMatch(/[\p{Cc}\p{Cf}]/u);
  });
});
