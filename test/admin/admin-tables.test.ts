import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PRODUCT_VERSION } from '../../src/admin/product.ts';
import type { ScriptedClient } from '../support/scripted-client.ts';
import { ConsoleServer, FakeView, fakePool, fakeServer, fakeSession } from './support.ts';

let server: ConsoleServer;
let view: FakeView;
let client: ScriptedClient;

beforeEach(async () => {
  view = new FakeView();
  server = await new ConsoleServer(view).listen();
  client = await server.login();
});
afterEach(() => server.close());

type Shown = Record<string, string | null>;

async function show(name: string): Promise<Shown[]> {
  const reply = await client.query(`SHOW ${name}`);
  expect(reply.error).toBeNull();
  expect(reply.tags).toEqual(['SHOW']);
  return reply.rows.map((row) =>
    Object.fromEntries(reply.columns.map((column, at) => [column, row[at] as string])),
  );
}

const SOCKET =
  'type,user,database,replication,state,addr,port,local_addr,local_port,connect_time,request_time,wait,wait_us,' +
  'close_needed,ptr,link,remote_pid,tls,application_name,prepared_statements,id';

describe('columns are those of PgBouncer 1.25, since exporters read them by position', () => {
  test.each([
    ['VERSION', 'version', 's'],
    [
      'POOLS',
      'database,user,cl_active,cl_waiting,cl_active_cancel_req,cl_waiting_cancel_req,sv_active,sv_active_cancel,' +
        'sv_being_canceled,sv_idle,sv_used,sv_tested,sv_login,maxwait,maxwait_us,pool_mode,load_balance_hosts',
      'ssiiiiiiiiiiiiiss',
    ],
    ['CLIENTS', SOCKET, 'ssssssisissiiississii'],
    ['SERVERS', SOCKET, 'ssssssisissiiississii'],
    ['LISTS', 'list,items', 'si'],
    ['CONFIG', 'key,value,default,changeable', 'ssss'],
    [
      'DATABASES',
      'name,host,port,database,force_user,pool_size,min_pool_size,reserve_pool_size,server_lifetime,pool_mode,' +
        'load_balance_hosts,max_connections,current_connections,max_client_connections,current_client_connections,' +
        'paused,disabled',
      'ssissiiiissiiiiii',
    ],
  ])('%s', async (name, columns, types) => {
    const reply = await client.query(`SHOW ${name}`);
    expect(reply.columns.join(',')).toBe(columns);
    const description = (reply.frames[0] as { body: Buffer }).body;
    const oids: number[] = [];
    let at = 2;
    for (const column of reply.columns) {
      oids.push(description.readInt32BE(at + column.length + 1 + 6));
      at += column.length + 1 + 18;
    }
    expect(oids).toEqual([...types].map((type) => (type === 'i' ? 23 : 25)));
    expect(at).toBe(description.length);
  });
});

test('SHOW VERSION is one row with the version of the package', async () => {
  expect(await show('VERSION')).toEqual([{ version: PRODUCT_VERSION }]);
  expect(PRODUCT_VERSION).toMatch(/^pgturnstile \d+\.\d+\.\d+/);
});

