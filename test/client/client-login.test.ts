import { afterEach, describe, expect, test } from 'vitest';
import { TokenRejected } from '../../src/auth/token-rejected.ts';
import { createLogger } from '../../src/base/log.ts';
import { Secret } from '../../src/base/secret.ts';
import type { LoginLog } from '../../src/client/login-contract.ts';
import { deriveLoginKeys, isLoopback, mayAskInClear } from '../../src/client/login-rules.ts';
import {
  encodeCancelRequest,
  encodePassword,
  encodeSASLInitialResponse,
  encodeStartup,
} from '../../src/protocol/message-writer.ts';
import { makeToken, makeUser, makeVerifier, NOW_MS, NOW_SECONDS } from '../auth/support.ts';
import { ScramClient } from '../support/scram-client.ts';
import { frame, type ScriptedClient } from '../support/scripted-client.ts';
import { fakeToken, fakeVerified, TestListener, type TestListenerOptions, until } from './support.ts';

let pooler: TestListener;
afterEach(() => pooler?.close());

async function start(options: TestListenerOptions = {}): Promise<TestListener> {
  pooler = await TestListener.start(options);
  return pooler;
}

const scram: TestListenerOptions = { general: { authType: 'scram' } };
const FAILED = (user: string): object => ({
  severity: 'FATAL',
  code: '28P01',
  message: `password authentication failed for user "${user}"`,
  detail: undefined,
  hint: undefined,
});

describe('a good proof', () => {
  test.each([
    ['jwt', 'jwt', 'alice', 'role:alice'],
    ['scram', 'scram', 'alice', 'alice-pw'],
    ['scram, the older password', 'scram', 'alice', 'old-pw'],
    ['md5', 'md5', 'alice', 'alice-pw'],
    ['plain', 'plain', 'alice', 'alice-pw'],
    ['trust', 'trust', 'alice', ''],
  ] as const)('%s makes an identity', async (_name, authType, user, password) => {
    await start({ general: { authType } });
    const result = await pooler.login(user, password);
    expect(result).toMatchObject({
      identity: { role: 'alice', method: authType, readOnly: false },
      adminUser: null,
      tlsInUse: false,
      startup: { user: 'alice', database: 'app' },
    });
    expect(result.identity?.user?.name).toBe('alice');
    expect(pooler.listener.loginCount).toBe(0);
    expect(pooler.listener.admittedCount).toBe(0);
    expect(pooler.loudLines).toEqual([]);
  });

  test('AuthenticationOk is left to the target, also behind the last SCRAM message', async () => {
    await start(scram);
    pooler.target.onLogin = ({ wire }) => wire.end(Buffer.from('target'));
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    const exchange = new ScramClient('alice-pw', 'y');
    client.send(encodeSASLInitialResponse('SCRAM-SHA-256', exchange.first()));
    const serverFirst = (await client.expect('R')).subarray(4).toString();
    client.sendFrame('p', exchange.final(serverFirst));
    const last = await client.expect('R');
    expect(last.readInt32BE(0)).toBe(12);
    exchange.check(last.subarray(4).toString());
    expect((await client.readToEnd()).toString()).toBe('target');
  });

  test.each([
    'jwt',
    'scram',
    'md5',
    'plain',
    'trust',
  ] as const)('the admin database asks for SCRAM under auth_type %s', async (authType) => {
    await start({ general: { authType } });
    const result = await pooler.login('root', 'admin-pw', 'admin');
    expect(result).toMatchObject({ identity: null, adminUser: 'root' });
    for (const [user, password] of [
      ['root', 'wrong'],
      ['alice', 'alice-pw'],
      ['alice', 'admin-pw'],
    ] as const) {
      await expect(pooler.login(user, password, 'admin')).rejects.toThrow(/28P01/);
    }
  });

  test('settings and the negotiated version reach the target', async () => {
    await start();
    const client = await pooler.connect();
    const parameters = { TimeZone: 'UTC', options: '-c a.b=1', application_name: 'psql' };
    await client.login({
      user: 'alice',
      database: 'app',
      password: fakeToken('role:alice'),
      parameters,
      protocol: 0x30002,
    });
    const { startup } = pooler.target.results[0]!;
    expect(startup.protocolMinor).toBe(2);
    expect(Object.fromEntries(startup.settings)).toEqual({
      'a.b': '1',
      timezone: 'UTC',
      application_name: 'psql',
    });
  });

  test('a hand-over that throws ends the client with XX000 and is logged once', async () => {
    await start();
    pooler.target.onLogin = () => {
      throw new Error('a bug');
    };
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(fakeToken('role:alice'));
    expect(await client.expectFatal()).toMatchObject({
      code: 'XX000',
      message: 'internal error during login',
    });
    expect(pooler.loudLines.map(({ event }) => event)).toEqual(['login_hand_over_failed']);
  });
});

