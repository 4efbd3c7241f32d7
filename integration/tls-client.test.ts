/** TLS to clients with real ones: SSLRequest, direct TLS, who may send a token in the clear, cancel over TLS. */
import { networkInterfaces } from 'node:os';
import type tls from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ProtocolVersion } from '../src/protocol/codes.ts';
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
  type World,
} from './support/login-support.ts';

let world: World;
let authority: TestCertificate;
let certificate: TestCertificate;
let caFile: string;
let tlsKeys: Table;
/** An address of this machine that is not loopback; null where there is none. */
const outside =
  Object.values(networkInterfaces())
    .flat()
    .find((one) => one?.internal === false && one.family === 'IPv4')?.address ?? null;
if (outside === null) process.stderr.write('no address but loopback: the tests that need one are SKIPPED\n');

beforeAll(async () => {
  world = await makeWorld();
  authority = makeCertificate({ name: 'pooler test authority', authority: true });
  certificate = makeCertificate({ name: 'localhost', issuer: authority });
  caFile = scratchFile('ca.crt', authority.cert);
  tlsKeys = {
    tls_certificate: scratchFile('server.crt', certificate.cert),
    tls_private_key: scratchFile('server.key', certificate.key),
  };
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
});

function start(files: PoolerFiles = {}): Promise<LoginPooler> {
  return startLoginPooler({
    databases: [world.row()],
    ...files,
    general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa), ...tlsKeys, ...files.general }),
  });
}
const login = (more: Table = {}): Table => ({
  user: world.alice,
  password: mint(rsa, world.alice),
  database: world.database,
  ...more,
});
const TLS_REQUIRED = { severity: 'FATAL', code: '28000', message: 'SSL connection is required' };

describe('with a certificate', () => {
  let pooler: LoginPooler;
  beforeAll(async () => {
    pooler = await start();
  });
  afterAll(() => pooler.stop());

  test('pg checks it in full and logs in inside TLS', async () => {
    const ssl = { ca: authority.cert, servername: 'localhost' };
    expect((await pooler.ask(login({ ssl })))['current_user']).toBe(world.alice);
    expect(pooler.logged('client logged in').at(-1)).toMatchObject({ tls: true });
    const wrong = { ca: makeCertificate({ name: 'another', authority: true }).cert, servername: 'localhost' };
    await expect(pooler.connect(login({ ssl: wrong }))).rejects.toThrow(/certificate|self.signed|verify/i);
  });

  test.skipIf(!hasPsql)('psql logs in with sslmode verify-full, and with prefer by itself', async () => {
    const base = { port: pooler.port, dbname: world.database, user: world.alice };
    for (const more of [
      { host: 'localhost', hostaddr: '127.0.0.1', sslmode: 'verify-full', sslrootcert: caFile },
      { sslmode: 'prefer' },
    ]) {
      const outcome = await psql(
        { ...base, ...more, password: mint(rsa, world.alice) },
        '\\conninfo',
        'SELECT current_user',
      );
      expect(outcome.stderr).toBe('');
      expect(outcome.stdout).toContain(world.alice);
      expect(outcome.stdout).toContain('SSL connection (protocol: TLSv1.3');
    }
    const strict = await psql(
      { ...base, sslmode: 'verify-full', sslrootcert: caFile, password: mint(rsa, world.alice) },
      'SELECT 1',
    );
    expect(strict.code).toBe(2);
    expect(strict.stderr).toContain('does not match host name "127.0.0.1"');
  });

  test('direct TLS with ALPN postgresql logs in; without ALPN it is told why', async () => {
    const client = await ScriptedClient.connectDirectTls({ port: pooler.port });
    expect((client.socket as tls.TLSSocket).alpnProtocol).toBe('postgresql');
    await client.login({ user: world.alice, database: world.database, password: mint(rsa, world.alice) });
    expect((await client.query('SELECT current_user')).rows).toEqual([[world.alice]]);
    client.destroy();
    const other = await ScriptedClient.connectDirectTls({ port: pooler.port }, {});
    expect(await other.expectFatal()).toMatchObject({ code: '08P01' });
    expect(pooler.logged('login_refused').at(-1)).toMatchObject({ reason: 'alpn_missing' });
  });

  test('GSSENCRequest in front is answered N, then TLS goes on', async () => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendGssencRequest();
    expect((await client.readBytes(1)).toString()).toBe('N');
    await client.requestTls();
    await client.login({ user: world.alice, database: world.database, password: mint(rsa, world.alice) });
    client.destroy();
  });

  test('a cancel request over TLS, by a 32-byte key of protocol 3.2, cancels', async () => {
    const client = await ScriptedClient.connectDirectTls({ port: pooler.port });
    const reply = await client.login({
      user: world.alice,
      database: world.database,
      password: mint(rsa, world.alice),
      protocol: ProtocolVersion.V3_2,
    });
    expect(reply.secretKey).toHaveLength(32);
    client.sendQuery('SELECT pg_sleep(20)');
    await until('the statement', () =>
      [...pooler.worker.view.sessions()].some((session) => session.state === 'active'),
    );
    const canceller = await ScriptedClient.connect({ port: pooler.port });
    await canceller.requestTls();
    canceller.sendCancelRequest(reply.processId, reply.secretKey);
    await canceller.readToEnd();
    expect((await client.readReply()).error?.code).toBe('57014');
    client.destroy();
  });

  test('what came behind SSLRequest in the clear is not read as if it had come encrypted', async () => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.send(Buffer.from('0000000804d2162f', 'hex'), Buffer.from('0000000804d21630', 'hex'));
    expect(await client.expectFatal()).toMatchObject({ code: '08P01' });
  });

  test('a large token and a large result pass through TLS whole', async () => {
    const pad = 'p'.repeat(11_000);
    const ssl = { rejectUnauthorized: false };
    const client = await pooler.connect(login({ ssl, password: mint(rsa, world.alice, { pad }) }));
    const { rows } = await client.query("SELECT repeat('x', 5000000) AS text");
    expect(rows[0].text).toHaveLength(5_000_000);
    await client.end();
  });
});

