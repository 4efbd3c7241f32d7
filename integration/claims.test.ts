/**
 * Claims as settings, on a real PostgreSQL and its replica: every statement of a session sees the claims of its own
 * token and of no other, whatever it does to its settings, and signed claims cannot be forged at all.
 */
import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../src/protocol/message-writer.ts';
import { claimsSql } from '../src/provision/claims-sql.ts';
import { asSuperuser, connectSuperuser, sharedPostgres } from '../test/support/postgres.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import { databaseRow, type PoolerOverrides, type RunningPooler, type TomlTable } from './support/pooler.ts';
import { makeWorld, PASSWORD, type PoolKind, until, untilPoolsRest, type World } from './support/world.ts';

const CANARY = 'canary-claim-77f3';
const MAC_KEY = 'a key of at least thirty-two bytes, for tests';
const SETTINGS: TomlTable[] = [
  { claim: 'tenant', setting: 'app.tenant' },
  { claim: 'user.age', setting: 'app.age' },
  { claim: 'user.vip', setting: 'app.vip' },
  { claim: 'groups', setting: 'app.groups' },
];
const TENANT = "SELECT current_setting('app.tenant', true)";
const SUBJECT = "SELECT nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub'";
/** Of a token and of nobody: everything that is set for one. */
const ALL =
  "SELECT current_setting('request.jwt.claims', true), current_setting('app.tenant', true), current_setting('app.age', true)";
/** Code whose text does not show what it sets. */
const forge = (name: string, value: string): string =>
  `DO $$ BEGIN PERFORM pg_catalog.set_config('${name.slice(0, 3)}' || '${name.slice(3)}', '${value}', false); END $$`;

let world: World;

beforeAll(async () => {
  world = await makeWorld();
  await asSuperuser(
    [
      `CREATE TABLE public.documents (tenant text, body text)`,
      `INSERT INTO public.documents SELECT 't' || (n % 5), 'of t' || (n % 5) FROM generate_series(1, 50) AS n`,
      `ALTER TABLE public.documents ENABLE ROW LEVEL SECURITY`,
      `CREATE POLICY tenant ON public.documents USING (tenant = current_setting('app.tenant', true))`,
      `GRANT ALL ON public.documents TO PUBLIC`,
      `CREATE FUNCTION public.poison(name text, value text) RETURNS text LANGUAGE plpgsql AS
       $$ BEGIN RETURN set_config(name, value, false); END $$`,
    ],
    { database: world.database },
  );
});

afterAll(async () => {
  await world.drop();
});

/** Everybody who enters as alice, over one server connection. */
async function open(general: TomlTable = {}, more: PoolerOverrides = {}): Promise<RunningPooler> {
  return await world.pooler(
    'set_role',
    { default_pool_size: 1, ...general },
    { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more },
  );
}

async function enter(
  pooler: RunningPooler,
  claims: Record<string, unknown>,
  parameters: Record<string, string> = {},
): Promise<ScriptedClient> {
  return await ScriptedClient.login({
    port: pooler.port,
    user: world.alice,
    password: await world.issuer.token(world.alice, { claims }),
    database: world.database,
    parameters,
  });
}

async function value(client: ScriptedClient, sql: string): Promise<string | null | undefined> {
  const reply = await client.query(sql);
  expect(reply.error, sql).toBeNull();
  return reply.rows.at(-1)?.[0];
}

/** The server connections that exist now. */
function serverCount(pooler: RunningPooler): number {
  return [...pooler.worker.view.pools.pools()].reduce((sum, pool) => sum + pool.serverCount, 0);
}

