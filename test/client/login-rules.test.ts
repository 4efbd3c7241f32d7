import { afterEach, describe, expect, test } from 'vitest';
import { Secret } from '../../src/base/secret.ts';
import type { LoginRequest } from '../../src/client/login-identity.ts';
import { LoginRules } from '../../src/client/login-rules.ts';
import type { LoginMethod, LoginRuleConfig } from '../../src/config/config.ts';
import { makeUser } from '../auth/support.ts';
import { fakeToken, loginConfig, TestListener, type TestListenerOptions } from './support.ts';

let pooler: TestListener;
afterEach(() => pooler?.close());

async function start(options: TestListenerOptions = {}): Promise<TestListener> {
  pooler = await TestListener.start(options);
  return pooler;
}

function rule(method: LoginMethod, more: Partial<LoginRuleConfig> = {}): LoginRuleConfig {
  return { database: [], user: [], address: [], tls: 'any', method, ...more };
}

const request = (more: Partial<LoginRequest> = {}): LoginRequest => ({
  user: 'alice',
  database: 'app',
  remoteAddress: '10.1.2.3',
  encrypted: true,
  certificate: null,
  ...more,
});
const planOf = (
  rules: LoginRuleConfig[],
  more: Partial<LoginRequest> = {},
  options: TestListenerOptions = {},
): string => new LoginRules(loginConfig({ ...options, loginRules: rules })).plan(request(more)).kind;

describe('which rule decides', () => {
  test.each<[string, LoginRuleConfig[], Partial<LoginRequest>, string]>([
    ['no rule: auth_type', [], {}, 'token'],
    ['a rule for everybody', [rule('scram')], {}, 'scram'],
    ['the first that fits', [rule('md5', { user: ['bob'] }), rule('plain'), rule('scram')], {}, 'plain'],
    ['none that fits: auth_type', [rule('scram', { user: ['bob'] })], {}, 'token'],
    ['a database', [rule('scram', { database: ['x', 'app'] })], {}, 'scram'],
    ['another database', [rule('scram', { database: ['apps'] })], {}, 'token'],
    ['a pattern', [rule('scram', { user: ['/ali[a-z]+'] })], {}, 'scram'],
    ['a pattern that fits a part of the name only', [rule('scram', { user: ['/lic'] })], {}, 'token'],
    ['a pattern with a choice stays anchored', [rule('scram', { user: ['/bob|alic'] })], {}, 'token'],
    ['a name that looks like a pattern’s text', [rule('scram', { user: ['ali.*'] })], {}, 'token'],
    ['a range', [rule('scram', { address: ['10.0.0.0/8'] })], {}, 'scram'],
    [
      'a range, IPv4 in IPv6',
      [rule('scram', { address: ['10.0.0.0/8'] })],
      { remoteAddress: '::ffff:10.9.9.9' },
      'scram',
    ],
    ['another range', [rule('scram', { address: ['10.0.0.0/16'] })], {}, 'token'],
    ['every IPv6 address is not an IPv4 one', [rule('scram', { address: ['::/0'] })], {}, 'token'],
    [
      'a Unix socket is at no address',
      [rule('scram', { address: ['0.0.0.0/0', '::/0'] })],
      { remoteAddress: '' },
      'token',
    ],
    ['with TLS', [rule('scram', { tls: 'on' })], {}, 'scram'],
    ['with TLS, without', [rule('scram', { tls: 'on' })], { encrypted: false }, 'token'],
    ['without TLS', [rule('reject', { tls: 'off' })], { encrypted: false }, 'reject'],
    ['all parts of a rule must fit', [rule('scram', { user: ['alice'], database: ['other'] })], {}, 'token'],
    ['jwt without a suffix of the name', [rule('jwt')], {}, 'token'],
    ['the other methods', [rule('oauth')], {}, 'oauth'],
    ['a certificate', [rule('cert')], {}, 'cert'],
    ['trust', [rule('trust')], {}, 'trust'],
  ])('%s', (_name, rules, more, kind) => {
    expect(planOf(rules, more)).toBe(kind);
  });

  test('a pattern that does not compile is a fault, not a rule for nobody', () => {
    expect(() => planOf([rule('scram', { user: ['/('] })])).toThrow(RangeError);
    expect(() => planOf([rule('scram', { address: ['10.0.0.0/99'] })])).toThrow(RangeError);
  });
});

