/**
 * How long a session lives that a token opened: expiry, a new token in its place, revocation, keys that go, roles that
 * PostgreSQL would not let in any more. Everything against real PostgreSQL, with tokens that live a second or two.
 */
import { writeFileSync } from 'node:fs';
import { escapeIdentifier } from 'pg';
import { afterAll, beforeAll, describe, expect, type TestContext, test } from 'vitest';
import {
  encodeBind,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../src/protocol/message-writer.ts';
import { otherRsa, rsa, toPem } from '../test/auth/support.ts';
import { asSuperuser, createRole } from '../test/support/postgres.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import {
  cleanUp,
  expectNoSecrets,
  type LoginPooler,
  makeWorld,
  mint,
  newPassword,
  type PoolerFiles,
  publicKeyFile,
  scratchFile,
  secretToken,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

const EXPIRED = {
  severity: 'FATAL',
  code: '57P01',
  message: 'terminating connection because the access token expired',
};

let world: World;
const roles: { name: string; drop(): Promise<void> }[] = [];

beforeAll(async () => {
  world = await makeWorld();
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
  for (const role of roles) await role.drop();
});

async function start(t: TestContext, files: PoolerFiles = {}): Promise<LoginPooler> {
  const pooler = await startLoginPooler({
    databases: [world.row()],
    ...files,
    general: world.jwt({ jwt_public_key_file: publicKeyFile(rsa), ...files.general }),
  });
  t.onTestFinished(() => pooler.stop());
  return pooler;
}

const nowSeconds = (): number => Date.now() / 1000;
/** A token of `role` that lives `seconds` from now. */
const lives = (seconds: number, role = world.alice, more: Table = {}): string =>
  mint(rsa, role, { iat: Math.floor(nowSeconds()), exp: nowSeconds() + seconds, ...more });

async function enter(t: TestContext, pooler: LoginPooler, token: string): Promise<ScriptedClient> {
  const client = await ScriptedClient.login({
    port: pooler.port,
    user: 'jwt',
    database: world.database,
    password: token,
  });
  t.onTestFinished(() => client.destroy());
  return client;
}

const one = async (client: ScriptedClient): Promise<string> => (await client.query('SELECT 1')).types;

/** Sessions of PostgreSQL that run this text. */
async function running(text: string): Promise<number> {
  const [row] = await asSuperuser([
    `SELECT count(*)::int AS count FROM pg_stat_activity WHERE state = 'active' AND query = '${text}'`,
  ]);
  return Number(row?.['count']);
}

describe.concurrent('when the token expires', () => {
  test('an idle client is told at once, and not before', async (t) => {
    const pooler = await start(t);
    const expMs = Date.now() + 1_500;
    const client = await enter(t, pooler, lives(1.5));
    expect(await one(client)).toBe('TDCZ');
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
    expect(Date.now() - expMs).toBeGreaterThanOrEqual(-5);
    expect(Date.now() - expMs).toBeLessThan(1_500);
    expect(pooler.logged('the access token expired')).toHaveLength(1);
  });

  test('no request that is sent behind the deadline gets an answer', async (t) => {
    const pooler = await start(t);
    const expMs = Date.now() + 1_500;
    const client = await enter(t, pooler, lives(1.5));
    let lastMs = 0;
    let error: unknown = null;
    while (error === null && Date.now() < expMs + 3_000) {
      const sentMs = Date.now();
      try {
        if ((await client.query('SELECT 1')).error === null) lastMs = sentMs;
      } catch (caught) {
        error = caught;
      }
    }
    expect(error).not.toBeNull();
    expect(lastMs).toBeGreaterThan(expMs - 500);
    // Far less than the janitor's step of 100 ms.
    expect(lastMs).toBeLessThan(expMs + 15);
  });

  test('an open transaction may end first', async (t) => {
    const pooler = await start(t);
    const client = await enter(t, pooler, lives(1.5));
    expect((await client.query('BEGIN')).status).toBe('T');
    const past = performance.now() + 1_800;
    while (performance.now() < past) expect((await client.query('SELECT pg_sleep(0.05)')).status).toBe('T');
    expect((await client.query('COMMIT')).tags).toEqual(['COMMIT']);
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
  });

  test('an idle transaction is rolled back when expiry_grace is over', async (t) => {
    const pooler = await start(t, { turnstile: { expiry_grace: 300 } });
    await asSuperuser(['CREATE TABLE IF NOT EXISTS life (a int)', 'GRANT ALL ON life TO public'], {
      database: world.database,
    });
    const client = await enter(t, pooler, lives(1.5));
    await client.query('BEGIN; INSERT INTO life VALUES (1)');
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
    const next = await enter(t, pooler, lives(60));
    expect((await next.query('SELECT count(*) FROM life')).rows).toEqual([['0']]);
  });

  test('a running statement is cancelled when expiry_grace is over', async (t) => {
    const pooler = await start(t, { turnstile: { expiry_grace: 200 } });
    const client = await enter(t, pooler, lives(1.5));
    client.sendQuery('SELECT pg_sleep(31)');
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
    await until('the cancel', async () => (await running('SELECT pg_sleep(31)')) === 0);
    expect(await one(await enter(t, pooler, lives(60)))).toBe('TDCZ');
  });

  test('a statement may end within the grace, and its answer comes first', async (t) => {
    const pooler = await start(t);
    const client = await enter(t, pooler, lives(1.5));
    client.sendQuery('SELECT pg_sleep(2)');
    expect((await client.readReply()).types).toBe('TDCZ');
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
  });

  test('on_token_expiry = immediate waits for nobody', async (t) => {
    const pooler = await start(t, { turnstile: { on_token_expiry: 'immediate' } });
    const [idle, busy] = [await enter(t, pooler, lives(0.8)), await enter(t, pooler, lives(1.5))];
    busy.sendQuery('SELECT pg_sleep(32)');
    expect(await busy.expectFatal()).toMatchObject(EXPIRED);
    expect(await idle.expectFatal()).toMatchObject(EXPIRED);
    await until('the cancel', async () => (await running('SELECT pg_sleep(32)')) === 0);
  });

  test('on_token_expiry = ignore lets the session live', async (t) => {
    const pooler = await start(t, { turnstile: { on_token_expiry: 'ignore' } });
    const client = await enter(t, pooler, lives(1.5));
    expect((await client.query('SELECT pg_sleep(1.8)')).types).toBe('TDCZ');
    expect(await one(client)).toBe('TDCZ');
  });

  test('max_session ends it although the token lives on', async (t) => {
    const pooler = await start(t, { turnstile: { max_session: 500 } });
    const client = await enter(t, pooler, lives(60));
    expect(await client.expectFatal()).toMatchObject({
      code: '57P01',
      message: 'terminating connection because the session reached its longest life',
    });
  });

  test('a client that waits for a connection gets none', async (t) => {
    const pooler = await start(t, { general: { default_pool_size: 1 } });
    const holder = await enter(t, pooler, lives(60));
    await holder.query('BEGIN');
    const waiting = await enter(t, pooler, lives(1.5));
    waiting.sendQuery('SELECT 1');
    expect(await waiting.expectFatal()).toMatchObject(EXPIRED);
    expect((await holder.query('COMMIT')).status).toBe('I');
    expect(await one(holder)).toBe('TDCZ');
  });

  test('hundreds that wait for one connection are told, and it comes back whole', async (t) => {
    const pooler = await start(t, { general: { default_pool_size: 1 } });
    const holder = await enter(t, pooler, lives(60));
    const token = lives(3);
    const waiting = await Promise.all(Array.from({ length: 200 }, () => enter(t, pooler, token)));
    await holder.query('BEGIN');
    for (const client of waiting) client.sendQuery('SELECT 1');
    for (const client of waiting) expect((await client.expectError()).code).toBe('57P01');
    expect((await holder.query('COMMIT')).status).toBe('I');
    expect(await one(holder)).toBe('TDCZ');
  });

  test.for<[string, Table, string]>([
    ['in session mode', { pooler_mode: 'session' }, 'SELECT 1'],
    ['with a connection pinned by LISTEN', {}, 'LISTEN news'],
    ['with a connection pinned by a temporary table', {}, 'CREATE TEMP TABLE mine (a int)'],
  ])('a session %s ends too, and leaves a clean connection', async ([_name, general, sql], t) => {
    const pooler = await start(t, { general: { default_pool_size: 1, ...general } });
    const client = await enter(t, pooler, lives(1.5));
    expect((await client.query(sql)).error).toBeNull();
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
    const next = await enter(t, pooler, lives(60));
    expect((await next.query("SELECT to_regclass('pg_temp.mine')")).rows).toEqual([[null]]);
    expect((await next.query('SELECT * FROM pg_listening_channels()')).rows).toEqual([]);
  });

  test('a session without a token lives on', async (t) => {
    const password = newPassword();
    const role = await createRole('carol', { password });
    roles.push(role);
    const pooler = await start(t, {
      general: { auth_type: 'scram' },
      turnstile: { max_session: 300 },
      users: [{ name: role.name, password, database: world.database }],
    });
    const client = await ScriptedClient.login({
      port: pooler.port,
      user: role.name,
      database: world.database,
      password,
    });
    t.onTestFinished(() => client.destroy());
    expect((await client.query('SELECT pg_sleep(0.6)')).types).toBe('TDCZ');
    expect(await one(client)).toBe('TDCZ');
  });
});

describe.concurrent('a new token', () => {
  const set = (token: string): string => `SET turnstile.token = '${token}'`;

  test('lets the session live past the old one, and no longer than itself', async (t) => {
    const pooler = await start(t);
    const client = await enter(t, pooler, lives(1.5));
    const reply = await client.query(set(lives(3.5)));
    expect([reply.types, reply.tags, reply.status]).toEqual(['CZ', ['SET'], 'I']);
    expect((await client.query('SELECT pg_sleep(2)')).types).toBe('TDCZ');
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
    expect(pooler.logged('goes on with a new access token')).toHaveLength(1);
  });

  test('may also shorten its life', async (t) => {
    const client = await enter(t, await start(t), lives(60));
    expect((await client.query(set(lives(1.2)))).tags).toEqual(['SET']);
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
  });

  test('needs no server connection while the client is idle', async (t) => {
    const pooler = await start(t, { general: { default_pool_size: 1 } });
    const holder = await enter(t, pooler, lives(60));
    const client = await enter(t, pooler, lives(60));
    await holder.query('BEGIN');
    expect((await client.query(`  ${set(lives(60))}`.trim())).tags).toEqual(['SET']);
    await holder.query('COMMIT');
  });

  test('is taken within an open transaction, and saves it in its grace', async (t) => {
    const client = await enter(t, await start(t), lives(1.5));
    await client.query('BEGIN');
    await client.query('SELECT pg_sleep(1.8)');
    const reply = await client.query(set(lives(60)));
    expect([reply.tags, reply.status]).toEqual([['SET'], 'T']);
    expect((await client.query('COMMIT')).status).toBe('I');
    expect(await one(client)).toBe('TDCZ');
  });

  test('is not taken in a failed transaction', async (t) => {
    const client = await enter(t, await start(t), lives(1.5));
    await client.query('BEGIN');
    await client.query('SELECT 1/0');
    const reply = await client.query(set(lives(60)));
    expect([reply.error?.code, reply.status]).toEqual(['25P02', 'E']);
    const extended = await client.extended({ sql: set(lives(60)) });
    expect([extended.error?.code, extended.status]).toEqual(['25P02', 'E']);
    await client.query('ROLLBACK');
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
  });

  const MODES: [string, Table][] = [
    ['extended', { prepared_statements: 'extended' }],
    ['extended_anonymous', { prepared_statements: 'extended_anonymous' }],
    ['disabled', { prepared_statements: 'disabled' }],
    ['session mode', { pooler_mode: 'session' }],
  ];
  describe.each(MODES)('in the extended protocol (%s)', (_name, general) => {
    test('comes as text, without a name', async (t) => {
      const client = await enter(t, await start(t, { general }), lives(1.5));
      const reply = await client.extended({ sql: set(lives(60)) });
      expect([reply.types, reply.tags]).toEqual(['12nCZ', ['SET']]);
      expect((await client.query('SELECT pg_sleep(1.8)')).types).toBe('TDCZ');
      expect(await one(client)).toBe('TDCZ');
    });

    test('comes as the one parameter of set_config', async (t) => {
      const client = await enter(t, await start(t, { general }), lives(1.5));
      const reply = await client.extended({
        sql: "SELECT set_config('turnstile.token', $1, false)",
        values: [lives(60)],
      });
      expect([reply.types, reply.rows]).toEqual(['12TDCZ', [['']]]);
      expect((await client.query('SELECT pg_sleep(1.8)')).types).toBe('TDCZ');
      expect(await one(client)).toBe('TDCZ');
      const bad = await client.extended({
        sql: "SELECT set_config('turnstile.token', $1, false)",
        values: [lives(60, world.bob)],
      });
      expect([bad.types, bad.error?.code]).toEqual(['12TEZ', '28P01']);
    });

    test('comes in a pipeline with others, and each has its answer in its turn', async (t) => {
      const client = await enter(t, await start(t, { general }), lives(1.5));
      const query = (sql: string): Buffer[] => [
        encodeParse('', sql),
        encodeBind('', '', []),
        encodeExecute(''),
      ];
      client.send(...query('SELECT 1'), ...query(set(lives(60))), ...query('SELECT 2'), SYNC);
      const reply = await client.readReply();
      expect([reply.types, reply.rows, reply.tags]).toEqual([
        '12DC12C12DCZ',
        [['1'], ['2']],
        ['SELECT 1', 'SET', 'SELECT 1'],
      ]);
      client.send(...query('BEGIN'), ...query(set(lives(60, world.bob))), ...query('SELECT 2'), SYNC);
      const failed = await client.readReply();
      expect([failed.types, failed.error?.code, failed.status]).toEqual(['12C12EZ', '28P01', 'E']);
      await client.query('ROLLBACK');
      expect((await client.query('SELECT pg_sleep(1.8)')).types).toBe('TDCZ');
    });

    test('comes prepared under a name, described, and is run later', async (t) => {
      if (_name === 'disabled') t.skip();
      const client = await enter(t, await start(t, { general }), lives(1.5));
      client.send(encodeParse('renew', set(lives(60))), encodeDescribe('S', 'renew'), SYNC);
      expect((await client.readReply()).types).toBe('1tnZ');
      client.send(encodeParse('renew', set(lives(60))), SYNC);
      expect((await client.readReply()).error?.code).toBe('42P05');
      client.send(encodeBind('', 'renew', []), encodeDescribe('P', ''), encodeExecute(''), SYNC);
      expect((await client.readReply()).types).toBe('2nCZ');
      expect((await client.query('SELECT pg_sleep(1.8)')).types).toBe('TDCZ');
      expect(await one(client)).toBe('TDCZ');
    });
  });

  test('comes in a pipeline of simple queries, and each has its answer in its turn', async (t) => {
    const client = await enter(t, await start(t), lives(1.5));
    const texts = ['SELECT 1', set(lives(60)), 'SELECT 2', set(lives(60, world.bob)), 'SELECT 3'];
    client.send(...texts.map(encodeQuery));
    const replies = [];
    for (const _ of texts) replies.push(await client.readReply());
    expect(replies.map(({ types }) => types)).toEqual(['TDCZ', 'CZ', 'TDCZ', 'EZ', 'TDCZ']);
    expect(replies.map(({ rows }) => rows)).toEqual([[['1']], [], [['2']], [], [['3']]]);
  });

  test('comes in front of much more, in pieces of any size, and nothing is lost', async (t) => {
    const client = await enter(t, await start(t), lives(60));
    const filler = `/* ${'x'.repeat(2_000)} */`;
    for (const size of [1, 7, 1_000, 1_000_000]) {
      const count = size < 100 ? 2 : 100;
      const texts = Array.from(
        { length: count },
        (_, index) => `SELECT ${index} ${size < 100 ? '' : filler}`,
      );
      const pipeline = Buffer.concat([
        encodeQuery(set(lives(60))),
        ...texts.map(encodeQuery),
        encodeQuery(set(lives(60))),
      ]);
      const sent = client.sendInPieces(pipeline, size);
      expect((await client.readReply()).types).toBe('CZ');
      for (let index = 0; index < count; index++) {
        expect((await client.readReply()).rows).toEqual([[String(index)]]);
      }
      expect((await client.readReply()).types).toBe('CZ');
      await sent;
    }
  });

  test.for<[string, () => string]>([
    ['of another role', () => lives(60, world.bob)],
    ['of another subject', () => lives(60, world.alice, { sub: 'somebody', name: world.alice })],
    ['that has expired', () => lives(-1)],
    ['by another key', () => mint(otherRsa, world.alice)],
    ['that is none', () => secretToken('not-a-token-but-quite-long-enough-to-look-for')],
    ['that is empty', () => ''],
    ['that is huge', () => secretToken(`${'x'.repeat(60_000)}.${'y'.repeat(60_000)}.${'z'.repeat(60_000)}`)],
  ])('%s is refused, and the old deadline stays', async ([_name, make], t) => {
    const pooler = await start(t);
    const client = await enter(t, pooler, lives(1.5));
    const reply = await client.query(set(make()));
    expect(reply.error).toMatchObject({
      severity: 'ERROR',
      code: '28P01',
      message: 'the new access token was not accepted',
    });
    expect(reply.status).toBe('I');
    expect(await one(client)).toBe('TDCZ');
    expect(pooler.logged('a new access token was refused')).toHaveLength(1);
    expect(await client.expectFatal()).toMatchObject(EXPIRED);
  });

  test('of another issuer is refused, though it says the same of everything else', async (t) => {
    const [ours, theirs] = ['https://one.example', 'https://two.example'];
    const pooler = await start(t, {
      turnstile: {
        issuers: [
          { issuer: ours, public_key_file: publicKeyFile(rsa) },
          { issuer: theirs, public_key_file: publicKeyFile(otherRsa) },
        ],
      },
    });
    const client = await enter(t, pooler, lives(60, world.alice, { iss: ours }));
    const token = mint(otherRsa, world.alice, { iss: theirs });
    expect((await client.query(set(token))).error?.code).toBe('28P01');
    expect(pooler.logged('a new access token was refused')[0]).toMatchObject({ reason: 'other_issuer' });
    expect((await client.query(set(lives(60, world.alice, { iss: ours })))).tags).toEqual(['SET']);
  });

  test('that is refused fails the transaction, as any error does', async (t) => {
    const client = await enter(t, await start(t), lives(60));
    await client.query('BEGIN');
    const reply = await client.query(set(lives(60, world.bob)));
    expect([reply.error?.code, reply.status]).toEqual(['28P01', 'E']);
    expect((await client.query('SELECT 1')).error?.code).toBe('25P02');
  });

  test.for<[string, string]>([
    ['SHOW turnstile.token', 'permission denied to examine "turnstile.token"'],
    ['RESET turnstile.token', 'permission denied to set parameter "turnstile.token"'],
    ["SET LOCAL turnstile.token = 'eyJ'", 'permission denied to set parameter "turnstile.token"'],
    ['SET turnstile.token = eyJ.a.b', 'permission denied to set parameter "turnstile.token"'],
    ["SELECT 1; SET turnstile.token = 'eyJ'", 'permission denied to set parameter "turnstile.token"'],
  ])('%s is refused in both protocols', async ([sql, message], t) => {
    const client = await enter(t, await start(t), lives(60));
    expect((await client.query(sql)).error).toMatchObject({ code: '42501', message });
    expect((await client.extended({ sql })).error).toMatchObject({ code: '42501', message });
    expect(await one(client)).toBe('TDCZ');
  });

  test('is nothing for a session without one, and goes no further', async (t) => {
    const password = newPassword();
    const role = await createRole('dora', { password });
    roles.push(role);
    const pooler = await start(t, {
      general: { auth_type: 'scram' },
      users: [{ name: role.name, password, database: world.database }],
    });
    const client = await ScriptedClient.login({
      port: pooler.port,
      user: role.name,
      database: world.database,
      password,
    });
    t.onTestFinished(() => client.destroy());
    expect((await client.query(set(lives(60)))).error).toMatchObject({ code: '42501' });
    expect((await client.extended({ sql: set(lives(60)) })).error).toMatchObject({ code: '42501' });
    expect(await one(client)).toBe('TDCZ');
  });

  test('shows in no view of PostgreSQL', async (t) => {
    const pooler = await start(t, { general: { default_pool_size: 1 } });
    const client = await enter(t, pooler, lives(60));
    const token = lives(60);
    await client.query('BEGIN');
    for (const run of [
      () => client.query(set(token)),
      () => client.extended({ sql: set(token), statement: 'kept' }),
      () => client.extended({ sql: "SELECT set_config('turnstile.token', $1, false)", values: [token] }),
      () => client.query(set(`${token}x`)),
    ]) {
      await run();
      const rows = await asSuperuser(['SELECT query FROM pg_stat_activity']);
      expect(rows.some((row) => String(row['query']).includes(token.slice(0, 40)))).toBe(false);
    }
    await client.query('ROLLBACK');
    const prepared = await client.query('SELECT statement FROM pg_prepared_statements');
    expect(JSON.stringify(prepared.rows)).not.toContain(token.slice(0, 40));
    expect((await client.query("SELECT current_setting('turnstile.token', true)")).rows[0]).toEqual(['']);
  });
});

describe.concurrent('revocation', () => {
  test.for<[string, Table]>([
    ['jti', { jti: 'session-1' }],
    ['sid', { sid: 'login-1' }],
    ['sub and before', { sub: 'SUB', before: Math.ceil(Date.now() / 1000) + 60 }],
    ['kid', { kid: 'k1' }],
  ])('by %s ends live sessions, those in a transaction after it, and refuses new ones', async ([
    _n,
    entry,
  ], t) => {
    const file = scratchFile('revoked.json', '[]');
    const pooler = await start(t, { turnstile: { revocation_file: file } });
    const claims = { jti: 'session-1', sid: 'login-1', exp: nowSeconds() + 60 };
    const token = mint(rsa, world.alice, claims, { kid: 'k1' });
    const other = await enter(t, pooler, mint(rsa, world.bob, { exp: nowSeconds() + 60 }, { kid: 'k2' }));
    const [idle, busy] = [await enter(t, pooler, token), await enter(t, pooler, token)];
    await busy.query('BEGIN');
    writeFileSync(file, JSON.stringify([{ ...entry, ...('sub' in entry && { sub: world.alice }) }]));
    expect(await idle.expectFatal()).toMatchObject({
      code: '57P01',
      message: 'terminating connection because the access token was revoked',
    });
    expect((await busy.query('COMMIT')).tags).toEqual(['COMMIT']);
    expect((await busy.expectFatal()).code).toBe('57P01');
    expect(await pooler.refusal({ user: 'jwt', password: token, database: world.database })).toMatchObject({
      code: '28P01',
    });
    expect(await one(other)).toBe('TDCZ');
  });
});

describe.concurrent('a key that its issuer has withdrawn', () => {
  test.for<[string, boolean]>([
    ['drain', true],
    ['ignore', false],
  ])('on_key_removed = %s', async ([on_key_removed, ends], t) => {
    const file = publicKeyFile(rsa);
    const pooler = await start(t, {
      general: { jwt_public_key_file: file },
      turnstile: { on_key_removed },
    });
    const client = await enter(t, pooler, lives(60));
    writeFileSync(file, toPem(otherRsa.publicKey));
    await until('the new key', () => pooler.logged('key file loaded').length > 0);
    if (ends) {
      expect(await client.expectFatal()).toMatchObject({
        code: '57P01',
        message: "terminating connection because the access token's key was withdrawn",
      });
    } else {
      expect((await client.query('SELECT pg_sleep(0.5)')).types).toBe('TDCZ');
      expect(await one(client)).toBe('TDCZ');
    }
  });
});

describe.concurrent('a role that PostgreSQL would not let in any more', () => {
  async function grantedRole(prefix: string): Promise<string> {
    const role = await createRole(prefix);
    roles.push(role);
    await asSuperuser([
      `GRANT ${escapeIdentifier(role.name)} TO ${world.service} WITH INHERIT FALSE, SET TRUE`,
    ]);
    return role.name;
  }
  const options = { role_check_interval: 200 };
  const login = (role: string, more: Table = {}): { user: string; password: string; database: string } => ({
    user: 'jwt',
    password: lives(60, role, more),
    database: world.database,
  });

  test.for([
    ['NOLOGIN', 'ALTER ROLE %s NOLOGIN', 'ALTER ROLE %s LOGIN'],
    ['VALID UNTIL', "ALTER ROLE %s VALID UNTIL '2001-01-01'", "ALTER ROLE %s VALID UNTIL 'infinity'"],
    ['SUPERUSER', 'ALTER ROLE %s SUPERUSER', 'ALTER ROLE %s NOSUPERUSER'],
    ['BYPASSRLS', 'ALTER ROLE %s BYPASSRLS', 'ALTER ROLE %s NOBYPASSRLS'],
    ['CREATEROLE', 'ALTER ROLE %s CREATEROLE', 'ALTER ROLE %s NOCREATEROLE'],
    ['out of login_group', 'REVOKE %g FROM %s', 'GRANT %g TO %s'],
  ] as const)(
    '%s: its sessions drain, others stay, and it may come back',
    { timeout: 30_000 },
    async ([, take, give], t: TestContext) => {
      const role = await grantedRole('worker');
      const group = await createRole('staff');
      roles.push(group);
      await asSuperuser([`GRANT ${group.name} TO ${role}, ${world.bob}`]);
      const sql = (text: string): string => text.replace('%s', role).replace('%g', group.name);
      const pooler = await start(t, { turnstile: { ...options, login_group: group.name } });
      const other = await enter(t, pooler, lives(60, world.bob));
      const idle = await enter(t, pooler, lives(60, role));
      const busy = await enter(t, pooler, lives(60, role));
      const [pid] = (await idle.query('SELECT pg_backend_pid()')).rows[0] ?? [];
      await busy.query('BEGIN');
      await asSuperuser([sql(take)]);
      expect(await idle.expectFatal()).toMatchObject({
        code: '57P01',
        message: `terminating connection because role "${role}" may no longer log in`,
      });
      expect(await pooler.refusal(login(role))).toMatchObject({ code: '28000' });
      expect((await busy.query('COMMIT')).tags).toEqual(['COMMIT']);
      expect((await busy.expectFatal()).code).toBe('57P01');
      expect(await one(other)).toBe('TDCZ');
      await until('its connection to close', async () => {
        const rows = await asSuperuser([`SELECT FROM pg_stat_activity WHERE pid = ${pid}`]);
        return rows.length === 0;
      });
      expect([...pooler.worker.view.pools.pools()].map((pool) => pool.options.role)).toEqual([world.bob]);
      await asSuperuser([sql(give)]);
      await until('the role to come back', async () => {
        try {
          return (await pooler.ask(login(role)))['current_user'] === role;
        } catch {
          return false;
        }
      });
    },
  );

  test('dropped: its sessions end', async (t) => {
    const role = await grantedRole('leaver');
    const pooler = await start(t, { turnstile: options });
    const client = await enter(t, pooler, lives(60, role));
    expect(await one(client)).toBe('TDCZ');
    await asSuperuser([`DROP ROLE ${role}`]);
    expect((await client.expectFatal()).message).toBe(
      `terminating connection because role "${role}" may no longer log in`,
    );
    expect((await pooler.refusal(login(role))).code).toBe('28000');
  });

  test('nologin_roles = allow lets NOLOGIN roles be', async (t) => {
    const role = await grantedRole('group');
    const pooler = await start(t, { turnstile: { ...options, nologin_roles: 'allow' } });
    const client = await enter(t, pooler, lives(60, role));
    await asSuperuser([`ALTER ROLE ${role} NOLOGIN`]);
    expect((await client.query('SELECT pg_sleep(0.9)')).types).toBe('TDCZ');
    expect(await one(client)).toBe('TDCZ');
  });

  test('of the subject: the session of its agent ends, and no other begins', async (t) => {
    const [agent, human] = [await grantedRole('agent'), await grantedRole('human')];
    const pooler = await start(t, { turnstile: options });
    const delegated = { sub: human, act: { sub: agent } };
    const client = await enter(t, pooler, lives(60, human, delegated));
    expect((await client.query('SELECT current_user')).rows).toEqual([[agent]]);
    const own = await enter(t, pooler, lives(60, agent));
    await asSuperuser([`ALTER ROLE ${human} NOLOGIN`]);
    expect((await client.expectFatal()).message).toBe(
      `terminating connection because role "${human}" may no longer log in`,
    );
    expect(await pooler.refusal(login(human, delegated))).toMatchObject({
      code: '28000',
      message: `role "${human}" is not permitted to log in through this pooler`,
    });
    expect(await one(own)).toBe('TDCZ');
    const missing = await pooler.refusal(login(human, { sub: 'nobody_at_all', act: { sub: agent } }));
    expect(missing.code).toBe('28000');
  });

  test('the settings of its last client cannot blind the look-up', async (t) => {
    const role = await grantedRole('blinder');
    const pooler = await start(t, { general: { default_pool_size: 1 }, turnstile: options });
    const client = await enter(t, pooler, lives(60, role));
    await client.query("SET extra_float_digits = -15; SET search_path = ''; SET statement_timeout = '1ms'");
    await asSuperuser([`ALTER ROLE ${role} VALID UNTIL '${new Date(Date.now() - 1_000).toISOString()}'`]);
    expect((await client.expectFatal()).code).toBe('57P01');
  });

  test('is found although its clients keep every connection, of which the watch takes none', async (t) => {
    const role = await grantedRole('busy');
    const pooler = await start(t, {
      general: { default_pool_size: 1 },
      turnstile: { ...options, expiry_grace: 500 },
    });
    const holder = await enter(t, pooler, lives(60, role));
    const waiting = await enter(t, pooler, lives(60, role));
    await holder.query('BEGIN');
    waiting.sendQuery('SELECT 1');
    await holder.query('SELECT pg_sleep(2)');
    await holder.query('COMMIT');
    expect((await waiting.readReply()).types).toBe('TDCZ');
    await waiting.query('BEGIN');
    holder.sendQuery('SELECT 1');
    await asSuperuser([`ALTER ROLE ${role} NOLOGIN`]);
    expect((await holder.expectFatal()).code).toBe('57P01');
    expect((await waiting.expectFatal()).code).toBe('57P01');
  });

  test('is found in session mode although every connection has its client', async (t) => {
    const role = await grantedRole('sitting');
    const pooler = await start(t, {
      general: { default_pool_size: 1, pooler_mode: 'session' },
      turnstile: options,
    });
    const client = await enter(t, pooler, lives(60, role));
    expect(await one(client)).toBe('TDCZ');
    await asSuperuser([`ALTER ROLE ${role} NOLOGIN`]);
    expect((await client.expectFatal()).code).toBe('57P01');
  });
});

test('what is open in the configuration is said before anybody comes, and does not hold a start up', async (t) => {
  const open = await start(t);
  expect(open.logged('tokens of any issuer are accepted')).toHaveLength(1);
  expect(open.logged('tokens for any audience are accepted')).toHaveLength(1);
  const shut = await start(t, {
    general: { jwt_audience: 'app' },
    turnstile: { jwt_issuer: 'https://issuer.example' },
  });
  expect(shut.lines.filter((line) => String(line.message).includes('are accepted'))).toEqual([]);
});