describe.each(['set_role', 'static'] as const)('claims in a %s pool', (kind: PoolKind) => {
  const more = (pool: TomlTable = {}): PoolerOverrides =>
    kind === 'set_role'
      ? {}
      : { users: [{ name: world.alice, password: PASSWORD, database: world.database, ...pool }] };

  test('are in force for each statement of interleaved clients over one server connection', async () => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    try {
      const clients = [];
      for (let n = 0; n < 5; n++) {
        clients.push(
          await enter(pooler, { tenant: `t${n}`, user: { age: n, vip: n % 2 === 0 }, groups: ['x'] }),
        );
      }
      // One after the other, then all at once: waiters get the connection with another's claims on it.
      for (let round = 0; round < 3; round++) {
        for (const [n, client] of clients.entries()) expect(await value(client, TENANT)).toBe(`t${n}`);
      }
      const sql = 'SELECT DISTINCT body FROM public.documents';
      for (let round = 0; round < 20; round++) {
        const rows = await Promise.all(
          clients.map(async (client, n) => {
            const reply =
              (round + n) % 2 === 0
                ? await client.query(sql)
                : await client.extended({ sql, statement: 's', prepared: round > 1 });
            return reply.rows;
          }),
        );
        for (const [n, seen] of rows.entries()) expect(seen).toEqual([[`of t${n}`]]);
      }
      const first = clients[1]!;
      expect(
        await value(
          first,
          "SELECT current_setting('app.age') || current_setting('app.vip') || current_setting('app.groups')",
        ),
      ).toBe('1false');
      expect(serverCount(pooler)).toBe(1);
      for (const client of clients) await client.terminate();
    } finally {
      await pooler.stop();
    }
  });

  test('are what they were after everything that takes settings away', async () => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    try {
      const one = await enter(pooler, { tenant: 't1' }, { application_name: 'mine' });
      const two = await enter(pooler, { tenant: 't2' });
      const tricks: string[][] = [
        ['RESET ALL'],
        ['DISCARD ALL'],
        ['BEGIN', 'RESET ALL', TENANT, 'ROLLBACK'],
        ['BEGIN', 'RESET ALL', 'COMMIT'],
        ['BEGIN', 'SELECT 1/0', 'ROLLBACK'],
        ['BEGIN', 'SAVEPOINT a', 'RESET ALL', 'ROLLBACK TO a', TENANT, 'COMMIT'],
        ['BEGIN', forge('app.tenant', 't2'), 'ROLLBACK'],
        ['BEGIN', forge('app.tenant', 't2'), 'COMMIT'],
        ['BEGIN', `${forge('app.tenant', 't2')}; SAVEPOINT a`, 'SELECT 1', 'ROLLBACK TO a', 'COMMIT'],
        [forge('app.tenant', 't2')],
        ["SELECT public.poison('app.tenant', 't2')"],
        ['BEGIN', "SELECT public.poison('app.tenant', 't2')", TENANT, 'SELECT 1/0', 'COMMIT'],
        ['DO $$ BEGIN EXECUTE $x$DEALLOCATE ALL$x$; END $$'],
        ['BEGIN; SELECT 1; ROLLBACK; SELECT 2'],
      ];
      for (const trick of tricks) {
        for (const sql of trick) await one.query(sql);
        const seen = [await value(one, TENANT), await value(two, TENANT), await value(one, TENANT)];
        expect(seen, trick.join('; ')).toEqual(['t1', 't2', 't1']);
        expect(await value(one, 'SHOW application_name'), trick.join('; ')).toBe('mine');
        for (const sql of trick) await one.query(sql);
        expect(await value(two, TENANT), trick.join('; ')).toBe('t2');
      }
      await one.terminate();
      await two.terminate();
    } finally {
      await pooler.stop();
    }
  });

  test('are there for what follows a RESET ALL or DISCARD ALL inside one request of the extended protocol', async () => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    try {
      const client = await enter(pooler, { tenant: 't1' });
      for (const sql of ['RESET ALL', 'DISCARD ALL']) {
        client.send(
          encodeParse('', sql),
          encodeBind('', '', []),
          encodeExecute(''),
          ...(sql === 'DISCARD ALL' ? [SYNC] : []),
          encodeParse('', TENANT),
          encodeBind('', '', []),
          encodeExecute(''),
          SYNC,
        );
        if (sql === 'DISCARD ALL') await client.readReply();
        const reply = await client.readReply();
        expect(reply.error).toBeNull();
        expect(reply.rows).toEqual([['t1']]);
      }
      await client.terminate();
    } finally {
      await pooler.stop();
    }
  });

  test('nothing that code left behind reaches the next client, not even under names that are nowhere configured', async () => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    try {
      const one = await enter(pooler, { tenant: 't1' });
      const two = await enter(pooler, { tenant: 't2' }, { application_name: 'two' });
      const names = ['request.jwt.claim.sub', 'request.jwt.claim.other', 'app.other', 'search_path'];
      for (const name of names) expect((await one.query(forge(name, 'evil'))).error).toBeNull();
      const seen = names.map((name) => `coalesce(current_setting('${name}', true), '')`).join(` || '|' || `);
      expect(await value(two, `SELECT ${seen}`)).toBe('|||"$user", public');
      expect(await value(two, 'SHOW application_name')).toBe('two');
      await one.terminate();
      await two.terminate();
    } finally {
      await pooler.stop();
    }
  });

  test.each([
    ['SET', (name: string) => [`SET ${name} = 'forged'`]],
    [
      'SET in capitals and quotes',
      (name: string) => [
        `SET ${name
          .split('.')
          .map((part) => `"${part.toUpperCase()}"`)
          .join('.')} TO 'forged'`,
      ],
    ],
    ['SET LOCAL', (name: string) => ['BEGIN', `SET LOCAL ${name} = 'forged'`, 'ROLLBACK']],
    ['RESET', (name: string) => [`RESET ${name}`]],
    ['set_config', (name: string) => [`SELECT set_config('${name}', 'forged', false)`]],
    [
      'set_config with a schema, local',
      (name: string) => [`SELECT pg_catalog.set_config('${name.toUpperCase()}', 'forged', true)`],
    ],
    [
      'set_config with a joined name',
      (name: string) => [`SELECT set_config('${name.slice(0, 4)}' || '${name.slice(4)}', 'forged', false)`],
    ],
    [
      'set_config with a computed name',
      (name: string) => [`SELECT set_config(reverse('${[...name].reverse().join('')}'), 'forged', false)`],
    ],
    ['behind another statement', (name: string) => [`SELECT 1; SET ${name} = 'forged'`]],
    ['PREPARE', (name: string) => [`PREPARE p AS SELECT set_config('${name}', 'forged', false)`]],
    ['DO', (name: string) => [`DO $$ BEGIN PERFORM set_config('${name}', 'forged', false); END $$`]],
    ['DO with SET', (name: string) => [`DO $$ BEGIN SET ${name} = 'forged'; END $$`]],
    ['ALTER ROLE', (name: string) => [`ALTER ROLE CURRENT_USER SET ${name} = 'forged'`]],
    ['ALTER DATABASE', (name: string) => [`ALTER DATABASE ${world.database} SET ${name} = 'forged'`]],
    [
      'a function with a SET clause',
      (name: string) => [
        `CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET ${name} = 'forged' AS 'SELECT 1'`,
      ],
    ],
    ['a text that is no SQL here', (name: string) => [`SET ${name} = 'forged' SOMEHOW`]],
  ])('the client cannot set them: %s', async (_, texts) => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    try {
      for (const name of [
        'request.jwt.claims',
        'request.jwt.claim.sub',
        'request.jwt.anything',
        'turnstile.mac',
        'app.tenant',
      ]) {
        const client = await enter(pooler, { tenant: 't1' });
        for (const extended of [false, true]) {
          const errors: (string | undefined)[] = [];
          for (const sql of texts(name)) {
            const reply =
              extended && !sql.includes(';') ? await client.extended({ sql }) : await client.query(sql);
            errors.push(reply.error?.code);
          }
          expect(errors, `${name} extended ${extended}`).toContain('42501');
        }
        expect(await value(client, TENANT)).toBe('t1');
        await client.terminate();
      }
    } finally {
      await pooler.stop();
    }
  });

  test.each([
    ['a parameter', { 'App.Tenant': 't2' }],
    ['the whole', { 'request.jwt.claims': '{}' }],
    ['options', { options: '-c app.tenant=t2' }],
    ['options, long', { options: '--request.jwt.claim.sub=x' }],
  ])('nor at login: %s', async (_, parameters) => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    try {
      await expect(enter(pooler, { tenant: 't1' }, parameters as Record<string, string>)).rejects.toThrow(
        /42501 permission denied to set parameter/,
      );
    } finally {
      await pooler.stop();
    }
  });

  test('hold in session mode, and are gone with the session', async () => {
    const pooler = await open(
      { pooler_mode: 'session' },
      { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() },
    );
    try {
      for (const tenant of ['t1', 't2', 't1']) {
        const client = await enter(pooler, { tenant });
        for (const sql of ['SELECT 1', forge('app.tenant', 't9'), 'RESET ALL', 'DISCARD ALL', 'SELECT 1/0']) {
          await client.query(sql);
          expect(await value(client, TENANT), sql).toBe(tenant);
        }
        await client.terminate();
        await untilPoolsRest(pooler);
      }
      const bare = await enter(pooler, {});
      expect(await value(bare, TENANT)).toBe('');
      await bare.terminate();
    } finally {
      await pooler.stop();
    }
  });

  test('no text of PostgreSQL or of ours shows one', async () => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    const superuser = await connectSuperuser();
    try {
      const client = await enter(pooler, { tenant: CANARY, more: CANARY });
      const hex = Buffer.from(CANARY).toString('hex');
      for (let n = 0; n < 20; n++) {
        client.send(encodeQuery(n % 2 === 0 ? 'SELECT 1' : forge('app.x', '1')));
        const { rows } = await superuser.query<{ query: string }>(
          'SELECT query FROM pg_catalog.pg_stat_activity',
        );
        for (const { query } of rows) {
          expect(query).not.toContain(CANARY);
          expect(query).not.toContain(hex);
        }
        await client.readReply();
      }
      expect(await value(client, TENANT)).toBe(CANARY);
      const logged = JSON.stringify(pooler.log);
      expect(logged).not.toContain(CANARY);
      expect(logged).not.toContain(hex);
      await client.terminate();
    } finally {
      await superuser.end();
      await pooler.stop();
    }
  });

  test('values of any kind arrive as they are, or not at all', async () => {
    const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS }, ...more() });
    try {
      const cases: [unknown, string][] = [
        ['it\'s \\ "x" {y}, NULL', 'it\'s \\ "x" {y}, NULL'],
        ['Жанна ☃ 𝄞', 'Жанна ☃ 𝄞'],
        [-7, '-7'],
        [9007199254740991, '9007199254740991'],
        [2 ** 53 + 2, ''],
        [1.5, ''],
        [true, 'true'],
        [null, ''],
        [['t1'], ''],
        [{ t: 1 }, ''],
        ['nul\u0000', ''],
        ['\ud800', ''],
      ];
      for (const [claim, expected] of cases) {
        const client = await enter(pooler, { tenant: claim, city: 'Zürich ☃' });
        expect(await value(client, TENANT), JSON.stringify(claim)).toBe(expected);
        const city = await client.query("SELECT current_setting('request.jwt.claims')::jsonb ->> 'city'");
        // PostgreSQL's jsonb takes neither NUL nor half a character, wherever it stands.
        if (typeof claim === 'string' && expected === '') expect(city.error?.code).toMatch(/^22/);
        else expect(city.rows).toEqual([['Zürich ☃']]);
        // A client's own encoding is not the encoding of the claims.
        await client.query("SET client_encoding = 'LATIN1'");
        await client.query(forge('app.x', '1'));
        expect(await value(client, `SELECT octet_length(current_setting('app.tenant'))`)).toBe(
          String(Buffer.byteLength(expected)),
        );
        await client.terminate();
      }
    } finally {
      await pooler.stop();
    }
  });
});

