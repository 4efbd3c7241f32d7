/** Real drivers through the pooler: pg with its pool, prepared statements, cursors and notifications; psql with Ctrl-C. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { asSuperuser } from '../test/support/postgres.ts';
import type { ScriptedClient } from '../test/support/scripted-client.ts';
import type { RunningPooler } from './support/pooler.ts';
import { makeWorld, type PoolKind, until, untilPoolsRest, type World } from './support/world.ts';

const PSQL = '/usr/bin/psql';

describe.each(['static', 'set_role'] as PoolKind[])('drivers, %s', (kind) => {
  let world: World;
  let pooler: RunningPooler;
  let config: pg.ClientConfig;

  beforeAll(async () => {
    world = await makeWorld();
    pooler = await world.pooler(kind, { default_pool_size: 3 });
    config = {
      host: '127.0.0.1',
      port: pooler.port,
      user: world.alice,
      password: kind === 'set_role' ? await world.issuer.token(world.alice) : '',
      database: world.database,
      ssl: false,
    };
  });
  afterAll(async () => {
    await pooler?.stop();
    await world?.drop();
  });

  it('pg: twenty clients over three connections, named statements and transactions', async () => {
    await asSuperuser(
      [
        'CREATE TABLE counters (id int PRIMARY KEY, n int)',
        'INSERT INTO counters VALUES (1, 0)',
        'GRANT ALL ON counters TO PUBLIC',
      ],
      { database: world.database },
    );
    const pool = new pg.Pool({ ...config, max: 20 });
    try {
      await Promise.all(
        Array.from({ length: 20 }, async (_, index) => {
          const client = await pool.connect();
          try {
            for (let round = 0; round < 10; round++) {
              await client.query('BEGIN');
              await client.query({
                name: 'add',
                text: 'UPDATE counters SET n = n + $1 WHERE id = 1',
                values: [1],
              });
              if (round % 5 === 4) await client.query('ROLLBACK');
              else await client.query('COMMIT');
              const { rows } = await client.query({
                name: `own${index}`,
                text: 'SELECT $1::int AS own',
                values: [index],
              });
              expect(rows).toEqual([{ own: index }]);
            }
          } finally {
            client.release();
          }
        }),
      );
      expect((await pool.query('SELECT n FROM counters')).rows).toEqual([{ n: 160 }]);
    } finally {
      await pool.end();
    }
  });

  it('pg: errors keep their fields and the session', async () => {
    const client = new pg.Client(config);
    await client.connect();
    const error = await client
      .query('SELECT * FROM nowhere WHERE x = $1', [1])
      .catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: '42P01', routine: 'parserOpenTable', severity: 'ERROR' });
    expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await client.end();
  });

  it('pg: a notification arrives while the client is idle', async () => {
    const listener = new pg.Client(config);
    const talker = new pg.Client(config);
    await Promise.all([listener.connect(), talker.connect()]);
    const arrived = once(listener, 'notification');
    await listener.query('LISTEN news');
    await talker.query("SELECT pg_notify('news', 'hello')");
    expect((await arrived)[0]).toMatchObject({ channel: 'news', payload: 'hello' });
    await talker.query('BEGIN');
    expect((await listener.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await Promise.all([listener.end(), talker.end()]);
    // What nobody listens to any more must not reach the next owner of the connection.
    await untilPoolsRest(pooler);
    const others: ScriptedClient[] = [];
    for (let count = 0; count < 3; count++) {
      const other = await world.login(pooler, world.alice);
      others.push(other);
      expect((await other.query('BEGIN')).types).toBe('CZ');
    }
    for (const other of others) expect((await other.query("NOTIFY news, 'x'")).types).toBe('CZ');
    for (const other of others) expect((await other.query('COMMIT')).types).toBe('CZ');
    for (const other of others) other.destroy();
  });

  it('pg: a client that is cancelled', async () => {
    const client = new pg.Client(config);
    await client.connect();
    const failed = client.query('SELECT pg_sleep(64)').catch((reason: unknown) => reason);
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    await until(async () => {
      const rows = await asSuperuser(["SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(64)'"]);
      return rows.length === 1;
    }, 'the statement runs');
    const { ScriptedClient } = await import('../test/support/scripted-client.ts');
    const messenger = await ScriptedClient.connect({ port: pooler.port });
    const secret = Buffer.alloc(4);
    secret.writeInt32BE(secretKey);
    messenger.sendCancelRequest(processID, secret);
    expect(await failed).toMatchObject({ code: '57014' });
    expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await client.end();
  });

  if (!existsSync(PSQL)) console.warn(`SKIPPED: the tests with psql, since ${PSQL} is not there`);
  describe.runIf(existsSync(PSQL))('psql', () => {
    const environment = (): NodeJS.ProcessEnv => ({
      PATH: process.env['PATH'],
      PGPASSWORD: config.password as string,
      PGCONNECT_TIMEOUT: '5',
      PGSSLMODE: 'disable',
    });
    const target = (): string[] => [
      '-X',
      '-h',
      '127.0.0.1',
      '-p',
      `${pooler.port}`,
      '-U',
      world.alice,
      world.database,
    ];

    it('runs a script with \\d, \\copy, \\gexec and errors', async () => {
      const script = [
        '\\set ON_ERROR_STOP 0',
        "SET application_name = 'from psql';",
        'CREATE TEMP TABLE copied (LIKE items);',
        "\\copy items to program 'cat > /dev/null'",
        'COPY copied FROM STDIN;\n7\tseven\n8\teight\n\\.',
        'SELECT count(*) FROM copied;',
        'COPY copied TO STDOUT;',
        "SELECT 'SELECT 42' \\gexec",
        'SELECT 1/0;',
        '\\d items',
        'SHOW application_name;',
        'DROP TABLE copied;',
      ].join('\n');
      const child = spawn(PSQL, ['-At', ...target()], { env: environment() });
      const run = { status: null as number | null, stdout: '', stderr: '' };
      child.stdout.on('data', (chunk: Buffer) => {
        run.stdout += chunk.toString();
      });
      child.stderr.on('data', (chunk: Buffer) => {
        run.stderr += chunk.toString();
      });
      child.stdin.end(script);
      run.status = ((await once(child, 'close')) as [number | null])[0];
      expect(run.status, run.stderr).toBe(0);
      expect(run.stderr).toContain('division by zero');
      for (const line of ['2', '7|', '42', 'from psql', 'id|integer']) {
        expect(run.stdout).toContain(line.replace('7|', '7\tseven'));
      }
    });

    it('Ctrl-C cancels the statement', async () => {
      const child = spawn(PSQL, ['-At', ...target()], { env: environment() });
      let output = '';
      child.stdout.on('data', (chunk: Buffer) => {
        output += chunk.toString();
      });
      child.stderr.on('data', (chunk: Buffer) => {
        output += chunk.toString();
      });
      const closed = once(child, 'close');
      child.stdin.write('SELECT pg_sleep(65);\n');
      await until(async () => {
        const rows = await asSuperuser([
          "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(65)%' AND state = 'active'",
        ]);
        return rows.length === 1;
      }, 'the statement runs');
      child.kill('SIGINT');
      await until(() => output.includes('canceling statement due to user request'), 'psql tells of it');
      // psql that reads from a pipe stops at SIGINT; it leaves without a hang and its connection is clean.
      child.stdin.on('error', () => {});
      child.stdin.end();
      await closed;
      await untilPoolsRest(pooler);
    });
  });
});