describe('pieces', () => {
  async function loginInPieces(
    split: (bytes: Buffer) => Buffer[],
    authType: 'jwt' | 'md5' | 'scram',
  ): Promise<void> {
    const client = await pooler.connect();
    const send = async (bytes: Buffer): Promise<void> => {
      for (const piece of split(bytes)) await client.sendInPieces(piece, piece.length || 1);
    };
    await send(encodeStartup({ user: 'alice', database: 'app' }));
    const request = await client.expect('R');
    if (authType === 'scram') {
      const exchange = new ScramClient('alice-pw');
      await send(encodeSASLInitialResponse('SCRAM-SHA-256', exchange.first()));
      await send(frame('p', exchange.final((await client.expect('R')).subarray(4).toString())));
      exchange.check((await client.expect('R')).subarray(4).toString());
    } else {
      expect(request.readInt32BE(0)).toBe(3);
      await send(encodePassword(fakeToken('role:alice')));
    }
    await client.expectTypes('RKZ');
    client.destroy();
  }

  test('every split point of a token login works', async () => {
    await start();
    const length = encodeStartup({ user: 'alice', database: 'app' }).length;
    for (let at = 0; at <= length; at++) {
      await loginInPieces((bytes) => [bytes.subarray(0, at), bytes.subarray(at)], 'jwt');
    }
    expect(pooler.target.results).toHaveLength(length + 1);
  });

  test('logins that come byte by byte work', async () => {
    await start();
    await loginInPieces((bytes) => [...bytes].map((byte) => Buffer.from([byte])), 'jwt');
    pooler.close();
    await start(scram);
    await loginInPieces((bytes) => [...bytes].map((byte) => Buffer.from([byte])), 'scram');
  });
});

