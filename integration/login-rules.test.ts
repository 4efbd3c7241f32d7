/** Login rules, client certificates, the anonymous role and the console by token, as a user configures them. */
import { createHash, X509Certificate } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { rsa } from '../test/auth/support.ts';
import { makeCertificate, type TestCertificate } from '../test/support/certificates.ts';
import { createRole } from '../test/support/postgres.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import {
  cleanUp,
  expectNoSecrets,
  hasPsql,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  type PoolerFiles,
  psql,
  publicKeyFile,
  scratchFile,
  startLoginPooler,
  type Table,
  until,
  WHO,
  type World,
} from './support/login-support.ts';

const authority = makeCertificate({ name: 'clients-ca', authority: true });
const server = makeCertificate({ name: 'localhost' });
const billing = makeCertificate({ name: 'billing.example.com', issuer: authority });
const other = makeCertificate({ name: 'other.example.com', issuer: authority });

let world: World;
let carol: string;
let password: string;
let adminPassword: string;
let dropCarol: () => Promise<void>;

beforeAll(async () => {
  world = await makeWorld();
  password = newPassword();
  adminPassword = newPassword();
  const role = await createRole('carol', { password });
  carol = role.name;
  dropCarol = () => role.drop();
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
  await dropCarol();
});

const start = (turnstile: Table, files: PoolerFiles = {}): Promise<LoginPooler> =>
  startLoginPooler({
    databases: [world.row()],
    admin: { password: adminPassword },
    ...files,
    general: world.jwt({
      jwt_public_key_file: publicKeyFile(rsa),
      tls_certificate: scratchFile('server.crt', server.cert),
      tls_private_key: scratchFile('server.key', server.key),
      tls_client_ca_certificate: scratchFile('clients.crt', authority.cert),
      ...files.general,
    }),
    users: files.users ?? [{ name: carol, password, database: world.database }],
    turnstile,
  });
const tls = (certificate?: TestCertificate): Table => ({
  ssl: {
    rejectUnauthorized: false,
    ...(certificate && { cert: certificate.cert, key: certificate.key }),
  },
});
const login = (user: string, secret = '', more: Table = {}): Table => ({
  user,
  password: secret,
  database: world.database,
  ...more,
});
const methodOf = (pooler: LoginPooler): unknown => pooler.logged('client logged in').at(-1)?.['method'];

describe('login rules', () => {
  test('tokens to people, SCRAM to a service, nobody from elsewhere, in one pooler', async () => {
    const pooler = await start({
      login_rules: [
        { address: ['10.0.0.0/8', '2001:db8::/32'], method: 'reject' },
        { user: world.bob, database: [world.database], method: 'reject' },
        { user: [`/${carol.slice(0, 5)}.*`], method: 'scram' },
        { tls: 'on', method: 'jwt' },
        { method: 'reject' },
      ],
    });
    expect(await pooler.ask(login(carol, password))).toMatchObject({ session_user: carol });
    expect(methodOf(pooler)).toBe('scram');
    expect(await pooler.ask(login(world.alice, mint(rsa, world.alice), tls()))).toMatchObject({
      current_user: world.alice,
    });
    expect(methodOf(pooler)).toBe('jwt');
    expect(await pooler.refusal(login(world.alice, mint(rsa, world.alice)))).toEqual({
      severity: 'FATAL',
      code: '28000',
      message: `pgturnstile rejects connection for host "127.0.0.1", user "${world.alice}", database "${world.database}", no encryption`,
    });
    expect((await pooler.refusal(login(world.bob, mint(rsa, world.bob), tls()))).code).toBe('28000');
    expect((await pooler.refusal(login(carol, mint(rsa, carol), tls()))).code).toBe('28P01');
    pooler.stop();
  });

  test('a rule alone makes tokens possible where auth_type is scram', async () => {
    const pooler = await start(
      { login_rules: [{ user: world.alice, method: 'jwt' }] },
      { general: { auth_type: 'scram' } },
    );
    expect(await pooler.ask(login(world.alice, mint(rsa, world.alice)))).toMatchObject({
      current_user: world.alice,
    });
    expect(await pooler.ask(login(carol, password))).toMatchObject({ current_user: carol });
    pooler.stop();
  });

  test('trust is for users of users.toml only', async () => {
    const pooler = await start({ login_rules: [{ address: '127.0.0.1', method: 'trust' }] });
    expect(await pooler.ask(login(carol))).toMatchObject({ session_user: carol });
    expect(await pooler.refusal(login(world.alice))).toMatchObject({
      code: '28000',
      message: `role "${world.alice}" does not exist`,
    });
    pooler.stop();
  });
});

