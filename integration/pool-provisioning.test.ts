/** Pools that come with the first login PostgreSQL accepts, go when nobody needs them, and stay within their caps. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Pool } from '../src/server/pool.ts';
import { asSuperuser, createRole } from '../test/support/postgres.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import { databaseRow, type PoolerOverrides, type RunningPooler, type TomlTable } from './support/pooler.ts';
import { makeWorld, until, untilPoolsRest, type World } from './support/world.ts';

let world: World;
let pooler: RunningPooler | null = null;
const clients: ScriptedClient[] = [];

beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world?.drop());
afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy();
  await pooler?.stop();
  pooler = null;
});

const start = async (general: TomlTable = {}, more: PoolerOverrides = {}): Promise<RunningPooler> => {
  pooler = await world.pooler('set_role', general, more);
  return pooler;
};
const login = async (role: string, database = world.database): Promise<ScriptedClient> => {
  const client = await ScriptedClient.connect({ port: pooler!.port });
  clients.push(client);
  await client.login({ user: role, database, password: await world.issuer.token(role) });
  return client;
};
const refusal = async (role: string, database = world.database): Promise<string> =>
  login(role, database).then(
    () => 'let in',
    (error: Error) => error.message,
  );
const pools = (): Pool[] => [...pooler!.worker.view.pools.pools()];
const roles = (): string[] =>
  pools()
    .map((pool) => pool.options.role)
    .sort();
const serverSessions = async (): Promise<number> => {
  const rows = await asSuperuser([
    `SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = '${world.database}' AND usename = '${world.service}'`,
  ]);
  return rows[0]?.['n'] as number;
};

describe('provisioned pools', () => {
  it('are made by the first login and lent to the second, one server connection each', async () => {
    await start();
    expect(pools()).toEqual([]);
    await login(world.alice);
    expect(roles()).toEqual([world.alice]);
    await login(world.alice);
    await login(world.bob);
    expect(roles()).toEqual([world.alice, world.bob].sort());
    expect(pools().map((pool) => pool.serverCount)).toEqual([1, 1]);
    expect(await serverSessions()).toBe(2);
  });

  it('are not made for an unknown database, which opens no connection and touches no other pool', async () => {
    await start({}, { databases: [databaseRow('gone', { database_name: 'not_at_postgresql' })] });
    await login(world.alice);
    const before = pools()[0]!;
    expect(await refusal(world.alice, 'nowhere')).toMatch(/3D000/);
    expect(pools()).toEqual([before]);
    // Known here, not there: PostgreSQL's own words, and no connection is kept.
    expect(await refusal(world.alice, 'gone')).toMatch(
      /^FATAL 3D000 database "not_at_postgresql" does not exist$/,
    );
    expect(pools().filter((pool) => pool.serverCount > 0)).toEqual([before]);
    expect(await serverSessions()).toBe(1);
    expect(before.closed).toBe(false);
    expect((await clients[0]!.query('SELECT 1')).rows).toEqual([['1']]);
  });

  it('are not made for a role PostgreSQL does not have or does not give, also when many ask at once', async () => {
    await start();
    const stranger = await createRole('stranger');
    try {
      const answers = await Promise.all([
        refusal('nobody_at_all'),
        refusal('nobody_at_all'),
        refusal(stranger.name),
        refusal(stranger.name),
      ]);
      for (const answer of answers) expect(answer).toMatch(/^FATAL 28000 /);
      expect(await refusal(stranger.name)).toMatch(/^FATAL 28000 /);
      expect(pools()).toEqual([]);
    } finally {
      await stranger.drop();
    }
  });

  it('are freed when idle, and made again', async () => {
    await start({ idle_timeout: 150 });
    const first = await login(world.alice);
    await login(world.bob);
    await first.terminate();
    await until(() => roles().join() === world.bob, 'the pool of a role without clients goes');
    expect(pools()[0]?.sessions.size).toBe(1);
    await until(async () => (await serverSessions()) === 0, 'idle server connections close');
    const again = await login(world.alice);
    expect((await again.query('SELECT current_user')).rows).toEqual([[world.alice]]);
    // A pool with a client and no connection opens one when it is needed.
    expect((await clients[1]!.query('SELECT current_user')).rows).toEqual([[world.bob]]);
  });

  it('are at most max_roles: the one unused for longest makes room, one in use does not', async () => {
    await start({}, { turnstile: { max_roles: 1 } });
    const first = await login(world.alice);
    expect(await refusal(world.bob)).toMatch(/^FATAL 53300 /);
    expect(roles()).toEqual([world.alice]);
    await first.terminate();
    await until(() => pools()[0]?.sessions.size === 0, 'the session is gone');
    const second = await login(world.bob);
    expect((await second.query('SELECT current_user')).rows).toEqual([[world.bob]]);
    expect(roles()).toEqual([world.bob]);
    await until(async () => (await serverSessions()) === 1, 'the connection of the other role is closed');
  });
});

describe('caps', () => {
  it('pool_size bounds a role; who waits too long gets 53300 and stays', async () => {
    await start({ default_pool_size: 2, checkout_timeout: 200 });
    const holders = [await login(world.alice), await login(world.alice)];
    for (const holder of holders) await holder.query('BEGIN');
    const waiter = await login(world.alice);
    const startedAtMs = performance.now();
    expect((await waiter.query('SELECT 1')).error).toMatchObject({ severity: 'ERROR', code: '53300' });
    expect(performance.now() - startedAtMs).toBeLessThan(1_500);
    expect(pools()[0]?.serverCount).toBe(2);
    await holders[0]!.query('COMMIT');
    expect((await waiter.query('SELECT 1')).rows).toEqual([['1']]);
    // Another role has connections of its own.
    expect((await (await login(world.bob)).query('SELECT 1')).rows).toEqual([['1']]);
  });

  it('waiters are served in the order they came', async () => {
    await start({ default_pool_size: 1 });
    const holder = await login(world.alice);
    await holder.query('BEGIN');
    const order: number[] = [];
    const waiters = [];
    for (let n = 0; n < 5; n++) {
      const waiter = await login(world.alice);
      waiters.push(waiter.query('SELECT 1').then(() => order.push(n)));
      await until(() => pools()[0]!.waitingCount === n + 1, 'it waits');
    }
    await holder.query('COMMIT');
    await Promise.all(waiters);
    expect(order).toEqual([0, 1, 2, 3, 4]);
  });

  it.each([
    'max_server_connections',
    'max_server_connections_per_database',
  ])('%s: an idle connection of another role makes room, else one waits, then 53300', async (cap) => {
    await start({ checkout_timeout: 300 }, { turnstile: { [cap]: 2 } });
    const one = await login(world.alice);
    const two = await login(world.alice);
    await one.query('BEGIN');
    await two.query('BEGIN');
    expect(await serverSessions()).toBe(2);
    // All in use: the login of another role cannot come up.
    expect(await refusal(world.bob)).toMatch(/^FATAL 53300 /);
    await two.query('COMMIT');
    // One idle: it is given up for the other role.
    const bob = await login(world.bob);
    await bob.query('BEGIN');
    expect(await serverSessions()).toBe(2);
    expect((await two.query('SELECT 1')).error?.code).toBe('53300');
    const waiting = two.query('SELECT 2');
    await until(() => pools().some((pool) => pool.waitingCount === 1), 'it waits');
    await bob.query('COMMIT');
    expect((await waiting).rows).toEqual([['2']]);
    expect(await serverSessions()).toBe(2);
  });

  it('min_pool_size keeps connections of static users warm, none of provisioned ones', async () => {
    pooler = await world.pooler('static', { min_pool_size: 2, idle_timeout: 100, default_pool_size: 3 });
    await until(
      () => pools().length === 2 && pools().every((pool) => pool.idleCount === 2),
      'the pools are warm',
    );
    const many = await Promise.all([1, 2, 3].map(() => world.login(pooler!, world.alice)));
    for (const client of many) await client.query('BEGIN');
    expect(pools().find((pool) => pool.options.role === world.alice)?.serverCount).toBe(3);
    for (const client of many) await client.terminate();
    await until(() => pools().every((pool) => pool.serverCount === 2), 'the surplus is closed');
  });

  it('server_lifetime replaces a connection between two transactions, not inside one', async () => {
    await start({ server_lifetime: 300, default_pool_size: 1 });
    const client = await login(world.alice);
    const pid = async (): Promise<unknown> => (await client.query('SELECT pg_backend_pid()')).rows[0]?.[0];
    await client.query('BEGIN');
    const inside = await pid();
    await client.query('SELECT pg_sleep(0.5)');
    expect(await pid()).toBe(inside);
    await client.query('COMMIT');
    expect(await pid()).not.toBe(inside);
  });
});

describe('what a pool gives', () => {
  it('pooler_mode, pool_size, statement_timeout and read_only of a user and of a database are in force', async () => {
    const user = { name: world.alice, password: 'world-password', database: world.database };
    pooler = await world.pooler('static', { default_pool_size: 5 }, {});
    await pooler.stop();
    const { startPooler } = await import('./support/pooler.ts');
    pooler = await startPooler({
      databases: [databaseRow(world.database, { pool_size: 1, lock_timeout: 4321 })],
      users: [{ ...user, pooler_mode: 'session', statement_timeout: 12_345, read_only: true }],
    });
    const client = await world.login(pooler, world.alice);
    const { rows } = await client.query(
      "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('default_transaction_read_only')",
    );
    expect(rows).toEqual([['12345ms', '4321ms', 'on']]);
    expect((await client.query('CREATE TABLE refused (i int)')).error?.code).toBe('25006');
    expect(pools()[0]?.options.settings).toMatchObject({ sizeMax: 1, mode: 'session' });
    await client.query('DISCARD ALL');
    expect((await client.query('SHOW statement_timeout')).rows).toEqual([['12345ms']]);
    await client.terminate();
    await untilPoolsRest(pooler);
  });

  it('every ParameterStatus that PostgreSQL sends at login, with the client’s own values', async () => {
    await start();
    const direct = await ScriptedClient.connect({ port: pooler!.port });
    const told = await direct.login({
      user: world.alice,
      database: world.database,
      password: await world.issuer.token(world.alice),
      parameters: { TimeZone: 'Asia/Tokyo', application_name: 'me', DateStyle: 'German' },
    });
    direct.destroy();
    const model = await ScriptedClient.connect(
      (await import('../test/support/postgres.ts')).sharedPostgres().primary,
    );
    const expected = await model.login({
      user: world.alice,
      database: world.database,
      password: 'world-password',
      parameters: { TimeZone: 'Asia/Tokyo', application_name: 'me', DateStyle: 'German' },
    });
    model.destroy();
    const sorted = (parameters: Map<string, string>): [string, string][] =>
      [...parameters].filter(([name]) => name !== 'session_authorization').sort();
    expect(sorted(told.parameters)).toEqual(sorted(expected.parameters));
    expect(told.status).toBe('I');
  });
});