describe('tokens', () => {
  test('every bad token is answered by the same bytes', async () => {
    await start();
    const answers = new Set<string>();
    const tokens = [
      'reject:expired',
      'reject:bad_signature',
      'reject:empty_token',
      'crash:now',
      'reject:not_jwt',
    ];
    for (const token of tokens) {
      const client = await pooler.connectAs('alice');
      await client.expect('R');
      client.sendPassword(fakeToken(token));
      answers.add((await client.readToEnd()).toString('hex'));
    }
    expect(answers.size).toBe(1);
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(fakeToken('reject:expired'));
    expect(await client.expectFatal()).toEqual(FAILED('alice'));
  });

  test.each([
    ['keys_unavailable', '57P03', 'authentication is temporarily unavailable'],
    ['overloaded', '53300', 'too many logins at this time'],
  ])('%s says nothing of the token', async (reason, code, message) => {
    await start();
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(fakeToken(`reject:${reason}`));
    expect(await client.expectFatal()).toMatchObject({
      severity: 'FATAL',
      code,
      message,
    });
  });

  test('a rejection is one line with the reason and what is known, never the token', async () => {
    await start();
    const client = await pooler.connectAs('al\u001bice', 'app\n');
    await client.expect('R');
    client.sendPassword(fakeToken('reject:expired'));
    await client.readToEnd();
    expect(pooler.loudLines).toEqual([
      {
        level: 'warn',
        event: 'auth_reject',
        fields: {
          peer: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
          startup_user: 'al\\u{1b}ice',
          database: 'app\\u{a}',
          reason: 'expired',
          code: '28P01',
          alg: 'RS256',
          kid: 'k\\u{a}1',
          iss: null,
        },
      },
    ]);
    expect(JSON.stringify(pooler.log)).not.toContain(fakeToken('reject:expired').split('.')[1]);
  });

  test('a remembered token is in at once, and refused like any other once it is revoked', async () => {
    await start();
    const token = fakeToken('role:alice');
    const recalled: string[] = [];
    pooler.verifier.onRecall = (secret) => {
      recalled.push(secret);
      return fakeVerified('alice', {}, null);
    };
    const { identity } = await pooler.login('alice', 'role:alice');
    expect(identity).toMatchObject({ role: 'alice', method: 'jwt' });
    expect(recalled).toEqual([token]);
    expect(pooler.verifier.seen).toEqual([]);
    // The startup user is compared here as well.
    await expect(pooler.login('bob', 'role:alice')).rejects.toThrow(/28000/);
    pooler.verifier.onRecall = () => {
      throw new TokenRejected('revoked').describe({ alg: 'RS256', kid: null });
    };
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(token);
    expect(await client.expectFatal()).toEqual(FAILED('alice'));
    expect(pooler.verifier.seen).toEqual([]);
    expect(pooler.loudLines.at(-1)?.fields).toMatchObject({ reason: 'revoked', code: '28P01' });
  });

  test('a check that throws with the token in its error leaks nothing of it', async () => {
    await start();
    await expect(pooler.login('alice', 'crash:s3cret')).rejects.toThrow(/28P01/);
    expect(pooler.loudLines).toHaveLength(1);
    expect(pooler.loudLines[0]?.fields).toMatchObject({ reason: 'verifier_failed' });
    expect(JSON.stringify(pooler.log)).not.toContain('s3cret');
  });

  test.each<[string, TestListenerOptions, string, string, string, RegExp]>([
    [
      'another role than the startup user',
      {},
      'alice',
      'role:carol',
      'app',
      /28000 role "alice" is not permitted/,
    ],
    ['a reserved role', {}, 'jwt', 'role:postgres', 'app', /28000 role "postgres" is not permitted/],
    ['a role of PostgreSQL', {}, 'jwt', 'role:pg_monitor', 'app', /28000 role "pg_monitor"/],
    ['the admin user', {}, 'jwt', 'role:root', 'app', /28000 role "root"/],
    ['none', {}, 'jwt', 'role:NONE', 'app', /28000 role "NONE"/],
    ['a long role', {}, 'jwt', `role:${'a'.repeat(64)}`, 'app', /28000 role "a+…?" is not/],
    ['an unknown database', {}, 'carol', 'role:carol', 'nope', /3D000 database "nope" does not exist/],
    [
      'a database that is not the static user’s',
      {},
      'alice',
      'role:alice',
      'other',
      /42501 permission denied for database "other"/,
    ],
    [
      'no provisioning',
      { jwt: { userAutoProvision: false } },
      'carol',
      'role:carol',
      'app',
      /28000 role "carol" is not/,
    ],
  ])('%s is refused after verification', async (_name, options, user, token, database, words) => {
    await start(options);
    await expect(pooler.login(user, token, database)).rejects.toThrow(words);
    expect(pooler.verifier.seen).toEqual([token]);
    expect(pooler.target.results).toEqual([]);
    const line = pooler.loudLines[0];
    expect(line).toMatchObject({ event: 'auth_reject', fields: { alg: 'RS256', kid: 'k1' } });
  });

  test.each<[string, TestListenerOptions, string, string]>([
    ['a placeholder user', {}, 'jwt', 'carol'],
    ['any user under user_match any', { turnstile: { userMatch: 'any' } }, 'whoever', 'carol'],
    ['a static user without provisioning', { jwt: { userAutoProvision: false } }, 'jwt', 'alice'],
  ])('%s: the role of the token decides', async (_name, options, user, role) => {
    await start(options);
    const { identity, startup } = await pooler.login(user, `role:${role}`);
    expect(identity).toMatchObject({ role, method: 'jwt', token: { subject: role } });
    expect(startup.user).toBe(user);
  });

  test('a suffix sends everybody else to SCRAM, users without a password included', async () => {
    await start({ jwt: { userSuffix: '@corp' } });
    expect((await pooler.login('c@corp', 'role:c@corp')).identity?.method).toBe('jwt');
    expect((await pooler.login('alice', 'alice-pw')).identity?.method).toBe('scram');
    await expect(pooler.login('bob', '')).rejects.toThrow(/28P01/);
    await expect(pooler.login('alice', 'role:alice')).rejects.toThrow(/28P01/);
  });

  test('the real verifier lets a signed token in and an expired one not', async () => {
    const verifier = makeVerifier();
    await start({ verifier, now: () => NOW_MS });
    const { identity } = await pooler.login('alice', makeToken());
    expect(identity).toMatchObject({ role: 'alice', token: { algorithm: 'RS256', subject: 'alice' } });
    for (const [user, secret] of [
      ['alice', makeToken({ exp: NOW_SECONDS })],
      ['alice', makeToken().slice(0, -2)],
      ['alice', 'wrong-pw'],
      ['bob', ''],
      ['bob', 'no-token'],
      ['ghost', 'a.b.c'],
    ] as const) {
      await expect(pooler.login(user, secret)).rejects.toThrow(/28P01/);
    }
    expect(pooler.loudLines.map(({ fields }) => fields['reason'])).toEqual([
      'expired',
      expect.stringMatching(/non_canonical|bad_signature/),
      'wrong_password',
      'empty_token',
      'not_jwt',
      expect.stringMatching(/malformed|non_canonical/),
    ]);
  });

  test('16 KiB are a token, one byte more is a bad one, and both are read', async () => {
    const verifier = makeVerifier();
    await start({ verifier, now: () => NOW_MS });
    await expect(pooler.login('bob', 'a'.repeat(16_384))).rejects.toThrow(/28P01/);
    await expect(pooler.login('bob', 'a'.repeat(16_385))).rejects.toThrow(/28P01/);
    expect(pooler.loudLines.map(({ fields }) => fields['reason'])).toEqual(['not_jwt', 'too_large']);
  });

  test('a verdict that comes after the client left is dropped', async () => {
    await start();
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(fakeToken('hang:alice'));
    await until(() => pooler.verifier.seen.length === 1, 'the verification');
    client.destroy();
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    pooler.verifier.release();
    await new Promise((resolve) => setImmediate(resolve));
    expect(pooler.target.results).toEqual([]);
    expect(pooler.loudLines).toEqual([]);
  });

  test('jwt without a verifier is unavailable, not open', async () => {
    await start({ verifier: null });
    await expect(pooler.login('alice', 'role:alice')).rejects.toThrow(/57P03/);
  });
});

