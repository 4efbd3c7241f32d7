/** Time and number: login, idle and query timeouts, max_clients, caps; what a startup packet may say; log and TCP. */
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createLogger } from '../src/base/log.ts';
import { ProtocolVersion } from '../src/protocol/codes.ts';
import { encodeStartup, SSL_REQUEST } from '../src/protocol/message-writer.ts';
import { rsa } from '../test/auth/support.ts';
import { asSuperuser, createRole, sharedPostgres } from '../test/support/postgres.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import {
  cleanUp,
  expectNoSecrets,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  type PoolerFiles,
  publicKeyFile,
  serverSessions,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

let world: World;
let carol: string;
let password: string;
const drops: (() => Promise<void>)[] = [];

beforeAll(async () => {
  world = await makeWorld();
  password = newPassword();
  const role = await createRole('carol', { password });
  carol = role.name;
  drops.push(() => role.drop());
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
  for (const drop of drops) await drop();
});

const start = (files: PoolerFiles = {}): Promise<LoginPooler> =>
  startLoginPooler({
    databases: [world.row()],
    users: [{ name: carol, password, database: world.database }],
    ...files,
    general: { auth_type: 'scram', ...files.general },
  });
const startJwt = (files: PoolerFiles = {}): Promise<LoginPooler> =>
  start({ ...files, general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa), ...files.general }) });
const login = (more: Table = {}): Table => ({ user: carol, password, database: world.database, ...more });
const raw = (pooler: LoginPooler, more: Table = {}): Promise<ScriptedClient> =>
  ScriptedClient.login({ port: pooler.port, user: carol, password, database: world.database, ...more });