test('a static session of the same pool carries no claims, and may use those names for itself', async () => {
  const pooler = await open(
    { passthrough_auth: 'disabled' },
    {
      arrays: { 'turnstile.claim_settings': SETTINGS },
      users: [{ name: world.alice, password: PASSWORD, database: world.database }],
    },
  );
  try {
    const token = await enter(pooler, { tenant: 't1' });
    const plain = await ScriptedClient.login({
      port: pooler.port,
      user: world.alice,
      password: PASSWORD,
      database: world.database,
    });
    expect([...pooler.worker.view.pools.pools()]).toHaveLength(1);
    for (let round = 0; round < 3; round++) {
      expect(await value(token, TENANT)).toBe('t1');
      expect((await plain.query(ALL)).rows[0]?.every((cell) => cell === '' || cell === null)).toBe(true);
    }
    // As PostgREST does behind a password of its own.
    expect((await plain.query('SET request.jwt.claims = \'{"sub": "of mine"}\'')).error).toBeNull();
    for (let round = 0; round < 3; round++) {
      expect(await value(plain, SUBJECT)).toBe('of mine');
      expect(await value(token, SUBJECT)).toBe(world.alice);
      expect(await value(token, TENANT)).toBe('t1');
    }
    expect((await plain.query(forge('app.tenant', 't2'))).error).toBeNull();
    expect(await value(token, TENANT)).toBe('t1');
    await token.terminate();
    await plain.terminate();
  } finally {
    await pooler.stop();
  }
});

