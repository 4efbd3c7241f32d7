import { afterEach, describe, expect, test } from 'vitest';
import { encodeErrorResponse } from '../src/protocol/message-writer.ts';
import { PgError } from '../src/protocol/pg-error.ts';
import { type MiniBackend, type MiniOptions, MiniPostgres } from './support/mini-postgres.ts';
import { ScriptedClient } from './support/scripted-client.ts';
import type { ScriptedPeer } from './support/scripted-server.ts';
import { TestWorker, type TestWorkerOptions, until } from './support/worker.ts';

let mini: MiniPostgres;
let pooler: TestWorker;

async function start(options: Partial<TestWorkerOptions> = {}, server: MiniOptions = {}): Promise<void> {
  mini = await MiniPostgres.listen(server);
  pooler = await TestWorker.start({ serverPort: mini.port, ...options });
}

afterEach(async () => {
  await pooler.stop();
  await mini.close();
});

const backend = (): MiniBackend => mini.open.at(-1)!;
const settled = (): Promise<void> =>
  until(() => pooler.busyCount === 0 && pooler.waitingCount === 0, 'the return of all connections');
/** Answers the startup packet with an error. */
async function refuseWith(peer: ScriptedPeer, refusal: Buffer): Promise<boolean> {
  await peer.readStartup();
  peer.send(refusal);
  return false;
}
/** Logs in and reads what happens: the FATAL error of a refused login, or null. */
async function tryLogin(user: string, database = 'app'): Promise<string | null> {
  const client = await ScriptedClient.connect({ port: pooler.port });
  try {
    await client.login({ user, database });
    return null;
  } catch (error) {
    return (error as Error).message;
  } finally {
    client.destroy();
  }
}

