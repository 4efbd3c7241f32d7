/** The token as a password: keys of three kinds, psql and pg, every bad token, and whose claim decides. */
import { generateKeyPairSync, sign } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ed25519, type KeyPair, otherRsa, p256, rsa, signParts } from '../test/auth/support.ts';
import { createRole } from '../test/support/postgres.ts';
import { ScriptedClient } from '../test/support/scripted-client.ts';
import {
  claimsFor,
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
  secretToken,
  serverSessions,
  startLoginPooler,
  type Table,
  until,
  type World,
} from './support/login-support.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(async () => {
  expectNoSecrets();
  cleanUp();
  await world.drop();
});

/** A pooler that takes tokens of the RSA key, provisions roles, and is changed as a test wants. */
function start(files: PoolerFiles = {}, keys: KeyPair = rsa): Promise<LoginPooler> {
  return startLoginPooler({
    databases: [world.row()],
    ...files,
    general: world.jwt({ jwt_public_key_file: publicKeyFile(keys), ...files.general }),
  });
}

const login = (user: string, password: string, more: Table = {}): Table => ({
  user,
  password,
  database: world.database,
  ...more,
});

describe.each([
  ['RSA', rsa, 'RS256'],
  ['EC', p256, 'ES256'],
  ['Ed25519', ed25519, 'EdDSA'],
])('a token by an %s key', (_, keys, algorithm) => {
  let pooler: LoginPooler;
  beforeAll(async () => {
    pooler = await start({}, keys);
  });
  afterAll(() => pooler.stop());

  test('logs pg in as the role, with the service user as the session user, and says so in the log', async () => {
    const from = pooler.lines.length;
    const token = mint(keys, world.alice, { jti: 'id-1', iss: 'https://issuer.example' }, { kid: 'k9' });
    const row = await pooler.ask(login(world.alice, token));
    expect(row).toEqual({
      session_user: world.service,
      current_user: world.alice,
      database: world.database,
    });
    await until('the end of the session', () => pooler.logged('client disconnected', from).length === 1);
    const [line, ...more] = pooler.logged('client logged in', from);
    expect(more).toEqual([]);
    expect(line).toMatchObject({
      role: world.alice,
      database: world.database,
      method: 'jwt',
      tls: false,
      iss: 'https://issuer.example',
      sub: world.alice,
      jti: 'id-1',
      kid: 'k9',
    });
  });

  test.skipIf(!hasPsql)('logs psql in, also as the placeholder user', async () => {
    for (const user of [world.alice, 'jwt']) {
      const sql = "SELECT current_user || '/' || session_user";
      const { code, stdout, stderr } = await psql(
        { port: pooler.port, user, dbname: world.database, password: mint(keys, world.alice) },
        sql,
      );
      expect([code, stdout, stderr]).toEqual([0, `${world.alice}/${world.service}\n`, '']);
    }
  });

  test('of the same kind but another one is refused', async () => {
    const other =
      algorithm === 'RS256'
        ? otherRsa
        : algorithm === 'ES256'
          ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
          : generateKeyPairSync('ed25519');
    const refusal = await pooler.refusal(login(world.alice, mint(other, world.alice)));
    expect(refusal.code).toBe('28P01');
    expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'bad_signature', alg: algorithm });
  });
});

