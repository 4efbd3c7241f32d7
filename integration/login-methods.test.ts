/** Users of users.toml beside tokens: scram, md5, plain, trust, the console; what each row may say about its user. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decodeErrorFields } from '../src/protocol/backend-messages.ts';
import { encodeSASLInitialResponse, encodeSASLResponse } from '../src/protocol/message-writer.ts';
import { rsa } from '../test/auth/support.ts';
import { asSuperuser, createRole } from '../test/support/postgres.ts';
import { ScramClient } from '../test/support/scram-client.ts';
import { md5Password, ScriptedClient } from '../test/support/scripted-client.ts';
import {
  cleanUp,
  expectNoSecrets,
  hasPsql,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  type PoolerFiles,
  psql,
  publicKeyFile,
  scratchFile,
  secret,
  serverSessions,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

let world: World;
/** A role with LOGIN and a password that the pooler knows too. */
let carol: string;
let carolPassword: string;
const drops: (() => Promise<void>)[] = [];

async function loginRole(prefix: string, password: string, more: Table = {}): Promise<string> {
  const role = await createRole(prefix, { password, ...more });
  drops.push(() => role.drop());
  return role.name;
}

beforeAll(async () => {
  world = await makeWorld();
  carolPassword = newPassword();
  carol = await loginRole('carol', carolPassword);
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
  for (const drop of drops) await drop();
});

const start = (files: PoolerFiles): Promise<LoginPooler> =>
  startLoginPooler({ databases: [world.row()], ...files });
const login = (user: string, password: string, database = world.database): Table => ({
  user,
  password,
  database,
});
const failed = (user: string): object => ({
  severity: 'FATAL',
  code: '28P01',
  message: `password authentication failed for user "${user}"`,
});

describe.each(['scram', 'md5', 'plain'])('auth_type %s', (authType) => {
  let pooler: LoginPooler;
  let further: string;
  beforeAll(async () => {
    further = newPassword();
    pooler = await start({
      general: { auth_type: authType },
      users: [
        { name: carol, passwords: [carolPassword, further], database: world.database },
        { name: 'elsewhere', password: further, databases: [] },
      ],
      admin: { password: secret('console-password') },
    });
  });
  afterAll(() => pooler.stop());

  test('lets the user in by each of the passwords, as itself, and logs the method', async () => {
    for (const password of [carolPassword, further]) {
      expect(await pooler.ask(login(carol, password))).toMatchObject({
        session_user: carol,
        current_user: carol,
      });
    }
    expect(pooler.logged('client logged in').at(-1)).toMatchObject({ method: authType, role: carol });
  });

  test.skipIf(!hasPsql)('lets psql in', async () => {
    const connection = { port: pooler.port, user: carol, dbname: world.database, password: carolPassword };
    expect((await psql(connection, 'SELECT session_user')).stdout).toBe(`${carol}\n`);
  });

  test('a wrong password, an unknown user and another one’s password get the same sentence', async () => {
    for (const [user, password] of [
      [carol, newPassword()],
      ['nobody', carolPassword],
      ['elsewhere', newPassword()],
    ] as const) {
      const from = pooler.lines.length;
      expect(await pooler.refusal(login(user, password))).toEqual(failed(user));
      const lines = pooler.lines.slice(from).filter((line) => line.level !== 'debug');
      expect(lines).toHaveLength(1);
      expect(lines[0]).toMatchObject({
        message: 'auth_reject',
        reason: 'wrong_password',
        startup_user: user,
      });
    }
  });

  test('an unknown user takes the same road: the same messages of the same length to the same end', async () => {
    const roads = new Map<string, string[]>();
    for (const user of [carol, carol.replace('carol', 'lorac')]) {
      const client = await ScriptedClient.connect({ port: pooler.port });
      client.sendStartup({ user, database: world.database });
      const road: string[] = [];
      const password = newPassword();
      const scram = new ScramClient(password);
      for (;;) {
        const { type, body } = await client.readFrame();
        const request = type === 'R' ? body.readInt32BE(0) : 0;
        road.push(`${type}${request}/${body.length}`);
        if (type === 'E') {
          const fields = decodeErrorFields(body, 0, body.length);
          road.push(`${fields.get('C')} ${fields.get('M')?.replace(user, 'USER')}`);
          break;
        }
        if (request === 3) client.sendPassword(password);
        else if (request === 5) client.sendPassword(md5Password(user, password, body.subarray(4)));
        else if (request === 10) client.send(encodeSASLInitialResponse('SCRAM-SHA-256', scram.first()));
        else if (request === 11) {
          client.send(encodeSASLResponse(scram.final(body.subarray(4).toString())));
        }
      }
      expect(await client.readToEnd()).toHaveLength(0);
      roads.set(user, road);
    }
    const [known, unknown] = [...roads.values()];
    expect(unknown).toEqual(known);
    expect(known!.length).toBeGreaterThanOrEqual(3);
  });

  test('the right password does not open a database of others or one that is not there', async () => {
    expect(await pooler.refusal(login(carol, carolPassword, 'nowhere'))).toMatchObject({ code: '42501' });
    expect(await pooler.refusal(login('elsewhere', further))).toMatchObject({
      code: '42501',
      message: `permission denied for database "${world.database}"`,
    });
  });

  test('the console takes its own user by SCRAM whatever auth_type says', async () => {
    const client = await pooler.connect(login('admin', 'console-password', 'admin'));
    expect((await client.query('SHOW VERSION')).rows[0].version).toMatch(/^pgturnstile \d/);
    await client.end();
    expect(await pooler.refusal(login('admin', 'wrong', 'admin'))).toEqual(failed('admin'));
    expect(await pooler.refusal(login(carol, carolPassword, 'admin'))).toEqual(failed(carol));
  });
});

