import { afterEach, describe, expect, test } from 'vitest';
import type { LoginRuleConfig } from '../../src/config/config.ts';
import {
  encodePassword,
  encodeSASLInitialResponse,
  encodeSASLResponse,
} from '../../src/protocol/message-writer.ts';
import { makeIssuer } from '../auth/support.ts';
import { frame, type ScriptedClient } from '../support/scripted-client.ts';
import { fakeToken, TestListener, type TestListenerOptions } from './support.ts';

let pooler: TestListener;
afterEach(() => pooler?.close());

const K = '\u0001';
const oauth: LoginRuleConfig = { database: [], user: [], address: [], tls: 'any', method: 'oauth' };

async function start(options: TestListenerOptions = {}): Promise<TestListener> {
  const issuers = [makeIssuer('https://id.example.com')];
  pooler = await TestListener.start({ issuers, loginRules: [oauth], ...options });
  return pooler;
}

/** A client that was offered OAUTHBEARER. */
async function offered(user = 'alice', database = 'app'): Promise<ScriptedClient> {
  const client = await pooler.connectAs(user, database);
  expect((await client.expect('R')).toString('hex')).toBe(
    `0000000a${Buffer.from('OAUTHBEARER').toString('hex')}0000`,
  );
  return client;
}

const bearer = (token: string): string => `n,,${K}auth=Bearer ${token}${K}${K}`;
const initial = (data: string | null, mechanism = 'OAUTHBEARER'): Buffer =>
  encodeSASLInitialResponse(mechanism, data);
const STATUS =
  '{ "status": "invalid_token", "openid-configuration": "https://id.example.com/.well-known/openid-configuration", "scope": "openid" }';

async function expectStatus(client: ScriptedClient, status = STATUS): Promise<void> {
  const body = await client.expect('R');
  expect([body.readInt32BE(0), body.subarray(4).toString()]).toEqual([11, status]);
}

const failed = {
  severity: 'FATAL',
  code: '28000',
  message: 'OAuth bearer authentication failed for user "alice"',
};

describe('a good token', () => {
  test('is answered by AuthenticationOk with nothing in front of it', async () => {
    await start();
    const client = await offered();
    client.send(initial(bearer(fakeToken('role:alice'))));
    expect((await client.readBytes(9)).toString('hex')).toBe('520000000800000000');
    expect(pooler.target.results[0]).toMatchObject({ identity: { role: 'alice', method: 'oauth' } });
    expect(pooler.loudLines).toEqual([]);
  });

  test('may come with the scheme in lower case, with y, and with pairs that nobody reads', async () => {
    await start();
    const client = await offered();
    client.send(initial(`y,,${K}host=h${K}port=5432${K}auth=bearer   ${fakeToken('role:alice')}${K}${K}`));
    await client.expectTypes('RKZ');
  });

  test('may come behind an empty challenge', async () => {
    await start();
    const client = await offered();
    client.send(initial(null));
    expect((await client.expect('R')).toString('hex')).toBe('0000000b');
    client.send(encodeSASLResponse(bearer(fakeToken('role:alice'))));
    await client.expectTypes('RKZ');
  });

  test('may come byte by byte', async () => {
    await start();
    const client = await offered();
    await client.sendInPieces(initial(bearer(fakeToken('role:alice'))));
    await client.expectTypes('RKZ');
  });

  test.each([
    ['for another database', 'alice', 'role:alice', 'nope', '42501'],
    ['for another user', 'alice', 'role:carol', 'app', '28000'],
    ['for a reserved role', 'jwt', 'role:postgres', 'app', '28000'],
  ])('%s is told so, and not to get another token', async (_name, user, token, database, code) => {
    await start();
    const client = await offered(user, database);
    client.send(initial(bearer(fakeToken(token))));
    expect(await client.expectFatal()).toMatchObject({ code });
    expect(pooler.target.results).toEqual([]);
  });

  test('opens the console where a rule and the claim say so', async () => {
    await start({ loginRules: [{ ...oauth, database: ['admin'] }], turnstile: { adminClaim: 'boss' } });
    pooler.verifier.claims = { boss: true };
    const client = await offered('alice', 'admin');
    client.send(initial(bearer(fakeToken('role:carol'))));
    await client.expectTypes('RKZ');
    expect(pooler.target.results[0]).toMatchObject({ identity: null, adminUser: 'carol' });
  });
});