describe('a bad token', () => {
  let pooler: LoginPooler;
  beforeAll(async () => {
    pooler = await start({ general: { jwt_audience: 'here' } });
  });
  afterAll(() => pooler.stop());

  const soon = (): number => Math.floor(Date.now() / 1000);
  const good = (more: Table = {}, header: Table = {}): string =>
    mint(rsa, world.alice, { aud: 'here', ...more }, header);
  const raw = (header: unknown, claims: unknown): string =>
    secretToken(signParts(header, claims, rsa.privateKey));
  const withClaimText = (text: string): string =>
    raw({ alg: 'RS256' }, JSON.stringify(claimsFor(world.alice, { aud: 'here' })).replace('{', `{${text},`));

  const cases: [string, () => string, reason: string][] = [
    ['that is empty', () => '', 'empty_token'],
    ['that is a password', () => newPassword(), 'not_jwt'],
    ['of two parts', () => good().split('.').slice(0, 2).join('.'), 'not_jwt|malformed'],
    ['of four parts', () => `${good()}.x`, 'not_jwt|malformed'],
    ['with an empty signature', () => `${good().split('.').slice(0, 2).join('.')}.`, 'malformed|not_jwt'],
    ['with a word in front', () => `Bearer ${good()}`, 'not_jwt|non_canonical|malformed'],
    ['with a line end', () => `${good()}\n`, 'non_canonical'],
    ['with padding', () => `${good()}==`, 'non_canonical'],
    ['in the other base64 alphabet', () => `${good().slice(0, -3)}+/A`, 'non_canonical'],
    ['past 16 KiB', () => good({ pad: 'x'.repeat(17_000) }), 'too_large'],
    ['whose header is no JSON', () => raw('nonsense', claimsFor(world.alice, { aud: 'here' })), 'malformed'],
    ['whose payload is a list', () => raw({ alg: 'RS256' }, [1]), 'malformed'],
    ['with alg none', () => raw({ alg: 'none' }, claimsFor(world.alice, { aud: 'here' })), 'alg_not_allowed'],
    [
      'with alg HS256',
      () => raw({ alg: 'HS256' }, claimsFor(world.alice, { aud: 'here' })),
      'alg_not_allowed',
    ],
    ['with an algorithm that is not listed', () => good({}, { alg: 'RS512' }), 'alg_not_allowed'],
    ['of another family than the key', () => good({}, { alg: 'ES256' }), 'key_alg_mismatch'],
    ['that asks for an extension', () => good({}, { crit: ['b64'], b64: false }), 'unexpected_header'],
    ['with a member twice', () => withClaimText('"sub":"x"'), 'duplicate_member'],
    ['by a foreign key', () => mint(otherRsa, world.alice, { aud: 'here' }), 'bad_signature'],
    [
      'with a changed claim',
      () => swapPayload(good(), claimsFor('postgres', { aud: 'here' })),
      'bad_signature',
    ],
    ['that has expired', () => good({ exp: soon() - 1 }), 'expired'],
    ['without exp', () => good({ exp: undefined }), 'exp_missing'],
    ['with exp as text', () => good({ exp: '9999999999' }), 'bad_exp'],
    ['with exp null', () => good({ exp: null }), 'bad_exp|exp_missing'],
    ['with exp 1e999, which reads as for ever', () => infiniteExp(), 'exp_out_of_range'],
    ['that is not yet valid', () => good({ nbf: soon() + 60 }), 'not_yet_valid'],
    ['with nbf as text', () => good({ nbf: 'now' }), 'bad_nbf'],
    ['issued in the future', () => good({ iat: soon() + 60 }), 'iat_in_future'],
    ['without aud', () => good({ aud: undefined }), 'bad_audience'],
    ['with a number as aud', () => good({ aud: 5 }), 'bad_audience'],
    ['with an object as aud', () => good({ aud: { here: 1 } }), 'bad_audience'],
    ['with an empty list as aud', () => good({ aud: [] }), 'bad_audience'],
    ['with aud that holds more than strings', () => good({ aud: ['here', null] }), 'bad_audience'],
    ['for another audience', () => good({ aud: 'there' }), 'bad_audience'],
    ['without sub', () => good({ sub: undefined }), 'bad_role_claim'],
    ['with a number as sub', () => good({ sub: 7 }), 'bad_role_claim'],
    ['with an empty sub', () => good({ sub: '' }), 'bad_role_claim'],
    ['with a list as sub', () => good({ sub: [world.alice] }), 'bad_role_claim'],
    ['with NUL in sub', () => good({ sub: `${world.alice}\0` }), 'bad_role_claim'],
  ];

  test('is always answered by the same bytes, with one log line, and PostgreSQL hears nothing of it', async () => {
    const before = await serverSessions(world.service);
    const answers = new Set<string>();
    for (const [name, token, reason] of cases) {
      const from = pooler.lines.length;
      const client = await ScriptedClient.connect({ port: pooler.port });
      client.sendStartup({ user: world.alice, database: world.database });
      await client.expect('R');
      client.sendPassword(secretToken(token()));
      answers.add((await client.readToEnd()).toString('latin1'));
      const lines = pooler.lines
        .slice(from)
        .filter(({ message }) => /auth_reject|login.refused/.test(message));
      expect(lines, name).toHaveLength(1);
      expect(lines[0], name).toMatchObject({
        level: 'warn',
        message: 'auth_reject',
        code: '28P01',
        startup_user: world.alice,
        database: world.database,
      });
      expect(reason.split('|'), `${name}: ${lines[0]?.['reason']}`).toContain(lines[0]?.['reason']);
    }
    expect([...answers]).toHaveLength(1);
    const [bytes] = answers;
    expect(bytes).toContain(`password authentication failed for user "${world.alice}"`);
    expect(bytes).toContain('FATAL');
    expect(bytes).toContain('28P01');
    expect(await serverSessions(world.service)).toBe(before);
    expect([...pooler.worker.view.pools.pools()]).toEqual([]);
  });

  test('and the good one beside all of them is let in, in a list of audiences and with a fraction in exp', async () => {
    for (const token of [
      good(),
      good({ aud: ['x', 'here'] }),
      good({ exp: soon() + 60.5, nbf: soon() - 1 }),
    ]) {
      expect((await pooler.ask(login(world.alice, token)))['current_user']).toBe(world.alice);
    }
  });

  test.skipIf(!hasPsql)('psql shows the one sentence', async () => {
    const { code, stderr } = await psql(
      { port: pooler.port, user: world.alice, dbname: world.database, password: good({ exp: 1 }) },
      'SELECT 1',
    );
    expect(code).toBe(2);
    expect(stderr).toMatch(
      new RegExp(`FATAL:  password authentication failed for user "${world.alice}"\\n$`),
    );
  });

  function swapPayload(token: string, claims: Table): string {
    const [header, , signature] = token.split('.');
    return `${header}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.${signature}`;
  }

  function infiniteExp(): string {
    const text = JSON.stringify(claimsFor(world.alice, { aud: 'here', exp: 777 })).replace('777', '1e999');
    return raw({ alg: 'RS256' }, text);
  }
});

