/** What a stranger, or the holder of a token that is good elsewhere, may try at the door. */
import { afterEach, describe, expect, test } from 'vitest';
import type { VerifiedToken } from '../../src/auth/token-verifier.ts';
import { tokenForLog } from '../../src/client/session-token.ts';
import { TokenRenewal } from '../../src/client/token-renewal.ts';
import type { Config, LoginRuleConfig } from '../../src/config/config.ts';
import { makeIssuer, NOW_MS, verifiedAs } from '../auth/support.ts';
import { fakeToken, loginConfig, TestListener, type TestListenerOptions, until } from './support.ts';

let pooler: TestListener;
afterEach(() => pooler?.close());

async function start(options: TestListenerOptions = {}): Promise<TestListener> {
  pooler = await TestListener.start(options);
  return pooler;
}

describe('a bad token whose sender does not wait for the verdict', () => {
  test.each([
    ['leaves', (client: { destroy(): void }) => client.destroy()],
    ['breaks the protocol', (client: { send(bytes: Buffer): void }) => client.send(Buffer.from('X'))],
  ])('counts against the address all the same when the client %s', async (_how, give) => {
    await start({ turnstile: { failedLoginsPerAddress: 2 }, clock: () => 0 });
    const { verifier } = pooler;
    const verify = verifier.verify.bind(verifier);
    let open: () => void = () => undefined;
    verifier.verify = async (token) => {
      await new Promise<void>((resolve) => {
        open = resolve;
      });
      return verify(token);
    };
    for (let attempt = 0; attempt < 2; attempt++) {
      const seen = verifier.seen.length;
      const client = await pooler.connectAs('alice');
      await client.expect('R');
      open = () => undefined;
      const closed = open;
      client.sendPassword(fakeToken('reject:bad_signature'));
      await until(() => open !== closed, 'the verification');
      give(client);
      await until(() => pooler.listener.loginCount === 0, 'the end of the login');
      open();
      await until(() => verifier.seen.length > seen, 'the verdict');
      await new Promise((resolve) => setImmediate(resolve));
    }
    verifier.verify = verify;
    await expect(pooler.login('alice', 'role:alice')).rejects.toThrow(/53300/);
  });

  test('a verdict that says nothing of the token counts for nobody', async () => {
    await start({ turnstile: { failedLoginsPerAddress: 1 }, clock: () => 0 });
    const { verifier } = pooler;
    const verify = verifier.verify.bind(verifier);
    let open: (() => void) | null = null;
    verifier.verify = async (token) => {
      await new Promise<void>((resolve) => {
        open = resolve;
      });
      return verify(token);
    };
    const client = await pooler.connectAs('alice');
    await client.expect('R');
    client.sendPassword(fakeToken('reject:keys_unavailable'));
    await until(() => open !== null, 'the verification');
    client.destroy();
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    (open as unknown as () => void)();
    await until(() => verifier.seen.length === 1, 'the verdict');
    await new Promise((resolve) => setImmediate(resolve));
    verifier.verify = verify;
    await pooler.login('alice', 'role:alice');
  });
});

describe('the console by token', () => {
  const rule: LoginRuleConfig = { database: ['admin'], user: [], address: [], tls: 'any', method: 'jwt' };
  const issuers = [makeIssuer('https://tenant', { allowedRoles: ['/tenant_.*/'] })];

  async function tryConsole(verified: VerifiedToken, more: TestListenerOptions = {}): Promise<void> {
    await start({ loginRules: [rule], turnstile: { adminClaim: 'boss' }, ...more });
    pooler.verifier.verify = async () => verified;
    await pooler.login('x', 'role:x', 'admin');
  }

  const boss = { claims: { sub: 'x', boss: true } };

  test('opens for the claim', async () => {
    await tryConsole(verifiedAs('x', boss));
    expect(pooler.target.results[0]).toMatchObject({ identity: null, adminUser: 'x' });
  });

  test('stays shut to an agent: the claim is that of the subject it acts for', async () => {
    const facts = { actor: 'agent', subjectRole: 'x', claims: boss.claims };
    await expect(tryConsole(verifiedAs('agent', boss, facts))).rejects.toThrow(/42501/);
  });

  test('stays shut to a role that its issuer may not give', async () => {
    const facts = { source: 'https://tenant', issuer: 'https://tenant', claims: boss.claims };
    await expect(tryConsole(verifiedAs('x', boss, facts), { issuers })).rejects.toThrow(/42501/);
    pooler.close();
    await tryConsole(verifiedAs('tenant_x', boss, facts), { issuers });
    expect(pooler.target.results).toHaveLength(1);
  });

  test.each(['root', 'none', 'pg_monitor'])('stays shut to a token for %s', async (role) => {
    await expect(tryConsole(verifiedAs(role, boss))).rejects.toThrow(/42501/);
  });
});