test('auth_type trust asks for nothing, warns at start, and knows its users and their databases', async () => {
  const pooler = await start({
    general: { auth_type: 'trust' },
    users: [{ name: carol, server_password: carolPassword, database: world.database }],
  });
  expect(pooler.warnings.join('\n')).toContain('trust asks nobody for a proof');
  expect((await pooler.ask({ user: carol, database: world.database }))['session_user']).toBe(carol);
  expect(await pooler.refusal({ user: 'nobody', database: world.database })).toEqual({
    severity: 'FATAL',
    code: '28000',
    message: 'role "nobody" does not exist',
  });
  expect(await pooler.refusal({ user: carol, database: 'other' })).toMatchObject({ code: '42501' });
  // The console is not opened by trust.
  expect((await pooler.refusal({ user: 'admin', password: '', database: 'admin' })).code).not.toBe('00000');
  pooler.stop();
});

test('with auth_type jwt the console takes its password and no token, whoever the token names', async () => {
  const pooler = await start({
    general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa) }),
    admin: { name: 'console', user: 'boss', password: secret('boss-password') },
  });
  const client = await pooler.connect(login('boss', 'boss-password', 'console'));
  await client.end();
  expect(await pooler.refusal(login('boss', mint(rsa, 'boss'), 'console'))).toEqual(failed('boss'));
  expect((await pooler.refusal(login('boss', mint(rsa, 'boss')))).code).toBe('28000');
  expect((await pooler.ask(login(world.alice, mint(rsa, world.alice))))['current_user']).toBe(world.alice);
  pooler.stop();
});

test('a console without a password lets nobody in', async () => {
  const pooler = await start({ general: { auth_type: 'scram' } });
  for (const password of ['admin', 'undefined', 'null']) {
    expect(await pooler.refusal(login('admin', password, 'admin'))).toEqual(failed('admin'));
  }
  pooler.stop();
});