describe('static users', () => {
  test.each([
    'scram',
    'md5',
    'plain',
  ] as const)('%s: a wrong password, an unknown user and one without a password get the same answer', async (authType) => {
    await start({ general: { authType } });
    const conversation = async (user: string, password: string): Promise<string> => {
      const client = await pooler.connectAs(user);
      await client.authenticate(user, password).then(
        () => Promise.reject(new Error('let in')),
        (error: Error) =>
          expect(error.message).toMatch(/^FATAL 28P01 password authentication failed for user/),
      );
      const last = pooler.log.at(-1)!;
      return `${last.event} ${last.fields['reason']}`;
    };
    for (const user of ['alice', 'ghost', 'bob', 'bo b']) {
      for (const password of ['wrong', '', 'old-pwalice-pw']) {
        expect(await conversation(user, password)).toBe('auth_reject wrong_password');
      }
    }
  });

  test('the SCRAM challenge of an unknown user looks like a real one and stays the same', async () => {
    await start(scram);
    const challenge = async (user: string): Promise<string> => {
      const client = await pooler.connectAs(user);
      await client.expect('R');
      client.send(encodeSASLInitialResponse('SCRAM-SHA-256', new ScramClient('x').first()));
      const body = (await client.expect('R')).subarray(4).toString();
      client.destroy();
      return body;
    };
    const salt = (text: string): string => /,(s=[^,]+,i=\d+)$/.exec(text)![1]!;
    const [alice, ghost, ghostAgain] = [
      await challenge('alice'),
      await challenge('ghost'),
      await challenge('ghost'),
    ];
    expect(ghost).toHaveLength(alice.length);
    expect(salt(ghost)).toBe(salt(ghostAgain));
    expect(salt(ghost)).not.toBe(salt(alice));
    expect(ghost).not.toBe(ghostAgain);
  });

  test('derived keys let everybody in who has a password', async () => {
    await start(scram);
    await deriveLoginKeys(pooler.context.config, pooler.context.scramKeys);
    expect((await pooler.login('alice', 'alice-pw')).identity?.role).toBe('alice');
    expect((await pooler.login('root', 'admin-pw', 'admin')).adminUser).toBe('root');
  });

  test.each<[string, string, string, RegExp]>([
    ['a database that is not his', 'alice', 'other', /42501 permission denied for database "other"/],
    ['his, but not there', 'bob', 'gone', /3D000 database "gone" does not exist/],
    ['an unknown user', 'ghost', 'app', /28000 role "ghost" does not exist/],
  ])('trust refuses %s', async (_name, user, database, words) => {
    await start({ general: { authType: 'trust' } });
    await expect(pooler.login(user, '', database)).rejects.toThrow(words);
  });

  test('a user with rows for several databases has the password of the one he enters', async () => {
    const row = (database: string, password: string) =>
      makeUser('eve', { databases: [database], passwords: [new Secret(password)], readOnly: true });
    await start({ ...scram, users: [row('stage', 'stage-pw'), row('app', 'app-pw')] });
    expect((await pooler.login('eve', 'app-pw')).identity).toMatchObject({ role: 'eve', readOnly: true });
    await expect(pooler.login('eve', 'stage-pw')).rejects.toThrow(/28P01/);
    await expect(pooler.login('eve', 'stage-pw', 'nope')).rejects.toThrow(/42501/);
  });
});

