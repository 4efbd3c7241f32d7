/** The login at PostgreSQL: its four ways to ask for a password, TLS in the four modes, channel binding, failures. */
import net from 'node:net';
import tls from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SSL_REQUEST } from '../src/protocol/message-writer.ts';
import { rsa } from '../test/auth/support.ts';
import { makeCertificate } from '../test/support/certificates.ts';
import { asSuperuser, createRole, sharedPostgres } from '../test/support/postgres.ts';
import {
  cleanUp,
  expectNoSecrets,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  type PoolerFiles,
  publicKeyFile,
  scratchFile,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

/** A given server has neither our pg_hba.conf nor our certificate. */
const isGiven = process.env['INTEGRATION_DATABASE_URL'] !== undefined;
if (isGiven)
  process.stderr.write('INTEGRATION_DATABASE_URL is set: logins at PostgreSQL by method are SKIPPED\n');

let world: World;
let caFile: string;
const own = newPassword();
const drops: (() => Promise<void>)[] = [];
beforeAll(async () => {
  world = await makeWorld();
  caFile = scratchFile('ca.crt', sharedPostgres().caPem ?? '');
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
  for (const drop of drops) await drop();
});

/** A pooler for one user, who is `role` at PostgreSQL. */
function start(
  role: string,
  password: string | null,
  general: Table = {},
  row: Table = {},
): Promise<LoginPooler> {
  const user = { name: 'app', password: own, database: world.database, server_user: role };
  return startLoginPooler({
    general: { auth_type: 'scram', ...general },
    databases: [world.row(row)],
    users: [{ ...user, ...(password !== null && { server_password: password }) }],
  });
}
const login = (): Table => ({ user: 'app', password: own, database: world.database });
const HOW = `SELECT session_user::text AS who, ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()`;

async function role(prefix: string, more: Table = {}): Promise<{ name: string; password: string }> {
  const password = newPassword();
  const made = await createRole(prefix, { password, ...more });
  drops.push(() => made.drop());
  return { name: made.name, password };
}

const hasTls = (): boolean => sharedPostgres().caPem !== null;

describe.skipIf(isGiven)('the method PostgreSQL asks for', () => {
  test.each([
    ['scram-sha-256', 'scram', {}],
    ['md5', 'md5', { passwordEncryption: 'md5' }],
    ['SCRAM where pg_hba says md5 and the password is kept as SCRAM', 'md5', {}],
    ['password in the clear, on this machine', 'plain', {}],
  ])('%s is answered, without TLS and inside it', async (_, prefix, more) => {
    const { name, password } = await role(prefix, more);
    for (const [mode, ssl] of [
      ['disabled', false],
      ['prefer', hasTls()],
    ] as const) {
      const pooler = await start(name, password, { tls_verify: mode });
      expect(await pooler.ask(login(), HOW)).toMatchObject({ who: name, ssl });
      pooler.stop();
      const wrong = await start(name, newPassword(), { tls_verify: mode });
      expect(await wrong.refusal(login())).toEqual({
        severity: 'FATAL',
        code: '28P01',
        message: `password authentication failed for user "${name}"`,
      });
      wrong.stop();
    }
  });

  test('trust asks for nothing; no password is needed here', async () => {
    const { name } = await role('trust');
    const pooler = await startLoginPooler({
      general: { auth_type: 'trust' },
      databases: [world.row()],
      users: [{ name, database: world.database }],
    });
    expect((await pooler.ask({ user: name, database: world.database }))['session_user']).toBe(name);
    pooler.stop();
  });

  test('a host that pg_hba refuses: its own words and SQLSTATE, for all who wait, and quickly', async () => {
    const { name, password } = await role('refused');
    const pooler = await start(name, password);
    const startedAtMs = performance.now();
    const refusals = await Promise.all(Array.from({ length: 20 }, () => pooler.refusal(login())));
    for (const refusal of refusals) {
      expect(refusal).toMatchObject({ severity: 'FATAL', code: '28000' });
      expect(refusal.message).toMatch(/^pg_hba\.conf rejects connection for host "[^"]+", user "refused_/);
    }
    expect(performance.now() - startedAtMs).toBeLessThan(3_000);
    expect(pooler.logged('cannot connect to PostgreSQL').length).toBeLessThanOrEqual(4);
    pooler.stop();
  });

  test('a database that PostgreSQL does not have, and one the role may not enter: its own words', async () => {
    const { name, password } = await role('carol');
    const missing = await start(name, password, {}, { database_name: 'not_there' });
    expect(await missing.refusal(login())).toMatchObject({
      code: '3D000',
      message: 'database "not_there" does not exist',
    });
    missing.stop();
    await asSuperuser([`REVOKE CONNECT ON DATABASE ${world.database} FROM PUBLIC`]);
    try {
      const denied = await start(name, password);
      expect(await denied.refusal(login())).toMatchObject({
        code: '42501',
        message: `permission denied for database "${world.database}"`,
      });
      denied.stop();
    } finally {
      await asSuperuser([`GRANT CONNECT ON DATABASE ${world.database} TO PUBLIC`]);
    }
  });

  test('CONNECTION LIMIT of the role: 53300 in PostgreSQL’s words, and the one that is in goes on', async () => {
    const { name, password } = await role('narrow', { attributes: 'CONNECTION LIMIT 1' });
    const pooler = await start(name, password, { checkout_timeout: 1_500 });
    const first = await pooler.connect(login());
    await first.query('BEGIN');
    const second = await pooler.connect(login());
    await expect(second.query('SELECT 1')).rejects.toMatchObject({
      code: '53300',
      message: `too many connections for role "${name}"`,
    });
    await first.query('COMMIT');
    expect((await second.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await first.end();
    await second.end();
    pooler.stop();
  });

  test('a Unix socket directory as the host', async ({ skip }) => {
    const { socketDirectory } = sharedPostgres();
    if (socketDirectory === null) return skip('the given server has no Unix socket here');
    const { name, password } = await role('carol');
    const pooler = await start(name, password, {}, { host: socketDirectory });
    const sql = 'SELECT session_user::text AS who, inet_server_addr() IS NULL AS local';
    expect(await pooler.ask(login(), sql)).toEqual({ who: name, local: true });
    pooler.stop();
  });
});

describe.skipIf(isGiven)('TLS to PostgreSQL', () => {
  const FAILED = {
    severity: 'FATAL',
    code: '08006',
    message: 'could not connect to the database server: encryption failed',
  };
  const cases: [mode: string, host: string, ca: 'right' | 'wrong' | 'none', ssl: boolean | 'refused'][] = [
    ['disabled', '127.0.0.1', 'none', false],
    ['prefer', '127.0.0.1', 'none', true],
    ['prefer', 'localhost', 'none', true],
    ['verify_ca', '127.0.0.1', 'right', true],
    ['verify_ca', '127.0.0.1', 'wrong', 'refused'],
    ['verify_ca', '127.0.0.1', 'none', 'refused'],
    ['verify_full', 'localhost', 'right', true],
    ['verify_full', '127.0.0.1', 'right', 'refused'],
    ['verify_full', 'localhost', 'wrong', 'refused'],
    ['verify_full', 'localhost', 'none', 'refused'],
  ];
  test.each(cases)('tls_verify %s, host %s, the %s CA: %s', async (mode, host, ca, ssl) => {
    const { name, password } = await role('carol');
    const stranger = makeCertificate({ name: 'stranger', authority: true });
    const file = ca === 'right' ? caFile : scratchFile('ca.crt', stranger.cert);
    const general = { tls_verify: mode, ...(ca !== 'none' && { tls_server_ca_certificate: file }) };
    const pooler = await start(name, password, general, { host });
    if (ssl === 'refused') {
      expect(await pooler.refusal(login())).toEqual(FAILED);
      const line = pooler.logged('cannot connect to PostgreSQL').at(-1);
      expect(line).toMatchObject({ reason: 'server_tls' });
      // The operator has to learn why; the client has not.
      expect(JSON.stringify(line)).toMatch(/certificate|altname|issuer|self.signed/i);
    } else {
      expect(await pooler.ask(login(), HOW)).toMatchObject({ who: name, ssl });
    }
    pooler.stop();
  });

  test('a user whom pg_hba lets in over TLS only gets in by prefer, and not by disabled', async () => {
    const { name, password } = await role('tls');
    const pooler = await start(name, password);
    expect(await pooler.ask(login(), HOW)).toMatchObject({ who: name, ssl: true, version: 'TLSv1.3' });
    pooler.stop();
    const clear = await start(name, password, { tls_verify: 'disabled' });
    expect((await clear.refusal(login())).code).toBe('28000');
    clear.stop();
  });

  test('a server without TLS: prefer goes on in the clear, the verifying modes refuse', async () => {
    const { name, password } = await role('carol');
    const proxy = await noTlsProxy();
    const row = { host: 'localhost', port: proxy.port };
    const prefer = await start(name, password, { tls_verify: 'prefer' }, row);
    expect(await prefer.ask(login(), HOW)).toMatchObject({ who: name, ssl: false });
    prefer.stop();
    for (const mode of ['verify_ca', 'verify_full']) {
      const pooler = await start(
        name,
        password,
        { tls_verify: mode, tls_server_ca_certificate: caFile },
        row,
      );
      expect(await pooler.refusal(login())).toEqual(FAILED);
      pooler.stop();
    }
    proxy.close();
  });

  test('channel binding is in use: PostgreSQL itself notices a man in the middle whom prefer does not check', async () => {
    const { name, password } = await role('tls');
    const middle = await manInTheMiddle();
    const pooler = await start(
      name,
      password,
      { tls_verify: 'prefer' },
      { host: '127.0.0.1', port: middle.port },
    );
    expect(await pooler.refusal(login())).toMatchObject({
      code: '28000',
      message: 'SCRAM channel binding check failed',
    });
    expect(middle.mechanisms()).toEqual(['SCRAM-SHA-256-PLUS']);
    pooler.stop();
    middle.close();
  });

  test('a role of a token is taken over TLS as well, and a cancel goes the same way', async () => {
    const files: PoolerFiles = {
      general: world.jwt({
        jwt_public_key_file: publicKeyFile(rsa),
        tls_verify: 'verify_full',
        tls_server_ca_certificate: caFile,
      }),
      databases: [world.row({ host: 'localhost' })],
    };
    const pooler = await startLoginPooler(files);
    const client = await pooler.connect({
      user: world.alice,
      password: mint(rsa, world.alice),
      database: world.database,
    });
    const { rows } = await client.query('SELECT current_user::text AS me, pg_backend_pid() AS pid');
    expect(rows[0].me).toBe(world.alice);
    // The role itself may not see it: the session is the service user's.
    expect(await asSuperuser([`SELECT ssl FROM pg_stat_ssl WHERE pid = ${rows[0].pid}`])).toEqual([
      { ssl: true },
    ]);
    const query = client.query('SELECT pg_sleep(20)');
    const refused = expect(query).rejects.toMatchObject({ code: '57014' });
    const sessions = [...pooler.worker.view.sessions()];
    await until('the statement', () => sessions[0]?.state === 'active');
    await sessions[0]!.cancel();
    await refused;
    await client.end();
    pooler.stop();
  });
});

interface Proxy {
  port: number;
  close(): void;
}

/** Says N to SSLRequest and passes everything else on. */
async function noTlsProxy(): Promise<Proxy> {
  return listen((client) => {
    client.once('data', (first: Buffer) => {
      expect(first.equals(SSL_REQUEST)).toBe(true);
      client.write('N');
      const upstream = net.connect(sharedPostgres().primary);
      link(client, upstream);
    });
  });
}

/** Ends TLS by a certificate of its own and begins it anew at PostgreSQL, and notes the SASL mechanism chosen. */
async function manInTheMiddle(): Promise<Proxy & { mechanisms(): string[] }> {
  const { cert, key } = makeCertificate({ name: 'man in the middle' });
  const chosen: string[] = [];
  const proxy = await listen((client) => {
    client.once('data', () => {
      client.pause();
      client.write('S');
      const secureContext = tls.createSecureContext({ cert, key });
      const inner = new tls.TLSSocket(client, {
        isServer: true,
        secureContext,
        ALPNProtocols: ['postgresql'],
      });
      inner.on('data', (chunk: Buffer) => {
        const name = /SCRAM-SHA-256(?:-PLUS)?/.exec(chunk.toString('latin1'))?.[0];
        if (name !== undefined) chosen.push(name);
      });
      inner.pause();
      const upstream = net.connect(sharedPostgres().primary);
      upstream.write(SSL_REQUEST);
      upstream.once('data', () => {
        const outer = tls.connect({
          socket: upstream,
          rejectUnauthorized: false,
          ALPNProtocols: ['postgresql'],
        });
        link(inner, outer);
      });
    });
  });
  return { ...proxy, mechanisms: () => chosen };
}

function link(a: net.Socket, b: net.Socket): void {
  a.pipe(b);
  b.pipe(a);
  for (const [one, other] of [
    [a, b],
    [b, a],
  ] as const) {
    one.on('error', () => other.destroy());
    one.on('close', () => other.destroy());
  }
}

async function listen(onConnection: (socket: net.Socket) => void): Promise<Proxy> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    onConnection(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    port: (server.address() as net.AddressInfo).port,
    close: () => {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