describe('SHOW CLIENTS', () => {
  test('shows the verified role, the addresses, and the connection it uses', async () => {
    const used = fakeServer({ state: 'active' });
    view.poolList = [fakePool({ servers: [used] })];
    view.sessionList = [fakeSession({ id: 17, role: 'alice', server: used, applicationName: 'psql' })];
    const [shown] = await show('CLIENTS');
    const [linked] = await show('SERVERS');
    expect(shown).toMatchObject({
      type: 'C',
      user: 'alice',
      database: 'app',
      replication: 'none',
      state: 'active',
      addr: '192.0.2.7',
      port: '50123',
      local_addr: '192.0.2.1',
      local_port: '6432',
      wait: '0',
      wait_us: '0',
      close_needed: '0',
      link: linked?.['ptr'],
      remote_pid: '0',
      tls: '',
      application_name: 'psql',
      prepared_statements: '2',
      id: '17',
    });
    expect(linked?.['link']).toBe(shown?.['ptr']);
  });

  test('times are wall-clock times although the clock inside is not', async () => {
    view.sessionList = [fakeSession()];
    const before = Date.now();
    const [shown] = await show('CLIENTS');
    const at = (column: string): number => Date.parse((shown?.[column] as string).replace(' UTC', 'Z'));
    expect(shown?.['connect_time']).toMatch(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$/);
    // The session came 60 s and spoke 5 s before the clock's present; seconds are cut off, not rounded.
    expect(Math.abs(at('connect_time') - (before - 60_000))).toBeLessThan(2_000);
    expect(at('request_time') - at('connect_time')).toBe(55_000);
  });

  test('a wait is whole seconds and the microseconds beyond them', async () => {
    view.sessionList = [fakeSession({ waitingSinceMs: view.clock.nowMs - 2_345.678 })];
    expect(await show('CLIENTS')).toMatchObject([
      { state: 'waiting', wait: '2', wait_us: '345678', link: '' },
    ]);
  });

  test('a session that ended meanwhile has no row, a Unix socket no address', async () => {
    const unix = { remoteAddress: '', remotePort: 0, localAddress: '', localPort: 0 };
    view.sessionList = [fakeSession({ id: 1, ended: true }), fakeSession({ id: 2, wire: unix })];
    expect(await show('CLIENTS')).toMatchObject([{ id: '2', state: 'idle', addr: 'unix', port: '0' }]);
  });

  test('TLS is shown by version and cipher, also when the socket is just breaking', async () => {
    const tls = { getProtocol: () => 'TLSv1.3', getCipher: () => ({ name: 'TLS_AES_256_GCM_SHA384' }) };
    const broken = { getProtocol: () => null, getCipher: () => undefined };
    view.sessionList = [tls, broken].map((tlsSocket, at) => fakeSession({ id: at + 1, wire: { tlsSocket } }));
    view.sessionList.push(fakeSession({ id: 3, wire: { closed: true, tlsSocket: broken } }));
    const shown = await show('CLIENTS');
    expect(shown.map((row) => row['tls'])).toEqual(['TLSv1.3/TLS_AES_256_GCM_SHA384', 'unknown/unknown', '']);
  });
});

describe('SHOW SERVERS', () => {
  test('states are PgBouncer’s words, pointers differ even where process ids do not', async () => {
    view.poolList = [
      fakePool({
        servers: [
          fakeServer({ state: 'idle', connectedAtMs: 1, processId: 5 }),
          fakeServer({ state: 'active', connectedAtMs: 2, processId: 5, retired: true }),
        ],
      }),
      fakePool({
        role: 'bob',
        servers: [
          fakeServer({ state: 'cleaning', connectedAtMs: 3 }),
          fakeServer({ state: 'cleaning', connectedAtMs: 4, cancelsInFlight: 1 }),
          fakeServer({ state: 'closed', connectedAtMs: 5 }),
        ],
      }),
    ];
    const shown = await show('SERVERS');
    expect(shown.map((row) => [row['type'], row['user'], row['state'], row['close_needed']])).toEqual([
      ['S', 'alice', 'idle', '0'],
      ['S', 'alice', 'active', '1'],
      ['S', 'bob', 'tested', '0'],
      ['S', 'bob', 'being_canceled', '0'],
    ]);
    expect(shown.map((row) => row['remote_pid'])).toEqual(['5', '5', '4711', '4711']);
    expect(new Set(shown.map((row) => row['ptr'])).size).toBe(4);
  });

  test('the application name is the one in force: the session’s, else the connection’s own', async () => {
    const lent = fakeServer({ parameters: { values: new Map([['application_name', 'theirs']]) } });
    view.poolList = [fakePool({ servers: [lent, fakeServer({ requestStartedMs: 99_500 })] })];
    const shown = await show('SERVERS');
    expect(shown.map((row) => row['application_name'])).toEqual(['theirs', 'pgturnstile']);
    expect(shown[0]).toMatchObject({
      addr: '10.0.0.1',
      port: '5432',
      local_addr: '10.0.0.9',
      local_port: '40001',
    });
  });
});

