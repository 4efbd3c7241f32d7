/** PostgreSQL goes away and comes back under the pooler: errors are PostgreSQL's own, come soon, and end. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type EmbeddedPostgres, startPostgres } from '../src/demo/postgres.ts';
import { SYNC } from '../src/protocol/message-writer.ts';
import { type ReceivedError, ScriptedClient, toError } from '../test/support/scripted-client.ts';
import { B, E, P, Q } from './support/conversation.ts';
import { databaseRow, type RunningPooler, startPooler } from './support/pooler.ts';
import { until } from './support/world.ts';

let postgres: EmbeddedPostgres;

beforeAll(async () => {
  postgres = await startPostgres({ superuserPassword: 'failure', settings: { max_connections: '12' } });
  await postgres.query("CREATE ROLE app LOGIN PASSWORD 'app'");
  await postgres.query('CREATE TABLE public.facts (i int)');
  await postgres.query('GRANT ALL ON public.facts TO app');
});
afterAll(() => postgres?.stop());

describe('a PostgreSQL that fails', () => {
  let pooler: RunningPooler;
  const clients: ScriptedClient[] = [];

  beforeEach(async () => {
    if (!postgres.primary.running) await postgres.startPrimary();
    pooler = await startPooler({
      general: { connect_timeout: 1_000, checkout_timeout: 2_000, default_pool_size: 4 },
      databases: [databaseRow('postgres', {}, postgres.primary)],
      users: [{ name: 'app', password: 'app', database: 'postgres' }],
    });
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) client.destroy();
    await pooler.stop();
  });
  const login = async (): Promise<ScriptedClient> => {
    const client = await ScriptedClient.login({ port: pooler.port, user: 'app', database: 'postgres' });
    clients.push(client);
    return client;
  };
  /** The simple protocol may describe a result before it runs. */
  const fatalOf = async (client: ScriptedClient): Promise<ReceivedError> => {
    const first = await client.readFrame();
    if (first.type === 'T') return client.expectFatal();
    expect(first.type).toBe('E');
    expect(await client.readToEnd()).toHaveLength(0);
    return toError(first.body);
  };
  const timed = async <T>(work: Promise<T>, atMostMs: number): Promise<T> => {
    const startedAtMs = performance.now();
    const result = await work;
    expect(performance.now() - startedAtMs).toBeLessThan(atMostMs);
    return result;
  };

  it('restarted while nobody works: idle clients notice nothing, not one request is lost', async () => {
    const client = await login();
    const other = await login();
    await client.query("SET application_name = 'kept'");
    client.send(P('s', "SELECT 'prepared before'"), SYNC);
    await client.readReply();
    await postgres.stopPrimary('fast');
    await postgres.startPrimary();
    const reply = await timed(client.query('SHOW application_name'), 3_000);
    expect(reply.rows).toEqual([['kept']]);
    client.send(B('', 's'), E(''), SYNC);
    expect((await client.readReply()).rows).toEqual([['prepared before']]);
    expect((await other.query('SELECT 1')).rows).toEqual([['1']]);
  });

  it('shut down in a transaction: the client hears PostgreSQL’s own FATAL and is disconnected', async () => {
    const busy = await login();
    const idle = await login();
    await busy.query('BEGIN; INSERT INTO facts VALUES (1)');
    await postgres.stopPrimary('fast');
    expect(await busy.expectFatal()).toMatchObject({ severity: 'FATAL', code: '57P01' });
    await postgres.startPrimary();
    expect((await idle.query('SELECT count(*) FROM facts')).rows).toEqual([['0']]);
  });

  it('shut down under a running statement: the same', async () => {
    const busy = await login();
    busy.sendQuery('SELECT pg_sleep(66)');
    await until(
      async () =>
        (await postgres.query("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(66)'")).length >
        0,
      'the statement runs',
    );
    await postgres.stopPrimary('fast');
    expect(await fatalOf(busy)).toMatchObject({ severity: 'FATAL', code: '57P01' });
  });

  it('killed under a running statement: the client is told that the connection was lost', async () => {
    const busy = await login();
    busy.sendQuery('SELECT pg_sleep(67)');
    await until(
      async () =>
        (await postgres.query("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(67)'")).length >
        0,
      'the statement runs',
    );
    await postgres.killPrimary();
    const error = await fatalOf(busy);
    expect(['08006', '57P02']).toContain(error.code);
  });

  it('away: requests and logins fail at once with a connection error, the session stays, and it recovers', async () => {
    const client = await login();
    await postgres.stopPrimary('fast');
    for (let count = 0; count < 20; count++) {
      const reply = await timed(client.query('SELECT 1'), 1_500);
      expect(reply.error?.code).toMatch(/^(08|57P)/);
      expect(reply).toMatchObject({ types: 'EZ', status: 'I' });
    }
    client.send(P('', 'SELECT 1'), B('', ''), E(''), SYNC, Q('SELECT 2'));
    expect((await client.readReply()).error?.code).toMatch(/^(08|57P)/);
    expect((await client.readReply()).error?.code).toMatch(/^(08|57P)/);
    await postgres.startPrimary();
    await until(async () => (await client.query('SELECT 1')).error === null, 'it recovers', 8_000);
    expect((await login()).bufferedBytes).toBe(0);
  });

  it('a backend that is terminated while idle is not lent: the next request finds another', async () => {
    const client = await login();
    for (let round = 0; round < 10; round++) {
      const pid = (await client.query('SELECT pg_backend_pid()')).rows[0]?.[0];
      await postgres.query('SELECT pg_terminate_backend($1, 2000)', [Number(pid)]);
      const reply = await client.query('SELECT pg_backend_pid()');
      expect(reply.error).toBeNull();
      expect(reply.rows[0]?.[0]).not.toBe(pid);
    }
  });

  it('a backend that is terminated in a transaction takes its client along, and nobody else', async () => {
    const client = await login();
    const other = await login();
    await client.query('BEGIN');
    const pid = (await client.query('SELECT pg_backend_pid()')).rows[0]?.[0];
    await other.query('BEGIN');
    await postgres.query('SELECT pg_terminate_backend($1, 2000)', [Number(pid)]);
    expect(await client.expectFatal()).toMatchObject({ severity: 'FATAL', code: '57P01' });
    expect((await other.query('SELECT 1')).rows).toEqual([['1']]);
    await other.query('COMMIT');
  });

  it('too many connections at PostgreSQL: what is open is shared, waiting ends with PostgreSQL’s own error', async () => {
    const first = await login();
    const hoard = [];
    try {
      for (;;) {
        const client = postgres.client();
        const error = await client.connect().then(
          () => null,
          (reason: unknown) => reason,
        );
        if (error !== null) break;
        hoard.push(client);
      }
      await first.query('BEGIN');
      const second = await login();
      const refused = await timed(second.query('SELECT 1'), 4_000);
      expect(refused.error?.code).toBe('53300');
      const waiting = second.query('SELECT 2');
      await first.query('COMMIT');
      expect((await waiting).rows).toEqual([['2']]);
    } finally {
      for (const client of hoard) await client.end();
    }
  });

  it('a database that takes no connections: PostgreSQL’s own words at the login, and it recovers', async () => {
    const attempt = (): Promise<string> =>
      login().then(
        () => 'let in',
        (error: Error) => error.message,
      );
    await postgres.query('ALTER DATABASE postgres ALLOW_CONNECTIONS false', [], { database: 'template1' });
    const admin = await postgres.query(
      "SELECT datallowconn FROM pg_database WHERE datname = 'postgres'",
      [],
      {
        database: 'template1',
      },
    );
    expect(admin).toEqual([{ datallowconn: false }]);
    expect(await timed(attempt(), 2_000)).toBe(
      'FATAL 55000 database "postgres" is not currently accepting connections',
    );
    await postgres.query('ALTER DATABASE postgres ALLOW_CONNECTIONS true', [], { database: 'template1' });
    await until(async () => (await attempt()) === 'let in', 'logins work again', 8_000);
  });
});