describe('the console', () => {
  const claim = { turnstile: { adminClaim: 'pooler_admin' } };
  const named = { database: ['admin'] };

  test.each<[string, LoginRuleConfig[], TestListenerOptions, string]>([
    ['takes SCRAM whatever auth_type says', [], {}, 'scram'],
    ['is no matter of a rule for everybody', [rule('jwt'), rule('trust')], claim, 'scram'],
    ['takes tokens where a rule names it and there is an admin claim', [rule('jwt', named)], claim, 'token'],
    ['takes them by OAUTHBEARER too', [rule('oauth', named)], claim, 'oauth'],
    ['takes none without an admin claim', [rule('jwt', named)], {}, 'scram'],
    ['takes SCRAM by any other rule', [rule('trust', named)], claim, 'scram'],
    ['is closed to whom a rule for everybody rejects', [rule('reject')], claim, 'reject'],
    ['keeps the order of the rules', [rule('jwt', named), rule('reject')], claim, 'token'],
  ])('%s', (_name, rules, options, kind) => {
    expect(planOf(rules, { database: 'admin', user: 'root' }, options)).toBe(kind);
  });

  const open = async (claims: Record<string, unknown>, user = 'whoever'): Promise<string> => {
    await start({ loginRules: [rule('jwt', named)], ...claim });
    pooler.verifier.claims = claims;
    return pooler.login(user, 'role:carol', 'admin').then(
      ({ identity, adminUser, adminUntilMs }) => `${identity} ${adminUser} ${adminUntilMs}`,
      (error: Error) => error.message,
    );
  };

  test('opens to a token whose claim is true, under the name that the token gives', async () => {
    expect(await open({ pooler_admin: true })).toBe('null carol 4000000000000');
  });

  test.each([
    {},
    { pooler_admin: 'true' },
    { pooler_admin: 1 },
    { pooler_admin: [true] },
  ])('stays shut to a token with %j', async (claims) => {
    expect(await open(claims, 'root')).toBe('FATAL 42501 permission denied for database "admin"');
    expect(pooler.loudLines[0]).toMatchObject({ event: 'auth_reject', fields: { alg: 'RS256' } });
  });

  test('still takes its password, and nobody else’s', async () => {
    await start({ loginRules: [rule('jwt', named)], ...claim });
    expect((await pooler.login('root', 'admin-pw', 'admin')).adminUser).toBe('root');
    for (const [user, password] of [
      ['root', 'wrong'],
      ['alice', 'admin-pw'],
      ['alice', 'alice-pw'],
    ] as const) {
      await expect(pooler.login(user, password, 'admin')).rejects.toThrow(/28P01/);
    }
    expect(pooler.verifier.seen).toEqual([]);
  });
});

describe('reject', () => {
  test('is told before any proof is asked for', async () => {
    await start({ loginRules: [rule('reject', { user: ['alice'] })] });
    const client = await pooler.connectAs('alice');
    expect(await client.expectFatal()).toMatchObject({
      code: '28000',
      message:
        'pgturnstile rejects connection for host "127.0.0.1", user "alice", database "app", no encryption',
    });
    expect(pooler.loudLines[0]).toMatchObject({ event: 'auth_reject', fields: { reason: 'login_rule' } });
    expect((await pooler.login('carol', 'role:carol')).identity?.role).toBe('carol');
  });

  test('names the encryption', async () => {
    await start({ tls: true, loginRules: [rule('reject')] });
    const client = await pooler.connect();
    await client.requestTls();
    client.sendStartup({ user: 'a', database: 'b' });
    expect((await client.expectFatal()).message).toMatch(/database "b", SSL encryption$/);
  });
});

describe('one pooler, several methods', () => {
  test('tokens to people, SCRAM to services, md5 and trust where a rule says so', async () => {
    const users = ['svc', 'old', 'local', 'alice'].map((name) =>
      makeUser(name, { passwords: [new Secret(`${name}-pw`)], databases: ['app'] }),
    );
    await start({
      users,
      loginRules: [
        rule('scram', { user: ['/svc.*'] }),
        rule('md5', { user: ['old'] }),
        rule('trust', { user: ['local', 'ghost'], address: ['127.0.0.0/8'] }),
        rule('jwt'),
      ],
    });
    expect((await pooler.login('svc', 'svc-pw')).identity?.method).toBe('scram');
    expect((await pooler.login('old', 'old-pw')).identity?.method).toBe('md5');
    expect((await pooler.login('local', '')).identity?.method).toBe('trust');
    expect((await pooler.login('carol', 'role:carol')).identity?.method).toBe('jwt');
    await expect(pooler.login('svc', 'role:svc')).rejects.toThrow(/28P01/);
    await expect(pooler.login('ghost', '')).rejects.toThrow(/28000 role "ghost" does not exist/);
  });
});