test('tls_client_required: nobody talks in the clear, whatever the method, and no password is asked for', async () => {
  const password = newPassword();
  const role = await createRole('carol', { password });
  for (const authType of ['jwt', 'scram', 'md5', 'plain', 'trust']) {
    const pooler = await start({
      general: { auth_type: authType, tls_client_required: true },
      users: [{ name: role.name, password, database: world.database }],
    });
    const user = authType === 'jwt' ? world.alice : role.name;
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ user, database: world.database });
    expect(await client.expectFatal()).toMatchObject(TLS_REQUIRED);
    expect(pooler.lines.at(-1)).toMatchObject({ reason: 'tls_required' });
    const proof = authType === 'jwt' ? mint(rsa, world.alice) : password;
    const ssl = { rejectUnauthorized: false };
    const row = await pooler.ask(login({ user, password: proof, ssl }));
    expect(row['current_user']).toBe(user);
    pooler.stop();
  }
  await role.drop();
});

describe('allow_plaintext_tokens', () => {
  const cases: [string, string, boolean][] = [
    ['loopback', '127.0.0.1', true],
    ['never', '127.0.0.1', false],
    ['always', '127.0.0.1', true],
    ...(outside === null
      ? []
      : ([
          ['loopback', outside, false],
          ['never', outside, false],
          ['always', outside, true],
        ] as [string, string, boolean][])),
  ];
  test.each(cases)('%s, from %s: let in %s', async (allow, host, isLetIn) => {
    const pooler = await start({
      general: { host: '0.0.0.0' },
      turnstile: { allow_plaintext_tokens: allow },
    });
    if (isLetIn) expect((await pooler.ask(login({ host })))['current_user']).toBe(world.alice);
    else {
      const client = await ScriptedClient.connect({ port: pooler.port, host });
      client.sendStartup({ user: world.alice, database: world.database });
      expect(await client.expectFatal()).toMatchObject(TLS_REQUIRED);
      expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'tls_required' });
    }
    const encrypted = login({ host, ssl: { rejectUnauthorized: false } });
    expect((await pooler.ask(encrypted))['current_user']).toBe(world.alice);
    pooler.stop();
  });

  test('loopback of IPv6 counts as loopback', async ({ skip }) => {
    if (
      !Object.values(networkInterfaces())
        .flat()
        .some((one) => one?.address === '::1')
    ) {
      return skip('this machine has no ::1');
    }
    const pooler = await start({ general: { host: '::' } });
    for (const host of ['::1', '127.0.0.1']) {
      expect((await pooler.ask(login({ host })))['current_user']).toBe(world.alice);
    }
    pooler.stop();
  });

  test.skipIf(outside === null)(
    'a SCRAM user, who shows no secret, may come in the clear from there',
    async () => {
      const password = newPassword();
      const role = await createRole('carol', { password });
      const user = role.name;
      const pooler = await start({
        general: { host: '0.0.0.0', jwt_user_suffix: '@token' },
        users: [{ name: user, password, database: world.database }],
      });
      const row = await pooler.ask({ host: outside!, user, password, database: world.database });
      expect(row['current_user']).toBe(user);
      pooler.stop();
      await role.drop();
    },
  );

  test('never without a certificate is a fault of the configuration', async () => {
    await expect(
      startLoginPooler({
        general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa) }),
        turnstile: { allow_plaintext_tokens: 'never' },
        databases: [world.row()],
      }),
    ).rejects.toThrow(/allow_plaintext_tokens: never, but there is no tls_certificate/);
  });
});

test('a certificate and a key that do not belong together are a fault of the configuration', async () => {
  const other = makeCertificate({ name: 'localhost', issuer: authority });
  await expect(start({ general: { tls_private_key: scratchFile('other.key', other.key) } })).rejects.toThrow(
    /general\.tls_/,
  );
});