describe('client certificates', () => {
  test('are the proof of a service, and stand beside the password of another', async () => {
    const pooler = await start(
      { login_rules: [{ user: carol, method: 'cert' }] },
      { users: [{ name: carol, password, database: world.database, identity: 'billing.example.com' }] },
    );
    expect(await pooler.ask(login(carol, '', tls(billing)))).toMatchObject({ session_user: carol });
    expect(methodOf(pooler)).toBe('cert');
    expect(await pooler.refusal(login(carol, password, tls(other)))).toMatchObject({
      code: '28000',
      message: `certificate authentication failed for user "${carol}"`,
    });
    expect(await pooler.refusal(login(carol, password, tls()))).toMatchObject({
      code: '28000',
      message: 'connection requires a valid client certificate',
    });
    // Everybody else needs none.
    expect(await pooler.ask(login(world.alice, mint(rsa, world.alice), tls()))).toMatchObject({
      current_user: world.alice,
    });
    pooler.stop();
  });

  test('are needed with a password, and with a token, by a user who has one', async () => {
    const pooler = await start(
      {},
      { users: [{ name: carol, password, database: world.database, identity: 'billing.example.com' }] },
    );
    expect(await pooler.ask(login(carol, password, tls(billing)))).toMatchObject({ session_user: carol });
    expect(await pooler.ask(login(carol, mint(rsa, carol), tls(billing)))).toMatchObject({
      session_user: carol,
    });
    expect((await pooler.refusal(login(carol, password, tls(other)))).code).toBe('28P01');
    expect((await pooler.refusal(login(carol, mint(rsa, carol), tls()))).message).toBe(
      'connection requires a valid client certificate',
    );
    pooler.stop();
  });

  test('a token with cnf enters with its certificate and with no other', async () => {
    const pooler = await start({});
    const thumbprint = createHash('sha256').update(new X509Certificate(billing.cert).raw).digest('base64url');
    const token = mint(rsa, world.alice, { cnf: { 'x5t#S256': thumbprint } });
    expect(await pooler.ask(login(world.alice, token, tls(billing)))).toMatchObject({
      current_user: world.alice,
    });
    for (const more of [tls(other), tls(), {}]) {
      expect((await pooler.refusal(login(world.alice, token, more))).code).toBe('28P01');
      expect(pooler.logged('auth_reject').at(-1)).toMatchObject({
        reason: 'certificate_mismatch',
        alg: 'RS256',
      });
    }
    pooler.stop();
  });

  test.skipIf(!hasPsql)('psql shows one too', async () => {
    const pooler = await start(
      { login_rules: [{ user: carol, method: 'cert' }] },
      { users: [{ name: carol, database: world.database, password, identity: 'billing.example.com' }] },
    );
    const { stdout, stderr } = await psql(
      {
        port: pooler.port,
        user: carol,
        dbname: world.database,
        sslmode: 'require',
        sslcert: scratchFile('client.crt', billing.cert),
        sslkey: scratchFile('client.key', billing.key),
      },
      'SELECT session_user',
    );
    expect([stdout.trim(), stderr]).toEqual([carol, '']);
    pooler.stop();
  });
});