describe('the chain over one secret', () => {
  test('a static password enters where a token is asked for, if its user may enter', async () => {
    await start();
    expect((await pooler.login('alice', 'alice-pw')).identity).toMatchObject({
      role: 'alice',
      method: 'plain',
    });
    expect((await pooler.login('alice', 'role:alice')).identity).toMatchObject({
      role: 'alice',
      method: 'jwt',
    });
    // Right, but for another database: that must look like any other wrong one.
    await expect(pooler.login('alice', 'alice-pw', 'other')).rejects.toThrow(/28P01/);
    await expect(pooler.login('bob', 'alice-pw')).rejects.toThrow(/28P01/);
    await expect(pooler.login('ghost', 'alice-pw')).rejects.toThrow(/28P01/);
  });

  test('what looks like a token never reaches the password, even if it is the password', async () => {
    const looks = fakeToken('reject:expired');
    await start({ users: [makeUser('alice', { passwords: [new Secret(looks)], databases: ['app'] })] });
    await expect(pooler.login('alice', 'reject:expired')).rejects.toThrow(/28P01/);
    expect(pooler.verifier.seen).toEqual(['reject:expired']);
  });

  test('a bad token is the end, though the same user has a password', async () => {
    await start();
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(fakeToken('reject:bad_signature'));
    expect(await client.expectFatal()).toMatchObject({ code: '28P01' });
    expect(pooler.loudLines).toHaveLength(1);
  });
});

describe('anonymous users', () => {
  const anonymous: TestListenerOptions = {
    turnstile: { authRequired: false, anonymousRole: 'anon', anonymousUsers: ['guest'] },
  };

  test('are asked for nothing and become the one role', async () => {
    await start(anonymous);
    const client = await pooler.connectAs('guest');
    await client.expectTypes('RKZ');
    expect(pooler.target.results[0]).toMatchObject({
      identity: { role: 'anon', method: 'anonymous', user: null, token: null },
      startup: { user: 'guest' },
    });
    expect(pooler.loudLines).toEqual([]);
  });

  test.each<[string, TestListenerOptions]>([
    ['with auth_required', { turnstile: { ...anonymous.turnstile, authRequired: true } }],
    ['without anonymous_role', { turnstile: { ...anonymous.turnstile, anonymousRole: null } }],
    ['who are not on the list', { turnstile: { ...anonymous.turnstile, anonymousUsers: ['anon', 'gues'] } }],
    ['whom a rule asks for a password', { ...anonymous, loginRules: [rule('scram')] }],
  ])('%s are asked as ever', async (_name, options) => {
    await start(options);
    const client = await pooler.connectAs('guest');
    expect((await client.expect('R')).readInt32BE(0)).not.toBe(0);
    expect(pooler.target.results).toEqual([]);
  });

  test('stay out where a rule rejects them', async () => {
    await start({ ...anonymous, loginRules: [rule('reject', { database: ['app'] }), rule('jwt')] });
    const client = await pooler.connectAs('guest');
    expect(await client.expectFatal()).toMatchObject({ code: '28000' });
  });

  test('come in under a rule that would ask for a token', async () => {
    await start({ ...anonymous, loginRules: [rule('jwt')] });
    await (await pooler.connectAs('guest')).expectTypes('RKZ');
  });

  test.each<[string, string, TestListenerOptions, RegExp]>([
    [
      'a reserved role',
      'app',
      { turnstile: { ...anonymous.turnstile, anonymousRole: 'postgres' } },
      /28000 role "postgres"/,
    ],
    [
      'the admin user',
      'app',
      { turnstile: { ...anonymous.turnstile, anonymousRole: 'root' } },
      /28000 role "root"/,
    ],
    [
      'a user with a password',
      'app',
      { turnstile: { ...anonymous.turnstile, anonymousRole: 'alice' } },
      /28000 role "alice"/,
    ],
    [
      'a user of another database',
      'app',
      { ...anonymous, users: [makeUser('anon', { databases: ['other'] })] },
      /42501/,
    ],
    ['an unknown database', 'nope', anonymous, /3D000/],
  ])('%s is refused', async (_name, database, options, words) => {
    await start(options);
    const client = await pooler.connectAs('guest', database);
    const { code, message } = await client.expectFatal();
    expect(`${code} ${message}`).toMatch(words);
    expect(pooler.target.results).toEqual([]);
  });

  test('are refused in the clear where TLS is required', async () => {
    await start({ ...anonymous, tls: true, general: { tlsClientRequired: true } });
    expect(await (await pooler.connectAs('guest')).expectFatal()).toMatchObject({
      message: 'SSL connection is required',
    });
  });
});

