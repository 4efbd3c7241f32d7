/** OAUTHBEARER with libpq 18 itself: discovery, a token by its auth-data hook, refusals, over TLS and without. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { otherRsa, rsa } from '../test/auth/support.ts';
import { makeCertificate } from '../test/support/certificates.ts';
import {
  cleanUp,
  expectNoSecrets,
  type LibpqOutcome,
  type LoginPooler,
  libpq,
  makeWorld,
  mint,
  noLibpq,
  type PoolerFiles,
  publicKeyFile,
  scratchFile,
  startLoginPooler,
  type Table,
  type World,
} from './support/login-support.ts';

const ISSUER = 'https://id.example.com';
const DOCUMENT = `${ISSUER}/.well-known/openid-configuration`;
const server = makeCertificate({ name: 'localhost' });

let world: World;
let pooler: LoginPooler;

const start = (turnstile: Table = {}, files: PoolerFiles = {}): Promise<LoginPooler> =>
  startLoginPooler({
    databases: [world.row()],
    ...files,
    general: world.jwt({
      tls_certificate: scratchFile('server.crt', server.cert),
      tls_private_key: scratchFile('server.key', server.key),
      jwt_audience: 'db',
      ...files.general,
    }),
    turnstile: {
      issuers: [{ issuer: ISSUER, public_key_file: publicKeyFile(rsa) }],
      login_rules: [{ user: ['/.*'], method: 'oauth' }],
      ...turnstile,
    },
  });

const token = (sub: string, more: Table = {}, keys = rsa): string =>
  mint(keys, sub, { iss: ISSUER, aud: 'db', ...more });
const connection = (
  user: string,
  more: Record<string, string | number> = {},
): Record<string, string | number> => ({
  port: pooler.port,
  user,
  dbname: world.database,
  sslmode: 'verify-full',
  host: 'localhost',
  sslrootcert: scratchFile('root.crt', server.cert),
  require_auth: 'oauth',
  oauth_issuer: ISSUER,
  oauth_client_id: 'psql',
  ...more,
});
const login = (
  user: string,
  bearer: string | null,
  more: Record<string, string | number> = {},
): Promise<LibpqOutcome> => libpq(connection(user, more), bearer, 'SELECT current_user', 'SELECT 40 + 2');

describe.skipIf(noLibpq !== null)('libpq 18', () => {
  beforeAll(async () => {
    world = await makeWorld();
    pooler = await start();
  });
  afterAll(async () => {
    expectNoSecrets();
    cleanUp();
    await world.drop();
  });

  test('asks where to get a token, gets one from its hook, and is in as the role', async () => {
    const from = pooler.lines.length;
    const outcome = await login(world.alice, token(world.alice));
    expect(outcome.error).toBe('');
    expect(outcome).toMatchObject({ ok: true, hooks: [[DOCUMENT, 'openid']], rows: [world.alice, '42'] });
    expect(outcome.version).toBeGreaterThanOrEqual(180_000);
    // The first connection is the question, which is nobody's failure.
    const lines = pooler.lines.slice(from).map((line) => `${line.level} ${line.message}`);
    expect(lines.filter((line) => line === 'info oauth_discovery')).toHaveLength(1);
    expect(lines.filter((line) => /auth_reject|login_refused|login refused/.test(line))).toEqual([]);
    expect(pooler.logged('client logged in', from)[0]).toMatchObject({
      role: world.alice,
      method: 'oauth',
      tls: true,
    });
  });

  test('asks nothing when it is told the address of the document', async () => {
    const from = pooler.lines.length;
    const outcome = await login(world.alice, token(world.alice), { oauth_issuer: DOCUMENT });
    expect(outcome).toMatchObject({ ok: true, rows: [world.alice, '42'] });
    expect(pooler.logged('oauth_discovery', from)).toEqual([]);
  });

  test.each([
    ['expired', (): string => token(world.alice, { exp: Math.floor(Date.now() / 1_000) - 10 })],
    ['bad_signature', (): string => token(world.alice, {}, otherRsa)],
    ['unknown_issuer', (): string => token(world.alice, { iss: 'https://idp.evil.com' })],
    ['bad_audience', (): string => token(world.alice, { aud: 'other' })],
    ['not_jwt', (): string => 'opaque-token'],
  ])('hears of a token that is bad (%s) in the words of PostgreSQL', async (reason, make) => {
    const from = pooler.lines.length;
    const outcome = await login(world.alice, make());
    expect(outcome.ok).toBe(false);
    expect(outcome.error).toContain(`FATAL:  OAuth bearer authentication failed for user "${world.alice}"`);
    expect(outcome.error).not.toContain('unexpected');
    expect(pooler.logged('auth_reject', from).map((line) => line['reason'])).toEqual([reason]);
  });

  test('hears of a role or a database that it may not have', async () => {
    const other = await login(world.bob, token(world.alice));
    expect(other.error).toContain(`role "${world.bob}" is not permitted to log in through this pooler`);
    const narrow = await login(world.alice, token(world.alice, { ns: ['elsewhere'] }));
    expect(narrow.error).toContain(`permission denied for database "${world.database}"`);
  });

  test('without a token of its own gives up after the question', async () => {
    const from = pooler.lines.length;
    const outcome = await login(world.alice, null);
    expect(outcome.ok).toBe(false);
    expect(pooler.logged('auth_reject', from)).toEqual([]);
  });

  test('will not be sent to another issuer than its own', async () => {
    const outcome = await login(world.alice, token(world.alice), { oauth_issuer: 'https://my.example.com' });
    expect(outcome.ok).toBe(false);
    expect(outcome.hooks).toEqual([]);
    expect(outcome.error).toMatch(/does not match oauth_issuer|issuer/);
  });

  test('gets the configured issuer and scope', async () => {
    const own = await start({ oauth_issuer: `${ISSUER}/tenant`, oauth_scope: 'openid db' });
    const outcome = await libpq(
      { ...connection(world.alice), port: own.port, oauth_issuer: `${ISSUER}/tenant` },
      token(world.alice),
    );
    expect(outcome).toMatchObject({
      ok: true,
      hooks: [[`${ISSUER}/tenant/.well-known/openid-configuration`, 'openid db']],
    });
    own.stop();
  });

  test('with protocol 3.2 logs in as well', async () => {
    const outcome = await login(world.alice, token(world.alice), { max_protocol_version: '3.2' });
    expect(outcome).toMatchObject({ ok: true, rows: [world.alice, '42'] });
  });

  test('is offered nothing without TLS where that is forbidden, and is let in from this machine by default', async () => {
    const plain = { sslmode: 'disable' };
    expect(await login(world.alice, token(world.alice), plain)).toMatchObject({ ok: true });
    const strict = await start({ allow_plaintext_tokens: 'never' });
    const outcome = await libpq({ ...connection(world.alice, plain), port: strict.port }, token(world.alice));
    expect(outcome.error).toContain('SSL connection is required');
    expect(outcome.hooks).toEqual([]);
    strict.stop();
  });

  test('refuses a server that would take a password for it', async () => {
    const own = await start({ login_rules: [{ method: 'jwt' }] });
    const outcome = await libpq(
      { ...connection(world.alice), port: own.port, password: 'x' },
      token(world.alice),
    );
    expect(outcome.error).toMatch(/authentication method requirement "oauth" failed/);
    own.stop();
  });
});