describe('SHOW POOLS', () => {
  test('counts clients and connections by what they do', async () => {
    const pool = fakePool({
      servers: [
        fakeServer({ state: 'idle' }),
        fakeServer({ state: 'active', cancelsInFlight: 2 }),
        fakeServer({ state: 'cleaning' }),
        fakeServer({ state: 'cleaning', cancelsInFlight: 1 }),
      ],
      sessions: 5,
      waitingCount: 2,
      maxWaitMs: 1_500.25,
      connectingCount: 1,
    });
    view.poolList = [pool];
    view.sessionList = [fakeSession({ pool, waitingSinceMs: 1 }), fakeSession({ pool, waitingSinceMs: 2 })];
    expect(await show('POOLS')).toEqual([
      {
        database: 'app',
        user: 'alice',
        cl_active: '3',
        cl_waiting: '2',
        cl_active_cancel_req: '3',
        cl_waiting_cancel_req: '0',
        sv_active: '1',
        sv_active_cancel: '3',
        sv_being_canceled: '1',
        sv_idle: '1',
        sv_used: '0',
        sv_tested: '1',
        sv_login: '1',
        maxwait: '1',
        maxwait_us: '500250',
        pool_mode: 'transaction',
        load_balance_hosts: null,
      },
    ]);
  });

  test('two pools of one database and user are one row: a second one breaks exporters', async () => {
    view.poolList = [
      fakePool({ sessions: 1, waitingCount: 1, maxWaitMs: 10, servers: [fakeServer()] }),
      fakePool({ role: 'bob' }),
      fakePool({ host: '10.0.0.2', sessions: 2, waitingCount: 1, maxWaitMs: 20, servers: [fakeServer()] }),
    ];
    expect(await show('POOLS')).toMatchObject([
      { user: 'alice', cl_active: '3', cl_waiting: '2', sv_idle: '2', maxwait_us: '20000' },
      { user: 'bob', cl_active: '0' },
    ]);
  });
});

test('SHOW DATABASES counts connections per host and clients per name; a database without limits has zeros', async () => {
  view.poolList = [
    fakePool({ servers: [fakeServer(), fakeServer()] }),
    fakePool({ role: 'bob', servers: [fakeServer()] }),
    fakePool({ database: 'my-reports', host: '10.0.0.2', servers: [fakeServer()] }),
  ];
  view.sessionList = [fakeSession(), fakeSession(), fakeSession({ database: 'my-reports' })];
  expect(await show('DATABASES')).toMatchObject([
    {
      name: 'app',
      host: '10.0.0.1',
      port: '5432',
      database: 'app_on_server',
      force_user: null,
      pool_size: '7',
      pool_mode: null,
      max_connections: '40',
      current_connections: '3',
      current_client_connections: '2',
    },
    // The fake pool is on another port, so it is none of this row's.
    {
      name: 'my-reports',
      port: '6000',
      force_user: 'reporter',
      pool_size: '3',
      server_lifetime: '60',
      pool_mode: 'session',
      current_connections: '0',
      current_client_connections: '1',
    },
  ]);
});

test('SHOW LISTS has PgBouncer’s fourteen names, and numbers only', async () => {
  view.poolList = [fakePool({ servers: [fakeServer()], connectingCount: 2 }), fakePool({ role: 'bob' })];
  view.sessionList = [fakeSession()];
  const lists = Object.fromEntries((await show('LISTS')).map((row) => [row['list'], row['items']]));
  expect(Object.keys(lists).join(',')).toBe(
    'databases,users,peers,pools,peer_pools,free_clients,used_clients,login_clients,free_servers,used_servers,' +
      'dns_names,dns_zones,dns_queries,dns_pending',
  );
  expect(lists).toMatchObject({ databases: '2', users: '1', pools: '2' });
  expect(lists).toMatchObject({ used_clients: '1', login_clients: '3', used_servers: '3' });
  expect(Object.values(lists).every((items) => /^\d+$/.test(items as string))).toBe(true);
});

test('no table holds a password, a token or a cancel key', async () => {
  const used = fakeServer({ state: 'active' });
  view.poolList = [fakePool({ servers: [used] })];
  view.sessionList = [fakeSession({ server: used })];
  for (const name of ['CLIENTS', 'SERVERS', 'POOLS', 'DATABASES', 'CONFIG', 'LISTS', 'VERSION', 'HELP']) {
    const { frames } = await client.query(`SHOW ${name}`);
    const bytes = Buffer.concat(frames.map(({ body }) => body)).toString('latin1');
    expect(bytes, name).not.toContain('secret-of');
  }
  const config = await show('CONFIG');
  expect(config.find((row) => row['key'] === 'admin.password')).toMatchObject({ value: '****' });
  expect(config.find((row) => row['key'] === 'default_pool_size')).toMatchObject({
    value: '7',
    changeable: 'no',
  });
});