describe('what a login may not send', () => {
  async function asked(): Promise<ScriptedClient> {
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    return client;
  }

  test.each<[string, Buffer]>([
    ['a Query in place of the password', frame('Q', 'SELECT 1\0')],
    ['a message of 64 KiB and one byte, announced only', frame('p', '', 65_537)],
    ['a message of 2 GiB', frame('p', '', 0x7fff_ffff)],
    ['a negative length', frame('p', '', -1)],
    ['a length below 4', frame('p', '', 3)],
    ['no text at all', frame('p')],
    ['no NUL', frame('p', 'role:alice')],
    ['a NUL inside', frame('p', 'role:alice\0x\0')],
    ['one byte behind the NUL', frame('p', 'role:alice\0x')],
    ['three bytes behind the NUL', frame('p', 'role:alice\0xyz')],
    ['a SASL message in the cleartext slot', encodeSASLInitialResponse('SCRAM-SHA-256', 'n,,n=,r=abc')],
    ['two messages at once', Buffer.concat([encodePassword(fakeToken('role:alice')), encodePassword('x')])],
  ])('%s is 08P01', async (_name, bytes) => {
    await start();
    const client = await asked();
    client.send(bytes);
    expect(await client.expectFatal()).toMatchObject({ severity: 'FATAL', code: '08P01' });
    expect(pooler.verifier.seen).toEqual([]);
  });

  test('a message of 64 KiB is read whole', async () => {
    await start({ general: { authType: 'plain' } });
    const client = await asked();
    client.send(frame('p', `${'a'.repeat(65_536 - 5)}\0`));
    expect((await client.expectFatal()).code).toBe('28P01');
  });

  test.each<[string, Buffer, string]>([
    ['another mechanism', encodeSASLInitialResponse('SCRAM-SHA-256-PLUS', 'p=x,,n=,r=a'), '08P01'],
    ['OAUTHBEARER', encodeSASLInitialResponse('OAUTHBEARER', 'n,,'), '08P01'],
    ['a plain password', encodePassword('alice-pw'), '08P01'],
    ['no data', encodeSASLInitialResponse('SCRAM-SHA-256', null), '08P01'],
    ['an empty first message', encodeSASLInitialResponse('SCRAM-SHA-256', ''), '08P01'],
    ['a first message that is none', encodeSASLInitialResponse('SCRAM-SHA-256', 'hello'), '08P01'],
    ['an authorization identity', encodeSASLInitialResponse('SCRAM-SHA-256', 'n,a=root,n=,r=abc'), '0A000'],
    ['data that runs past the message', frame('p', 'SCRAM-SHA-256\0\x7f\xff\xff\xff'), '08P01'],
    ['an overlong message', frame('p', '', 5_000), '08P01'],
  ])('%s in the SASL slot is refused', async (_name, bytes, code) => {
    await start(scram);
    const client = await asked();
    client.send(bytes);
    expect((await client.expectFatal()).code).toBe(code);
  });

  test.each<[string, Buffer]>([
    ['an empty final message', frame('p')],
    ['a final message that is none', frame('p', 'c=biws')],
    [
      'a final message with another nonce',
      frame('p', `c=biws,r=zzz,p=${Buffer.alloc(32).toString('base64')}`),
    ],
  ])('%s is 08P01', async (_name, bytes) => {
    await start(scram);
    const client = await asked();
    client.send(encodeSASLInitialResponse('SCRAM-SHA-256', new ScramClient('x').first()));
    await client.expect('R');
    client.send(bytes);
    expect((await client.expectFatal()).code).toBe('08P01');
  });

  test('a password behind the startup packet, before it was asked for, is refused unread', async () => {
    await start();
    const client = await pooler.connect();
    client.send(encodeStartup({ user: 'alice', database: 'app' }), encodePassword(fakeToken('role:alice')));
    expect((await client.expectFatal()).code).toBe('08P01');
    expect(pooler.verifier.seen).toEqual([]);
  });

  test('a query during the verification is refused, and the verdict is dropped', async () => {
    await start();
    const client = await asked();
    client.sendPassword(fakeToken('hang:alice'));
    await until(() => pooler.verifier.seen.length === 1, 'the verification');
    client.sendQuery('SELECT 1');
    expect((await client.expectFatal()).code).toBe('08P01');
    pooler.verifier.release();
    await new Promise((resolve) => setImmediate(resolve));
    expect(pooler.target.results).toEqual([]);
  });

  test.each<[string, Buffer, string]>([
    ['an HTTP request', Buffer.from('GET / HTTP/1.1\r\n\r\n'), '08P01'],
    ['a startup packet of 10,001 bytes, announced only', Buffer.from('0000271100030000', 'hex'), '08P01'],
    ['protocol 2.0', encodeStartup({ user: 'u' }, 0x20000), '0A000'],
    ['no user', encodeStartup({ database: 'app' }), '28000'],
    ['role', encodeStartup({ user: 'u', options: '-c role=x' }), '42501'],
    ['replication', encodeStartup({ user: 'u', replication: 'database' }), '28000'],
  ])('%s is refused in one message', async (_name, bytes, code) => {
    await start();
    const client = await pooler.connect();
    client.send(bytes);
    expect(await client.expectFatal()).toMatchObject({ severity: 'FATAL', code });
    expect(pooler.loudLines).toHaveLength(1);
    expect(pooler.loudLines[0]).toMatchObject({ level: 'info', event: 'login_refused' });
  });
});