describe('pools', () => {
  test('lend one connection to many clients, who get it in the order they asked', async () => {
    await start();
    const holder = await pooler.login();
    await holder.query('BEGIN');
    const clients: ScriptedClient[] = [];
    for (let index = 0; index < 8; index++) {
      const client = await pooler.login();
      client.sendQuery(`SELECT ${index}`);
      await until(() => pooler.waitingCount === index + 1, 'the wait');
      clients.push(client);
    }
    await holder.query('COMMIT');
    for (const [index, client] of clients.entries())
      expect((await client.readReply()).rows).toEqual([[`SELECT ${index}`]]);
    expect(backend().texts.filter((text) => text.startsWith('SELECT'))).toEqual(
      clients.map((_, index) => `SELECT ${index}`),
    );
    expect(mini.backends.length).toBe(1);
  });

  test('give up waiting after checkout_timeout with 53300, and the client stays usable', async () => {
    await start({ general: 'checkout_timeout = 200' });
    const holder = await pooler.login();
    await holder.query('BEGIN');
    const client = await pooler.login();
    const reply = await client.query('SELECT 1');
    expect([reply.types, reply.error?.code, reply.error?.severity]).toEqual(['EZ', '53300', 'ERROR']);
    const extended = await client.extended({ sql: 'SELECT 1' });
    expect([extended.types, extended.error?.code]).toEqual(['EZ', '53300']);
    await holder.query('COMMIT');
    expect((await client.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });

  test('an unknown database is refused and nothing is connected or created', async () => {
    await start();
    expect(await tryLogin('alice', 'nowhere')).toContain('3D000');
    expect([...pooler.worker.view.pools.pools()].length).toBe(0);
    expect(mini.connectionCount).toBe(0);
  });

  test('close idle connections at idle_timeout and old ones at server_lifetime, lent ones after their use', async () => {
    await start({ general: 'server_lifetime = 200\nserver_lifetime_jitter = 0' });
    const client = await pooler.login();
    await client.query('BEGIN');
    const first = backend();
    await new Promise((resolve) => setTimeout(resolve, 350));
    expect(first.closed).toBe(false);
    await client.query('COMMIT');
    await until(() => first.closed, 'the end of the old connection');
    expect((await client.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
  });

  test('RECONNECT closes idle connections at once and lent ones when they come back', async () => {
    await start({ general: 'default_pool_size = 2' });
    const one = await pooler.login();
    const two = await pooler.login();
    await one.query('BEGIN');
    await two.query('SELECT 1');
    expect(mini.open.length).toBe(2);
    pooler.worker.view.reconnect(null);
    await until(() => mini.open.length === 1, 'the end of the idle one');
    expect((await one.query('SELECT still')).rows).toEqual([['SELECT still']]);
    await one.query('COMMIT');
    await until(() => mini.open.length === 0, 'the end of the lent one');
    expect((await one.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });
});

describe('caps', () => {
  test('max_server_connections: an idle connection of another role is closed to make room', async () => {
    await start({ turnstile: 'max_server_connections = 1' });
    const alice = await pooler.login('alice');
    await alice.query('SELECT 1');
    const bob = await pooler.login('bob');
    expect((await bob.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
    expect([mini.backends.length, mini.open.length]).toEqual([2, 1]);
    expect((await alice.query('SELECT 3')).rows).toEqual([['SELECT 3']]);
    expect(mini.open.length).toBe(1);
  });

  test('max_server_connections: with none idle the other role waits and gets the place when it is free', async () => {
    await start({ turnstile: 'max_server_connections = 1' });
    const bob = await pooler.login('bob');
    const alice = await pooler.login('alice');
    await alice.query('BEGIN');
    bob.sendQuery('SELECT 2');
    await until(() => pooler.waitingCount === 1, 'the wait');
    expect(mini.open.length).toBe(1);
    await alice.query('COMMIT');
    expect((await bob.readReply()).rows).toEqual([['SELECT 2']]);
    expect(mini.open.length).toBe(1);
    await settled();
    expect(pooler.worker.view.pools.capacity.total).toBe(1);
  });

  test('max_server_connections_per_database: one database cannot take the place of another', async () => {
    await start({ turnstile: 'max_server_connections_per_database = 1\nmax_server_connections = 2' });
    const app = await pooler.login('alice', 'app');
    const other = await pooler.login('alice', 'other');
    await app.query('BEGIN');
    expect((await other.query('SELECT 1')).rows).toEqual([['SELECT 1']]);
    const bob = await pooler.connect();
    bob.sendStartup({ user: 'bob', database: 'app' });
    await until(() => pooler.waitingCount === 1, 'the wait');
    // The idle connection of the other database is no help.
    expect(mini.open.length).toBe(2);
    await app.query('COMMIT');
    await bob.readWelcome();
    expect((await bob.query('SELECT 2')).rows).toEqual([['SELECT 2']]);
  });

  test('counts return to nothing, whatever way connections end', async () => {
    await start({
      general: 'default_pool_size = 3\nrollback_timeout = 200',
      turnstile: 'max_server_connections = 3',
    });
    for (let round = 0; round < 5; round++) {
      const one = await pooler.login('alice');
      const two = await pooler.login('bob');
      await one.query('BEGIN');
      two.sendQuery(round % 2 === 0 ? 'DIE' : 'FATAL');
      one.destroy();
      await two.readToEnd();
    }
    pooler.worker.view.reconnect(null);
    await until(() => pooler.serverCount === 0, 'the end of all connections');
    expect(pooler.worker.view.pools.capacity.total).toBe(0);
    expect(pooler.worker.view.pools.capacity.starvingCount).toBe(0);
  });
});

describe('a server that does not let us in', () => {
  test('never answers: the login fails after connect_timeout, not later', async () => {
    await start(
      { general: 'connect_timeout = 300' },
      { beforeLogin: (peer) => peer.untilClosed().then(() => false) },
    );
    const startedAtMs = performance.now();
    expect(await tryLogin('alice')).toContain('08006');
    expect(performance.now() - startedAtMs).toBeLessThan(1_500);
    expect(pooler.serverCount).toBe(0);
  });

  test('its own words reach the client that logs in, quickly and as FATAL', async () => {
    const refusal = encodeErrorResponse(
      new PgError({ code: '28000', message: 'role "alice" may not log in today', severity: 'FATAL' }),
    );
    await start({}, { beforeLogin: (peer) => refuseWith(peer, refusal) });
    const startedAtMs = performance.now();
    expect(await tryLogin('alice')).toBe('FATAL 28000 role "alice" may not log in today');
    expect(performance.now() - startedAtMs).toBeLessThan(1_000);
    // Remembered for a while: no retry storm at PostgreSQL.
    const attempts = mini.connectionCount;
    for (let round = 0; round < 5; round++) expect(await tryLogin('alice')).toContain('28000');
    expect(mini.connectionCount).toBe(attempts);
  });

  test('for a while: waiting clients hear it, back-off holds, and a half-open attempt finds it healed', async () => {
    let down = false;
    const refusal = encodeErrorResponse(
      new PgError({ code: '53300', message: 'sorry, too many clients already', severity: 'FATAL' }),
    );
    await start(
      {},
      {
        beforeLogin: async (peer) => {
          return down ? await refuseWith(peer, refusal) : true;
        },
      },
    );
    const client = await pooler.login();
    await client.query('SELECT 1');
    down = true;
    pooler.worker.view.reconnect(null);
    const reply = await client.query('SELECT 2');
    expect([reply.error?.code, reply.error?.message]).toEqual(['53300', 'sorry, too many clients already']);
    const attempts = mini.connectionCount;
    for (let round = 0; round < 5; round++)
      expect((await client.query('SELECT 2')).error?.code).toBe('53300');
    expect(mini.connectionCount - attempts).toBeLessThanOrEqual(2);
    down = false;
    await until(() => pooler.serverCount === 0, 'quiet');
    let healed = false;
    for (let round = 0; round < 100 && !healed; round++) {
      healed = (await client.query('SELECT 3')).error === null;
      if (!healed) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(healed).toBe(true);
  });
});

describe('drain', () => {
  test('ends idle clients with 57P01, lets a transaction finish first, refuses new ones', async () => {
    await start({ general: 'default_pool_size = 2' });
    const idle = await pooler.login();
    const busy = await pooler.login();
    await busy.query('BEGIN');
    let drained = false;
    const done = pooler.worker.drain().then(() => {
      drained = true;
    });
    expect((await idle.expectFatal()).code).toBe('57P01');
    await expect(ScriptedClient.connect({ port: pooler.port })).rejects.toThrow();
    expect((await busy.query('SELECT 1')).status).toBe('T');
    expect(drained).toBe(false);
    expect((await busy.query('COMMIT')).tags).toEqual(['COMMIT']);
    expect((await busy.expectFatal()).code).toBe('57P01');
    await done;
    await until(() => mini.open.length === 0, 'the end of the server connections');
  });

  test('ends what is left at shutdown_timeout, with a cancel for what runs', async () => {
    await start({ general: 'shutdown_timeout = 300' });
    const client = await pooler.login();
    client.sendQuery('HANG');
    await until(() => mini.backends.length === 1 && backend().texts.includes('HANG'), 'the statement');
    await pooler.worker.drain();
    expect((await client.expectFatal()).code).toBe('57P01');
    expect(mini.cancels.map(({ hit }) => hit)).toEqual([true]);
    await until(() => mini.open.length === 0, 'the end of the server connections');
  });

  test('does not wait for a client that leaves while his role comes up', async () => {
    let release: (() => void) | null = null;
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    await start(
      { general: 'connect_timeout = 60000\nshutdown_timeout = 60000' },
      {
        beforeLogin: () => gate.then(() => true),
      },
    );
    const client = await pooler.connect();
    client.sendStartup({ user: 'alice', database: 'app' });
    await until(() => pooler.waitingCount === 1, 'the wait');
    const done = pooler.worker.drain();
    client.destroy();
    const first = await Promise.race([
      done.then(() => 'drained'),
      new Promise((resolve) => setTimeout(resolve, 1_500, 'stuck')),
    ]);
    release!();
    expect(first).toBe('drained');
  });
});
