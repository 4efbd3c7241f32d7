import { afterEach, describe, expect, test } from 'vitest';
import { Secret } from '../../src/base/secret.ts';
import type { LoginResult } from '../../src/client/login-contract.ts';
import type { LoginMethod, LoginRuleConfig, UserConfig } from '../../src/config/config.ts';
import { makeUser } from '../auth/support.ts';
import { generalName, makeCertificate, type TestCertificate } from '../support/certificates.ts';
import { fakeToken, TestListener, type TestListenerOptions } from './support.ts';

let pooler: TestListener;
afterEach(() => pooler?.close());

const authority = makeCertificate({ name: 'clients-ca', authority: true });
const signed = (name: string, ...alternativeNames: Buffer[]): TestCertificate =>
  makeCertificate({ name, issuer: authority, ...(alternativeNames.length > 0 && { alternativeNames }) });
const billing = signed('billing.example.com');
const stranger = makeCertificate({ name: 'billing.example.com' });

const service = (name: string, identity: string | null, more: Partial<UserConfig> = {}): UserConfig =>
  makeUser(name, { identity, passwords: [new Secret(`${name}-pw`)], databases: ['app'], ...more });

async function start(method: LoginMethod, options: TestListenerOptions = {}): Promise<void> {
  const rule: LoginRuleConfig = { database: [], user: [], address: [], tls: 'any', method };
  const users = [
    service('billing', 'billing.example.com'),
    service('mailer', 'mailer@example.com'),
    service('spiffe', 'spiffe://example.com/a'),
    service('plain', null),
    service('optional', 'billing.example.com', { tlsClientCertificateRequired: false }),
    service('anycert', null, { tlsClientCertificateRequired: true }),
  ];
  pooler = await TestListener.start({
    tls: true,
    clientCa: authority.cert,
    users,
    loginRules: [rule],
    ...options,
  });
}

/** The login, or the error's words. */
async function login(
  user: string,
  certificate: TestCertificate | null,
  options: { password?: string; database?: string; tls?: boolean } = {},
): Promise<LoginResult | string> {
  const client = await pooler.connect();
  if (options.tls !== false) {
    await client.requestTls(certificate === null ? {} : { cert: certificate.cert, key: certificate.key });
  }
  const { password = '', database = 'app' } = options;
  try {
    await client.login({ user, database, password });
    return pooler.target.results.at(-1) as LoginResult;
  } catch (error) {
    return (error as Error).message;
  }
}

describe('the method cert', () => {
  test.each([
    ['by the common name', 'billing', billing],
    ['by a DNS name', 'billing', signed('other', generalName('dns', 'billing.example.com'))],
    [
      'by an email address',
      'mailer',
      signed('x', generalName('dns', 'y'), generalName('email', 'mailer@example.com')),
    ],
    ['by a URI', 'spiffe', signed('x', generalName('uri', 'spiffe://example.com/a'))],
  ])('lets a user in %s, with no question', async (_name, user, certificate) => {
    await start('cert');
    expect(await login(user, certificate)).toMatchObject({
      identity: { role: user, method: 'cert', user: { name: user } },
      tlsInUse: true,
    });
    expect(pooler.loudLines).toEqual([]);
  });

  const missing = 'FATAL 28000 connection requires a valid client certificate';
  const mismatch = (user: string): string =>
    `FATAL 28000 certificate authentication failed for user "${user}"`;
  test.each<[string, string, TestCertificate | null, string]>([
    ['without a certificate', 'billing', null, missing],
    ['of another authority', 'billing', stranger, missing],
    ['of another user', 'mailer', billing, mismatch('mailer')],
    ['for an unknown user', 'ghost', billing, mismatch('ghost')],
    ['for a user without an identity', 'plain', signed('plain'), mismatch('plain')],
    ['in another case', 'billing', signed('Billing.Example.Com'), mismatch('billing')],
    [
      'with a name that only looks like it',
      'billing',
      signed('x', generalName('dns', 'a, DNS:billing.example.com')),
      mismatch('billing'),
    ],
    ['with a wildcard', 'billing', signed('*.example.com'), mismatch('billing')],
    [
      'with a NUL behind the name',
      'billing',
      signed('x', generalName('dns', 'billing.example.com\0.evil')),
      mismatch('billing'),
    ],
  ])('refuses a login %s', async (_name, user, certificate, words) => {
    await start('cert');
    expect(await login(user, certificate)).toBe(words);
    expect(pooler.target.results).toEqual([]);
    expect(pooler.loudLines).toHaveLength(1);
    expect(pooler.loudLines[0]).toMatchObject({ level: 'warn', event: 'auth_reject' });
  });

  test('refuses it without TLS', async () => {
    await start('cert');
    expect(await login('billing', null, { tls: false })).toBe(missing);
  });

  test('keeps users to their databases', async () => {
    await start('cert');
    expect(await login('billing', billing, { database: 'other' })).toMatch(/42501/);
  });

  test('counts failures of an address', async () => {
    await start('cert', {
      turnstile: { failedLoginsPerAddress: 2 },
      loginRules: [{ database: [], user: ['billing'], address: [], tls: 'any', method: 'cert' }],
    });
    await login('billing', null);
    await login('billing', stranger);
    expect(await login('plain', null, { password: 'plain-pw' })).toMatch(/53300/);
    // A certificate cannot be guessed, so nothing keeps the right one out.
    expect(await login('billing', billing)).toMatchObject({ identity: { role: 'billing' } });
  });
});