describe('protocol negotiation', () => {
  test('a newer minor version gets 3.2 and the unknown extensions, in front of the authentication request', async () => {
    await start();
    const client = await pooler.connect();
    client.sendStartup({ user: 'alice', database: 'app', '_pq_.some': '1' }, 0x3_270f);
    const [negotiate, request] = await client.expectTypes('vR');
    expect(negotiate!.body.readInt32BE(0)).toBe(0x3_0002);
    expect(negotiate!.body.readInt32BE(4)).toBe(1);
    expect(negotiate!.body.subarray(8).toString()).toBe('_pq_.some\0');
    expect(request!.body.readInt32BE(0)).toBe(3);
  });

  test('an extension in protocol 3.0 is not answered by a version above 3.0', async () => {
    await start();
    const client = await pooler.connectAs('alice', 'app', { '_pq_.some': '1' });
    expect((await client.expect('v')).readInt32BE(0)).toBe(0x3_0000);
  });

  test.each([0x3_0000, 0x3_0001, 0x3_0002])('%i alone needs no negotiation', async (version) => {
    await start();
    const client = await pooler.connect();
    client.sendStartup({ user: 'alice' }, version);
    await client.expect('R');
  });
});

describe('secrets in the clear', () => {
  test.each<[string, string, boolean]>([
    ['127.0.0.1', 'loopback', true],
    ['127.255.0.3', 'loopback', true],
    ['::1', 'loopback', true],
    ['::ffff:127.0.0.1', 'loopback', true],
    ['', 'loopback', true],
    ['10.0.0.1', 'loopback', false],
    ['::ffff:10.127.0.0', 'loopback', false],
    ['fe80::1', 'loopback', false],
    ['::', 'loopback', false],
    ['128.0.0.1', 'loopback', false],
    ['1127.0.0.1', 'loopback', false],
    ['127.0.0.1', 'never', false],
    ['10.0.0.1', 'never', false],
    ['10.0.0.1', 'always', true],
  ])('from %j, allowed %s: %s', (address, allow, expected) => {
    expect(mayAskInClear(address, allow as 'loopback')).toBe(expected);
    if (allow === 'loopback') expect(isLoopback(address)).toBe(expected);
  });

  test.each(['jwt', 'plain'] as const)('%s asks nothing in the clear when it may never', async (authType) => {
    await start({ general: { authType }, turnstile: { allowPlaintextTokens: 'never' } });
    const client = await pooler.connectAs('alice');
    expect(await client.expectFatal()).toMatchObject({
      severity: 'FATAL',
      code: '28000',
      message: 'SSL connection is required',
    });
    expect(pooler.loudLines[0]).toMatchObject({ event: 'auth_reject', fields: { reason: 'tls_required' } });
  });

  test('proofs that show no secret are asked for all the same', async () => {
    await start({ ...scram, turnstile: { allowPlaintextTokens: 'never' } });
    expect((await pooler.login('alice', 'alice-pw')).tlsInUse).toBe(false);
  });
});

