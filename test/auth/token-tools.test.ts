/** Minting, explaining, and the step from a verified token to an identity. */
import { generateKeyPairSync } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Access } from '../../src/auth/token-claims.ts';
import { explainToken } from '../../src/auth/token-explain.ts';
import { identityFromToken, takesToken } from '../../src/auth/token-identity.ts';
import { mintToken } from '../../src/auth/token-mint.ts';
import { TokenRejected } from '../../src/auth/token-rejected.ts';
import type { VerifiedToken } from '../../src/auth/token-verifier.ts';
import type { Config } from '../../src/config/config.ts';
import type { PgError } from '../../src/protocol/pg-error.ts';
import {
  countingSource,
  ed25519,
  makeConfig,
  makeIssuer,
  makeRoleRule,
  makeToken,
  makeUser,
  makeVerifier,
  NOW_MS,
  NOW_SECONDS,
  otherRsa,
  p256,
  rsa,
  toPem,
  toPrivatePem,
  verifiedAs,
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
    const verified = await makeVerifier({ audiences: ['db'] }, keys).verify(token, NOW_MS);
    expect(verified.facts).toMatchObject({ algorithm, expiresAtMs: NOW_MS + 300_000, issuer: 'https://idp' });
    expect(verified.claims).toMatchObject({ role: 'reader', iat: NOW_SECONDS });
  });

  const base = { privateKeyPem: toPrivatePem(p256.privateKey), subject: 'a', ttlSeconds: 1, nowMs: NOW_MS };
  test('a time to live below zero makes a token that is refused as expired', async () => {
    const token = await mintToken({ ...base, ttlSeconds: -60 });
    const verifier = makeVerifier({}, countingSource(p256.publicKey));
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

  const outcome = (more: Parameters<typeof identityFromToken>[0]): string => {
    try {
      const { readOnly } = identityFromToken(more);
      return readOnly ? 'ro' : 'rw';
    } catch (error) {
      return error instanceof TokenRejected ? `28P01 ${error.reason}` : `${(error as PgError).code}`;
    }
  };
  const IDP = 'https://idp.example';
  const databases = ['app', 'other'];

  type Grants = Partial<Pick<VerifiedToken, 'access' | 'databases'>> & {
    permissions?: Record<string, Access>;
  };
  test.each<[string, Grants, string, Partial<Config['turnstile']>, string]>([
    ['no claim', {}, 'app', {}, 'rw'],
    ['no claim where one is required', {}, 'app', { databaseClaimRequired: true }, '42501'],
    ['no claim where one is required, for nothing', {}, 'nothing', { databaseClaimRequired: true }, '42501'],
    ['the claim has it', { databases: [['app']] }, 'app', { databaseClaimRequired: true }, 'rw'],
    ['the claim has another', { databases: [['other']] }, 'app', {}, '42501'],
    ['the claim has it in other letters', { databases: [['APP']] }, 'app', {}, '42501'],
    ['the claim has a star', { databases: [['*']] }, 'app', {}, '42501'],
    ['the claim has not what is not there', { databases: [['app']] }, 'nothing', {}, '42501'],
    ['the claim has what is not there', { databases: [['nothing']] }, 'nothing', {}, '3D000'],
    ['one claim of two has it', { databases: [['app', 'other'], ['other']] }, 'app', {}, '42501'],
    ['both claims have it', { databases: [['app', 'other'], ['other']] }, 'other', {}, 'rw'],
    ['access ro', { access: 'ro' }, 'app', {}, 'ro'],
    ['access rw', { access: 'rw' }, 'app', {}, 'rw'],
    ['permission rw', { permissions: { app: 'rw' } }, 'app', {}, 'rw'],
    ['permission ro', { permissions: { app: 'ro' } }, 'app', {}, 'ro'],
    ['permission for another', { permissions: { other: 'rw' } }, 'app', {}, '42501'],
    ['no permission for what is not there', { permissions: {} }, 'nothing', {}, '42501'],
    [
      'permissions name databases, too',
      { permissions: { app: 'rw' } },
      'app',
      { databaseClaimRequired: true },
      'rw',
    ],
    ['permission rw, access ro', { permissions: { app: 'rw' }, access: 'ro' }, 'app', {}, 'ro'],
    ['permission ro, access rw', { permissions: { app: 'ro' }, access: 'rw' }, 'app', {}, 'ro'],
    [
      'permission, but not the claim',
      { permissions: { app: 'rw' }, databases: [['other']] },
      'app',
      {},
      '42501',
    ],
  ])('%s: %#', (_what, { permissions, ...grants }, database, turnstile, expected) => {
    const verified = verifiedAs('alice', {
      ...grants,
      permissions: permissions === undefined ? null : new Map(Object.entries(permissions)),
    });
    const config = makeConfig({ databases, turnstile });
    expect(outcome({ verified, config, startupUser: 'alice', database })).toBe(expected);
  });

  test('a claim narrows what the configuration says and never widens it', () => {
    const users = [makeUser('alice', { allDatabases: true, readOnly: true })];
    const verified = verifiedAs('alice', { access: 'rw', permissions: new Map([['app', 'rw']]) });
    for (const more of [
      { users },
      { databaseReadOnly: true },
      { jwt: { userAutoProvisionReadOnly: true } },
    ]) {
      expect(outcome({ verified, config: makeConfig(more), startupUser: null, database: 'app' })).toBe('ro');
    }
  });

  test('an issuer opens the databases and roles of its row alone', () => {
    const row = makeIssuer(IDP, { databases: ['app'], allowedRoles: ['alice', '/team_[a-z]+/'] });
    const config = makeConfig({ databases, issuers: [row, makeIssuer('https://b.example')] });
    const of = (role: string, database: string, source: string | null = IDP): string =>
      outcome({ verified: verifiedAs(role, {}, { source }), config, startupUser: null, database });
    expect(of('alice', 'app')).toBe('rw');
    expect(of('alice', 'other')).toBe('42501');
    expect(of('alice', 'nothing')).toBe('42501');
    expect(of('team_red', 'app')).toBe('rw');
    for (const role of ['team_red2', 'xteam_red', 'bob', 'ALICE', '/team_[a-z]+/']) {
      expect(of(role, 'app')).toBe('28000');
    }
    expect(of('bob', 'other', 'https://b.example')).toBe('rw');
  });

  test('a database with audiences of its own wants one of them and not the issuer’s', () => {
    const row = (name: string, audiences: string[]) => ({
      name,
      audiences,
      backendIdentity: null,
      backendCluster: null,
    });
    const config = makeConfig({
      databases,
      issuers: [makeIssuer(IDP, { audiences: ['pool'] })],
      turnstileDatabases: [row('app', ['app.db', 'app2.db']), row('other', [])],
    });
    const of = (aud: unknown, database: string): string =>
      outcome({
        verified: verifiedAs('alice', { claims: { aud } }, { source: IDP }),
        config,
        startupUser: null,
        database,
      });
    expect(of('app.db', 'app')).toBe('rw');
    expect(of(['x', 'app2.db'], 'app')).toBe('rw');
    expect(of('pool', 'app')).toBe('28P01 bad_audience');
    expect(of('app.db', 'other')).toBe('28P01 bad_audience');
    expect(of('app.db', 'nothing')).toBe('28P01 bad_audience');
    expect(of('pool', 'other')).toBe('rw');
    expect(of(['app.db', 5], 'app')).toBe('28P01 bad_audience');
    expect(of(undefined, 'app')).toBe('28P01 bad_audience');
  });

  test('who acts for somebody comes in only if both may', () => {
    const disabled = (name: string) => ({ name, backendIdentity: null, disabled: true });
    const of = (subjectRole: string, config: Config): string =>
      outcome({
        verified: verifiedAs('agent', {}, { subjectRole, actor: 'agent', source: IDP }),
        config,
        startupUser: 'agent',
        database: 'app',
      });
    expect(of('alice', makeConfig({}))).toBe('rw');
    expect(of('alice', makeConfig({ turnstileUsers: [disabled('alice')] }))).toBe('28000');
    expect(of('alice', makeConfig({ turnstileUsers: [disabled('agent')] }))).toBe('28000');
    expect(of('postgres', makeConfig({}))).toBe('28000');
    expect(of('alice', makeConfig({ issuers: [makeIssuer(IDP, { allowedRoles: ['agent'] })] }))).toBe(
      '28000',
    );
    const users = [makeUser('agent', { allDatabases: true }), makeUser('bob', { databases: ['other'] })];
    expect(of('bob', makeConfig({ users }))).toBe('42501');
    expect(of('carol', makeConfig({ users, jwt: { userAutoProvision: false } }))).toBe('28000');
    const entered = identityFromToken({
      verified: verifiedAs('agent', {}, { subjectRole: 'alice', actor: 'agent' }),
      config: makeConfig({}),
      startupUser: 'jwt',
      database: 'app',
      method: 'oauth',
    });
    expect(entered).toMatchObject({ role: 'agent', method: 'oauth', token: { subjectRole: 'alice' } });
  });

  test('a disabled role stays outside, and so does a token bound to a certificate that is not shown', () => {
    const config = makeConfig({ turnstileUsers: [{ name: 'alice', backendIdentity: null, disabled: true }] });
    expect(reasonOf(() => enter('alice', 'alice', config))).toBe('28000 role_disabled');
    expect(reasonOf(() => enter('bob', 'bob', config))).toBeUndefined();
    const verified = verifiedAs('bob', { certificateThumbprint: 'T' });
    const of = (certificate: { thumbprint: string } | null): string =>
      outcome({ verified, config, startupUser: 'bob', database: 'app', certificate });
    expect([of(null), of({ thumbprint: 'U' }), of({ thumbprint: 'T' })]).toEqual([
      '28P01 certificate_mismatch',
      '28P01 certificate_mismatch',
      'rw',
    ]);
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

  test('a delegated token of an issuer: actor, subject, issuer, databases and the way to PostgreSQL', async () => {
    const iss = 'https://idp.example';
    const config = makeConfig({
      databases: ['app', 'b', 'c'],
      issuers: [makeIssuer(iss, { publicKeyFile, databases: ['app', 'b'] })],
      roleRules: [makeRoleRule('login', { stripPrefix: 'u:' })],
      turnstileUsers: [{ name: 'agent', backendIdentity: 'login_map', disabled: false }],
    });
    const token = makeToken({ iss, login: 'u:alice', act: { sub: 'u:agent' }, a: 'ro', ns: ['app', 'c'] });
    const { lines } = await explainToken({ config, token, database: 'app', nowMs: NOW_MS });
    expect(lines).toEqual(
      expect.arrayContaining([
        'accepted',
        'role: agent, for alice',
        'database: app',
        'databases: app',
        'access: read-only',
        'backend: logs in as the role, by the certificate of tls_server_certificate (login_map)',
        `issuer: ${iss}`,
        'claim act: {"sub":"u:agent"}',
        'claim ns: ["app","c"]',
        'claim login: "u:alice"',
      ]),
    );
    for (const [database, first] of [
      ['b', 'refused: database_not_in_claim: the claims of the token do not have the database'],
      ['c', 'refused: database_not_of_issuer: the database is not in databases of the issuer'],
    ]) {
      expect((await explainToken({ config, token, database: database!, nowMs: NOW_MS })).lines[0]).toBe(
        first,
      );
    }
    const stranger = makeToken({ iss: 'https://evil.example' });
    expect((await explainToken({ config, token: stranger, database: null, nowMs: NOW_MS })).lines[0]).toBe(
      'refused: unknown_issuer: its iss is not the issuer of turnstile.issuers or jwt_issuer',
    );
  });

  test('a revoked token and one that nothing says the role of', async () => {
    const revocationFile = join(directory, 'revoked.json');
    await writeFile(revocationFile, '[{"jti":"j1"}]');
    const config = makeConfig({ jwt: { publicKeyFile }, turnstile: { revocationFile } });
    const of = async (token: string) =>
      (await explainToken({ config, token, database: null, nowMs: NOW_MS })).lines[0];
    expect(await of(makeToken({ jti: 'j1' }))).toContain('refused: revoked: ');
    expect(await of(makeToken({ sub: 5 }))).toContain('refused: bad_role_claim: ');
    await writeFile(revocationFile, 'x');
    expect(await of(makeToken())).toContain('the revocation file is not JSON');
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
