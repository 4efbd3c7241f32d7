/** Real clients at the console: psql, where it is installed, and node-postgres. */
import { spawnSync } from 'node:child_process';
import { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { PRODUCT_VERSION } from '../../src/admin/product.ts';
import { runProgram } from './run-program.ts';
import { ConsoleServer, FakeView, fakePool, fakeServer, fakeSession } from './support.ts';

const view = new FakeView();
const server = new ConsoleServer(view);

beforeAll(async () => {
  view.poolList = [fakePool({ servers: [fakeServer()] })];
  view.sessionList = [fakeSession({ id: 5 })];
  await server.listen();
});
afterAll(() => server.close());

const hasPsql = spawnSync('psql', ['--version']).status === 0;
if (!hasPsql) console.warn('SKIPPED: psql is not installed, the console is not tried with it');

describe.skipIf(!hasPsql)('psql', () => {
  const psql = (...args: string[]) =>
    runProgram('psql', [
      '-X',
      '-w',
      `host=127.0.0.1 port=${server.port} user=root dbname=admin sslmode=disable`,
      ...args,
    ]);

  test('shows tables and goes on after an error', async () => {
    const { stdout, stderr, status } = await psql(
      '-At',
      '-c',
      'SHOW VERSION',
      '-c',
      'NONSENSE;',
      '-c',
      'SHOW POOLS',
    );
    expect(stdout.split('\n')).toEqual([
      PRODUCT_VERSION,
      'app|alice|0|0|0|0|0|0|0|1|0|0|0|0|0|transaction|',
      '',
    ]);
    expect(stderr).toContain('ERROR:  unknown command: NONSENSE');
    expect(status).toBe(0);
  });

  test('prints the help', async () => {
    const { stderr } = await psql('-c', 'show help;');
    expect(stderr).toContain('NOTICE:  console usage');
    expect(stderr).toContain('SHOW POOLS');
  });

  test('gets through target_session_attrs and options of a startup', async () => {
    const url = `postgresql://root@127.0.0.1:${server.port}/admin?sslmode=disable&target_session_attrs=read-write`;
    expect(await runProgram('psql', ['-X', '-w', '-At', url, '-c', 'SHOW VERSION'])).toMatchObject({
      stdout: `${PRODUCT_VERSION}\n`,
      status: 0,
    });
  });
});

describe('node-postgres', () => {
  test('simple and prepared queries give the same rows, and a failed one harms nothing', async () => {
    const options = { host: '127.0.0.1', port: server.port, user: 'root', database: 'admin', ssl: false };
    const client = new Client(options);
    await client.connect();
    // The view's own clock stands still; the wall must not go on beside it.
    vi.useFakeTimers({ toFake: ['Date'] });
    try {
      const simple = await client.query('SHOW CLIENTS');
      const prepared = await client.query({ name: 'clients', text: 'SHOW CLIENTS' });
      const again = await client.query({ name: 'clients', text: 'SHOW CLIENTS' });
      expect(simple.rows).toMatchObject([{ type: 'C', user: 'alice', port: 50_123, id: 5 }]);
      expect(prepared.rows).toEqual(simple.rows);
      expect(again.rows).toEqual(simple.rows);
      const bound = client.query({ text: 'SHOW POOLS', values: [1] });
      await expect(bound).rejects.toMatchObject({ code: '08P01' });
      expect((await client.query('SELECT 1')).rows).toEqual([{ '?column?': 1 }]);
    } finally {
      vi.useRealTimers();
      await client.end();
    }
  });
});