describe('budgets', () => {
  test('once failed_logins_per_address is spent nothing is looked at but tokens that are known', async () => {
    let nowMs = 0;
    await start({
      clock: () => nowMs,
      turnstile: { failedLoginsPerAddress: 3 },
      loginRules: [rule('scram', { user: ['bob'] }), rule('jwt')],
    });
    pooler.verifier.remembered.add('role:alice').add('reject:expired');
    for (let attempt = 0; attempt < 3; attempt++) {
      await expect(pooler.login('carol', 'reject:bad_signature')).rejects.toThrow(/28P01/);
    }
    const spent = /53300 too many failed logins from this address/;
    await expect(pooler.login('carol', 'role:carol')).rejects.toThrow(spent);
    await expect(pooler.login('alice', 'alice-pw')).rejects.toThrow(spent);
    await expect(pooler.login('bob', 'x')).rejects.toThrow(spent);
    await expect(pooler.login('root', 'admin-pw', 'admin')).rejects.toThrow(spent);
    expect(pooler.verifier.seen).toEqual(new Array(3).fill('reject:bad_signature'));
    expect((await pooler.login('alice', 'role:alice')).identity?.role).toBe('alice');
    await expect(pooler.login('alice', 'reject:expired')).rejects.toThrow(/28P01/);
    expect(
      pooler.loudLines
        .filter(({ fields }) => fields['code'] === '53300')
        .map(({ level, event }) => `${level} ${event}`),
    ).toEqual(new Array(4).fill('info login_refused'));
    nowMs += 20_000;
    expect((await pooler.login('carol', 'role:carol')).identity?.role).toBe('carol');
  });

  test('a login that was refused for its role or its database is no failed proof', async () => {
    await start({ turnstile: { failedLoginsPerAddress: 2 } });
    for (let attempt = 0; attempt < 4; attempt++) {
      await expect(pooler.login('carol', 'role:carol', 'nope')).rejects.toThrow(/3D000/);
      await expect(pooler.login('jwt', 'role:postgres')).rejects.toThrow(/28000/);
    }
    expect((await pooler.login('carol', 'role:carol')).identity?.role).toBe('carol');
  });

  test('wrong passwords of every method count', async () => {
    for (const authType of ['scram', 'md5', 'plain', 'jwt'] as const) {
      await start({ general: { authType }, turnstile: { failedLoginsPerAddress: 2 } });
      for (let attempt = 0; attempt < 2; attempt++) {
        await expect(pooler.login('alice', 'wrong')).rejects.toThrow(/28P01/);
      }
      await expect(pooler.login('alice', 'alice-pw')).rejects.toThrow(/53300/);
      pooler.close();
    }
  });

  test('max_logins_per_address counts those who have not proved themselves', async () => {
    await start({ turnstile: { maxLoginsPerAddress: 2 } });
    const first = await pooler.connectAs('alice');
    await first.expect('R');
    const second = await pooler.connect();
    const third = await pooler.connectAs('alice');
    expect(await third.expectFatal()).toMatchObject({
      code: '53300',
      message: 'too many logins under way from this address',
    });
    second.destroy();
    first.sendPassword(fakeToken('role:alice'));
    await first.expectTypes('RKZ');
    const session = await pooler.connectAs('alice');
    await session.expect('R');
  });

  test('cancel requests pass when an address has all its logins under way', async () => {
    await start({ turnstile: { maxLoginsPerAddress: 1 } });
    await (await pooler.connectAs('alice')).expect('R');
    const cancel = await pooler.connect();
    cancel.sendCancelRequest(1, Buffer.alloc(4));
    expect(await cancel.readToEnd()).toHaveLength(0);
    expect(pooler.target.cancels).toHaveLength(1);
  });

  test('silent connections of one address are bounded as well', async () => {
    await start({ turnstile: { maxLoginsPerAddress: 2, maxClients: 1_000 } });
    const silent = await Promise.all(Array.from({ length: 34 }, () => pooler.connect()));
    const late = await pooler.connect();
    expect(await late.expectFatal()).toMatchObject({ code: '53300' });
    for (const client of silent) client.destroy();
  });
});
