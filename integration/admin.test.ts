/** The console with real clients and a real PostgreSQL behind: what it shows is what is, by PgBouncer's columns. */
import type { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { rsa } from '../test/auth/support.ts';
import { makeCertificate } from '../test/support/certificates.ts';
import { asSuperuser } from '../test/support/postgres.ts';
import {
  cleanUp,
  expectNoSecrets,
  hasPsql,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  psql,
  publicKeyFile,
  scratchFile,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

const SOCKET_COLUMNS =
  'type,user,database,replication,state,addr,port,local_addr,local_port,connect_time,request_time,wait,wait_us,' +
  'close_needed,ptr,link,remote_pid,tls,application_name,prepared_statements,id';
const POOL_COLUMNS =
  'database,user,cl_active,cl_waiting,cl_active_cancel_req,cl_waiting_cancel_req,sv_active,sv_active_cancel,' +
  'sv_being_canceled,sv_idle,sv_used,sv_tested,sv_login,maxwait,maxwait_us,pool_mode,load_balance_hosts';

let world: World;
let pooler: LoginPooler;
let admin: Client;
const password = newPassword();

beforeAll(async () => {
  world = await makeWorld();
  const certificate = makeCertificate({ name: 'localhost' });
  pooler = await startLoginPooler({
    general: world.jwt({
      jwt_public_key_file: publicKeyFile(rsa),
      default_pool_size: 1,
      tls_certificate: scratchFile('server.crt', certificate.cert),
      tls_private_key: scratchFile('server.key', certificate.key),
    }),
    databases: [world.row()],
    admin: { password },
  });
  admin = await pooler.connect({ user: 'admin', password, database: 'admin' });
});
afterAll(async () => {
  await admin.end();
  expectNoSecrets();
  cleanUp();
  await world.drop();
});

const login = (role: string, more: Table = {}): Table => ({
  user: role,
  password: mint(rsa, role),
  database: world.database,
  ...more,
});
const show = async (name: string): Promise<Record<string, unknown>[]> =>
  (await admin.query(`SHOW ${name}`)).rows;
const poolOf = async (role: string): Promise<Record<string, unknown> | undefined> =>
  (await show('POOLS')).find((row) => row['user'] === role);

test.each([
  ['POOLS', POOL_COLUMNS],
  ['CLIENTS', SOCKET_COLUMNS],
  ['SERVERS', SOCKET_COLUMNS],
  ['VERSION', 'version'],
])('SHOW %s has PgBouncer’s columns in PgBouncer’s order, in any letters and with a semicolon', async (name, columns) => {
  for (const sql of [`SHOW ${name}`, `show ${name.toLowerCase()};`]) {
    const { fields } = await admin.query(sql);
    expect(fields.map((field) => field.name).join(',')).toBe(columns);
  }
});

test('SHOW VERSION is one row with the name and the version of the package', async () => {
  expect(await show('VERSION')).toEqual([{ version: expect.stringMatching(/^pgturnstile \d+\.\d+\.\d+$/) }]);
});

test('SHOW POOLS, CLIENTS and SERVERS tell of one client in a transaction and one that waits for it', async () => {
  const holder = await pooler.connect(login(world.alice, { application_name: 'holder' }));
  await holder.query('BEGIN');
  const [{ pid }] = (await holder.query('SELECT pg_backend_pid() AS pid')).rows;
  const waiter = await pooler.connect(
    login(world.alice, { application_name: 'waiter', ssl: { rejectUnauthorized: false } }),
  );
  const answer = waiter.query('SELECT 1 AS one');
  await until('the waiter', async () => (await poolOf(world.alice))?.['cl_waiting'] === 1);
  expect(await poolOf(world.alice)).toMatchObject({
    database: world.database,
    cl_active: 1,
    cl_waiting: 1,
    sv_active: 1,
    sv_idle: 0,
    sv_login: 0,
    pool_mode: 'transaction',
  });
  const clients = (await show('CLIENTS')).filter((row) => row['user'] === world.alice);
  expect(clients).toHaveLength(2);
  const [first, second] = ['holder', 'waiter'].map((name) =>
    clients.find((row) => row['application_name'] === name),
  );
  const [server, ...others] = (await show('SERVERS')).filter((row) => row['user'] === world.alice);
  expect(others).toEqual([]);
  expect(first).toMatchObject({
    type: 'C',
    database: world.database,
    state: 'active',
    addr: '127.0.0.1',
    local_port: pooler.port,
    link: server!['ptr'],
    tls: '',
  });
  expect(second).toMatchObject({ state: 'waiting', link: '', tls: expect.stringMatching(/^TLSv1\.3\//) });
  expect(server).toMatchObject({ type: 'S', state: 'active', remote_pid: pid, link: first!['ptr'] });
  await holder.query('COMMIT');
  expect((await answer).rows).toEqual([{ one: 1 }]);
  // Between two owners the role is asserted anew, which takes a moment.
  await until('an idle connection', async () => (await poolOf(world.alice))?.['sv_idle'] === 1);
  expect(await poolOf(world.alice)).toMatchObject({
    cl_active: 2,
    cl_waiting: 0,
    sv_active: 0,
    sv_tested: 0,
  });
  await holder.end();
  await waiter.end();
});

test('the user that SHOW CLIENTS names is the verified role, not what the client called itself', async () => {
  const client = await pooler.connect({ ...login(world.bob), user: 'jwt' });
  const rows = await show('CLIENTS');
  expect(rows.map((row) => row['user'])).toContain(world.bob);
  expect(rows.map((row) => row['user'])).not.toContain('jwt');
  await client.end();
});

describe('RECONNECT', () => {
  const pidOf = async (client: Client): Promise<number> =>
    (await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid;

  test('closes idle connections at once and those in use when they come back', async () => {
    const client = await pooler.connect(login(world.alice));
    const before = await pidOf(client);
    await admin.query('RECONNECT');
    const second = await pidOf(client);
    expect(second).not.toBe(before);
    await client.query('BEGIN');
    await admin.query(`RECONNECT ${world.database}`);
    expect(await pidOf(client)).toBe(second);
    await client.query('COMMIT');
    expect(await pidOf(client)).not.toBe(second);
    await until('the end of the old ones', async () => {
      const rows = await asSuperuser([`SELECT 1 FROM pg_stat_activity WHERE pid IN (${before}, ${second})`]);
      return rows.length === 0;
    });
    await client.end();
  });

  test('of a database that there is none of is an error, and the console goes on', async () => {
    await expect(admin.query('RECONNECT nowhere')).rejects.toMatchObject({ code: '3D000' });
    expect(await show('VERSION')).toHaveLength(1);
  });
});

test('a statement that is no command is an error, and the console goes on', async () => {
  for (const sql of ['SELECT * FROM pg_class', 'DROP TABLE x', 'SHOW NOTHING', 'SHOW']) {
    await expect(admin.query(sql)).rejects.toMatchObject({ code: '42601' });
  }
  expect(await show('VERSION')).toHaveLength(1);
});

test.skipIf(!hasPsql)('psql talks to it, several commands in one session', async () => {
  const connection = { port: pooler.port, user: 'admin', dbname: 'admin', password };
  const { code, stdout, stderr } = await psql(
    connection,
    'SHOW VERSION',
    'SHOW POOLS',
    'SHOW CLIENTS',
    'SHOW SERVERS',
  );
  expect([code, stderr]).toEqual([0, '']);
  expect(stdout).toMatch(/^pgturnstile \d/);
});

test('SHOW CONFIG shows settings and hides secrets', async () => {
  const rows = await show('CONFIG');
  const settingOf = (key: string): unknown => rows.find((row) => row['key'] === key)?.['value'];
  expect([settingOf('jwt_server_user'), settingOf('jwt_server_password')]).toEqual([world.service, '****']);
  expect(String(settingOf('default_pool_size'))).toBe('1');
});

test('no table holds a password, a token or a key', async () => {
  const token = mint(rsa, world.alice);
  const client = await pooler.connect(login(world.alice, { password: token }));
  const all: unknown[] = [];
  for (const name of ['POOLS', 'CLIENTS', 'SERVERS', 'CONFIG', 'DATABASES']) {
    all.push(await show(name).catch(() => []));
  }
  const text = JSON.stringify(all);
  for (const part of [...token.split('.'), password, world.servicePassword]) expect(text).not.toContain(part);
  await client.end();
});