describe.concurrent('timeouts', () => {
  test('client_login_timeout ends silent clients, slow ones and those that owe a password', async () => {
    const pooler = await startJwt({ general: { client_login_timeout: 300 } });
    const clients = await Promise.all(
      Array.from({ length: 3 }, () => ScriptedClient.connect({ port: pooler.port })),
    );
    clients[1]!.send(Buffer.from([0, 0]));
    clients[2]!.sendStartup({ user: world.alice, database: world.database });
    await clients[2]!.expect('R');
    const startedAtMs = performance.now();
    for (const client of clients) {
      expect(await client.expectFatal()).toMatchObject({
        code: '57014',
        message: 'canceling authentication due to timeout',
      });
    }
    expect(performance.now() - startedAtMs).toBeLessThan(2_000);
    expect(pooler.lines.filter((line) => line['reason'] === 'login_timeout')).toHaveLength(3);
    pooler.stop();
  });

  test('client_login_timeout counts the wait for PostgreSQL too, and the pool is none the worse', async () => {
    const pooler = await start({
      general: { client_login_timeout: 300, default_pool_size: 1, checkout_timeout: 20_000 },
    });
    const holder = await raw(pooler);
    await holder.query('BEGIN');
    const startedAtMs = performance.now();
    expect(await pooler.refusal(login({ options: '-c work_mem=5MB' }))).toEqual({
      severity: 'FATAL',
      code: '57014',
      message: 'canceling authentication due to timeout',
    });
    expect(performance.now() - startedAtMs).toBeLessThan(2_000);
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'login_timeout' });
    await holder.query('COMMIT');
    const sql = "SELECT current_setting('work_mem') AS value";
    expect(await pooler.ask(login({ options: '-c work_mem=5MB' }), sql)).toEqual({ value: '5MB' });
    holder.destroy();
    pooler.stop();
  });

  test('client_idle_timeout ends a client outside a transaction, and only such a one', async () => {
    const pooler = await start({ general: { client_idle_timeout: 300 } });
    const idle = await raw(pooler);
    const busy = await raw(pooler);
    busy.sendQuery('SELECT pg_sleep(0.9)');
    const open = await raw(pooler);
    await open.query('BEGIN');
    expect(await idle.expectFatal()).toMatchObject({ severity: 'FATAL', code: '57P05' });
    expect((await busy.readReply()).error).toBeNull();
    expect((await open.query('COMMIT')).tags).toEqual(['COMMIT']);
    for (const client of [busy, open]) client.destroy();
    pooler.stop();
  });

  test('client_idle_in_transaction_timeout ends the client and rolls back what it had begun', async () => {
    const pooler = await start({
      general: { client_idle_in_transaction_timeout: 300, default_pool_size: 1 },
    });
    const idle = await raw(pooler);
    await idle.query('SELECT 1');
    const open = await raw(pooler);
    await open.query('BEGIN');
    await open.query('SELECT pg_advisory_xact_lock(4711)');
    expect(await open.expectFatal()).toMatchObject({ severity: 'FATAL', code: '25P03' });
    const { rows } = await idle.query('SELECT pg_try_advisory_xact_lock(4711)');
    expect(rows).toEqual([['t']]);
    idle.destroy();
    pooler.stop();
  });

  test('query_timeout cancels the request and leaves the session', async () => {
    const pooler = await start({ general: { query_timeout: 300 } });
    const client = await raw(pooler);
    const startedAtMs = performance.now();
    const { error, status } = await client.query('SELECT pg_sleep(20)');
    expect(error?.code).toBe('57014');
    expect(status).toBe('I');
    expect(performance.now() - startedAtMs).toBeLessThan(3_000);
    expect((await client.query('SELECT 1')).rows).toEqual([['1']]);
    expect(pooler.logged('query_timeout')).toHaveLength(1);
    client.destroy();
    pooler.stop();
  });

  test('checkout_timeout: a client that gets no connection is told 53300 and goes on', async () => {
    const pooler = await start({ general: { default_pool_size: 1, checkout_timeout: 300 } });
    const holder = await raw(pooler);
    await holder.query('BEGIN');
    const waiter = await raw(pooler);
    const { error, status } = await waiter.query('SELECT 1');
    expect([error?.code, error?.severity, status]).toEqual(['53300', 'ERROR', 'I']);
    await holder.query('COMMIT');
    expect((await waiter.query('SELECT 1')).rows).toEqual([['1']]);
    for (const client of [holder, waiter]) client.destroy();
    pooler.stop();
  });

  test('connect_timeout: a host that answers nothing is given up, and the client is told so', async () => {
    const { createServer } = await import('node:net');
    const silent = createServer(() => {});
    await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
    const { port } = silent.address() as { port: number };
    const pooler = await start({
      general: { connect_timeout: 300 },
      databases: [world.row({ host: '127.0.0.1', port })],
    });
    const startedAtMs = performance.now();
    expect(await pooler.refusal(login())).toEqual({
      severity: 'FATAL',
      code: '08006',
      message: 'could not connect to the database server in time',
    });
    expect(performance.now() - startedAtMs).toBeLessThan(1_500);
    pooler.stop();
    silent.close();
  });

  test('connect_attempts and connect_attempt_delay: so many tries, so far apart, before the client hears', async () => {
    const { createServer } = await import('node:net');
    const arrivals: number[] = [];
    const server = createServer((socket) => {
      arrivals.push(performance.now());
      socket.destroy();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as { port: number };
    const pooler = await start({
      general: { connect_attempts: 3, connect_attempt_delay: 120 },
      databases: [world.row({ host: '127.0.0.1', port })],
    });
    expect(await pooler.refusal(login())).toMatchObject({ code: '08006' });
    expect(arrivals).toHaveLength(3);
    expect(arrivals[2]! - arrivals[0]!).toBeGreaterThan(230);
    pooler.stop();
    server.close();
  });

  test('shutdown_timeout bounds a drain; what is open then is cancelled and told 57P01', async () => {
    const pooler = await start({ general: { shutdown_timeout: 400 } });
    const idle = await raw(pooler);
    const open = await raw(pooler);
    await open.query('BEGIN');
    const startedAtMs = performance.now();
    const drained = pooler.worker.drain();
    expect(await idle.expectFatal()).toMatchObject({ code: '57P01' });
    expect((await open.query('SELECT 1')).rows).toEqual([['1']]);
    expect(await open.expectFatal()).toMatchObject({ code: '57P01' });
    await drained;
    expect(performance.now() - startedAtMs).toBeLessThan(2_500);
    expect(pooler.logged('shutdown_timeout')).toHaveLength(1);
    pooler.stop();
  });
});