test('a statement that a session without token has prepared is judged anew for one with a token', async () => {
  const pooler = await open(
    {},
    {
      arrays: { 'turnstile.claim_settings': SETTINGS },
      users: [{ name: world.alice, password: PASSWORD, database: world.database }],
    },
  );
  try {
    const sql = "SELECT set_config('app.tenant', 't2', false)";
    const plain = await ScriptedClient.login({
      port: pooler.port,
      user: world.alice,
      password: PASSWORD,
      database: world.database,
    });
    expect((await plain.extended({ sql, statement: 'p' })).error).toBeNull();
    const token = await enter(pooler, { tenant: 't1' });
    token.send(encodeParse('p', sql), SYNC);
    expect((await token.readReply()).error?.code).toBe('42501');
    expect((await token.extended({ sql, statement: 'p' })).error?.code).toBe('42501');
    expect(await value(token, TENANT)).toBe('t1');
    await plain.terminate();
    await token.terminate();
  } finally {
    await pooler.stop();
  }
});

test('claims_setting and no rows: "none" sends nothing', async () => {
  const pooler = await open({}, { arrays: {}, turnstile: { claims_setting: 'none' } });
  try {
    const client = await enter(pooler, { tenant: 't1' });
    expect((await client.query(ALL)).rows[0]?.every((cell) => cell === null || cell === '')).toBe(true);
    await client.terminate();
  } finally {
    await pooler.stop();
  }
});

