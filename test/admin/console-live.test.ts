/** The console of a whole pooler in front of a real PostgreSQL: what it shows is what PostgreSQL sees too. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { databaseRow, type RunningPooler, startPooler } from '../../integration/support/pooler.ts';
import { until } from '../client/support.ts';
import { asSuperuser, createDatabase, createRole } from '../support/postgres.ts';
import { ScriptedClient } from '../support/scripted-client.ts';

const PASSWORD = 'console-live-password';
let pooler: RunningPooler;
let database: Awaited<ReturnType<typeof createDatabase>>;
let role: Awaited<ReturnType<typeof createRole>>;
let root: ScriptedClient;
const clients: ScriptedClient[] = [];

beforeAll(async () => {
  database = await createDatabase('console');
  role = await createRole('console', { password: PASSWORD });
  pooler = await startPooler({
    general: { auth_type: 'scram', default_pool_size: 1 },
    admin: { user: 'root', password: 'root-password' },
    databases: [databaseRow(database.name)],
    users: [{ name: role.name, password: PASSWORD, database: database.name }],
  });
  root = await connect('root', 'root-password', pooler.config.admin.name);
});
afterAll(async () => {
  for (const client of clients) client.destroy();
  await pooler?.stop();
  await database?.drop();
  await role?.drop();
});

async function connect(
  user: string,
  password: string,
  name: string,
  application = '',
): Promise<ScriptedClient> {
  const parameters: Record<string, string> = application === '' ? {} : { application_name: application };
  const client = await ScriptedClient.login({
    port: pooler.port,
    user,
    password,
    database: name,
    parameters,
  });
  clients.push(client);
  return client;
}

async function show(name: string): Promise<Record<string, string | null>[]> {
  const { columns, rows, error } = await root.query(`SHOW ${name}`);
  expect(error).toBeNull();
  return rows.map((row) =>
    Object.fromEntries(columns.map((column, at) => [column, row[at] as string | null])),
  );
}

test('clients, pools and servers are shown as they are, waiting ones too, and RECONNECT replaces connections', async () => {
  const first = await connect(role.name, PASSWORD, database.name, 'first');
  const second = await connect(role.name, PASSWORD, database.name, 'second');
  await first.query('BEGIN');
  const pid = (await first.query('SELECT pg_backend_pid()')).rows[0]?.[0] as string;
  second.sendQuery('SELECT pg_backend_pid()');
  await until(() => [...pooler.worker.view.pools.pools()][0]?.waitingCount === 1, 'the wait');

  const byName = new Map((await show('CLIENTS')).map((row) => [row['application_name'], row]));
  const [server] = await show('SERVERS');
  expect(byName.size).toBe(2);
  const seen = { user: role.name, database: database.name, addr: '127.0.0.1', local_port: `${pooler.port}` };
  expect(byName.get('first')).toMatchObject({ ...seen, state: 'active', link: server?.['ptr'] });
  expect(byName.get('second')).toMatchObject({ ...seen, state: 'waiting', link: '', close_needed: '0' });
  expect(byName.get('first')?.['port']).toBe(`${first.socket.localPort}`);
  expect(server).toMatchObject({
    state: 'active',
    user: role.name,
    remote_pid: pid,
    application_name: 'first',
  });
  expect(server?.['link']).toBe(byName.get('first')?.['ptr']);
  const [backend] = await asSuperuser([
    `SELECT client_port, extract(epoch FROM backend_start)::int AS started FROM pg_stat_activity WHERE pid = ${pid}`,
  ]);
  expect(server?.['local_port']).toBe(`${backend?.['client_port']}`);
  const connectedAt = Date.parse((server?.['connect_time'] as string).replace(' UTC', 'Z')) / 1_000;
  expect(Math.abs(connectedAt - Number(backend?.['started']))).toBeLessThan(3);

  expect(await show('POOLS')).toMatchObject([
    {
      database: database.name,
      user: role.name,
      cl_active: '1',
      cl_waiting: '1',
      sv_active: '1',
      sv_idle: '0',
    },
  ]);
  expect((await show('LISTS')).slice(6, 10)).toMatchObject([
    { list: 'used_clients', items: '2' },
    { list: 'login_clients', items: '0' },
    { list: 'free_servers' },
    { list: 'used_servers', items: '1' },
  ]);

  expect((await root.query(`RECONNECT "${database.name}"`)).tags).toEqual(['RECONNECT']);
  expect(await show('SERVERS')).toMatchObject([{ remote_pid: pid, close_needed: '1' }]);
  await first.query('COMMIT');
  const newPid = (await second.readReply()).rows[0]?.[0];
  expect(newPid).not.toBe(pid);
  expect(await show('SERVERS')).toMatchObject([
    { remote_pid: newPid, close_needed: '0', state: 'idle', link: '' },
  ]);
  expect((await show('CLIENTS')).map((row) => row['state'])).toEqual(['idle', 'idle']);
});

test('the console goes with the pooler', async () => {
  // A transaction that another test left open would be waited for.
  for (const client of clients) client.destroy();
  const guest = await connect('root', 'root-password', pooler.config.admin.name);
  const drained = pooler.worker.drain();
  expect(await guest.expectFatal()).toMatchObject({ code: '57P01', severity: 'FATAL' });
  await drained;
});