describe('what a row of users.toml says', () => {
  test('server_user and server_password: who the session is at PostgreSQL', async () => {
    const own = newPassword();
    const pooler = await start({
      general: { auth_type: 'scram' },
      users: [
        {
          name: 'app',
          password: own,
          database: world.database,
          server_user: carol,
          server_password: carolPassword,
        },
      ],
    });
    expect(await pooler.ask(login('app', own))).toMatchObject({ session_user: carol, current_user: carol });
    pooler.stop();
  });

  test('*_file keys: passwords from files, one line end taken off', async () => {
    const own = newPassword();
    const more = newPassword();
    const pooler = await start({
      general: { auth_type: 'scram' },
      users: [
        {
          name: 'app',
          password_file: scratchFile('pw', `${own}\n`),
          passwords_file: scratchFile('pws', `${more}\n`),
          database: world.database,
          server_user: carol,
          server_password_file: scratchFile('spw', `${carolPassword}\n`),
        },
      ],
      admin: { password_file: scratchFile('admin', `${secret('from-a-file')}\n`) },
    });
    for (const password of [own, more]) {
      expect((await pooler.ask(login('app', password)))['session_user']).toBe(carol);
    }
    await (await pooler.connect(login('admin', 'from-a-file', 'admin'))).end();
    pooler.stop();
  });

  test('user and password of a database beat the user’s own', async () => {
    const own = newPassword();
    const pooler = await start({
      general: { auth_type: 'scram' },
      databases: [world.row({ user: carol, password: carolPassword }), world.row({ name: 'plain' })],
      users: [{ name: 'app', password: own, all_databases: true }],
    });
    expect((await pooler.ask(login('app', own)))['session_user']).toBe(carol);
    // Without them the user is one that PostgreSQL does not know: its own words come back.
    expect(await pooler.refusal(login('app', own, 'plain'))).toMatchObject({
      code: '28P01',
      message: 'password authentication failed for user "app"',
    });
    pooler.stop();
  });

  test('databases, database and all_databases: which of them the user may enter', async () => {
    const pooler = await start({
      general: { auth_type: 'scram' },
      databases: [world.row(), world.row({ name: 'two', database_name: world.database })],
      users: [
        { name: carol, password: carolPassword, databases: ['two'] },
        { name: 'all', password: carolPassword, all_databases: true, server_user: carol },
      ],
    });
    expect((await pooler.ask(login(carol, carolPassword, 'two')))['database']).toBe(world.database);
    expect((await pooler.refusal(login(carol, carolPassword))).code).toBe('42501');
    for (const database of [world.database, 'two']) {
      expect((await pooler.ask(login('all', carolPassword, database)))['session_user']).toBe(carol);
    }
    expect((await pooler.refusal(login('all', carolPassword, 'three'))).code).toBe('3D000');
    pooler.stop();
  });

  test('several rows of one name: the one for the database that is entered counts', async () => {
    const pooler = await start({
      general: { auth_type: 'scram' },
      databases: [world.row(), world.row({ name: 'two', database_name: world.database })],
      users: [
        { name: carol, password: carolPassword, databases: [world.database], statement_timeout: 1_000 },
        {
          name: carol,
          password: 'second-one',
          databases: ['two'],
          statement_timeout: 2_000,
          server_password: carolPassword,
        },
      ],
    });
    const sql = "SELECT current_setting('statement_timeout') AS value";
    expect(await pooler.ask(login(carol, carolPassword), sql)).toEqual({ value: '1s' });
    expect(await pooler.ask(login(carol, secret('second-one'), 'two'), sql)).toEqual({ value: '2s' });
    expect(await pooler.refusal(login(carol, 'second-one'))).toEqual(failed(carol));
    expect(await pooler.refusal(login(carol, carolPassword, 'two'))).toEqual(failed(carol));
    pooler.stop();
  });

  test('pool_size: the user’s, the database’s, the default, in this order', async () => {
    const pooler = await start({
      general: { auth_type: 'scram', default_pool_size: 4, checkout_timeout: 200 },
      databases: [world.row(), world.row({ name: 'small', database_name: world.database, pool_size: 2 })],
      users: [
        { name: 'one', password: carolPassword, all_databases: true, server_user: carol, pool_size: 1 },
        { name: 'def', password: carolPassword, all_databases: true, server_user: carol },
      ],
    });
    const sizeOf = async (user: string, database: string): Promise<number> => {
      const clients = await Promise.all(
        Array.from({ length: 5 }, () => pooler.connect(login(user, carolPassword, database))),
      );
      const results = await Promise.allSettled(clients.map((client) => client.query('BEGIN')));
      const refused = results.filter((result) => result.status === 'rejected');
      for (const { reason } of refused) expect(reason).toMatchObject({ code: '53300' });
      await Promise.all(clients.map((client) => client.end()));
      return results.length - refused.length;
    };
    expect(await sizeOf('one', world.database)).toBe(1);
    expect(await sizeOf('one', 'small')).toBe(1);
    expect(await sizeOf('def', 'small')).toBe(2);
    expect(await sizeOf('def', world.database)).toBe(4);
    pooler.stop();
  });

  test('pooler_mode: the user’s, the database’s, the default', async () => {
    const pooler = await start({
      general: { auth_type: 'scram', default_pool_size: 1, checkout_timeout: 200 },
      databases: [
        world.row(),
        world.row({ name: 'sess', database_name: world.database, pooler_mode: 'session' }),
      ],
      users: [
        {
          name: 'tx',
          password: carolPassword,
          all_databases: true,
          server_user: carol,
          pooler_mode: 'transaction',
        },
        { name: 'def', password: carolPassword, all_databases: true, server_user: carol },
      ],
    });
    const shares = async (user: string, database: string): Promise<boolean> => {
      const first = await pooler.connect(login(user, carolPassword, database));
      const second = await pooler.connect(login(user, carolPassword, database));
      await first.query('SELECT 1');
      const answer = await second.query('SELECT 1').then(
        () => true,
        (error: { code: string }) => error.code !== '53300',
      );
      await first.end();
      await second.end();
      return answer;
    };
    expect(await shares('def', world.database)).toBe(true);
    expect(await shares('def', 'sess')).toBe(false);
    expect(await shares('tx', 'sess')).toBe(true);
    pooler.stop();
  });

  test('general pooler_mode = "session" keeps the connection until the client leaves', async () => {
    const pooler = await start({
      general: { auth_type: 'scram', default_pool_size: 1, checkout_timeout: 200, pooler_mode: 'session' },
      users: [{ name: carol, password: carolPassword, database: world.database }],
    });
    const first = await pooler.connect(login(carol, carolPassword));
    const second = await pooler.connect(login(carol, carolPassword));
    await first.query('SELECT 1');
    await expect(second.query('SELECT 1')).rejects.toMatchObject({ code: '53300' });
    await first.end();
    await until('the connection', async () => {
      try {
        return (await second.query('SELECT 1')).rowCount === 1;
      } catch {
        return false;
      }
    });
    await second.end();
    pooler.stop();
  });

  test('statement_timeout, lock_timeout and read_only: the user’s beat the database’s, and PostgreSQL has them', async () => {
    const pooler = await start({
      general: { auth_type: 'scram' },
      databases: [
        world.row(),
        world.row({
          name: 'tight',
          database_name: world.database,
          statement_timeout: 7_000,
          lock_timeout: 6_000,
          read_only: true,
        }),
      ],
      users: [
        { name: 'def', password: carolPassword, all_databases: true, server_user: carol },
        {
          name: 'own',
          password: carolPassword,
          all_databases: true,
          server_user: carol,
          statement_timeout: 3_000,
          lock_timeout: 2_000,
          read_only: false,
        },
        { name: 'ro', password: carolPassword, all_databases: true, server_user: carol, read_only: true },
      ],
    });
    const settings = (user: string, database: string): Promise<Record<string, unknown>> =>
      pooler.ask(
        login(user, carolPassword, database),
        `SELECT current_setting('statement_timeout') || ' ' || current_setting('lock_timeout') || ' ' ||
          current_setting('default_transaction_read_only') AS value`,
      );
    expect(await settings('def', world.database)).toEqual({ value: '0 0 off' });
    expect(await settings('def', 'tight')).toEqual({ value: '7s 6s on' });
    expect(await settings('own', 'tight')).toEqual({ value: '3s 2s off' });
    expect(await settings('own', world.database)).toEqual({ value: '3s 2s off' });
    expect(await settings('ro', world.database)).toEqual({ value: '0 0 on' });
    pooler.stop();
  });

  test('a statement_timeout of a user ends its statement and nothing else', async () => {
    const pooler = await start({
      general: { auth_type: 'scram' },
      users: [{ name: carol, password: carolPassword, database: world.database, statement_timeout: 100 }],
    });
    const client = await pooler.connect(login(carol, carolPassword));
    await expect(client.query('SELECT pg_sleep(5)')).rejects.toMatchObject({ code: '57014' });
    expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await client.end();
    pooler.stop();
  });

  test('min_pool_size of a database holds for its users', async () => {
    const password = newPassword();
    const warm = await loginRole('warm', password);
    const pooler = await start({
      general: { auth_type: 'scram' },
      databases: [
        world.row({ min_pool_size: 2 }),
        world.row({ name: 'cold', database_name: world.database }),
      ],
      users: [{ name: warm, password, all_databases: true }],
    });
    await until('two connections', async () => (await serverSessions(warm)) === 2);
    const pools = [...pooler.worker.view.pools.pools()];
    expect(pools.map((pool) => pool.options.databaseName)).toEqual([world.database]);
    pooler.stop();
  });

  test('min_pool_size of a user keeps so many connections from the start; idle_timeout spares them', async () => {
    const password = newPassword();
    const warm = await loginRole('warm', password);
    const pooler = await start({
      general: { auth_type: 'scram', idle_timeout: 150 },
      users: [{ name: warm, password, database: world.database, min_pool_size: 2, pool_size: 5 }],
    });
    await until('two connections', async () => (await serverSessions(warm)) === 2);
    const clients = await Promise.all(Array.from({ length: 4 }, () => pooler.connect(login(warm, password))));
    await Promise.all(clients.map((client) => client.query('SELECT pg_sleep(0.05)')));
    expect(await serverSessions(warm)).toBeGreaterThan(2);
    await until('the end of the others', async () => (await serverSessions(warm)) === 2);
    await Promise.all(clients.map((client) => client.end()));
    pooler.stop();
  });

  test('idle_timeout and server_lifetime of a user and of a database close connections', async () => {
    const password = newPassword();
    const role = await loginRole('brief', password);
    for (const more of [
      { users: { idle_timeout: 100 }, databases: { idle_timeout: 60_000 } },
      { users: {}, databases: { idle_timeout: 100 } },
      { users: { server_lifetime: 100 }, databases: {} },
      { users: {}, databases: { server_lifetime: 100, server_lifetime_jitter: 50 } },
    ]) {
      const pooler = await start({
        general: { auth_type: 'scram' },
        databases: [world.row(more.databases)],
        users: [{ name: role, password, database: world.database, ...more.users }],
      });
      await pooler.ask(login(role, password));
      await until(`the end (${JSON.stringify(more)})`, async () => (await serverSessions(role)) === 0, 3_000);
      pooler.stop();
    }
  });
});