test('a delegated token names its actor and its subject', async () => {
  const pooler = await open();
  try {
    const client = await ScriptedClient.login({
      port: pooler.port,
      user: world.alice,
      password: await world.issuer.token(world.bob, { claims: { act: { sub: world.alice }, tenant: 't1' } }),
      database: world.database,
    });
    expect(
      (
        await client.query(
          "SELECT current_setting('request.jwt.actor'), current_setting('request.jwt.subject')",
        )
      ).rows,
    ).toEqual([[world.alice, world.bob]]);
    const plain = await enter(pooler, {});
    expect(
      await value(
        plain,
        "SELECT current_setting('request.jwt.actor') || current_setting('request.jwt.subject')",
      ),
    ).toBe('');
    await client.terminate();
    await plain.terminate();
  } finally {
    await pooler.stop();
  }
});

test('a new token in place brings its claims, from the next statement on', async () => {
  const pooler = await open();
  try {
    const client = await enter(pooler, { tenant: 't1' });
    expect(await value(client, TENANT)).toBe('t1');
    const token = await world.issuer.token(world.alice, { claims: { tenant: 't2' } });
    expect((await client.query(`SET turnstile.token = '${token}'`)).error).toBeNull();
    expect(await value(client, TENANT)).toBe('t2');
    await client.query('BEGIN');
    expect((await client.query(`SET turnstile.token = '${token}x'`)).error?.code).toBe('28P01');
    await client.query('ROLLBACK');
    expect(await value(client, TENANT)).toBe('t2');
    await client.terminate();
  } finally {
    await pooler.stop();
  }
});