describe('cancel requests', () => {
  test('the key reaches the target, and the socket closes only when the target is done', async () => {
    await start();
    let done = (): void => {};
    pooler.target.cancelled = new Promise((resolve) => {
      done = resolve;
    });
    const client = await pooler.connect();
    await client.sendInPieces(encodeCancelRequest(77, Buffer.from('secret-key')));
    await until(() => pooler.target.cancels.length === 1, 'the cancel');
    expect(pooler.target.cancels[0]).toEqual({ processId: 77, secret: Buffer.from('secret-key') });
    await expect(client.readToEnd(50)).rejects.toThrow('the connection was not closed');
    done();
    expect(await client.readToEnd()).toHaveLength(0);
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    expect(pooler.loudLines).toEqual([]);
  });

  test('a cancel that fails closes the socket without a word', async () => {
    await start();
    pooler.target.onCancel = () => Promise.reject(new Error('no route'));
    const client = await pooler.connect();
    client.sendCancelRequest(1, Buffer.alloc(4));
    expect(await client.readToEnd()).toHaveLength(0);
    expect(pooler.loudLines.map(({ event }) => event)).toEqual(['cancel_failed']);
  });

  test('bytes behind a cancel request are not read', async () => {
    await start();
    const client = await pooler.connect();
    client.send(encodeCancelRequest(1, Buffer.alloc(4)), 'whatever');
    expect(await client.readToEnd()).toHaveLength(0);
    expect(pooler.target.cancels).toHaveLength(1);
  });
});

test('the project’s own logger serves as the login’s log', () => {
  const lines: string[] = [];
  const log: LoginLog = createLogger({
    format: 'json',
    level: 'info',
    destination: { write: (line) => lines.push(line) },
  });
  log.warn({ reason: 'expired', user: 'alice' }, 'auth_reject');
  expect(lines.join('')).toContain('auth_reject');
});