describe.each(['scram', 'md5', 'plain', 'jwt'] as const)('a user with an identity under %s', (method) => {
  const failed = (user: string): string => `FATAL 28P01 password authentication failed for user "${user}"`;

  test('needs the certificate with its password, and without it looks like anybody', async () => {
    await start(method);
    expect(await login('billing', billing, { password: 'billing-pw' })).toMatchObject({
      identity: { role: 'billing' },
    });
    expect(await login('billing', null, { password: 'billing-pw' })).toBe(failed('billing'));
    expect(await login('billing', stranger, { password: 'billing-pw' })).toBe(failed('billing'));
    expect(await login('billing', signed('other'), { password: 'billing-pw' })).toBe(failed('billing'));
    expect(await login('billing', billing, { password: 'wrong' })).toBe(failed('billing'));
    expect(pooler.loudLines.map(({ fields }) => fields['reason'])).toEqual([
      'client_certificate',
      'client_certificate',
      'client_certificate',
      'wrong_password',
    ]);
  });

  test('may be excused, and one without an identity may be asked for any', async () => {
    await start(method);
    expect(await login('optional', null, { password: 'optional-pw' })).toMatchObject({
      identity: { role: 'optional' },
    });
    expect(await login('plain', null, { password: 'plain-pw' })).toMatchObject({
      identity: { role: 'plain' },
    });
    expect(await login('anycert', null, { password: 'anycert-pw' })).toBe(failed('anycert'));
    expect(await login('anycert', billing, { password: 'anycert-pw' })).toMatchObject({
      identity: { role: 'anycert' },
    });
  });
});

describe('a token', () => {
  test('into a user with an identity needs the certificate too', async () => {
    await start('jwt');
    const password = fakeToken('role:billing');
    expect(await login('billing', billing, { password })).toMatchObject({
      identity: { role: 'billing', method: 'jwt' },
    });
    expect(await login('billing', null, { password })).toBe(
      'FATAL 28000 connection requires a valid client certificate',
    );
  });

  test('that is bound to a certificate is worth nothing without its key', async () => {
    await start('jwt');
    // The thumbprint is the certificate's; whether a chain leads anywhere is not asked (RFC 8705 section 2.2).
    const bound = signed('bound');
    const { X509Certificate, createHash } = await import('node:crypto');
    const thumbprint = createHash('sha256').update(new X509Certificate(bound.cert).raw).digest('base64url');
    pooler.verifier.thumbprint = thumbprint;
    const password = fakeToken('role:carol');
    expect(await login('carol', bound, { password })).toMatchObject({ identity: { role: 'carol' } });
    for (const other of [null, billing, stranger]) {
      expect(await login('carol', other, { password })).toBe(
        'FATAL 28P01 password authentication failed for user "carol"',
      );
    }
    expect(await login('carol', null, { password, tls: false })).toMatch(/28P01/);
    expect(pooler.loudLines.map(({ fields }) => fields['reason'])).toEqual(
      new Array(4).fill('certificate_mismatch'),
    );
  });
});

test('trust does not excuse a user from its certificate', async () => {
  await start('trust');
  expect(await login('billing', null)).toBe('FATAL 28000 connection requires a valid client certificate');
  expect(await login('billing', billing)).toMatchObject({ identity: { method: 'trust' } });
});

test('without a client CA nobody is asked for a certificate, and none counts', async () => {
  pooler = await TestListener.start({
    tls: true,
    users: [service('billing', 'billing.example.com')],
    general: { authType: 'scram' },
  });
  expect(await login('billing', billing, { password: 'billing-pw' })).toMatchObject({
    identity: { role: 'billing' },
  });
});