test('no claim in a log line breaks the line, nor turns what is read around', () => {
  const nasty = 'a\n\u001b[2J\u009b\u202e\u2028z';
  const facts = { issuer: nasty, subject: nasty, tokenId: nasty, keyId: nasty };
  const { exp, ...shown } = tokenForLog(verifiedAs('x', {}, facts).facts);
  expect(exp).toBe(NOW_MS);
  const written = 'a\\u{a}\\u{1b}[2J\\u{9b}\\u{202e}\\u{2028}z';
  expect(shown).toEqual({ iss: written, sub: written, jti: written, kid: written });
});

describe('a new token for a session', () => {
  const budget = {
    mayProve: () => null,
    takeCheck: () => true,
    giveCheckBack: () => {},
    onFailure: () => {},
  };

  async function renew(known: VerifiedToken, next: VerifiedToken, config: Config = loginConfig()) {
    const renewal = new TokenRenewal({
      config,
      authority: { isVerified: () => true, verify: async () => next },
      budget,
    });
    const user = config.users.find(({ name }) => name === known.role) ?? null;
    const session = {
      identity: { role: known.role, method: 'jwt' as const, user, readOnly: false, token: known.facts },
      requestedUser: known.role,
      databaseName: 'app',
      remoteAddress: '127.0.0.1',
      certificate: null,
    };
    const offer = await renewal.check('t', session, 0);
    return offer.error === null ? 'taken' : offer.error.reason;
  }

  const long = (end: string): string => `${'s'.repeat(1_100)}${end}`;
  const withClaims = (claims: Record<string, unknown>, facts = {}): VerifiedToken =>
    verifiedAs('bob', { claims }, { subject: null, ...facts });

  test.each([
    ['two subjects too long for the log', { sub: long('a') }, { sub: long('b') }, 'other_subject'],
    ['two subjects that are no strings', { sub: 1 }, { sub: 2 }, 'other_subject'],
    ['a subject where there was none', {}, { sub: long('a') }, 'other_subject'],
    ['two issuers too long for the log', { iss: long('a') }, { iss: long('b') }, 'other_issuer'],
    ['the same long subject', { sub: long('a') }, { sub: long('a') }, 'taken'],
    ['no subject, as before', {}, {}, 'taken'],
  ])('%s', async (_what, before, after, outcome) => {
    expect(await renew(withClaims(before), withClaims(after))).toBe(outcome);
  });

  test('a good one gives its check back, so that many renewals are no flood', async () => {
    let checks = 0;
    const renewal = new TokenRenewal({
      config: loginConfig(),
      authority: {
        isVerified: () => false,
        verify: async (_token, _nowMs, mayCheck) => {
          expect(mayCheck?.()).toBe(true);
          return verifiedAs('bob');
        },
      },
      budget: {
        ...budget,
        takeCheck: () => checks++ < 1,
        giveCheckBack: () => {
          checks--;
        },
      },
    });
    const identity = { role: 'bob', method: 'jwt' as const, user: null, readOnly: false, token: null };
    const session = { requestedUser: 'bob', databaseName: 'app', remoteAddress: '', certificate: null };
    for (let index = 0; index < 3; index++) {
      const offer = await renewal.check('t', { identity, ...session }, 0);
      expect(offer.error?.reason).toBe('no_token');
    }
  });
});