test('a request whose claims cannot be set on a connection never runs with the claims of another', async () => {
  // Cancels hit the moment at which claims are exchanged: whatever happens, nobody writes under another's name.
  const pooler = await open({}, { arrays: { 'turnstile.claim_settings': SETTINGS } });
  const superuser = await connectSuperuser({ database: world.database });
  try {
    await superuser.query(
      `CREATE TABLE public.written (claimed text, tenant text DEFAULT current_setting('app.tenant', true))`,
    );
    await superuser.query('GRANT ALL ON public.written TO PUBLIC');
    let going = true;
    const canceller = (async (): Promise<void> => {
      // Not those that log in: their failure would keep everybody waiting.
      const sql = `SELECT pg_cancel_backend(pid) FROM pg_stat_activity
        WHERE usename = $1 AND backend_start < clock_timestamp() - interval '50 ms'`;
      while (going) await superuser.query(sql, [world.service]);
    })();
    let lostCount = 0;
    const write = async (tenant: string): Promise<void> => {
      let client: ScriptedClient | null = null;
      const deadlineMs = performance.now() + 5_000;
      for (let n = 0; n < 200 || (lostCount < 5 && performance.now() < deadlineMs); n++) {
        try {
          client ??= await enter(pooler, { tenant });
          await client.query(`INSERT INTO public.written (claimed) VALUES ('${tenant}')`);
        } catch {
          client = null;
          lostCount++;
        }
      }
      await client?.terminate();
    };
    await Promise.all(['t1', 't2', 't3'].map((tenant) => write(tenant)));
    going = false;
    await canceller;
    const { rows } = await superuser.query(
      'SELECT claimed, tenant, count(*) FROM public.written GROUP BY 1, 2',
    );
    expect(rows.length).toBeGreaterThan(0);
    for (const row of rows as { claimed: string; tenant: string }[])
      expect([row.claimed, '']).toContain(row.tenant);
  } finally {
    await superuser.end();
    await pooler.stop();
  }
});