describe('a bad token', () => {
  test.each([
    ['that the verifier refuses', fakeToken('reject:expired'), 'expired'],
    ['that makes the verifier throw', fakeToken('crash:s3cret'), 'verifier_failed'],
  ])('%s is answered by the status, then by FATAL 28000', async (_name, token, reason) => {
    await start();
    const client = await offered();
    client.send(initial(bearer(token)));
    await expectStatus(client);
    client.send(encodeSASLResponse(K));
    expect(await client.expectFatal()).toMatchObject(failed);
    expect(pooler.loudLines).toHaveLength(1);
    expect(pooler.loudLines[0]).toMatchObject({
      level: 'warn',
      event: 'auth_reject',
      fields: { reason, code: '28000' },
    });
    expect(JSON.stringify(pooler.log)).not.toContain(token.split('.')[1]);
  });

  test.each([
    ['another scheme', 'Basic YTpi'],
    ['no token behind the scheme', 'Bearer '],
    ['a character that no token has', 'Bearer a b'],
    ['no scheme', fakeToken('role:alice')],
  ])('%s is a failed login, and nothing is verified', async (_name, auth) => {
    await start();
    const client = await offered();
    client.send(initial(`n,,${K}auth=${auth}${K}${K}`));
    await expectStatus(client);
    client.send(encodeSASLResponse(K));
    expect(await client.expectFatal()).toMatchObject(failed);
    expect(pooler.verifier.seen).toEqual([]);
    expect(pooler.loudLines[0]?.fields).toMatchObject({ reason: 'oauth_not_bearer' });
  });

  test('a static password is none', async () => {
    await start();
    const client = await offered();
    client.send(initial(bearer('alice-pw')));
    await expectStatus(client);
    client.destroy();
    expect(pooler.target.results).toEqual([]);
  });

  test.each([
    ['nothing', ''],
    ['two separators', `${K}${K}`],
    ['the token again', bearer(fakeToken('role:alice'))],
  ])('the status answered by %s is 08P01, logged once', async (_name, answer) => {
    await start();
    const client = await offered();
    client.send(initial(bearer(fakeToken('reject:expired'))));
    await expectStatus(client);
    client.send(encodeSASLResponse(answer));
    expect(await client.expectFatal()).toMatchObject({
      code: '08P01',
      message: 'malformed OAUTHBEARER message',
      detail: 'Client did not send a kvsep response.',
    });
    expect(pooler.loudLines).toHaveLength(1);
    expect(pooler.verifier.seen).toHaveLength(1);
  });

  test.each([
    ['keys_unavailable', '57P03'],
    ['overloaded', '53300'],
  ])('%s is no word on the token: FATAL %s at once', async (reason, code) => {
    await start();
    const client = await offered();
    client.send(initial(bearer(fakeToken(`reject:${reason}`))));
    expect(await client.expectFatal()).toMatchObject({ code });
  });

  test('counts as a failed login, once', async () => {
    await start({ turnstile: { failedLoginsPerAddress: 2 } });
    for (let attempt = 0; attempt < 2; attempt++) {
      const client = await offered();
      client.send(initial(bearer(fakeToken('reject:expired'))));
      await expectStatus(client);
      client.send(encodeSASLResponse(K));
      await client.expectFatal();
    }
    const client = await offered();
    client.send(initial(bearer(fakeToken('role:alice'))));
    expect(await client.expectFatal()).toMatchObject({ code: '53300' });
  });
});