describe('rules of the configuration', () => {
  test('jwt_algorithms widens and narrows the list', async () => {
    const pooler = await start({ turnstile: { jwt_algorithms: ['RS512'] } });
    const header = Buffer.from('{"alg":"RS512"}').toString('base64url');
    const body = Buffer.from(JSON.stringify(claimsFor(world.alice))).toString('base64url');
    const signature = sign('sha512', Buffer.from(`${header}.${body}`), rsa.privateKey).toString('base64url');
    const token = secretToken(`${header}.${body}.${signature}`);
    expect((await pooler.ask(login(world.alice, token)))['current_user']).toBe(world.alice);
    expect((await pooler.refusal(login(world.alice, mint(rsa, world.alice)))).code).toBe('28P01');
    expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'alg_not_allowed' });
    pooler.stop();
  });

  test('jwt_leeway forgives a clock that is off, on both ends, and no more', async () => {
    const pooler = await start({ turnstile: { jwt_leeway: 30 } });
    const now = Math.floor(Date.now() / 1000);
    for (const claims of [{ exp: now - 20 }, { nbf: now + 20 }, { iat: now + 20 }]) {
      expect((await pooler.ask(login(world.alice, mint(rsa, world.alice, claims))))['current_user']).toBe(
        world.alice,
      );
    }
    for (const claims of [{ exp: now - 40 }, { nbf: now + 45 }, { iat: now + 45 }]) {
      expect((await pooler.refusal(login(world.alice, mint(rsa, world.alice, claims)))).code).toBe('28P01');
    }
    pooler.stop();
  });

  test('jwt_username_claim leads into nested objects, through own members only', async () => {
    const pooler = await start({ general: { jwt_username_claim: 'realm.db.role' } });
    const nested = (value: unknown): string => mint(rsa, 'somebody', { realm: { db: value } });
    const row = await pooler.ask(login(world.bob, nested({ role: world.bob })));
    expect(row['current_user']).toBe(world.bob);
    for (const value of [{ role: [world.bob] }, { 'realm.db.role': world.bob }, [world.bob], world.bob]) {
      expect((await pooler.refusal(login(world.bob, nested(value)))).code).toBe('28P01');
      expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'bad_role_claim' });
    }
    pooler.stop();
    const proto = await start({ general: { jwt_username_claim: 'constructor.name' } });
    expect((await proto.refusal(login('Object', mint(rsa, 'Object')))).code).toBe('28P01');
    proto.stop();
  });

  test('user_match exact: another startup user than the role or a placeholder is refused', async () => {
    const pooler = await start({ turnstile: { placeholder_users: ['token', 'app'] } });
    const token = mint(rsa, world.alice);
    for (const user of [world.alice, 'token', 'app']) {
      expect((await pooler.ask(login(user, token)))['current_user']).toBe(world.alice);
    }
    for (const user of [world.bob, 'jwt', 'postgres']) {
      expect(await pooler.refusal(login(user, token))).toEqual({
        severity: 'FATAL',
        code: '28000',
        message: `role "${user}" is not permitted to log in through this pooler`,
      });
      expect(pooler.logged('auth_reject').at(-1)).toMatchObject({
        reason: 'user_mismatch',
        startup_user: user,
      });
    }
    pooler.stop();
  });

  test('user_match any: the claim alone decides, whoever the client calls itself', async () => {
    const pooler = await start({ turnstile: { user_match: 'any' } });
    for (const user of [world.bob, 'postgres', 'admin', world.service]) {
      const row = await pooler.ask(login(user, mint(rsa, world.alice)));
      expect([row['current_user'], row['session_user']]).toEqual([world.alice, world.service]);
    }
    expect(pooler.logged('client logged in').map((line) => line['role'])).toEqual(
      Array.from({ length: 4 }, () => world.alice),
    );
    pooler.stop();
  });

  test('jwt_user_suffix: users without it prove themselves by SCRAM, and no token ends its rule', async () => {
    const password = newPassword();
    const carol = await createRole('carol', { password });
    const suffix = world.alice.slice(-6);
    const pooler = await start({
      general: { jwt_user_suffix: suffix },
      users: [{ name: carol.name, password, database: world.database }],
    });
    expect((await pooler.ask(login(world.alice, mint(rsa, world.alice))))['current_user']).toBe(world.alice);
    expect((await pooler.ask(login('jwt', mint(rsa, world.alice))))['current_user']).toBe(world.alice);
    expect(await pooler.ask(login(carol.name, password))).toMatchObject({
      session_user: carol.name,
      current_user: carol.name,
    });
    // A token is no password of a SCRAM user, and the rule on the ending holds for the claim too.
    expect((await pooler.refusal(login(carol.name, mint(rsa, carol.name)))).code).toBe('28P01');
    expect((await pooler.refusal(login('jwt', mint(rsa, world.bob)))).code).toBe('28000');
    expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'role_suffix' });
    const client = await ScriptedClient.connect({ port: pooler.port });
    client.sendStartup({ user: 'nobody', database: world.database });
    expect((await client.expect('R')).readInt32BE(0)).toBe(10);
    client.destroy();
    pooler.stop();
    await carol.drop();
  });
});