describe('signed claims', () => {
  let pooler: RunningPooler;
  let hasReplica = false;
  const signed = (key: string, id: string): TomlTable => ({ claims_mac_key: key, claims_mac_key_id: id });

  beforeAll(async () => {
    const { replica } = sharedPostgres();
    hasReplica = replica !== null;
    pooler = await open(
      { default_pool_size: 1 },
      {
        arrays: { 'turnstile.claim_settings': SETTINGS },
        turnstile: signed(MAC_KEY, 'k1'),
        ...(replica !== null && {
          databases: [databaseRow('onreplica', { database_name: world.database }, replica)],
        }),
      },
    );
    await install(pooler);
    await asSuperuser(
      [
        'CREATE TABLE public.vault (tenant text, body text)',
        `INSERT INTO public.vault SELECT 't' || (n % 3), 'of t' || (n % 3) FROM generate_series(1, 300) AS n`,
        'ALTER TABLE public.vault ENABLE ROW LEVEL SECURITY',
        `CREATE POLICY tenant ON public.vault USING (tenant = (SELECT turnstile.claim('tenant')))`,
        'GRANT ALL ON public.vault TO PUBLIC',
      ],
      { database: world.database },
    );
  });

  afterAll(async () => {
    await pooler.stop();
  });

  test('a policy sees the tenant of each of two interleaved clients, and the script can be run again', async () => {
    await install(pooler);
    const one = await enter(pooler, { tenant: 't1', user: { city: 'Zürich ☃' } });
    const two = await enter(pooler, { tenant: 't2' });
    for (let round = 0; round < 5; round++) {
      expect(await value(one, "SELECT string_agg(DISTINCT body, ',') FROM public.vault")).toBe('of t1');
      expect(await value(two, "SELECT string_agg(DISTINCT body, ',') FROM public.vault")).toBe('of t2');
    }
    expect(await value(one, "SELECT turnstile.claim('user.city')")).toBe('Zürich ☃');
    expect(await value(one, "SELECT turnstile.claims() ->> 'sub'")).toBe(world.alice);
    await one.terminate();
    await two.terminate();
  });

  test.each([
    ['other claims with the right signature', () => forge('request.jwt.claims', '{"tenant": "t2"}')],
    ['no signature', () => forge('turnstile.mac', '')],
    ['a signature of an unknown key', () => forge('turnstile.mac', `k9.${'0'.repeat(64)}`)],
    ['a signature of zeros', () => forge('turnstile.mac', `k1.${'0'.repeat(64)}`)],
    ['a signature without a key', () => forge('turnstile.mac', 'k1.')],
    ['no claims', () => forge('request.jwt.claims', '')],
  ])('forged by code that no parser sees through: %s', async (_, code) => {
    const client = await enter(pooler, { tenant: 't1' });
    await client.query('BEGIN');
    // In one string, since the claims come back before the next request.
    const reply = await client.query(`${code()}; SELECT count(*) FROM public.vault`);
    expect(reply.error?.code).toBe('42501');
    await client.query('ROLLBACK');
    expect(await value(client, 'SELECT count(*) FROM public.vault')).toBe('100');
    await client.terminate();
  });

  test('a signature that was copied is of no use on another connection', async () => {
    const wide = await open({ default_pool_size: 2 }, { turnstile: signed(MAC_KEY, 'k1') });
    try {
      const one = await enter(wide, { tenant: 't1' });
      const two = await enter(wide, { tenant: 't2' });
      await one.query('BEGIN');
      await two.query('BEGIN');
      const [claims, mac] = (
        await one.query("SELECT current_setting('request.jwt.claims'), current_setting('turnstile.mac')")
      ).rows[0] as [string, string];
      expect(mac).toMatch(/^k1\.[0-9a-f]{64}$/);
      const copy = `${forge('request.jwt.claims', claims)}; ${forge('turnstile.mac', mac)}; SELECT count(*) FROM public.vault`;
      expect((await one.query(copy)).error).toBeNull();
      expect((await two.query(copy)).error?.code).toBe('42501');
      await one.terminate();
      await two.terminate();
    } finally {
      await wide.stop();
    }
  });

  test('a session without a token is refused, and nobody but the owner reads a key', async () => {
    const direct = await world.direct(world.alice);
    expect((await direct.query('SELECT count(*) FROM public.vault')).error?.code).toBe('42501');
    expect((await direct.query('SELECT * FROM turnstile.mac_key')).error?.code).toBe('42501');
    await direct.terminate();
    const client = await enter(pooler, { tenant: 't1' });
    expect((await client.query('SELECT * FROM turnstile.mac_key')).error?.code).toBe('42501');
    // A search_path of evil intent changes nothing in the function.
    await client.query('CREATE SCHEMA IF NOT EXISTS evil');
    await client.query(
      "CREATE OR REPLACE FUNCTION evil.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'",
    );
    await client.query('SET search_path = evil, pg_catalog, public');
    expect(await value(client, 'SELECT count(*) FROM public.vault')).toBe('100');
    await client.terminate();
  });

  test('two keys overlap by their ids', async () => {
    const next = await open(
      {},
      { turnstile: signed(`${MAC_KEY}, the next one, and longer than a block of sha-256`, 'k2') },
    );
    try {
      const client = await enter(next, { tenant: 't2' });
      expect((await client.query('SELECT count(*) FROM public.vault')).error?.code).toBe('42501');
      await install(next);
      expect(await value(client, 'SELECT count(*) FROM public.vault')).toBe('100');
      const old = await enter(pooler, { tenant: 't1' });
      expect(await value(old, 'SELECT count(*) FROM public.vault')).toBe('100');
      await client.terminate();
      await old.terminate();
    } finally {
      await next.stop();
    }
  });

  test('the key reaches no text of a statement', async () => {
    const script = claimsSql(pooler.config);
    expect(script).not.toContain(MAC_KEY);
    const withoutRow = script.replace(/^k1\t.*$/m, '');
    expect(withoutRow).not.toMatch(/[0-9a-f]{64}/);
  });

  test('a replica checks them as well', async (context) => {
    if (!hasReplica) return context.skip();
    const superuser = await connectSuperuser({ replica: true, database: world.database });
    await until(async () => {
      const { rows } = await superuser.query(
        "SELECT to_regprocedure('turnstile.claim(text)') IS NOT NULL AND to_regclass('public.vault') IS NOT NULL AS there",
      );
      return (rows[0] as { there: boolean }).there;
    }, 'the replica has the functions');
    await superuser.end();
    const client = await ScriptedClient.login({
      port: pooler.port,
      user: world.alice,
      password: await world.issuer.token(world.alice, { claims: { tenant: 't1' } }),
      database: 'onreplica',
    });
    expect(await value(client, 'SELECT pg_is_in_recovery()')).toBe('t');
    expect(await value(client, 'SELECT count(*) FROM public.vault')).toBe('100');
    const reply = await client.query(
      `${forge('request.jwt.claims', '{"tenant": "t2"}')}; SELECT count(*) FROM public.vault`,
    );
    expect(reply.error?.code).toBe('42501');
    await client.terminate();
  });
});