describe('discovery', () => {
  test('is answered by the status and FATAL 28000, at info, and is no failed login', async () => {
    await start({ turnstile: { failedLoginsPerAddress: 1 } });
    for (let attempt = 0; attempt < 3; attempt++) {
      const client = await offered();
      client.send(initial(`n,,${K}auth=${K}${K}`));
      await expectStatus(client);
      client.send(encodeSASLResponse(K));
      expect(await client.expectFatal()).toMatchObject(failed);
    }
    expect(pooler.loudLines.map(({ level, event }) => `${level} ${event}`)).toEqual(
      new Array(3).fill('info oauth_discovery'),
    );
    expect(pooler.verifier.seen).toEqual([]);
  });

  test.each<[string, TestListenerOptions, string]>([
    [
      'oauth_issuer and oauth_scope',
      { turnstile: { oauthIssuer: 'https://other.example.com', oauthScope: 'db "x"' } },
      '{ "status": "invalid_token", "openid-configuration": "https://other.example.com/.well-known/openid-configuration", "scope": "db \\"x\\"" }',
    ],
    [
      'a document of its own',
      { turnstile: { oauthIssuer: 'https://o.example.com/.well-known/oauth-authorization-server/t' } },
      '{ "status": "invalid_token", "openid-configuration": "https://o.example.com/.well-known/oauth-authorization-server/t", "scope": "openid" }',
    ],
    [
      'jwt_issuer where there are no rows',
      { issuers: [], turnstile: { jwtIssuer: 'https://flat.example.com' } },
      '{ "status": "invalid_token", "openid-configuration": "https://flat.example.com/.well-known/openid-configuration", "scope": "openid" }',
    ],
  ])('names %s', async (_name, options, status) => {
    await start(options);
    const client = await offered();
    client.send(initial(`n,,${K}auth=${K}${K}`));
    await expectStatus(client, status);
  });

  test('without any issuer is a fault of the configuration', async () => {
    await start({ issuers: [] });
    const client = await offered();
    client.send(initial(`n,,${K}auth=${K}${K}`));
    expect(await client.expectFatal()).toMatchObject({
      code: 'XX000',
      message: 'OAuth is not properly configured for this user',
    });
  });
});

describe('a message that is none', () => {
  test.each([
    ['another mechanism', initial('x', 'SCRAM-SHA-256'), /invalid SASL authentication mechanism/],
    ['a PasswordMessage', encodePassword('secret'), /invalid SASL authentication mechanism/],
    ['channel binding', initial(`p=x,,${K}auth=${K}${K}`), /malformed OAUTHBEARER message/],
    ['an empty response', initial(''), /malformed OAUTHBEARER message/],
    ['a query', frame('Q', 'select 1\0'), /expected SASL response, got message type 81/],
    ['one byte too long', frame('p', Buffer.alloc(65_532)), /invalid length/],
  ])('%s is 08P01', async (_name, bytes, words) => {
    await start();
    const client = await offered();
    client.send(bytes);
    const { code, message } = await client.expectFatal();
    expect([code, message]).toEqual(['08P01', expect.stringMatching(words)]);
    expect(pooler.verifier.seen).toEqual([]);
  });

  test('the longest message is read', async () => {
    await start();
    const client = await offered();
    const frameBytes = initial(`n,,${K}auth=Bearer `.padEnd(65_535 - 4 - 12 - 4 - 2, 'a') + K + K);
    expect(frameBytes.readInt32BE(1)).toBe(65_535);
    client.send(frameBytes);
    // The fake verifier cannot read it; the point is that it was asked.
    await expectStatus(client);
  });

  test('an authorization identity is 0A000', async () => {
    await start();
    const client = await offered();
    client.send(initial(`n,a=bob,${K}auth=${K}${K}`));
    expect(await client.expectFatal()).toMatchObject({ code: '0A000' });
  });

  test('bytes behind the response are refused, and the verdict is dropped', async () => {
    await start();
    const client = await offered();
    client.send(initial(bearer(fakeToken('role:alice'))), frame('Q', 'select 1\0'));
    expect(await client.expectFatal()).toMatchObject({ code: '08P01' });
    expect(pooler.target.results).toEqual([]);
  });
});

test('is never offered on a connection that others can read', async () => {
  await start({ turnstile: { allowPlaintextTokens: 'never' } });
  const client = await pooler.connectAs('alice');
  expect(await client.expectFatal()).toMatchObject({ code: '28000', message: 'SSL connection is required' });
});