test('rollback_timeout: a connection that cannot be cleaned in time is closed, and its place is free again', async () => {
  const pooler = await start({ general: { rollback_timeout: 300, default_pool_size: 1 } });
  const client = await raw(pooler);
  // A statement that cannot be cancelled: it catches the cancellation.
  client.sendQuery(`DO $$ BEGIN
    LOOP BEGIN PERFORM pg_sleep(30); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$`);
  await until('the statement', async () => (await runningOf(carol)) === 1);
  client.destroy();
  const next = await raw(pooler);
  const startedAtMs = performance.now();
  expect((await next.query('SELECT 1')).rows).toEqual([['1']]);
  expect(performance.now() - startedAtMs).toBeLessThan(2_500);
  await asSuperuser([
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '${carol}' AND query LIKE 'DO %'`,
  ]);
  next.destroy();
  pooler.stop();
});

async function runningOf(role: string): Promise<number> {
  const [row] = await asSuperuser([
    `SELECT count(*)::int AS count FROM pg_stat_activity WHERE usename = '${role}' AND state = 'active'`,
  ]);
  return Number(row?.['count']);
}

describe('numbers', () => {
  test('max_clients: one more gets 53300, and a client that leaves makes room', async () => {
    const pooler = await start({ turnstile: { max_clients: 2 } });
    const first = await raw(pooler);
    const second = await raw(pooler);
    expect(await pooler.refusal(login())).toEqual({
      severity: 'FATAL',
      code: '53300',
      message: 'sorry, too many clients already',
    });
    expect(pooler.logged('login_refused').at(-1)).toMatchObject({ reason: 'too_many_clients' });
    await first.terminate();
    await until(
      'room',
      () => pooler.worker.view.loginCount === 0 && [...pooler.worker.view.sessions()].length === 1,
    );
    const third = await raw(pooler);
    for (const client of [second, third]) client.destroy();
    pooler.stop();
  });

  test('max_server_connections: an idle connection of another role makes room for a new one', async () => {
    const pooler = await startJwt({ turnstile: { max_server_connections: 1 } });
    const as = (role: string): Table => ({
      user: 'jwt',
      password: mint(rsa, role),
      database: world.database,
    });
    for (const role of [world.alice, world.bob, world.alice, world.bob]) {
      expect((await pooler.ask(as(role)))['current_user']).toBe(role);
      expect(await serverSessions(world.service)).toBeLessThanOrEqual(2);
    }
    // Connections that PostgreSQL has not yet noticed to be closed may be counted for a moment.
    await until('one connection', async () => (await serverSessions(world.service)) === 1);
    pooler.stop();
  });

  test.each([
    'max_server_connections',
    'max_server_connections_per_database',
  ])('%s: when all are in use a client waits checkout_timeout, then gets 53300', async (key) => {
    const pooler = await startJwt({ turnstile: { [key]: 1 }, general: { checkout_timeout: 300 } });
    const holder = await pooler.connect({
      user: 'jwt',
      password: mint(rsa, world.alice),
      database: world.database,
    });
    await holder.query('BEGIN');
    const late = { user: 'jwt', password: mint(rsa, world.bob), database: world.database };
    expect(await pooler.refusal(late)).toMatchObject({ code: '53300' });
    await holder.query('COMMIT');
    expect((await pooler.ask(late))['current_user']).toBe(world.bob);
    await holder.end();
    pooler.stop();
  });

  test('max_roles: one more role is refused while all have sessions, and takes the place of an idle one', async () => {
    const pooler = await startJwt({ turnstile: { max_roles: 1 } });
    const as = (role: string): Table => ({
      user: 'jwt',
      password: mint(rsa, role),
      database: world.database,
    });
    const first = await pooler.connect(as(world.alice));
    expect(await pooler.refusal(as(world.bob))).toMatchObject({ code: '53300' });
    expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'max_roles' });
    await first.end();
    await until('the end', () => [...pooler.worker.view.sessions()].length === 0);
    expect((await pooler.ask(as(world.bob)))['current_user']).toBe(world.bob);
    expect([...pooler.worker.view.pools.pools()].map((pool) => pool.options.role)).toEqual([world.bob]);
    pooler.stop();
  });

  test('a provisioned pool that nobody uses goes away with its connections', async () => {
    const pooler = await startJwt({ general: { idle_timeout: 200 } });
    await pooler.ask({ user: 'jwt', password: mint(rsa, world.alice), database: world.database });
    expect([...pooler.worker.view.pools.pools()]).toHaveLength(1);
    await until('the end of the pool', () => [...pooler.worker.view.pools.pools()].length === 0);
    await until('no connection', async () => (await serverSessions(world.service)) === 0);
    pooler.stop();
  });

  test('min_pool_size does not hold for provisioned pools', async () => {
    const pooler = await startJwt({ general: { min_pool_size: 3 } });
    await pooler.ask({ user: 'jwt', password: mint(rsa, world.alice), database: world.database });
    expect(await serverSessions(world.service)).toBe(1);
    pooler.stop();
  });
});

describe('connections to PostgreSQL', () => {
  test('min_pool_size keeps so many for a user of users.toml from the start; server_lifetime renews them', async () => {
    const own = newPassword();
    const role = await createRole('kept', { password: own });
    drops.push(() => role.drop());
    const pooler = await start({
      general: { min_pool_size: 2, server_lifetime: 400, server_lifetime_jitter: 100 },
      users: [{ name: role.name, password: own, database: world.database }],
    });
    const pids = async (): Promise<number[]> => {
      const rows = await asSuperuser([`SELECT pid FROM pg_stat_activity WHERE usename = '${role.name}'`]);
      return rows.map((row) => Number(row['pid']));
    };
    await until('two connections', async () => (await pids()).length === 2);
    const first = await pids();
    await until('two others', async () => {
      const now = await pids();
      return now.length === 2 && !now.some((pid) => first.includes(pid));
    });
    pooler.stop();
  });

  test('a replica is kept for the router: nobody is sent there, in whatever order the rows are', async () => {
    const nowhere = world.row({ role: 'replica', port: 1 });
    for (const databases of [
      [world.row(), nowhere],
      [nowhere, world.row({ role: 'primary' })],
    ]) {
      const pooler = await start({ databases });
      expect((await pooler.ask(login()))['database']).toBe(world.database);
      pooler.stop();
    }
  });

  test('host and port of PostgreSQL, and a name of its own for its database', async () => {
    const pooler = await start({
      databases: [world.row({ name: 'alias', host: 'localhost', database_name: world.database })],
      users: [{ name: carol, password, database: 'alias' }],
    });
    expect((await pooler.ask(login({ database: 'alias' })))['database']).toBe(world.database);
    expect((await pooler.refusal(login())).code).toBe('42501');
    pooler.stop();
  });

  test('a server that is away: everybody is told quickly, attempts back off, and it is found again', async () => {
    const { connect, createServer } = await import('node:net');
    let away = true;
    let arrivals = 0;
    const proxy = createServer((socket) => {
      arrivals++;
      socket.on('error', () => {});
      if (away) return socket.destroy();
      const upstream = connect(sharedPostgres().primary);
      upstream.on('error', () => socket.destroy());
      socket.pipe(upstream).pipe(socket);
      return undefined;
    });
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    const { port } = proxy.address() as { port: number };
    const pooler = await start({ databases: [world.row({ host: '127.0.0.1', port })] });
    const startedAtMs = performance.now();
    let refusals = 0;
    while (performance.now() - startedAtMs < 1_000) {
      const batch = await Promise.all(Array.from({ length: 10 }, () => pooler.refusal(login())));
      for (const refusal of batch) {
        refusals++;
        expect(refusal).toEqual({
          severity: 'FATAL',
          code: '08006',
          message: 'could not connect to the database server',
        });
      }
    }
    expect(refusals).toBeGreaterThan(20);
    // 50 ms, doubled each time, with up to four at first: not one for each login.
    expect(arrivals).toBeLessThanOrEqual(12);
    expect(pooler.logged('cannot connect to PostgreSQL').at(-1)?.['why']).toContain(`port ${port}`);
    away = false;
    await until('the way in', async () => {
      try {
        return (await pooler.ask(login()))['session_user'] === carol;
      } catch {
        return false;
      }
    });
    pooler.stop();
    proxy.close();
  });

  test('drivers’ own settings do not make a login wait for a connection while all are in use', async () => {
    const pooler = await start({ general: { default_pool_size: 1, checkout_timeout: 2_000 } });
    const holder = await pooler.connect(login());
    await holder.query('BEGIN');
    const startedAtMs = performance.now();
    const clients = await Promise.all(
      ['one', 'two', 'three'].map((name) =>
        pooler.connect(login({ application_name: name, client_encoding: 'UTF8' })),
      ),
    );
    expect(performance.now() - startedAtMs).toBeLessThan(1_500);
    await holder.query('COMMIT');
    const names = await Promise.all(
      clients.map(async (client) => (await client.query('SHOW application_name')).rows[0].application_name),
    );
    expect(names).toEqual(['one', 'two', 'three']);
    // What PostgreSQL changes is told as PostgreSQL has it.
    const long = await ScriptedClient.connect({ port: pooler.port });
    const asked = `é${'x'.repeat(80)}`;
    const { parameters } = await long.login({
      user: carol,
      password,
      database: world.database,
      parameters: { application_name: asked },
    });
    const shown = (await long.query('SHOW application_name')).rows[0]?.[0];
    expect(shown).toMatch(/^\\xc3\\xa9x+$/);
    expect(shown?.length).toBeLessThan(asked.length);
    expect(parameters.get('application_name')).toBe(shown);
    for (const client of [...clients, holder]) await client.end();
    long.destroy();
    pooler.stop();
  });
});

describe('the startup packet', () => {
  let pooler: LoginPooler;
  beforeAll(async () => {
    pooler = await startJwt();
  });
  afterAll(() => pooler.stop());

  const refusalOf = async (bytes: Uint8Array): Promise<{ code: string; message: string }> => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.send(bytes);
    const { code, message } = await client.expectFatal();
    return { code, message };
  };
  const startup = (more: Record<string, string>): Buffer =>
    encodeStartup({ user: world.alice, database: world.database, ...more });

  test.each<[string, Record<string, string>, string]>([
    ['role', { role: 'postgres' }, '42501'],
    ['Role', { Role: 'postgres' }, '42501'],
    ['session_authorization', { session_authorization: 'postgres' }, '42501'],
    ['is_superuser', { is_superuser: 'on' }, '42501'],
    ['request.jwt.claims', { 'request.jwt.claims': '{"sub":"victim"}' }, '42501'],
    ['request.jwt.claim.sub', { 'request.jwt.claim.sub': 'victim' }, '42501'],
    ['options -c role=', { options: '-c role=postgres' }, '42501'],
    ['options -crole=', { options: '-crole=postgres' }, '42501'],
    ['options --role=', { options: '--role=postgres' }, '42501'],
    ['options --session-authorization=', { options: '--session-authorization=postgres' }, '42501'],
    ['options with escapes', { options: '-c ro\\le=postgres' }, '42501'],
    ['options behind others', { options: '-c work_mem=1MB --request.jwt.claims={}' }, '42501'],
    ['options that are none', { options: '-x' }, '42601'],
    ['a name with a quote', { 'x" TO DEFAULT; RESET ROLE; --': 'y' }, '42704'],
    ['a name with a space', { 'a b': 'y' }, '42704'],
    ['a name past 63 bytes', { ['n'.repeat(64)]: 'y' }, '42704'],
    ['replication=true', { replication: 'true' }, '28000'],
    ['replication=database', { replication: 'database' }, '28000'],
    ['replication=1', { replication: '1' }, '28000'],
    ['a parameter twice', { work_mem: '1MB', WORK_MEM: '2MB' }, '08P01'],
    ['no user', { user: '' }, '28000'],
  ])('%s is refused before any proof is asked for', async (_, parameters, code) => {
    expect((await refusalOf(startup(parameters))).code).toBe(code);
    expect(pooler.logged('login_refused').at(-1)).toMatchObject({ level: 'info', code });
  });

  test('may have 10,000 bytes and not one more', async () => {
    const packet = (bytes: number): Buffer => {
      const rest = bytes - startup({ application_name: '' }).length;
      return startup({ application_name: 'x'.repeat(rest) });
    };
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.send(packet(10_000));
    await client.expect('R');
    client.destroy();
    expect(await refusalOf(packet(10_001))).toEqual({
      code: '08P01',
      message: 'invalid length of startup packet',
    });
  });

  test('settings that PostgreSQL refuses are refused at login, with its words', async () => {
    const token = mint(rsa, world.alice);
    const wrong = { user: world.alice, password: token, database: world.database };
    for (const [options, code] of [
      ['-c work_mem=lots', '22023'],
      ['-c no_such_setting=1', '42704'],
      ['-c log_min_messages=debug1', '42501'],
    ] as const) {
      expect(await pooler.refusal({ ...wrong, options }), options).toMatchObject({ severity: 'FATAL', code });
    }
    const sql = "SELECT current_setting('work_mem') || current_setting('app.name') AS v";
    expect(await pooler.ask({ ...wrong, options: '-c work_mem=3MB --app.name=x' }, sql)).toEqual({
      v: '3MBx',
    });
  });

  test('GSSENCRequest and SSLRequest are answered N without a certificate, then the login goes on', async () => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendGssencRequest();
    expect((await client.readBytes(1)).toString()).toBe('N');
    client.send(SSL_REQUEST);
    expect((await client.readBytes(1)).toString()).toBe('N');
    await client.login({ user: world.alice, database: world.database, password: mint(rsa, world.alice) });
    expect((await client.query('SELECT current_user')).rows).toEqual([[world.alice]]);
    client.destroy();
  });

  test.each([
    [ProtocolVersion.V3_0, 4],
    [ProtocolVersion.V3_2, 32],
  ])('protocol %i gets a cancel key of %i bytes, and it cancels', async (protocol, bytes) => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    const password = mint(rsa, world.alice);
    const reply = await client.login({ user: world.alice, database: world.database, password, protocol });
    expect(reply.secretKey).toHaveLength(bytes);
    client.sendQuery('SELECT pg_sleep(20)');
    await until('the statement', async () => (await runningOf(world.service)) === 1);
    const canceller = await ScriptedClient.connect({ port: pooler.port });
    canceller.sendCancelRequest(reply.processId, reply.secretKey);
    await canceller.readToEnd();
    expect((await client.readReply()).error?.code).toBe('57014');
    client.destroy();
  });

  test('a newer protocol and unknown extensions get NegotiateProtocolVersion; protocol 2 is refused', async () => {
    const client = await ScriptedClient.connect({ port: pooler.port });
    const parameters = { user: world.alice, database: world.database, '_pq_.shiny': '1' };
    client.sendStartup(parameters, ProtocolVersion.V3_0 + 99);
    const body = await client.expect('v');
    expect([body.readInt32BE(0), body.readInt32BE(4), body.toString('utf8', 8)]).toEqual([
      ProtocolVersion.V3_2,
      1,
      '_pq_.shiny\0',
    ]);
    await client.authenticate(world.alice, mint(rsa, world.alice));
    expect((await client.readWelcome()).secretKey).toHaveLength(32);
    client.destroy();
    expect((await refusalOf(encodeStartup({ user: 'a' }, 2 << 16))).code).toBe('0A000');
  });
});

describe('the log', () => {
  test('log_connections and log_disconnections off: logins leave no line, refusals still do', async () => {
    const quiet = await start({
      general: { log_connections: false, log_disconnections: false, log_level: 'info' },
    });
    await quiet.ask(login());
    expect((await quiet.refusal(login({ password: newPassword() }))).code).toBe('28P01');
    await until('the end', () => [...quiet.worker.view.sessions()].length === 0);
    expect(quiet.lines.map((line) => line.message)).toEqual(['auth_reject']);
    quiet.stop();
    const loud = await start();
    await loud.ask(login());
    await until('the end', () => loud.logged('client disconnected').length === 1);
    expect(loud.logged('client logged in')).toHaveLength(1);
    loud.stop();
  });

  test('log_level takes what is less severe out', async () => {
    const pooler = await start({ general: { log_level: 'error' } });
    await pooler.refusal(login({ password: newPassword() }));
    await pooler.ask(login());
    expect(pooler.lines).toEqual([]);
    pooler.stop();
  });

  test.each([
    ['text', /^\S+Z WARN {2}auth_reject reason=expired\n$/],
    [
      'json',
      /^\{"timestamp":"[^"]+","level":"warn","fields":\{"message":"auth_reject","reason":"expired"\}\}\n$/,
    ],
    [
      'json_flattened',
      /^\{"level":"warn","timestamp":"[^"]+","reason":"expired","message":"auth_reject"\}\n$/,
    ],
  ] as const)('log_format %s: the shape of a line', (format, shape) => {
    let line = '';
    const log = createLogger({ format, level: 'info', destination: { write: (text) => (line += text) } });
    log.warn({ reason: 'expired' }, 'auth_reject');
    expect(line).toMatch(shape);
  });
});

describe('[tcp]', () => {
  test('keys that Node.js has no socket option for are named in a warning', async () => {
    const pooler = await start({ tcp: { interval: 1_000, retries: 3, user_timeout: 30_000 } });
    for (const key of ['interval', 'retries', 'user_timeout']) {
      expect(pooler.warnings.join('\n')).toContain(`tcp.${key}: `);
    }
    pooler.stop();
  });

  /** Timer kind of each established socket of this process on a port: 2 is keepalive (Documentation/networking/proc_net_tcp). */
  const timers = (port: number, side: 'local' | 'remote'): string[] => {
    const hex = port.toString(16).toUpperCase().padStart(4, '0');
    return readFileSync('/proc/net/tcp', 'utf8')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter(
        ([, local, remote, state]) =>
          state === '01' && (side === 'local' ? local : remote)?.endsWith(`:${hex}`),
      )
      .map((columns) => columns[5]!.slice(0, 2));
  };

  test.skipIf(process.platform !== 'linux').each([
    [true, {}],
    [true, { time: 5_000 }],
    [false, {}],
  ])('keepalive = %s, %o, on both sides', async (keepalive, more) => {
    const pooler = await start({ tcp: { keepalive, ...more } });
    const atServer = (): number =>
      timers(sharedPostgres().primary.port, 'remote').filter((kind) => kind === '02').length;
    const before = atServer();
    const client = await raw(pooler);
    await client.query('SELECT 1');
    // Until the last bytes are acknowledged the timer is that of the retransmission.
    const wanted = keepalive ? '02' : '00';
    await until('the timer', () => timers(pooler.port, 'local').every((kind) => kind === wanted));
    expect(timers(pooler.port, 'local')).toEqual([wanted]);
    await until('the timer of the server connection', () => atServer() - before === (keepalive ? 1 : 0));
    client.destroy();
    pooler.stop();
  });
});