/** Runs the script as a user would, with psql where there is one. */
async function install(pooler: RunningPooler): Promise<void> {
  await runScript(claimsSql(pooler.config));
}

async function runScript(script: string): Promise<void> {
  const { primary, superuser, password } = sharedPostgres();
  try {
    execFileSync('psql', ['--no-psqlrc', '--set', 'ON_ERROR_STOP=1', '--dbname', world.database], {
      input: script,
      env: {
        ...process.env,
        PGHOST: primary.host,
        PGPORT: String(primary.port),
        PGUSER: superuser,
        PGPASSWORD: password,
      },
      stdio: ['pipe', 'ignore', 'pipe'],
    });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    await withoutPsql(script);
  }
}

/** What psql makes of the script: its own commands left out, the rows of COPY sent as COPY data. */
async function withoutPsql(script: string): Promise<void> {
  const { primary, superuser, password } = sharedPostgres();
  const client = await ScriptedClient.login({
    ...primary,
    user: superuser,
    password,
    database: world.database,
  });
  const parts = script.replaceAll(/^\\set .*$/gm, '').split(/^COPY (.*);\n([\s\S]*?)^\\\.$/m);
  const [before, copy, rows, after] = parts as [string, string, string, string];
  expect((await client.query(before)).error).toBeNull();
  client.send(encodeQuery(`COPY ${copy}`));
  await client.expect('G');
  const data = Buffer.from(rows);
  const head = Buffer.alloc(5);
  head.write('d');
  head.writeInt32BE(data.length + 4, 1);
  client.send(head, data, Buffer.from([0x63, 0, 0, 0, 4]));
  expect((await client.readReply()).error).toBeNull();
  expect((await client.query(after)).error).toBeNull();
  await client.terminate();
}