describe('jwt_user_auto_provision', () => {
  test('off: a token enters only as a user of users.toml, and only the databases of that user', async () => {
    const pooler = await start({
      general: { jwt_user_auto_provision: false },
      databases: [world.row(), world.row({ name: 'other', database_name: world.database })],
      users: [
        { name: world.alice, database: world.database },
        { name: 'everywhere', all_databases: true },
      ],
    });
    expect((await pooler.ask(login(world.alice, mint(rsa, world.alice))))['current_user']).toBe(world.alice);
    expect(await pooler.refusal(login(world.bob, mint(rsa, world.bob)))).toMatchObject({
      code: '28000',
      message: `role "${world.bob}" is not permitted to log in through this pooler`,
    });
    expect(pooler.logged('auth_reject').at(-1)).toMatchObject({ reason: 'role_not_a_user' });
    const denied = { ...login(world.alice, mint(rsa, world.alice)), database: 'other' };
    expect(await pooler.refusal(denied)).toMatchObject({
      code: '42501',
      message: 'permission denied for database "other"',
    });
    pooler.stop();
  });

  test('on: any role the policy lets through; a row of users.toml still bounds its user', async () => {
    const pooler = await start({
      databases: [world.row(), world.row({ name: 'other', database_name: world.database })],
      users: [{ name: world.alice, databases: ['other'] }],
    });
    expect((await pooler.ask(login(world.bob, mint(rsa, world.bob))))['current_user']).toBe(world.bob);
    expect((await pooler.refusal(login(world.alice, mint(rsa, world.alice)))).code).toBe('42501');
    const other = { ...login(world.alice, mint(rsa, world.alice)), database: 'other' };
    expect((await pooler.ask(other))['database']).toBe(world.database);
    pooler.stop();
  });

  test('read-only provisioned users get default_transaction_read_only; users of users.toml do not', async () => {
    const pooler = await start({
      general: { jwt_user_auto_provision_read_only: true },
      users: [{ name: world.alice, database: world.database }],
    });
    const sql = "SELECT current_setting('default_transaction_read_only') AS value";
    expect((await pooler.ask(login(world.bob, mint(rsa, world.bob)), sql))['value']).toBe('on');
    expect((await pooler.ask(login(world.alice, mint(rsa, world.alice)), sql))['value']).toBe('off');
    const client = await pooler.connect(login(world.bob, mint(rsa, world.bob)));
    await expect(client.query('CREATE TABLE pg_temp.t AS SELECT 1; CREATE TABLE t()')).rejects.toMatchObject({
      code: '25006',
    });
    await client.end();
    pooler.stop();
  });

  test('read_only of a database holds for whom a token provisions there, and only there', async () => {
    const row = world.row({ name: 'frozen', database_name: world.database, read_only: true });
    const pooler = await start({ databases: [world.row(), row] });
    const sql = "SELECT current_setting('default_transaction_read_only') AS value";
    const frozen = { ...login(world.alice, mint(rsa, world.alice)), database: 'frozen' };
    expect((await pooler.ask(frozen, sql))['value']).toBe('on');
    expect((await pooler.ask(login(world.alice, mint(rsa, world.alice)), sql))['value']).toBe('off');
    pooler.stop();
  });

  test('an unknown database creates nothing, whatever its name', async () => {
    const pooler = await start();
    const token = mint(rsa, world.alice);
    for (const database of ['nowhere', '../x', 'pgbouncer', 'postgres', 'template1']) {
      expect(await pooler.refusal({ ...login(world.alice, token), database })).toEqual({
        severity: 'FATAL',
        code: '3D000',
        message: `database "${database}" does not exist`,
      });
    }
    expect([...pooler.worker.view.pools.pools()]).toEqual([]);
    expect(await serverSessions(world.service)).toBe(0);
    pooler.stop();
  });

  test('without jwt_server_user it is a fault of the configuration', async () => {
    const general = {
      auth_type: 'jwt',
      jwt_user_auto_provision: true,
      jwt_public_key_file: publicKeyFile(rsa),
    };
    await expect(startLoginPooler({ general, databases: [world.row()] })).rejects.toThrow(
      /pgdog\.toml:\d+: general\.jwt_user_auto_provision: needs jwt_server_user/,
    );
  });

  test('forty logins at once with one token share one pool of its size', async () => {
    const pooler = await start({ general: { default_pool_size: 2 } });
    const token = mint(rsa, world.alice);
    const clients = await Promise.all(
      Array.from({ length: 40 }, () => pooler.connect(login(world.alice, token))),
    );
    const rows = await Promise.all(clients.map((client) => client.query('SELECT current_user AS me')));
    expect(new Set(rows.map(({ rows: [row] }) => row.me))).toEqual(new Set([world.alice]));
    expect(await serverSessions(world.service)).toBeLessThanOrEqual(2);
    expect([...pooler.worker.view.pools.pools()]).toHaveLength(1);
    await Promise.all(clients.map((client) => client.end()));
    pooler.stop();
  });
});
