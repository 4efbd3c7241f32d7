/**
 * Read-only access, of a token that says so and of a user of users.toml: every way to ask for more is refused, what
 * only a function can do ends the session before another statement runs, and the table is what it was.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../src/protocol/message-writer.ts';
import { asSuperuser } from '../test/support/postgres.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import { databaseRow, type RunningPooler, startPooler } from './support/pooler.ts';
import { makeWorld, PASSWORD, type World } from './support/world.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
  await world.reset();
  // What a database may hold already: code that runs a text, and code that builds the name of a setting.
  await asSuperuser(
    [
      `CREATE FUNCTION public.run_text(sql text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE sql; RETURN 'done'; END $$`,
      `CREATE FUNCTION public.loosen() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
         RETURN set_config('default_' || 'transaction_read_only', 'off', false); END $$`,
      `CREATE PROCEDURE public.write_anyway() LANGUAGE plpgsql AS $$ BEGIN
         PERFORM set_config('default_' || 'transaction_read_only', 'off', false); COMMIT;
         INSERT INTO items VALUES (99, 'x'); END $$`,
    ],
    { database: world.database },
  );
});
afterAll(() => world.drop());

const itemCount = async (): Promise<number> => {
  const [row] = await asSuperuser(['SELECT count(*)::int AS count FROM public.items'], {
    database: world.database,
  });
  return Number(row?.['count']);
};

describe.each([
  ['a token with a: ro, under SET ROLE', 'set_role', 'transaction'],
  ['a token with a: ro, in session mode', 'set_role', 'session'],
  ['a user of users.toml', 'static', 'transaction'],
] as const)('%s', (_name, kind, mode) => {
  let pooler: RunningPooler;
  beforeAll(async () => {
    const general = { pooler_mode: mode, default_pool_size: 1 };
    const user = { name: world.alice, password: PASSWORD, database: world.database, read_only: true };
    pooler =
      kind === 'static'
        ? await startPooler({
            general: { auth_type: 'trust', ...general },
            databases: [databaseRow(world.database)],
            users: [user],
          })
        : await world.pooler(kind, general);
  });
  afterAll(() => pooler.stop());

  async function connect(parameters: Record<string, string> = {}): Promise<ScriptedClient> {
    const password = kind === 'static' ? '' : await world.issuer.token(world.alice, { claims: { a: 'ro' } });
    return ScriptedClient.login({
      port: pooler.port,
      user: world.alice,
      password,
      database: world.database,
      parameters,
    });
  }

  const WAYS = [
    'SET default_transaction_read_only = off',
    'SET SESSION default_transaction_read_only TO false',
    'SET LOCAL default_transaction_read_only = 0',
    'SET transaction_read_only = off',
    'SET TRANSACTION READ WRITE',
    'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE',
    'SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE',
    'BEGIN READ WRITE',
    'BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE',
    'START TRANSACTION READ WRITE',
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "SELECT set_config('transaction_read_only', 'off', true)",
    "SELECT set_config('default_' || 'transaction_read_only', 'off', false)",
    "UPDATE pg_settings SET setting = 'off' WHERE name = 'default_transaction_read_only'",
    "DO $$ BEGIN PERFORM set_config('default_transaction_read_only', 'off', false); COMMIT; END $$",
    'CALL write_anyway()',
    'BEGIN; SET TRANSACTION READ WRITE; INSERT INTO items VALUES (9, $$x$$); COMMIT',
    "SELECT loosen(); COMMIT; INSERT INTO items VALUES (9, 'x')",
    "BEGIN; SELECT loosen(); COMMIT; INSERT INTO items VALUES (9, 'x')",
  ];

  test.each(WAYS)('%s is refused with 42501, by every protocol, and changes nothing', async (sql) => {
    const before = await itemCount();
    const client = await connect();
    expect((await client.query(sql)).error).toMatchObject({ code: '42501' });
    if (!sql.includes(';') || sql.startsWith('DO')) {
      expect((await client.extended({ sql })).error).toMatchObject({ code: '42501' });
      expect((await client.extended({ sql, statement: 's1' })).error).toMatchObject({ code: '42501' });
    }
    await client.query('ROLLBACK');
    expect((await client.query("INSERT INTO items VALUES (9, 'x')")).error).toMatchObject({ code: '25006' });
    expect((await client.query('SELECT count(*) FROM items')).rows).toEqual([[String(before)]]);
    await client.terminate();
    expect(await itemCount()).toBe(before);
  });

  test.each([
    'INSERT INTO items VALUES (9, $$x$$)',
    'UPDATE items SET name = $$x$$',
    'DELETE FROM items',
    'WITH gone AS (DELETE FROM items RETURNING id) SELECT * FROM gone',
    'CREATE TABLE other (id int)',
    'COPY items FROM STDIN',
    'TRUNCATE items',
    'SELECT * FROM items FOR UPDATE',
    "SELECT run_text('INSERT INTO items VALUES (9, ''x'')')",
  ])("%s gets PostgreSQL's own 25006", async (sql) => {
    const before = await itemCount();
    const client = await connect();
    expect((await client.query(sql)).error).toMatchObject({ code: '25006' });
    await client.terminate();
    expect(await itemCount()).toBe(before);
  });

  test.each([
    'BEGIN READ ONLY',
    'BEGIN',
    'SET default_transaction_read_only = on',
    'SET TRANSACTION READ ONLY',
    'RESET default_transaction_read_only',
    'RESET ALL',
    'SELECT now(), count(*) FROM items',
    "SELECT run_text('SELECT 1')",
  ])('%s does no harm and is let through', async (sql) => {
    const client = await connect();
    const { error } = await client.query(sql);
    expect(error).toBeNull();
    await client.query('ROLLBACK');
    expect((await client.query("INSERT INTO items VALUES (9, 'x')")).error).toMatchObject({ code: '25006' });
    await client.terminate();
  });

  const INSERT = "INSERT INTO items VALUES (9, 'x')";
  const parts = (sql: string): Buffer[] => [encodeParse('', sql), encodeBind('', '', []), encodeExecute('')];
  test.each([
    ['a query behind it', [encodeQuery('SELECT loosen()'), encodeQuery(INSERT)]],
    ['a request behind it', [encodeQuery('SELECT loosen()'), ...parts(INSERT), SYNC]],
    ['a pipeline', [...parts('SELECT loosen()'), SYNC, ...parts(INSERT), SYNC]],
    [
      'an open transaction',
      [encodeQuery('BEGIN'), encodeQuery('SELECT loosen()'), encodeQuery('COMMIT'), encodeQuery(INSERT)],
    ],
    [
      'one request with a COMMIT in it',
      [encodeQuery('BEGIN'), ...parts('SELECT loosen()'), ...parts('COMMIT'), ...parts(INSERT), SYNC],
    ],
    [
      'a text that a function runs',
      [encodeQuery("SELECT run_text('SET default_transaction_read_only = off')"), encodeQuery(INSERT)],
    ],
  ])('a function that loosens the session, with %s in the same write: nothing is written', async (_what, bytes) => {
    const before = await itemCount();
    const client = await connect();
    client.send(...bytes);
    const rest = (await client.readToEnd().catch(() => Buffer.alloc(0))).toString('latin1');
    client.destroy();
    expect(rest).not.toContain('INSERT 0 1');
    expect(await itemCount()).toBe(before);
    // The connection is not handed on as it is.
    const next = await connect();
    expect((await next.query(INSERT)).error).toMatchObject({ code: '25006' });
    await next.terminate();
    expect(await itemCount()).toBe(before);
  });

  test.each([
    ['default_transaction_read_only', 'off'],
    ['transaction_read_only', 'off'],
    ['DEFAULT_TRANSACTION_READ_ONLY', 'false'],
  ])('the startup packet cannot say %s=%s', async (name, value) => {
    await expect(connect({ [name]: value })).rejects.toThrow(/42501|permission denied/);
    await expect(connect({ options: `-c ${name}=${value}` })).rejects.toThrow(/42501|permission denied/);
  });
});
