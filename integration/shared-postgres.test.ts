/** The fixture that the other files here stand on: one PostgreSQL for all, with names that never meet. */
import { Client } from 'pg';
import { expect, it } from 'vitest';
import {
  asSuperuser,
  connectSuperuser,
  createDatabase,
  createRole,
  replicaCaughtUp,
  sharedPostgres,
  uniqueName,
} from '../test/support/postgres.ts';

const shared = sharedPostgres();
const own = shared.replica !== null;
const ours = shared.caPem !== null;

async function loginCode(user: string, password: string, tls = false): Promise<string> {
  const { host, port } = shared.primary;
  const ssl = tls ? { ca: shared.caPem!, servername: 'localhost' } : false;
  const client = new Client({ host, port, user, password, database: shared.database, ssl });
  client.on('error', () => {});
  try {
    await client.connect();
    return 'ok';
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  } finally {
    await client.end();
  }
}

it('databases and roles come and go, also with a client in them', async () => {
  const database = await createDatabase('fixture', ['CREATE TABLE t (i int)', 'INSERT INTO t VALUES (7)']);
  const role = await createRole('fixture', { password: 'p' });
  const service = await createRole('fixture', {
    password: 'p',
    attributes: 'NOINHERIT',
    maySetRole: [role.name],
  });
  expect(role.name).not.toBe(service.name);
  const client = await connectSuperuser({ database: database.name });
  expect((await client.query('SELECT i FROM t')).rows).toEqual([{ i: 7 }]);
  expect(await loginCode(role.name, 'p')).toBe('ok');
  expect(await loginCode(role.name, 'q')).toBe('28P01');
  await database.drop();
  await service.drop();
  await role.drop();
  const rows = await asSuperuser([`SELECT 1 FROM pg_database WHERE datname = '${database.name}'`]);
  expect(rows).toEqual([]);
});

it.runIf(own)('a row written on the primary is on the replica after replicaCaughtUp', async () => {
  const table = uniqueName('marker');
  await asSuperuser([`CREATE TABLE ${table} AS SELECT 'x' AS value`]);
  await replicaCaughtUp();
  const rows = await asSuperuser([`SELECT value, pg_is_in_recovery() AS standby FROM ${table}`], {
    replica: true,
  });
  expect(rows).toEqual([{ value: 'x', standby: true }]);
  await asSuperuser([`DROP TABLE ${table}`]);
});

it.runIf(ours)('the beginning of a role name chooses how PostgreSQL lets it in', async () => {
  const outcomes: Record<string, string[]> = {};
  for (const prefix of ['tls', 'md5', 'plain', 'trust', 'refused']) {
    const role = await createRole(prefix, {
      password: 'p',
      passwordEncryption: prefix === 'md5' ? 'md5' : 'scram-sha-256',
    });
    outcomes[prefix] = [
      await loginCode(role.name, 'p'),
      await loginCode(role.name, 'p', true),
      await loginCode(role.name, 'q', true),
    ];
    await role.drop();
  }
  expect(outcomes).toEqual({
    tls: ['28000', 'ok', '28P01'],
    md5: ['ok', 'ok', '28P01'],
    plain: ['ok', 'ok', '28P01'],
    trust: ['ok', 'ok', 'ok'],
    refused: ['28000', '28000', '28000'],
  });
});