describe('the anonymous role', () => {
  test('is entered by those on the list with no proof, and by nobody else', async () => {
    const pooler = await start({
      auth_required: false,
      anonymous_role: world.bob,
      anonymous_users: ['guest'],
    });
    const guest = await ScriptedClient.connect({ port: pooler.port });
    guest.sendStartup({ user: 'guest', database: world.database });
    // No request for a password comes first: the first message is AuthenticationOk.
    expect((await guest.expect('R')).readInt32BE(0)).toBe(0);
    await guest.readWelcome();
    expect((await guest.query(WHO)).rows).toEqual([[world.service, world.bob, world.database]]);
    expect((await guest.query('RESET ROLE')).error).toMatchObject({ code: '42501' });
    expect((await guest.query(WHO)).rows[0]?.[1]).toBe(world.bob);
    await guest.terminate();
    expect(methodOf(pooler)).toBe('anonymous');
    expect((await pooler.refusal(login('stranger', 'x'))).code).toBe('28P01');
    expect((await pooler.refusal(login(world.bob, 'x'))).code).toBe('28P01');
    expect(await pooler.ask(login(world.alice, mint(rsa, world.alice)))).toMatchObject({
      current_user: world.alice,
    });
    pooler.stop();
  });

  test('shares no connection settings with a token’s session of the same role', async () => {
    const pooler = await start(
      { auth_required: false, anonymous_role: world.bob, anonymous_users: ['guest'] },
      { general: { default_pool_size: 1 } },
    );
    const token = await pooler.connect(login(world.bob, mint(rsa, world.bob, { marker: 'only-mine' })));
    const claims = "SELECT coalesce(current_setting('request.jwt.claims', true), '') AS claims";
    expect((await token.query(claims)).rows[0].claims).toContain('only-mine');
    const guest = await pooler.connect({ user: 'guest', database: world.database });
    expect((await guest.query(claims)).rows).toEqual([{ claims: '' }]);
    expect((await token.query(claims)).rows[0].claims).toContain('only-mine');
    await guest.end();
    await token.end();
    pooler.stop();
  });
});

describe('the console', () => {
  const admin = (secret: string, user = 'whoever'): Table => ({ user, password: secret, database: 'admin' });

  test('opens to a token with the claim, until that expires, and to its password', async () => {
    const pooler = await start({
      admin_claim: 'pooler.admin',
      login_rules: [{ database: 'admin', method: 'jwt' }],
    });
    const exp = Math.floor(Date.now() / 1_000) + 2;
    const client = await pooler.connect(admin(mint(rsa, world.alice, { pooler: { admin: true }, exp })));
    expect((await client.query('SHOW VERSION')).rows).toHaveLength(1);
    const ended = new Promise<Error>((resolve) => client.on('error', resolve));
    await expect(ended).resolves.toMatchObject({
      code: '57P01',
      message: 'terminating connection because the access token expired',
    });
    expect(await pooler.ask(admin(adminPassword, 'admin'), 'SHOW VERSION')).toBeDefined();
    for (const claims of [
      {},
      { pooler: { admin: 'true' } },
      { pooler: { admin: true }, ns: [world.database] },
      { pooler: { admin: true }, a: 'ro' },
    ]) {
      expect(await pooler.refusal(admin(mint(rsa, world.alice, claims)))).toMatchObject({
        code: '42501',
        message: 'permission denied for database "admin"',
      });
    }
    await until('the end', () => [...pooler.worker.view.sessions()].length === 0);
    pooler.stop();
  });

  test('ends when the token that opened it is revoked', async () => {
    const revoked = scratchFile('revoked-admin.json', '[]');
    const pooler = await start({
      admin_claim: 'pooler_admin',
      login_rules: [{ database: 'admin', method: 'jwt' }],
      revocation_file: revoked,
    });
    const token = mint(rsa, world.alice, { pooler_admin: true, jti: 'console-1' });
    const client = await pooler.connect(admin(token));
    const byPassword = await pooler.connect(admin(adminPassword, 'admin'));
    const ended = new Promise<Error>((resolve) => client.on('error', resolve));
    writeFileSync(revoked, JSON.stringify([{ jti: 'console-1' }]));
    await expect(ended).resolves.toMatchObject({
      code: '57P01',
      message: 'terminating connection because the access token was revoked',
    });
    expect((await pooler.refusal(admin(token))).code).toBe('28P01');
    expect((await byPassword.query('SHOW VERSION')).rows).toHaveLength(1);
    await byPassword.end();
    pooler.stop();
  });

  test('stays shut to an agent of an administrator', async () => {
    const pooler = await start({
      admin_claim: 'pooler_admin',
      login_rules: [{ database: 'admin', method: 'jwt' }],
    });
    const claims = { pooler_admin: true, act: { sub: world.bob } };
    expect((await pooler.refusal(admin(mint(rsa, world.alice, claims)))).code).toBe('42501');
    pooler.stop();
  });

  test('takes no token without a rule that names it', async () => {
    const pooler = await start({ admin_claim: 'pooler_admin', login_rules: [{ method: 'jwt' }] });
    expect((await pooler.refusal(admin(mint(rsa, world.alice, { pooler_admin: true })))).code).toBe('28P01');
    pooler.stop();
  });
});