describe('a token for a user of users.toml', () => {
  test('with a password there logs in at PostgreSQL as itself; without one by the service user', async () => {
    const pooler = await start({
      general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa), jwt_user_auto_provision: false }),
      users: [
        { name: carol, password: carolPassword, database: world.database, pool_size: 1 },
        { name: world.alice, database: world.database },
      ],
    });
    expect(await pooler.ask(login(carol, mint(rsa, carol)))).toMatchObject({
      session_user: carol,
      current_user: carol,
    });
    expect(await pooler.ask(login(world.alice, mint(rsa, world.alice)))).toMatchObject({
      session_user: world.service,
      current_user: world.alice,
    });
    // One secret is asked for; what is no token may be the password, for those who have one.
    expect(await pooler.ask(login(carol, carolPassword))).toMatchObject({ session_user: carol });
    expect((await pooler.refusal(login(carol, `${carolPassword}x`))).code).toBe('28P01');
    expect((await pooler.refusal(login(world.alice, carolPassword))).code).toBe('28P01');
    pooler.stop();
  });

  test('read_only, statement_timeout and pool_size of its row hold for the role that is taken', async () => {
    const pooler = await start({
      general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa), checkout_timeout: 200 }),
      users: [
        {
          name: world.alice,
          database: world.database,
          read_only: true,
          statement_timeout: 4_000,
          pool_size: 1,
        },
      ],
    });
    const sql =
      "SELECT current_setting('default_transaction_read_only') || current_setting('statement_timeout') AS v";
    const first = await pooler.connect(login(world.alice, mint(rsa, world.alice)));
    expect((await first.query(sql)).rows).toEqual([{ v: 'on4s' }]);
    await first.query('BEGIN');
    const second = await pooler.connect(login(world.alice, mint(rsa, world.alice)));
    await expect(second.query('SELECT 1')).rejects.toMatchObject({ code: '53300' });
    await first.end();
    await second.end();
    pooler.stop();
  });
});

test('PostgreSQL’s own words reach the client when the password in users.toml is wrong there', async () => {
  const own = newPassword();
  const dora = await loginRole('dora', newPassword());
  const pooler = await start({
    general: { auth_type: 'scram' },
    users: [{ name: dora, password: own, database: world.database }],
  });
  expect(await pooler.refusal(login(dora, own))).toEqual(failed(dora));
  expect(pooler.logged('login refused').at(-1)).toMatchObject({ reason: 'server_refused', code: '28P01' });
  expect(await serverSessions(dora)).toBe(0);
  await asSuperuser([`ALTER ROLE ${dora} PASSWORD '${own}'`]);
  await until('the way in', async () => {
    try {
      return (await pooler.ask(login(dora, own)))['session_user'] === dora;
    } catch {
      return false;
    }
  });
  pooler.stop();
});
